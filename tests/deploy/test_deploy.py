"""What is shipped in deploy/ holds against the configuration, containerd's rules and itself."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart.command.configuration import Configuration
from headstart.content.sizes import parse_size

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MIRROR = "127.0.0.1:5050"


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def of_kind(path: Path, kind: str) -> dict[str, Any]:
    """The only document of a kind."""
    (found,) = [document for document in documents(path) if document["kind"] == kind]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod specification that is shipped, with the name of its file."""
    for path, kind in [
        (DEPLOY / "kubernetes/daemonset.yaml", "DaemonSet"),
        (DEPLOY / "sidecar/buildkit.yaml", "Deployment"),
        (DEPLOY / "sidecar/buildah.yaml", "Job"),
    ]:
        yield path.name, of_kind(path, kind)["spec"]["template"]["spec"]


def mirror_container(pod: dict[str, Any]) -> dict[str, Any]:
    """The container that runs the mirror."""
    every = [*pod["containers"], *pod.get("initContainers", [])]
    found: dict[str, Any]
    (found,) = [container for container in every if container["name"] == "headstart"]
    return found


def configuration_of(text: str, directory: Path) -> Configuration:
    """A shipped configuration, loaded as the mirror would."""
    file = directory / "config.yaml"
    file.write_text(text)
    return Configuration.load(file, environment={})


PODS = dict(pods())
CONFIGURATIONS = {
    "daemonset": of_kind(DEPLOY / "kubernetes/daemonset.yaml", "ConfigMap")["data"]["config.yaml"],
    "sidecar": (DEPLOY / "sidecar/config.yaml").read_text(),
    "container": (DEPLOY / "container/config.yaml").read_text(),
}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("containerd/certs.d/*/hosts.toml")), ids=str)
def test_hosts_files_send_pulls_only_to_the_default_address(path: Path) -> None:
    hosts = tomllib.loads(path.read_text())
    listen = Configuration.load(ROOT / "config.yaml", environment={}).mirror.listen[0]
    assert str(listen) == MIRROR
    assert list(hosts["host"]) == [f"http://{MIRROR}"]
    host = hosts["host"][f"http://{MIRROR}"]
    assert host["capabilities"] == ["pull", "resolve"]
    assert "override_path" not in host
    assert set(host) <= {"capabilities", "dial_timeout"}


def test_the_default_hosts_file_leaves_the_server_to_the_image_name() -> None:
    assert "server" not in tomllib.loads(
        (DEPLOY / "containerd/certs.d/_default/hosts.toml").read_text()
    )


def test_a_registrys_hosts_file_falls_back_to_that_registry() -> None:
    upstreams = Configuration.load(ROOT / "config.yaml", environment={}).upstreams()
    for path in DEPLOY.glob("containerd/certs.d/*/hosts.toml"):
        if path.parent.name != "_default":
            server = tomllib.loads(path.read_text())["server"]
            assert server == upstreams[path.parent.name].url


def test_containerd_1_is_told_where_the_hosts_files_are() -> None:
    snippet = tomllib.loads((DEPLOY / "containerd/config-1.x.toml").read_text())
    assert snippet["version"] == 2
    registry = snippet["plugins"]["io.containerd.grpc.v1.cri"]["registry"]
    assert registry == {"config_path": "/etc/containerd/certs.d"}


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed")
def test_the_installed_containerd_takes_the_snippet(tmp_path: Path) -> None:
    version = subprocess.run(
        ["containerd", "--version"], capture_output=True, text=True, check=True
    )
    if not re.search(r" v?1\.", version.stdout):
        pytest.skip(f"the snippet is for containerd 1.x, here is {version.stdout.split()[2]}")
    file = tmp_path / "config.toml"
    shutil.copy(DEPLOY / "containerd/config-1.x.toml", file)
    dumped = subprocess.run(
        ["containerd", "--config", file, "config", "dump"],
        capture_output=True,
        text=True,
        check=True,
    )
    plugins = tomllib.loads(dumped.stdout)["plugins"]
    registry = plugins["io.containerd.grpc.v1.cri"]["registry"]
    assert registry["config_path"] == "/etc/containerd/certs.d"


@pytest.mark.parametrize("name", ["snapshotter-1.x.toml", "snapshotter-2.x.toml"])
def test_containerd_finds_the_snapshotter_where_it_listens(name: str, tmp_path: Path) -> None:
    snippet = tomllib.loads((DEPLOY / "containerd" / name).read_text())
    plugin = snippet["proxy_plugins"]["headstart"]
    file = tmp_path / "config.yaml"
    file.write_text("")
    mount = Configuration.load(file, environment={}).mount
    assert plugin["type"] == "snapshot"
    assert plugin["address"] == str(mount.socket)
    if "exports" in plugin:
        assert plugin["exports"]["root"] == str(mount.root)
    plugins = snippet["plugins"]
    cri = plugins.get("io.containerd.cri.v1.images")
    cri = cri or plugins["io.containerd.grpc.v1.cri"]["containerd"]
    assert cri["snapshotter"] == "headstart"


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed")
def test_the_installed_containerd_takes_the_snapshotters_snippet(tmp_path: Path) -> None:
    version = subprocess.run(
        ["containerd", "--version"], capture_output=True, text=True, check=True
    )
    if not re.search(r" v?1\.", version.stdout):
        pytest.skip(f"the snippet is for containerd 1.x, here is {version.stdout.split()[2]}")
    file = tmp_path / "config.toml"
    shutil.copy(DEPLOY / "containerd/snapshotter-1.x.toml", file)
    dumped = subprocess.run(
        ["containerd", "--config", file, "config", "dump"],
        capture_output=True,
        text=True,
        check=True,
    )
    taken = tomllib.loads(dumped.stdout)
    assert taken["proxy_plugins"]["headstart"]["address"] == "/run/headstart/snapshotter.sock"
    cri = taken["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("headstart", False)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_shipped_configurations_load_and_say_where_the_cache_is(name: str, tmp_path: Path) -> None:
    configuration = configuration_of(CONFIGURATIONS[name], tmp_path)
    assert [stripe.path for stripe in configuration.cache.stripes] == [Path("/var/cache/headstart")]
    (listen,) = configuration.mirror.listen
    assert str(listen) == ("0.0.0.0:5050" if name == "container" else MIRROR)
    assert "docker.io" in configuration.upstreams()


@pytest.mark.parametrize("name", PODS)
def test_the_mirror_runs_without_root_and_capabilities(name: str) -> None:
    container = mirror_container(PODS[name])
    security = container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    seccomp = security.get("seccompProfile") or PODS[name]["securityContext"]["seccompProfile"]
    assert seccomp == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("name", PODS)
def test_pods_mount_what_they_declare_and_leave_time_to_drain(name: str) -> None:
    pod = PODS[name]
    volumes = {volume["name"] for volume in pod["volumes"]}
    every = [*pod["containers"], *pod.get("initContainers", [])]
    used = {mount["name"] for container in every for mount in container["volumeMounts"]}
    assert used == volumes
    mounts = {mount["name"]: mount["mountPath"] for mount in mirror_container(pod)["volumeMounts"]}
    assert mounts["cache"] == "/var/cache/headstart"
    assert mounts["config"] == "/etc/headstart"
    assert pod["terminationGracePeriodSeconds"] > 30 + 2 * 5
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert parse_size(mirror_container(pod)["resources"]["requests"]["memory"] + "B") >= 2**28
    assert mirror_container(pod)["args"] == ["--config", "/etc/headstart/config.yaml", "serve"]


def test_the_daemonset_serves_its_node() -> None:
    pod = PODS["daemonset.yaml"]
    assert pod["hostNetwork"] is True
    assert pod["dnsPolicy"] == "Default"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["cache"]["hostPath"]["path"] == "/var/cache/headstart"
    for probe, path in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
        request = mirror_container(pod)[probe]["httpGet"]
        assert request == {"host": "127.0.0.1", "port": 5050, "path": path}
    (chown,) = pod["initContainers"]
    assert chown["command"][:2] == ["chown", "10001:10001"]
    assert chown["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}


def test_the_daemonset_is_in_a_namespace_that_it_brings() -> None:
    path = DEPLOY / "kubernetes/daemonset.yaml"
    namespace = of_kind(path, "Namespace")["metadata"]["name"]
    for kind in ("ConfigMap", "DaemonSet"):
        assert of_kind(path, kind)["metadata"]["namespace"] == namespace
    labels = of_kind(path, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert of_kind(path, "DaemonSet")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_sidecars_cache_fits_its_volume(tmp_path: Path) -> None:
    limit = configuration_of(CONFIGURATIONS["sidecar"], tmp_path).cache.max_size
    assert isinstance(limit, int)
    for name in ("buildkit.yaml", "buildah.yaml"):
        volumes = {volume["name"]: volume for volume in PODS[name]["volumes"]}
        assert limit < parse_size(volumes["cache"]["emptyDir"]["sizeLimit"] + "B")


@pytest.mark.parametrize("name", ["buildkit.yaml", "buildah.yaml"])
def test_sidecars_start_before_their_builder(name: str) -> None:
    (sidecar,) = PODS[name]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert any("/readyz" in word for word in sidecar["startupProbe"]["exec"]["command"])


def test_the_kustomization_names_files_and_makes_the_maps_that_pods_mount() -> None:
    kustomization = of_kind(DEPLOY / "sidecar/kustomization.yaml", "Kustomization")
    made = {entry["name"]: entry["files"] for entry in kustomization["configMapGenerator"]}
    for file in [*kustomization["resources"], *made["headstart"], *made["builders"]]:
        assert (DEPLOY / "sidecar" / file).is_file(), file
    for name in ("buildkit.yaml", "buildah.yaml"):
        for volume in PODS[name]["volumes"]:
            if "configMap" in volume:
                keys = {item["key"] for item in volume["configMap"].get("items", [])}
                assert keys <= set(made[volume["configMap"]["name"]])


def test_builders_send_exactly_the_mirrors_upstreams_to_it(tmp_path: Path) -> None:
    upstreams = set(configuration_of(CONFIGURATIONS["sidecar"], tmp_path).upstreams())
    buildkit = tomllib.loads((DEPLOY / "sidecar/buildkitd.toml").read_text())["registry"]
    assert buildkit.pop(MIRROR) == {"http": True}
    assert set(buildkit) == upstreams
    assert all(entry == {"mirrors": [MIRROR]} for entry in buildkit.values())
    conf = tomllib.loads((DEPLOY / "sidecar/registries.conf").read_text())["registry"]
    assert {entry["prefix"] for entry in conf} == upstreams
    for entry in conf:
        assert entry["location"] == entry["prefix"]
        assert entry["mirror"] == [{"location": f"{MIRROR}/{entry['prefix']}", "insecure": True}]


def test_the_sidecars_readme_names_every_file() -> None:
    text = (DEPLOY / "sidecar/README.md").read_text()
    for path in (DEPLOY / "sidecar").iterdir():
        if path.name not in ("README.md", "kustomization.yaml"):
            assert f"`{path.name}`" in text


class Unit(RawConfigParser):
    """A systemd unit: keys keep their case, may stand twice (the last is kept) or be empty."""

    def optionxform(self, optionstr: str) -> str:
        """The key as it is written."""
        return optionstr


def unit(name: str = "headstart") -> Unit:
    """A shipped service."""
    parsed = Unit(strict=False, delimiters=("=",))
    parsed.read(DEPLOY / f"systemd/{name}.service")
    return parsed


def test_the_service_runs_as_its_own_user_without_capabilities() -> None:
    service = unit()["Service"]
    assert service["User"] == service["Group"] == "headstart"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    sysusers = (DEPLOY / "systemd/headstart.sysusers.conf").read_text().split()
    assert sysusers[:2] == ["u", service["User"]]


def test_the_service_lets_the_launcher_stop_its_processes_in_order() -> None:
    from proxy.launcher import DRAIN_SECONDS, STOP_SECONDS

    service = unit()["Service"]
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > DRAIN_SECONDS + STOP_SECONDS
    assert service["RestartPreventExitStatus"] == "2"


def test_the_services_variables_are_keys_of_the_configuration(tmp_path: Path) -> None:
    name, _, value = unit()["Service"]["Environment"].partition("=")
    file = tmp_path / "config.yaml"
    file.write_text("")
    configuration = Configuration.load(file, environment={name: value})
    assert [str(stripe.path) for stripe in configuration.cache.stripes] == ["/var/cache/headstart"]
    assert unit()["Service"]["CacheDirectory"] == "headstart"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_service_and_rates_its_exposure_low(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd/headstart.service").read_text()
    file = tmp_path / "headstart.service"
    file.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True
    )
    own = [line for line in verified.stderr.splitlines() if "headstart.service" in line]
    assert (verified.returncode, own) == (0, [])
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", file],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout[-200:] + rated.stderr


def test_the_mount_outlives_the_snapshotter_and_is_there_before_containerd() -> None:
    mount, snapshotter = unit("headstart-mount"), unit("headstart-snapshotter")
    for parsed in (mount, snapshotter):
        assert "containerd.service" in parsed["Unit"]["Before"].split()
        assert parsed["Service"]["Type"] == "notify"
        # The daemon that answers containers' reads is a child, and not to be killed with it.
        assert parsed["Service"]["KillMode"] == "process"
        assert parsed["Service"]["Restart"] == "always"
    assert mount["Service"]["FileDescriptorStoreMax"] == "1"
    assert "headstart-mount.service" in snapshotter["Unit"]["Wants"].split()


def test_the_mounts_services_and_the_configuration_mean_the_same_places(tmp_path: Path) -> None:
    name, _, value = unit("headstart-snapshotter")["Service"]["Environment"].partition("=")
    file = tmp_path / "config.yaml"
    file.write_text("")
    configuration = Configuration.load(file, environment={name: value})
    mount = configuration.mount
    fill_socket = configuration.cache.stripes[0].path / "run/fill.sock"
    words = unit("headstart-mount")["Service"]["ExecStart"].replace("\\\n", " ").split()
    assert words[-3:] == [str(mount.root), str(fill_socket), f"{mount.read_deadline:g}"]


def test_nothing_hides_the_snapshotters_mounts() -> None:
    # Each of these gives a service a mount namespace of its own (systemd.exec(5)).
    hiding = {"PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ReadOnlyPaths"}
    for name in ("headstart-mount", "headstart-snapshotter"):
        assert not hiding & set(unit(name)["Service"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["headstart-mount", "headstart-snapshotter"])
def test_systemd_takes_the_mounts_services(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / f"systemd/{name}.service").read_text()
    file = tmp_path / f"{name}.service"
    file.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True
    )
    own = [line for line in verified.stderr.splitlines() if f"{name}.service" in line]
    # The services that it names are not installed here.
    assert [line for line in own if "not found" not in line.lower()] == []


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continuation lines joined, comments left out."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_installs_what_is_locked_and_nothing_else() -> None:
    installs = [
        words
        for instruction, text in dockerfile()
        if instruction == "RUN"
        for words in re.findall(r"pip install[^&]*", text)
    ]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0] and "requirements.lock" in installs[0]
    assert "--no-deps" in installs[1] and "--no-build-isolation" in installs[1]


def test_the_image_runs_as_a_user_without_rights_from_a_second_stage() -> None:
    instructions = dockerfile()
    stages = [text for instruction, text in instructions if instruction == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build")
    last = instructions[-1 - [name for name, _ in reversed(instructions)].index("FROM") :]
    assert ("USER", "10001:10001") in last
    assert ("ENTRYPOINT", '["headstart"]') in last
    assert "EXPOSE" in {name for name, _ in last}
    assert not any("pip" in text for name, text in last if name == "RUN")


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    assert let_through[0] == "*"
    for instruction, text in dockerfile():
        if instruction == "COPY" and not text.startswith("--from"):
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in let_through, source


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_locks_hold_hashes_and_name_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--index-url|--find-links|--extra-index|(?m:^-e )", text)
    requirements = re.findall(r"(?m)^[A-Za-z0-9][^\n]*(?:\n    --hash[^\n]*)*", text)
    assert len(requirements) > 20
    for requirement in requirements:
        assert "==" in requirement and "--hash=sha256:" in requirement, requirement


def test_the_development_lock_holds_what_the_other_does() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"(?m)^[A-Za-z0-9][^ \n]*==[^ \n]*", (ROOT / name).read_text()))

    assert pinned("requirements.lock") <= pinned("requirements-dev.lock")
