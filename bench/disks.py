"""Disks of a limited rate: ext4 on a loop device on a file, writes throttled by the block layer.

The throttle is that of cgroups: version 1 (``blkio.throttle.write_bps_device`` of the root group,
which holds for everybody) where blkio is mounted or can be, else version 2 (``io.max`` of a group
that the writer is moved to).
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.measure import MIB
from tests.parts.processes import ProcessFailed, run


class CannotThrottle(Exception):
    """This machine cannot make a slow disk; the text says what is missing."""


class Throttle:
    """The kernel's throttle of writes; made by :func:`throttle`."""

    def __init__(self, directory: Path, version: int) -> None:
        """``directory`` is the root group of version 1, or a group of ours of version 2."""
        self.directory = directory
        self.version = version

    def limit(self, device: str, bytes_per_second: int | None) -> None:
        """Limit writes to ``device`` (``MAJ:MIN``); None ends the limit."""
        if self.version == 1:
            file = self.directory / "blkio.throttle.write_bps_device"
            file.write_text(f"{device} {bytes_per_second or 0}\n")
        else:
            file = self.directory / "io.max"
            file.write_text(f"{device} wbps={bytes_per_second or 'max'}\n")

    def add(self, pid: int) -> None:
        """Have the writes of a process and of its later children limited."""
        if self.version == 2:
            (self.directory / "cgroup.procs").write_text(str(pid))


@contextmanager
def throttle(directory: Path) -> Iterator[Throttle]:
    """The machine's throttle; ``directory`` is where blkio may be mounted."""
    if os.geteuid() != 0:
        raise CannotThrottle("throttled disks need root (loop devices, mounts, cgroups)")
    with ExitStack() as stack:
        mounted = _mounted("cgroup", "blkio") or _mount_blkio(directory, stack)
        if mounted is not None:
            if not (mounted / "blkio.throttle.write_bps_device").exists():
                raise CannotThrottle("the kernel has blkio but not CONFIG_BLK_DEV_THROTTLING")
            yield Throttle(mounted, 1)
            return
        root = _mounted("cgroup2", None)
        if root is None or "io" not in (root / "cgroup.controllers").read_text().split():
            raise CannotThrottle("neither blkio (cgroup v1) nor io (cgroup v2) is to be had")
        group = root / f"headstart-bench-{os.getpid()}"
        try:
            # Written pages are charged to their group only where memory is accounted too.
            (root / "cgroup.subtree_control").write_text("+io +memory")
            group.mkdir()
        except OSError as error:
            raise CannotThrottle(f"{error.filename}: {error.strerror}") from error
        stack.callback(_leave, group, root)
        yield Throttle(group, 2)


@contextmanager
def disk(place: Path, size: int) -> Iterator[tuple[Path, str]]:
    """An ext4 of ``size`` bytes below ``place``: its mount point, and its device as MAJ:MIN."""
    place.mkdir(parents=True)
    image, mounted = place / "disk.img", place / "mounted"
    with image.open("wb") as file:
        file.truncate(size)
    mounted.mkdir()
    with ExitStack() as stack:
        try:
            # Everything is written now: lazy initialisation would share the throttled rate.
            lazy = "lazy_itable_init=0,lazy_journal_init=0"
            run(["mkfs.ext4", "-q", "-E", lazy, image])
            device = run(["losetup", "--find", "--show", image]).stdout.strip()
            stack.callback(run, ["losetup", "--detach", device])
            run(["mount", "-o", "noatime", device, mounted])
        except ProcessFailed as error:
            raise CannotThrottle(str(error).strip().splitlines()[-1]) from error
        stack.callback(run, ["umount", mounted])
        number = os.stat(device).st_rdev
        yield mounted, f"{os.major(number)}:{os.minor(number)}"


def write_rate(directory: Path, size: int = 256 * MIB) -> float:
    """Bytes a second that go past the page cache to the disk of ``directory``."""
    file = directory / "rate-probe"
    command = ["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={size // MIB}", "oflag=direct"]
    try:
        return size / run(command).seconds
    finally:
        file.unlink(missing_ok=True)


def _mounted(kind: str, controller: str | None) -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, found, options, *_ = line.split()
        if found == kind and (controller is None or controller in options.split(",")):
            return Path(place)
    return None


def _mount_blkio(directory: Path, stack: ExitStack) -> Path | None:
    """Mount it where nobody looks; None where version 2 has the controller, or no kernel has."""
    place = directory / "blkio"
    place.mkdir(parents=True)
    try:
        run(["mount", "-t", "cgroup", "-o", "blkio", "none", place])
    except ProcessFailed:
        return None
    stack.callback(run, ["umount", place])
    return place


def _leave(group: Path, root: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (root / "cgroup.procs").write_text(pid)
    group.rmdir()
