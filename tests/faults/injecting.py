"""Faults of a disk: system calls that fail, and a file system that is full."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.watching import eventually
from tests.parts.processes import Process, run


@contextlib.contextmanager
def failing_calls(
    pid: int, calls: str, error: str, log: Path, *, first: int = 1, file: Path | None = None
) -> Iterator[None]:
    """In all threads of a process ``calls`` fail with ``error``, in each from the first-th on.

    ``calls`` as strace writes them: ``pwrite64,?rename``; with ``file`` only those on it.
    """
    with _strace(pid, calls, f"error={error}:when={first}+", log, file):
        yield
    eventually(lambda: not _traced(pid, any_of_them=True), 5, "strace lets go")


@contextlib.contextmanager
def crashing_call(pid: int, calls: str, number: int, log: Path) -> Iterator[None]:
    """A process gets SIGKILL at the number-th of ``calls`` in one of its threads."""
    with _strace(pid, calls, f"signal=SIGKILL:when={number}", log) as strace:
        yield
        strace.kill()  # of a process that is no more it does not let go by itself


@contextlib.contextmanager
def _strace(
    pid: int, calls: str, fault: str, log: Path, file: Path | None = None
) -> Iterator[Process]:
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
    if file is not None:
        inject += ["-P", str(file)]
    strace = Process(
        ["strace", "-f", "-qq", "-o", log, *inject, "-p", str(pid)], log.with_suffix(".out")
    )
    try:
        strace.wait_until(lambda: _traced(pid), 10)
        yield strace
    finally:
        strace.stop()


def _traced(pid: int, *, any_of_them: bool = False) -> bool:
    """Whether all threads of a process are traced, or any."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append("TracerPid:\t0\n" not in (thread / "status").read_text())
    return any(found) if any_of_them else all(found)


class SmallDisk:
    """A tmpfs of so many MiB."""

    def __init__(self, path: Path, mebibytes: int) -> None:
        self.path = path
        path.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "headstart-test", path])

    def grow(self, mebibytes: int) -> None:
        """Give it another size."""
        run(["mount", "-o", f"remount,size={mebibytes}m", self.path])

    def free(self) -> int:
        """Bytes that it can take."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def detach(self) -> None:
        """Unmount it; who has files open on it keeps them."""
        run(["umount", "--lazy", self.path])


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """A :class:`SmallDisk` mounted at ``path`` (made) for a while; skips who may not mount."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    disk = SmallDisk(path, mebibytes)
    try:
        yield disk
    finally:
        while path.is_mount():
            disk.detach()
