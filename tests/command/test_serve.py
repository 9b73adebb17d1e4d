"""``headstart serve`` and ``headstart warm``, as users run them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from headstart.command.configuration import Configuration
from headstart.command.main import GROUP
from proxy.command import announcement, children
from tests.control.calls import Caller
from tests.control.node import HOST, MIB, Node, add_image
from tests.doubles.rules import Rule
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import inherited_environment

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "headstart.command.main"]
PATIENCE = 60


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A mirror that ``headstart serve`` runs."""
    with ScriptedUpstream() as upstream:
        directory = tmp_path_factory.mktemp("served")
        with Mirror(directory, {HOST: upstream_at(upstream.url)}) as mirror:
            yield Node(upstream, mirror)


def environment() -> dict[str, str]:
    """What every call sees; no configuration of the machine's own."""
    return {**inherited_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def headstart(
    node: Node | None, *arguments: str | Path, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with the node's configuration, to its end."""
    config = [] if node is None else ["--config", node.mirror.directory / "config.yaml"]
    return subprocess.run(
        [*COMMAND, *map(str, config), *map(str, arguments)],
        env=environment(),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# --- serve ---


def test_the_entry_point_is_installed() -> None:
    found = {point.value for point in entry_points(group=GROUP)}
    assert found == {"mount.command:register", "proxy.command:register"}


def test_serve_says_where_it_is_and_what_to_paste(node: Node) -> None:
    text = node.log()
    url = f"http://127.0.0.1:{node.mirror.port}"
    assert f"headstart: mirror at {url}\n" in text
    assert f"headstart: cache in {node.mirror.stripes[0]}\n" in text
    pasted = text[text.index("[host.") : text.index('dial_timeout = "1s"\n') + 20]
    shipped = (ROOT / "deploy/containerd/certs.d/_default/hosts.toml").read_text()
    expected = tomllib.loads(shipped.replace("http://127.0.0.1:5050", url))
    assert tomllib.loads(pasted) == expected


def test_serve_becomes_a_launcher_of_two_processes(node: Node) -> None:
    words = Path(f"/proc/{node.mirror.running.pid}/cmdline").read_bytes().split(b"\0")
    assert b"proxy.launcher" in words
    for module in ("proxy.mirror", "proxy.fill.process"):
        assert node.mirror.process_id(module)


def test_nobody_else_may_read_the_cache(node: Node) -> None:
    cache = node.mirror.stripes[0]
    found = [cache, *cache.rglob("*")]
    assert cache / "index" in found
    assert [path for path in found if path.lstat().st_mode & 0o007] == []


@pytest.mark.parametrize(
    ("listen", "urls", "host"),
    [
        ("127.0.0.1:5050", "http://127.0.0.1:5050", "http://127.0.0.1:5050"),
        ("0.0.0.0:5050", "http://127.0.0.1:5050", "http://127.0.0.1:5050"),
        ("'[::]:5050'", "http://[::1]:5050", "http://[::1]:5050"),
        (
            "[unix:/run/m.sock, node.example:80]",
            "unix:/run/m.sock, http://node.example:80",
            "http://node.example:80",
        ),
        ("unix:/run/m.sock", "unix:/run/m.sock", None),
    ],
)
def test_what_to_paste_is_an_address_that_clients_can_reach(
    listen: str, urls: str, host: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mirror: {{listen: {listen}}}")
    lines = announcement(Configuration.load(file, environment={}))
    assert lines[0] == f"headstart: mirror at {urls}"
    assert [line for line in lines if line.startswith("[host.")] == (
        [] if host is None else [f'[host."{host}"]']
    )


def test_the_processes_get_the_file_that_was_found(tmp_path: Path) -> None:
    commands = children(Path("config.yaml"))
    assert list(commands) == ["filler", "mirror"]
    for argv in commands.values():
        assert argv[1:3] == ["-P", "-m"]
        assert argv[-2:] == ["--config", str(Path.cwd() / "config.yaml")]
    assert "--config" not in children(None)["mirror"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mirror: {lisen: 1}", "headstart: mirror.lisen: is no known key; did you mean listen?"),
        ("control: {token_file: /no/such}", "headstart: control.token_file: '/no/such' does not"),
    ],
)
def test_a_bad_configuration_is_one_line_and_2(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    ended = headstart(None, "serve", directory=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == 1


def test_a_port_in_use_is_said_and_ends_with_2(node: Node, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"mirror: {{listen: '127.0.0.1:{node.mirror.port}'}}\n"
        f"cache: {{stripes: [{tmp_path}/cache]}}\n"
    )
    ended = headstart(None, "serve", directory=tmp_path)
    assert ended.returncode == 2
    assert f"127.0.0.1:{node.mirror.port}" in ended.stderr
    assert "in use" in ended.stderr


# --- warm ---


def test_warm_shows_the_end_and_is_0(node: Node) -> None:
    add_image(node.upstream, "team/quick", "1", 2 * MIB, MIB)
    ended = headstart(node, "warm", f"{HOST}/team/quick:1", "--platform", "linux/amd64")
    assert (ended.returncode, ended.stderr) == (0, "")
    last = ended.stdout.splitlines()[-1]
    assert re.fullmatch(rf"warm: {HOST}/team/quick:1: 3\.0 MiB in \d+\.\d s", last)


def test_warm_with_json_prints_the_job(node: Node) -> None:
    digests = add_image(node.upstream, "team/json", "1", MIB)
    ended = headstart(node, "warm", f"{HOST}/team/json:1", "--json", "--priority", "background")
    assert ended.returncode == 0
    job = json.loads(ended.stdout)
    assert (job["state"], job["priority"]) == ("done", "background")
    assert [layer["digest"] for layer in job["images"][0]["layers"]] == digests


def test_warm_takes_several_images(node: Node) -> None:
    for name in ("a", "b"):
        add_image(node.upstream, f"several/{name}", "1", MIB)
    images = [f"{HOST}/several/{name}:1" for name in ("a", "b")]
    ended = headstart(node, "warm", *images, "--json")
    assert [image["image"] for image in json.loads(ended.stdout)["images"]] == images


def test_a_failure_is_one_line_with_its_reason_and_1(node: Node) -> None:
    ended = headstart(node, "warm", f"{HOST}/team/none:1")
    assert ended.returncode == 1
    line = ended.stderr
    assert re.match(r"headstart: job [0-9a-f]{12}: missing: ", line)
    assert line.count("\n") == 1
    as_json = headstart(node, "warm", f"{HOST}/team/none:1", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["failure"]["code"] == "missing"


def test_a_deadline_is_named(node: Node) -> None:
    add_image(node.upstream, "team/late", "1", 4 * MIB)
    node.upstream.add_rule(Rule(path="team/late/blobs", method="GET", rate=MIB))
    ended = headstart(node, "warm", f"{HOST}/team/late:1", "--deadline", "1s")
    node.upstream.clear_rules()
    assert ended.returncode == 1
    assert "deadline: " in ended.stderr
    assert "after 1s (deadline)" in ended.stderr


def test_what_the_mirror_refuses_is_1(node: Node) -> None:
    ended = headstart(node, "warm", "elsewhere.example/app:1")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "headstart: images[0] 'elsewhere.example/app:1' is in elsewhere.example, which is not"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["x/Bad:1"], "headstart: repository 'x/Bad' is not valid; write lower-case"),
        (["a", "--platform", "linux"], "headstart: platform 'linux' is not valid"),
        (["a", "--priority", "client"], "headstart: priority 'client' is not valid; write one of"),
        (["a", "--policy", "some"], "headstart: policy 'some' is not valid"),
        (["a", "--deadline", "soon"], "headstart: duration 'soon' is not valid"),
        ([], "headstart: Missing argument 'IMAGE'."),
    ],
)
def test_bad_usage_is_2_before_anybody_is_asked(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    ended = headstart(None, "warm", *arguments, directory=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == 1


def test_without_a_mirror_it_says_what_to_start(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"cache: {{stripes: [{tmp_path}/cache]}}")
    ended = headstart(None, "warm", "alpine", directory=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"headstart: no mirror answers at {tmp_path}/cache/run/control.sock; "
        "start one with headstart serve\n"
    )


def job_of(node: Node, id: str) -> Any:
    return Caller(node.socket).call(f"/warm/{id}").json


def follow(node: Node, id: str) -> Any:
    return list(Caller(node.socket).events(f"/warm/{id}/events"))[-1]


def test_detached_it_ends_at_once_and_the_job_goes_on(node: Node) -> None:
    add_image(node.upstream, "team/detached", "1", 2 * MIB)
    node.upstream.add_rule(Rule(path="team/detached/blobs", method="GET", rate=2 * MIB))
    ended = headstart(node, "warm", f"{HOST}/team/detached:1", "--detach", "--json")
    assert ended.returncode == 0
    job = json.loads(ended.stdout)
    assert job["state"] in ("queued", "resolving", "running")
    node.upstream.clear_rules()
    assert follow(node, job["id"])["state"] == "done"


def begin(node: Node, image: str) -> subprocess.Popen[str]:
    """A warm that is followed in the background."""
    config = str(node.mirror.directory / "config.yaml")
    return subprocess.Popen(
        [*COMMAND, "--config", config, "warm", image],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def running_job(process: subprocess.Popen[str]) -> str:
    """The id that the command prints as soon as the job runs."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(r"job ([0-9a-f]+): running", line)
        if found:
            return found[1]
    raise AssertionError("the job has not run")


def test_an_interrupted_follower_leaves_the_job_running(node: Node) -> None:
    add_image(node.upstream, "team/interrupted", "1", 4 * MIB)
    node.upstream.add_rule(Rule(path="team/interrupted/blobs", method="GET", rate=2 * MIB))
    process = begin(node, f"{HOST}/team/interrupted:1")
    try:
        id = running_job(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"job {id} goes on in the mirror" in output
    assert errors == ""
    assert job_of(node, id)["state"] == "running"
    node.upstream.clear_rules()
    assert follow(node, id)["state"] == "done"


def test_a_mirror_that_restarts_in_mid_job_is_followed_on(node: Node) -> None:
    add_image(node.upstream, "team/restarted", "1", 4 * MIB)
    node.upstream.add_rule(Rule(path="team/restarted/blobs", method="GET", rate=2 * MIB))
    process = begin(node, f"{HOST}/team/restarted:1")
    try:
        running_job(process)
        os.kill(node.mirror.process_id("proxy.mirror"), signal.SIGKILL)
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        node.upstream.clear_rules()
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines()[-1].startswith(f"warm: {HOST}/team/restarted:1: 4.0 MiB in")


def test_on_a_terminal_there_is_a_bar_for_each_layer(node: Node) -> None:
    digests = add_image(node.upstream, "team/bars", "1", 3 * MIB, MIB)
    node.upstream.add_rule(Rule(path="team/bars/blobs", method="GET", rate=2 * MIB))
    terminal, inside = pty.openpty()
    config = str(node.mirror.directory / "config.yaml")
    process = subprocess.Popen(
        [*COMMAND, "--config", config, "warm", f"{HOST}/team/bars:1"],
        env={**environment(), "TERM": "xterm", "COLUMNS": "120"},
        stdout=inside,
        stderr=inside,
        stdin=inside,
    )
    os.close(inside)
    shown = b""
    ends = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < ends:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # EIO: the other side has gone
                break
    finally:
        os.close(terminal)
        process.kill()
    assert process.wait() == 0
    node.upstream.clear_rules()
    text = shown.decode()
    assert f"{digests[0][7:19]} config" in text
    for digest in digests[1:]:
        assert f"{digest[7:19]} layer gzip" in text
    assert re.search(r"\d\.\d MB/s 0:00:0\d", text)
    assert "warm: " in text
