"""Drops the lower copy of pages that readers of mounted layers have had.

What a layer's reader gets lies in the page cache twice: as pages of the file in the layer, and as
pages of the device file below, which nobody needs once they have been copied up.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from mount.device.naming import device_of, name_of

logger = logging.getLogger(__name__)

MOST_KEPT = 64 << 20
"""Bytes that stay, of all device files together: small files that lie near one that was read, and
were read ahead with it, are often read next."""

LEAST_SECONDS = 0.2
"""Nothing goes sooner: it may not have been copied up. Measured with 16 and 64 readers at once on
two cores, each with up to 1 MiB read ahead for it: 2 % are asked for twice, without this 9 %."""

MOST_SECONDS = 3.0
"""Nothing stays for longer: a reader has used most of what was read ahead for it by then."""

_LOOK_EVERY_SECONDS = 1.0
_GATHER_SECONDS = 0.05

Range = tuple[int, int]
"""First byte, and the one behind the last."""


class ServedPages:
    """Notes what was answered and has it dropped a little later, the oldest first."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is where the device files are mounted."""
        self._directory = directory
        self._answered: deque[tuple[float, int, int, int]] = deque()
        self._bytes = 0
        self._many = anyio.Event()

    def note(self, inode: int, offset: int, length: int) -> None:
        """Bytes of a device file were answered."""
        self._answered.append((time.monotonic(), inode, offset, offset + length))
        self._bytes += length
        if self._bytes > MOST_KEPT:
            self._many.set()

    def take_due(self, now: float) -> dict[int, list[Range]]:
        """What has stayed long enough, ranges joined; it is noted no more."""
        due: dict[int, list[Range]] = {}
        answered = self._answered
        while answered:
            age = now - answered[0][0]
            if age < (LEAST_SECONDS if self._bytes > MOST_KEPT else MOST_SECONDS):
                break
            _, inode, start, stop = answered.popleft()
            self._bytes -= stop - start
            due.setdefault(inode, []).append((start, stop))
        return {inode: joined(ranges) for inode, ranges in due.items()}

    async def drop_on(self) -> None:
        """Drop for ever.

        In a thread: opening is a request that this very process answers. The file stays open for
        that moment only, since the file system could not be unmounted otherwise.
        """
        while True:
            with anyio.move_on_after(_LOOK_EVERY_SECONDS):
                await self._many.wait()
                await anyio.sleep(_GATHER_SECONDS)
            self._many = anyio.Event()
            due = self.take_due(time.monotonic())
            if due:
                await run_sync(self._drop, due, abandon_on_cancel=True)

    def _drop(self, due: dict[int, list[Range]]) -> None:
        for inode, ranges in due.items():
            path = self._directory / name_of(*device_of(inode))
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                logger.debug("%s: %s", path, error)  # removed, or not mounted here any more
                continue
            try:
                for start, stop in ranges:
                    os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as possible, ascending."""
    result: list[Range] = []
    for start, stop in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], stop))
        else:
            result.append((start, stop))
    return result
