"""Which reads are waiting for bytes: what the log says of those that wait long."""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from mount.device.table import DataDevice

logger = logging.getLogger(__name__)

LONG_SECONDS = 10.0
"""A read that has waited for so long is worth a line."""

_LOOK_EVERY_SECONDS = 1.0
_AGAIN_SECONDS = 60.0


class WaitingReads:
    """Every read that has to wait, from its beginning to its end."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[float, DataDevice, int]] = {}
        self._told: dict[int, float] = {}

    @contextmanager
    def waiting(self, device: DataDevice, offset: int) -> Iterator[None]:
        """A read at ``offset`` of a data device waits for as long as the context lasts."""
        key = next(self._numbers)
        self._waiting[key] = (time.monotonic(), device, offset)
        try:
            yield
        finally:
            del self._waiting[key]

    def tell(self, now: float) -> None:
        """Warn of every layer with reads that have waited for long, once a minute each."""
        slow: dict[int, list[tuple[float, DataDevice, int]]] = {}
        for since, device, offset in self._waiting.values():
            if now - since >= LONG_SECONDS:
                slow.setdefault(device.number, []).append((since, device, offset))
        for number, reads in slow.items():
            if now - self._told.get(number, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
                continue
            self._told[number] = now
            since, device, offset = min(reads, key=lambda read: read[0])
            logger.warning(
                "%s (%s/%s, device %d): bytes have not come yet; reads that wait: %d, the first "
                "one for %.0f s at offset %d; they end with an I/O error after mount.read_deadline",
                device.layer.digest,
                device.layer.upstream,
                device.layer.repository,
                number,
                len(reads),
                now - since,
                offset,
            )
        self._told = {
            number: told for number, told in self._told.items() if now - told < _AGAIN_SECONDS
        }

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await anyio.sleep(_LOOK_EVERY_SECONDS)
            self.tell(time.monotonic())
