"""The page cache: what of a file is in it (cachestat(2), Linux 6.5), and room for more."""

import ctypes
import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

_SYS_CACHESTAT = 451
"""The same number on every architecture."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECE = 1 << 22
_EVERY_SECONDS = 0.02
_SPARE = 1 << 30

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Range(ctypes.Structure):
    """struct cachestat_range, linux/mman.h: a length of 0 is up to the file's end."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Found(ctypes.Structure):
    """struct cachestat, linux/mman.h, in pages."""

    _fields_ = (
        ("cache", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def cached(descriptor: int) -> int:
    """Bytes of an open file that are in the page cache. Raises OSError, ENOSYS before Linux 6.5."""
    given, found = _Range(0, 0), _Found()
    call = ctypes.c_long(_SYS_CACHESTAT), ctypes.c_int(descriptor)
    if _libc.syscall(*call, ctypes.byref(given), ctypes.byref(found), ctypes.c_uint(0)):
        code = ctypes.get_errno()
        raise OSError(code, f"cachestat: {os.strerror(code)}")
    return int(found.cache) * _PAGE


def drop(files: Sequence[Path]) -> None:
    """Take files out of the page cache; what is not on its disk yet goes there first."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(files: Sequence[Path]) -> None:
    """Read files into the page cache."""
    buffer = memoryview(bytearray(_PIECE))
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def make_room(size: int) -> None:
    """Touch and free so many bytes of memory, or as many as are free.

    A virtual machine gives free memory back to its host within seconds, and what is touched first
    afterwards waits for the host: some tenths of a second for each GB, which whoever happens to
    read first would pay.
    """
    free = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if "MemFree" in line
    )
    length = min(size, int(free.split()[1]) * 1024 - _SPARE) // _PAGE * _PAGE
    if length > 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, length, flags=flags).close()


class CacheWatch:
    """The page cache of groups of files while its block lasts: the largest of all at one time."""

    def __init__(self, groups: Mapping[str, Sequence[Path]]) -> None:
        self._groups = groups
        self._stack = ExitStack()
        self._descriptors: dict[str, list[int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak: dict[str, int] = {}
        """Bytes of each group when they were most together."""

    def now(self) -> dict[str, int]:
        """Bytes of each group."""
        return {name: sum(map(cached, found)) for name, found in self._descriptors.items()}

    def __enter__(self) -> "CacheWatch":
        for name, files in self._groups.items():
            self._descriptors[name] = []
            for file in files:
                descriptor = os.open(file, os.O_RDONLY)
                self._stack.callback(os.close, descriptor)
                self._descriptors[name].append(descriptor)
        self.peak = self.now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._stack.close()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            now = self.now()
            if sum(now.values()) > sum(self.peak.values()):
                self.peak = now
