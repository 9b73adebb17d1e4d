"""Whether the mount answers: a thread that asks it again and again, since it may wait for ever."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mount.device.naming import PROBE, name_of

_EVERY_SECONDS = 1.0
_LET_GO_SECONDS = 2.0


class Probe:
    """Asks for ``statfs``, which the kernel passes to the daemon every time.

    That wakes a daemon, too, that reads a request which has been taken back meanwhile: pyfuse3
    reads with the descriptor blocking, and with it the whole process.

    First it opens and closes a file, once. The kernel learns from the answer that closing needs no
    daemon (FUSE_FLUSH is not there); else whoever closes a device file while no daemon runs, or
    forks with one open, would wait without listening to SIGKILL.
    """

    def __init__(self, target: Path) -> None:
        """Start to ask at ``target``."""
        self.asked: float | None = None
        """When the question was asked that waits for its answer (monotonic seconds)."""
        self.answered = 0.0
        """When the last answer came."""
        self.broken = False
        """Whether the kernel says that the connection has ended."""
        self._target = target
        self._pausing = threading.Event()
        self._idle = threading.Event()
        self._resumed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ask nothing, so that the mount can be unmounted."""
        self._resumed.clear()
        self._pausing.set()
        self._idle.wait(_LET_GO_SECONDS)
        try:
            yield
        finally:
            self.broken = False
            self.answered = 0.0
            self._pausing.clear()
            self._resumed.set()

    def _run(self) -> None:
        while True:
            if self._pausing.wait(_EVERY_SECONDS if self.answered else 0.0):
                self._idle.set()
                self._resumed.wait()
                self._idle.clear()
            self.asked = time.monotonic()
            try:
                if not self.answered:
                    os.close(os.open(self._target / name_of(*PROBE), os.O_RDONLY | os.O_CLOEXEC))
                os.statvfs(self._target)
            except OSError as error:
                self.broken = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            else:
                self.answered = time.monotonic()
            self.asked = None
