"""Nodes that start containers: containerd as it is, and containerd with the mount."""

import contextlib
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.image_registry import ImageRegistry
from bench.link import Arrivals, Link
from bench.llm_image import LIBRARY, PROGRAM, WEIGHTS
from bench.measure import WrongAnswer
from tests.node.node import Snapshotter
from tests.parts.containerd import write_hosts_toml
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.ports import free_port
from tests.parts.processes import ProcessFailed, program
from tests.snapshotter.private_containerd import HeadstartContainerd

NAMESPACE = "k8s.io"
DEADLINE = 600.0
_LOOK_EVERY_SECONDS = 0.01
_FORGET_SECONDS = 30.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Start:
    """A container from before its pull to its first answer; seconds, and bytes over the link."""

    seconds: float
    pull_seconds: float
    received: int
    arrivals: Sequence[tuple[float, int]]


class StockContainerd(HeadstartContainerd):
    """containerd with CRI and its own snapshotter."""

    snapshotter = "overlayfs"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, directory / "no-plugin.sock")

    def arguments(self) -> Sequence[str | Path]:
        arguments = super().arguments()
        file = self.directory / "containerd.toml"
        stock = file.read_text().replace('snapshotter = "headstart"', 'snapshotter = "overlayfs"')
        file.write_text(stock)
        return arguments


@dataclass(slots=True)
class ColdNode:
    """A containerd that pulls from ``registry`` by ``link``, perhaps through a mirror."""

    link: Link
    registry: ImageRegistry
    containerd: HeadstartContainerd
    snapshotter: str
    mirror: Mirror | None = None
    plugin: Snapshotter | None = None

    def start(self, tag: str, paths: Sequence[str], expected: str, *, pull: bool = True) -> Start:
        """Pull the image, run its program and ask it until it answers; then end it.

        Raises ProcessFailed, WrongAnswer (it has read something else), grpc.RpcError.
        """
        reference = self.registry.reference(tag)
        port = free_port()
        with Arrivals(self.link) as arrivals:
            begun = time.monotonic()
            if pull:
                self.containerd.cri_pull(reference, DEADLINE)
            pulled = time.monotonic()
            with self._container(reference, port, paths) as process:
                said = answer(port, process)
                ended = time.monotonic()
        if said != expected:
            raise WrongAnswer(f"{tag} by {self.snapshotter}: {said!r} was read, not {expected!r}")
        return Start(ended - begun, pulled - begun, arrivals.size, arrivals.points)

    def forget(self, tag: str) -> None:
        """Remove the image, as if it had never been pulled here; its layers are unmounted.

        Raises TimeoutError.
        """
        self.containerd.cri_remove(self.registry.reference(tag))
        end = time.monotonic() + _FORGET_SECONDS
        while self.plugin is not None and any("/layers/" in path for path in self.plugin.mounts()):
            if time.monotonic() > end:
                raise TimeoutError(f"still mounted: {self.plugin.mounts()}")
            time.sleep(_LOOK_EVERY_SECONDS)

    def restart(self) -> None:
        """A containerd that has started nothing yet: the first container costs it a bit more."""
        self.containerd.stop()
        self.containerd.start()

    def files(self) -> list[Path]:
        """What there is of the image on this node's disk: layer images, or unpacked files."""
        if self.mirror is not None and self.plugin is not None:
            found = [path for stripe in self.mirror.stripes for path in stripe.glob("layers/**/*")]
        else:
            # Not the container's own, which may be going just now.
            snapshots = self.containerd.directory / "root/io.containerd.snapshotter.v1.overlayfs"
            parts = [f"snapshots/*/fs/{path}/**/*" for path in (LIBRARY, WEIGHTS)]
            found = [path for part in parts for path in snapshots.glob(part)]
        return [path for path in found if path.is_file() and not path.is_symlink()]

    @contextmanager
    def _container(
        self, reference: str, port: int, paths: Sequence[str]
    ) -> Iterator["subprocess.Popen[bytes]"]:
        ctr = [program("ctr"), "--address", str(self.containerd.address), "-n", NAMESPACE]
        options = ["--rm", "--net-host", "--snapshotter", self.snapshotter]
        command = [f"/{PROGRAM}", str(port), *paths]
        process = subprocess.Popen(
            [*ctr, "run", *options, reference, "started", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessFailed):
                self.containerd.ctr(["-n", NAMESPACE, "task", "kill", "-s", "SIGKILL", "started"])
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def answer(port: int, process: "subprocess.Popen[bytes]") -> str:
    """What the program says, as soon as it does. Raises ProcessFailed when it ends before."""
    url = f"http://127.0.0.1:{port}/healthz"
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            with _direct.open(url, timeout=5) as answered:
                return str(answered.read().decode())
        except OSError:
            pass
        if process.poll() is not None:
            errors = process.stderr.read().decode() if process.stderr else ""
            raise ProcessFailed(f"the container ended with {process.returncode}: {errors}")
        time.sleep(_LOOK_EVERY_SECONDS)
    raise ProcessFailed(f"no answer within {DEADLINE:g} s")


def own_seconds(program_file: Path, paths: Sequence[str]) -> tuple[float, str]:
    """What the program takes from a local directory, and what it says. Raises ProcessFailed."""
    port = free_port()
    begun = time.monotonic()
    with subprocess.Popen([program_file, str(port), *paths], stderr=subprocess.PIPE) as process:
        try:
            said = answer(port, process)
            return time.monotonic() - begun, said
        finally:
            process.kill()


@contextmanager
def stock_node(
    directory: Path, link: Link, registry: ImageRegistry, *, mirrored: bool
) -> Iterator[ColdNode]:
    """containerd as it is; ``mirrored``: it asks a mirror, with an empty cache, first."""
    with ExitStack() as stack:
        mirror = None
        if mirrored:
            mirror = stack.enter_context(_mirror(directory, registry))
        containerd = StockContainerd(directory / "containerd")
        # As a host too: containerd 1.6 speaks TLS to a server whose file names none.
        first = registry.url if mirror is None else mirror.url
        write_hosts_toml(containerd.hosts, registry.host, first, registry.url)
        stack.enter_context(containerd)
        yield ColdNode(link, registry, containerd, containerd.snapshotter, mirror)


@contextmanager
def mounting_node(directory: Path, link: Link, registry: ImageRegistry) -> Iterator[ColdNode]:
    """Mirror with an empty cache, the snapshotter, and containerd with it."""
    with ExitStack() as stack:
        mirror = _mirror(directory, registry)
        snapshotter = Snapshotter(directory / "snapshotter", mirror)
        mirror.settings = {"mount": snapshotter.settings}
        stack.enter_context(mirror)
        stack.enter_context(snapshotter)
        containerd = HeadstartContainerd(directory / "containerd", snapshotter.socket)
        write_hosts_toml(containerd.hosts, registry.host, mirror.url, registry.url)
        stack.enter_context(containerd)
        yield ColdNode(link, registry, containerd, "headstart", mirror, snapshotter)


def _mirror(directory: Path, registry: ImageRegistry) -> Mirror:
    return Mirror(directory / "mirror", {registry.host: upstream_at(registry.url)})
