"""Linux calls that the standard library does not offer; all drop the GIL while they run."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
SYNC_FILE_RANGE_WAIT_BEFORE = 1
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE}


def reserve_space(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2) that keeps the file's size; a file system without it reserves nothing.

    Raises OSError, ENOSPC above all.
    """
    while _libc.fallocate(descriptor, FALLOC_FL_KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def give_back(descriptor: int, offset: int, length: int) -> None:
    """Free the memory or the disk space of whole pages; they read as zeros. Raises OSError."""
    flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    while _libc.fallocate(descriptor, flags, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def start_writing(descriptor: int, offset: int, length: int) -> bool:
    """Start to write dirty pages to disk without waiting; False where that is not supported."""
    return _sync_range(descriptor, offset, length, SYNC_FILE_RANGE_WRITE)


def finish_writing(descriptor: int, offset: int, length: int) -> bool:
    """Wait until the pages are on their disk; False where that is not supported."""
    flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    return _sync_range(descriptor, offset, length, flags)


def _sync_range(descriptor: int, offset: int, length: int, flags: int) -> bool:
    if _libc.sync_file_range(descriptor, offset, length, flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    if code == errno.EBADF:
        # The object was closed in the meantime; its pages need no pacing any more.
        return True
    raise OSError(code, os.strerror(code))
