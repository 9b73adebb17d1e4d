"""Locks by number, shared by all threads of all processes that mount below one directory."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TABLE = 0
"""The lock of the device table; layers have their numbers, from 1."""

_FLOCK = struct.Struct("hhqqi0q")
"""struct flock: type, whence, start, len, pid (0 for locks of open files), padding."""


class NumberLocks:
    """One byte of a file for each number.

    Locks of open file descriptions (F_OFD_SETLKW, fcntl(2)): every :meth:`held` opens the file
    anew, so that threads wait for each other as processes do, and the kernel lets go of what a
    killed process held.
    """

    def __init__(self, path: Path) -> None:
        """``path`` is made when it is not there. Raises OSError."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def held(self, number: int) -> Iterator[None]:
        """Hold one number; blocks until it is free. Raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, wanted)
            yield
        finally:
            os.close(descriptor)
