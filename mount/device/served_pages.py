"""Gives back the kernel's lower copy of what has been read.

What a layer's reader gets lies in the page cache twice: as pages of the file in the layer, and as
pages of the device file below, which nobody needs once they have been copied up.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from mount.device.naming import device_of, name_of

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 2.0
"""Pages are dropped when they have been here for one to two times as long: the reader has copied
them by then, and has used most of what was read ahead for it."""

Range = tuple[int, int]
"""First byte, and the one behind the last."""


class ServedPages:
    """Notes what was answered and has it dropped a little later."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is where the device files are mounted."""
        self._directory = directory
        self._recent: dict[int, list[Range]] = {}
        self._older: dict[int, list[Range]] = {}

    def note(self, inode: int, offset: int, length: int) -> None:
        """Bytes of a device file were answered."""
        ranges = self._recent.setdefault(inode, [])
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + length)
        else:
            ranges.append((offset, offset + length))

    def take_older(self) -> dict[int, list[Range]]:
        """What was answered before the last call but one, ranges joined; it is noted no more."""
        due, self._older, self._recent = self._older, self._recent, {}
        return {inode: joined(ranges) for inode, ranges in due.items()}

    async def drop_on(self) -> None:
        """Drop for ever.

        In a thread: opening is a request that this very process answers. The file stays open for
        that moment only, since the file system could not be unmounted otherwise.
        """
        while True:
            await anyio.sleep(_EVERY_SECONDS)
            due = self.take_older()
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
