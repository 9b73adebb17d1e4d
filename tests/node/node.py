"""A node as users have it: mirror, snapshotter and containerd, all real, before an upstream."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mount.device.table import DeviceTable
from tests.doubles.scripted_upstream import RecordedRequest, Rule, ScriptedUpstream
from tests.faults.watching import eventually
from tests.layers.images import gzipped, serve
from tests.node.cri import Cri
from tests.node.trees import Archive
from tests.parts.containerd import write_hosts_toml
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import ProcessFailed, run
from tests.parts.server import Server
from tests.snapshotter.private_containerd import HeadstartContainerd


class Snapshotter(Server):
    """``headstart snapshotter`` with the mirror's configuration."""

    stop_grace = 20.0
    start_deadline = 40.0

    def __init__(self, directory: Path, mirror: Mirror) -> None:
        super().__init__(directory, "snapshotter")
        self._mirror = mirror
        # sun_path ends at 108 bytes.
        self.run_directory = Path(tempfile.mkdtemp(prefix="headstart-"))
        self.socket = self.run_directory / "snapshotter.sock"
        self.root = self.run_directory / "root"

    @property
    def settings(self) -> Mapping[str, object]:
        """The section ``mount`` of the configuration."""
        return {"root": str(self.root), "socket": str(self.socket)}

    def _command(self, *arguments: str) -> list[str | Path]:
        return ["headstart", "--config", self._mirror.directory / "config.yaml", *arguments]

    def arguments(self) -> Sequence[str | Path]:
        return self._command("snapshotter")

    def ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """SIGKILL, of the snapshotter alone."""
        self.running.kill()
        self.process = None

    def end(self) -> None:
        """Everything of it: the snapshotter, the supervisor and its daemon, all mounts."""
        self.stop()
        for path in sorted(self.mounts(), key=len, reverse=True):
            if not path.endswith("/devices-fs"):
                subprocess.run(["umount", path], capture_output=True)
        run(self._command("snapshotter", "--stop"))

    def pid_of(self, module: str) -> int:
        """The process that runs ``python -m MODULE`` for this root."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode().split("\0")
                if module in words and any(str(self.root) in word for word in words):
                    return int(path.parent.name)
        raise ProcessLookupError(f"no process {module} serves {self.root}")

    def mounts(self) -> list[str]:
        """Mount points below its root."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.split()[4].startswith(str(self.root))]

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except BaseException:
            self._remove_all()
            raise

    def __exit__(self, *details: object) -> None:
        try:
            super().__exit__(None, None, None)
        finally:
            self._remove_all()

    def _remove_all(self) -> None:
        self.end()
        shutil.rmtree(self.run_directory, ignore_errors=True)


@dataclass(slots=True)
class Node:
    """The parts of a node, running."""

    upstream: ScriptedUpstream
    mirror: Mirror
    snapshotter: Snapshotter
    containerd: HeadstartContainerd

    @property
    def cri(self) -> Cri:
        """kubelet's way to containerd."""
        return Cri(self.containerd.address)

    def reference(self, name: str = "team/app:v1") -> str:
        """How an image of the upstream is called."""
        return f"{self.upstream.host}/{name}"

    def fetched(self, digest: str) -> int:
        """Bytes of one blob that the upstream has sent."""
        requests = self.upstream.blob_requests()
        return sum(one.bytes_sent for one in requests if one.path.endswith(digest))

    def complete(self, digest: str) -> bool:
        """Whether the filler has said that a layer image is whole."""
        return f"layer: {digest} is complete" in self.mirror.log.read_text()

    @contextmanager
    def slowly(self, digest: object, rate: float, *, before: int | None = None) -> Iterator[Rule]:
        """The upstream sends one blob at so many bytes a second on each connection.

        With ``before`` only ranges that begin before that byte.
        """

        def early(request: RecordedRequest) -> bool:
            first = request.range[0] if request.range else 0
            return before is None or (first is not None and first < before)

        rule = self.upstream.add_rule(Rule(path=str(digest), rate=rate, when=early))
        try:
            yield rule
        finally:
            rule.rate = None
            # An answer keeps the rate that it began with.
            self.upstream.drop_connections()

    def content(self) -> set[str]:
        """Hex digests of the blobs in containerd's own store."""
        if not self.containerd.content.exists():
            return set()
        return {path.name for path in self.containerd.content.iterdir()}

    def used_layers(self) -> set[str]:
        """Hex digests of the layers that the snapshotter has mounted, or had."""
        found = DeviceTable(self.snapshotter.root)
        devices = (found.get(number) for number in found.numbers())
        return {device.layer.digest.hex for device in devices if device is not None}

    @contextmanager
    def mounted(
        self, chain: object, target: Path, *, snapshotter: str, namespace: str = "k8s.io"
    ) -> Iterator[Path]:
        """The root file system of the image that ends with ``chain``, as a container has it."""
        target.mkdir()
        name = f"compared-{target.name}"
        snapshots = ["-n", namespace, "snapshots", "--snapshotter", snapshotter]
        self.containerd.ctr([*snapshots, "prepare", name, str(chain)])
        try:
            command = self.containerd.ctr([*snapshots, "mounts", str(target), name])
            run(shlex.split(command))
            try:
                yield target
            finally:
                run(["umount", str(target)])
        finally:
            self.containerd.ctr([*snapshots, "rm", name])

    def pull_with(self, snapshotter: str, reference: str, namespace: str) -> None:
        """Pull as ``ctr images pull`` does."""
        self.containerd.ctr(
            [
                *("-n", namespace, "images", "pull", "--snapshotter", snapshotter),
                *("--hosts-dir", str(self.containerd.hosts), reference),
            ],
            deadline=120,
        )

    def processes(self) -> dict[str, int]:
        """Process IDs of all that serves layers; the snapshotter's has to run."""
        return {
            "filler": self.mirror.process_id("proxy.fill.process"),
            "mirror": self.mirror.process_id("proxy.mirror"),
            "snapshotter": self.snapshotter.running.pid,
            "supervisor": self.snapshotter.pid_of("mount.supervisor"),
            "daemon": self.snapshotter.pid_of("mount.device.daemon"),
        }

    def kill(self, name: str) -> None:
        """SIGKILL to one of :meth:`processes`; what nobody else starts again is started."""
        if name == "snapshotter":
            self.snapshotter.kill()
            self.snapshotter.start()
        else:
            os.kill(self.processes()[name], signal.SIGKILL)

    def reconnected(self) -> None:
        """Wait until containerd talks to the snapshotter again: it tries at its own intervals."""

        def answers() -> bool:
            try:
                self.snapshots()
            except ProcessFailed:
                return False
            return True

        eventually(answers, 30, "containerd has found the snapshotter again")

    def task(self, container: str, namespace: str = "k8s.io") -> tuple[int, str]:
        """Process ID and state of a container that was started."""
        listed = self.containerd.ctr(["-n", namespace, "tasks", "list"]).splitlines()[1:]
        pid, state = next(line.split()[1:] for line in listed if line.split()[0] == container)
        return int(pid), state

    @contextmanager
    def started(self, reference: str, name: str, *command: str) -> Iterator[Path]:
        """A container that runs in the background; its root directory, as long as it runs."""
        ctr = self.containerd.ctr
        options = ["--detach", "--net-host", "--snapshotter", "headstart"]
        ctr(["-n", "k8s.io", "run", *options, reference, name, *command])
        try:
            yield Path(f"/proc/{self.task(name)[0]}/root")
        finally:
            with contextlib.suppress(ProcessFailed):
                ctr(["-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", name])
            eventually(lambda: self.task(name)[1] != "RUNNING", 20, f"{name} ends")
            ctr(["-n", "k8s.io", "tasks", "rm", name])
            ctr(["-n", "k8s.io", "containers", "rm", name])

    def collect_garbage(self) -> None:
        """Have containerd collect at once what nothing refers to; by itself it waits for more."""
        lease = ["-n", "k8s.io", "leases"]
        self.containerd.ctr([*lease, "create", "--id", "collecting"])
        self.containerd.ctr([*lease, "delete", "--sync", "collecting"])

    def snapshots(self, namespace: str = "k8s.io") -> dict[str, str]:
        """Keys and kinds of our snapshots, as containerd lists them."""
        listed = self.containerd.ctr(
            ["-n", namespace, "snapshots", "--snapshotter", "headstart", "list"]
        )
        lines = [line.split() for line in listed.splitlines()[1:]]
        return {line[0]: line[-1] for line in lines}


@contextmanager
def running_node(
    directory: Path, *, pause: bytes, settings: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[Node]:
    """All parts of a node; ``settings`` are further sections of the configuration.

    ``pause`` is the program of the image that CRI runs in each pod; ``-`` makes it wait for ever.
    """
    with ExitStack() as parts:
        upstream = parts.enter_context(ScriptedUpstream())
        mirror = Mirror(directory / "mirror", {upstream.host: upstream_at(upstream.url)})
        snapshotter = Snapshotter(directory / "snapshotter", mirror)
        given = dict(settings or {})
        mirror.settings = {**given, "mount": {**snapshotter.settings, **given.get("mount", {})}}
        parts.enter_context(mirror)
        parts.enter_context(snapshotter)
        containerd = HeadstartContainerd(directory / "containerd", snapshotter.socket)
        containerd.sandbox_image = _pause_image(upstream, pause)
        write_hosts_toml(containerd.hosts, upstream.host, mirror.url, upstream.url)
        parts.enter_context(containerd)
        parts.callback(_end_containers, containerd)
        node = Node(upstream, mirror, snapshotter, containerd)
        # As on any node that has run a pod before.
        node.cri.pull(containerd.sandbox_image)
        yield node


def _end_containers(containerd: HeadstartContainerd) -> None:
    """What a failed test has left running: it would outlive containerd."""
    for namespace in containerd.ctr(["namespaces", "list", "--quiet"]).split():
        tasks = ["-n", namespace, "tasks"]
        for name in containerd.ctr([*tasks, "list", "--quiet"]).split():
            with contextlib.suppress(ProcessFailed):
                containerd.ctr([*tasks, "delete", "--force", name])


def _pause_image(upstream: ScriptedUpstream, program: bytes) -> str:
    archive = Archive()
    archive.add("pause", program, mode=0o755)
    serve(upstream, [gzipped(archive.finish())], repository="team/pause", command=["/pause", "-"])
    return f"{upstream.host}/team/pause:v1"
