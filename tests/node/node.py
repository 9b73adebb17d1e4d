"""A node as users have it: mirror, snapshotter and containerd, all real, before an upstream."""

import contextlib
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.containerd import write_hosts_toml
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import run
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

    def __exit__(self, *details: object) -> None:
        try:
            super().__exit__(None, None, None)
        finally:
            for path in sorted(self.mounts(), key=len, reverse=True):
                if not path.endswith("/devices-fs"):
                    subprocess.run(["umount", path], capture_output=True)
            run(self._command("snapshotter", "--stop"))
            shutil.rmtree(self.run_directory, ignore_errors=True)


@dataclass(slots=True)
class Node:
    """The parts of a node, running."""

    upstream: ScriptedUpstream
    mirror: Mirror
    snapshotter: Snapshotter
    containerd: HeadstartContainerd

    def reference(self, name: str = "team/app:v1") -> str:
        """How an image of the upstream is called."""
        return f"{self.upstream.host}/{name}"

    def fetched(self, digest: str) -> int:
        """Bytes of one blob that the upstream has sent."""
        requests = self.upstream.blob_requests()
        return sum(one.bytes_sent for one in requests if one.path.endswith(digest))

    def content(self) -> set[str]:
        """Hex digests of the blobs in containerd's own store."""
        if not self.containerd.content.exists():
            return set()
        return {path.name for path in self.containerd.content.iterdir()}

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


@contextmanager
def running_node(
    directory: Path, *, settings: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[Node]:
    """All parts of a node; ``settings`` are further sections of the configuration."""
    with ExitStack() as parts:
        upstream = parts.enter_context(ScriptedUpstream())
        mirror = Mirror(directory / "mirror", {upstream.host: upstream_at(upstream.url)})
        snapshotter = Snapshotter(directory / "snapshotter", mirror)
        given = dict(settings or {})
        mirror.settings = {**given, "mount": {**snapshotter.settings, **given.get("mount", {})}}
        parts.enter_context(mirror)
        parts.enter_context(snapshotter)
        containerd = HeadstartContainerd(directory / "containerd", snapshotter.socket)
        write_hosts_toml(containerd.hosts, upstream.host, mirror.url, upstream.url)
        parts.enter_context(containerd)
        yield Node(upstream, mirror, snapshotter, containerd)
