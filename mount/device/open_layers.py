"""The layer images that are open at the filler, by the number that they have in the table."""

import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import anyio

from headstart.store.fill_client import FillClient
from headstart.store.open_layer import OpenLayer
from mount.device.table import DataDevice


class _Held:
    """One layer image that is open, and how many readers are at it."""

    __slots__ = ("layer", "readers", "replaced")

    def __init__(self, layer: OpenLayer) -> None:
        self.layer = layer
        self.readers = 0
        self.replaced = False


class OpenLayers:
    """Opens layer images at their first read and keeps them open.

    One that is replaced or dropped is closed when its last reader has left it, not before: its
    descriptors would be given to other files under a read.
    """

    def __init__(self, client: FillClient) -> None:
        """``client`` closes what is still open when it ends."""
        self._client = client
        self._held: dict[int, _Held] = {}
        self._opening: dict[int, anyio.Lock] = {}

    def at_hand(self, number: int) -> OpenLayer | None:
        """One that is open, for as long as the caller does not wait for anything."""
        held = self._held.get(number)
        return None if held is None else held.layer

    @asynccontextmanager
    async def using(
        self, device: DataDevice, instead_of: OpenLayer | None = None
    ) -> AsyncIterator[OpenLayer]:
        """The layer image of ``device``, opened when it is not; it stays open in the context.

        ``instead_of`` is one that has failed the caller: unless another reader has replaced it
        already, it is opened anew. Waits for as long as it takes. Raises FillFailed.
        """
        held = await self._hold(device, instead_of)
        held.readers += 1
        try:
            yield held.layer
        finally:
            held.readers -= 1
            self._close_when_left(held)

    async def _hold(self, device: DataDevice, instead_of: OpenLayer | None) -> _Held:
        held = self._held.get(device.number)
        if held is not None and held.layer is not instead_of:
            return held
        async with self._opening.setdefault(device.number, anyio.Lock()):
            held = self._held.get(device.number)
            if held is not None and held.layer is not instead_of:
                return held
            layer = await self._client.open_layer(device.layer, timeout_seconds=math.inf)
            if held is not None:
                self._retire(held)
            fresh = self._held[device.number] = _Held(layer)
            return fresh

    def close_others(self, numbers: Collection[int]) -> None:
        """Close those that are open under none of ``numbers``."""
        for number in self._held.keys() - set(numbers):
            self._opening.pop(number, None)
            self._retire(self._held.pop(number))

    def _retire(self, held: _Held) -> None:
        held.replaced = True
        self._close_when_left(held)

    def _close_when_left(self, held: _Held) -> None:
        if held.replaced and not held.readers:
            self._client.close(held.layer)
