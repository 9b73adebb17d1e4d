"""Which bytes of a file can be read without waiting for a disk, and threads to wait in."""

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor

PROBE_BYTES = 128 * 1024
"""Distance of the bytes asked for; Linux reads ahead, and so fills, in steps no smaller."""

DISK_THREADS = 8
"""Threads that may wait for disks at once; a turn each, so more readers share them."""

_PROBE = [bytearray(1)]
_NO_FLAGS_HERE = (errno.EOPNOTSUPP, errno.ENOSYS)
_MEMORY_FILE_SYSTEMS = frozenset({0x01021994, 0x858458F6})  # linux/magic.h: tmpfs, ramfs
_STATFS_BYTES = 256  # struct statfs is 120; its first field is f_type

_libc = ctypes.CDLL(None, use_errno=True)
_in_memory: dict[int, bool] = {}  # by device number: there are as many as stripes
_threads: ThreadPoolExecutor | None = None


def disk_threads() -> ThreadPoolExecutor:
    """The pool for reads that may wait for a disk; made at the first use."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
    return _threads


def resident_bytes(file: int, offset: int, count: int) -> int:
    """How many of the ``count`` bytes from ``offset`` are in the page cache, contiguously.

    An estimate: one byte in every :data:`PROBE_BYTES` and the last one are asked for. Bytes past
    the file's end count as resident: reading them does not wait either. File systems that cannot
    say (network file systems) answer 0. Raises OSError when the file cannot be read.
    """
    stop = offset + count
    position = offset
    while position < stop:
        try:
            os.preadv(file, _PROBE, position, os.RWF_NOWAIT)
        except BlockingIOError:
            return position - offset
        except OSError as error:
            if error.errno not in _NO_FLAGS_HERE:
                raise
            return count if _lives_in_memory(file) else 0
        if position == stop - 1:
            break
        position = min(position + PROBE_BYTES, stop - 1)
    return count


def _lives_in_memory(file: int) -> bool:
    device = os.fstat(file).st_dev
    known = _in_memory.get(device)
    if known is None:
        answer = ctypes.create_string_buffer(_STATFS_BYTES)
        if _libc.fstatfs(file, answer) != 0:
            return False
        kind = ctypes.c_ulong.from_buffer(answer).value
        known = _in_memory[device] = kind in _MEMORY_FILE_SYSTEMS
    return known
