"""The layer images that this process has open at the filler, each once."""

import logging
from collections import Counter
from collections.abc import Iterable
from weakref import WeakValueDictionary

import anyio

from headstart.content.digest import Digest
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownLayer
from headstart.store.open_layer import OpenLayer

logger = logging.getLogger(__name__)

PREFETCH, MOUNT = "prefetch", "mount"
"""Priorities: nobody waits for it yet; a container's creation or a read does."""

AT_FAULT = ("refused", "digest")
"""Codes of the filler that mean the content: what waiting does not change."""

HELD_SECONDS = 600.0
"""How long a whole layer is kept from eviction for a mount that may still come."""


class OpenedLayers:
    """Opens layers and keeps them open until they are whole: what nobody has open stops to come.

    What is open for one image is not open for another that says something else of the same blob,
    or has it from elsewhere: the filler judges each.
    """

    def __init__(self, client: FillClient) -> None:
        """Nothing is open yet."""
        self._client = client
        self._open: dict[KnownLayer, OpenLayer] = {}
        self._opening: WeakValueDictionary[KnownLayer, anyio.Lock] = WeakValueDictionary()
        self._held: Counter[KnownLayer] = Counter()
        """How many wait for a layer."""
        self._waiting: Counter[KnownLayer] = Counter()
        """How many of them urgently."""
        self._whole_since: dict[KnownLayer, float] = {}

    async def begin(self, layers: Iterable[KnownLayer]) -> None:
        """Let all of these stream at once, the largest first: it takes longest.

        Raises FillFailed, FillerUnreachable for the first that cannot be opened; what could be
        opened streams on.
        """
        self._close_forgotten()
        failure: FillFailed | FillerUnreachable | None = None
        for layer in sorted(layers, key=lambda layer: layer.size, reverse=True):
            try:
                await self.open(layer)
            except (FillFailed, FillerUnreachable) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def open(self, layer: KnownLayer) -> OpenLayer:
        """The open layer image, at priority ``prefetch`` unless somebody waits for it.

        Raises FillFailed, FillerUnreachable.
        """
        lock = self._opening.get(layer)
        if lock is None:
            lock = self._opening[layer] = anyio.Lock()
        async with lock:
            known = self._open.get(layer)
            if known is not None and not known.stale:
                return known
            opened = await self._client.open_layer(layer)
            if known is not None:
                self._client.close(known)
            self._open[layer] = opened
        self._changed(opened)
        opened.on_change = lambda: self._changed(opened)
        if opened.state != "complete":
            opened.raise_priority(MOUNT if self._waiting[layer] else PREFETCH)
        return opened

    async def mountable(self, layer: KnownLayer) -> OpenLayer:
        """Wait until a layer may be mounted, and let it go before others meanwhile.

        Raises FillFailed, FillerUnreachable.
        """
        return await self._wait(layer, whole=False, urgent=True)

    async def complete(self, layer: KnownLayer, *, urgent: bool = True) -> OpenLayer:
        """Wait until a layer is whole and its diff ID has passed; as :meth:`mountable`.

        Where it is not ``urgent`` nothing goes before others for this.
        """
        return await self._wait(layer, whole=True, urgent=urgent)

    def whole(self, layer: KnownLayer) -> OpenLayer | None:
        """The open layer image, if it is whole and verified."""
        opened = self._open.get(layer)
        return opened if opened is not None and opened.state == "complete" else None

    def failure(self, layer: KnownLayer) -> FillFailed | None:
        """Why an open layer is refused; None when it is not, or not open."""
        opened = self._open.get(layer)
        return opened.failure if opened is not None else None

    def close(self, layer: KnownLayer) -> None:
        """Stop to ask for a layer, unless somebody waits for it."""
        opened = self._open.get(layer)
        if opened is not None and not self._held[layer]:
            del self._open[layer]
            self._whole_since.pop(layer, None)
            self._client.close(opened)

    def close_all(self, digest: Digest) -> None:
        """:meth:`close` all that was said of one blob."""
        for layer in [layer for layer in self._open if layer.digest == digest]:
            self.close(layer)

    async def _wait(self, layer: KnownLayer, *, whole: bool, urgent: bool) -> OpenLayer:
        self._held[layer] += 1
        self._waiting[layer] += urgent
        try:
            opened = await self.open(layer)
            ready = ("complete",) if whole else ("mountable", "complete")
            if opened.state not in ready:
                if urgent:
                    opened.raise_priority(MOUNT)
                await (opened.wait_complete() if whole else opened.wait_mountable())
            return opened
        finally:
            self._held[layer] -= 1
            self._waiting[layer] -= urgent
            if urgent and not self._waiting[layer]:
                self._calm(layer)
            if not self._held[layer]:
                del self._held[layer], self._waiting[layer]

    def _calm(self, layer: KnownLayer) -> None:
        """Nobody waits for it any more."""
        opened = self._open.get(layer)
        if opened is not None and opened.state in ("planning", "streaming", "mountable"):
            opened.raise_priority(PREFETCH)

    def _changed(self, opened: OpenLayer) -> None:
        layer = opened.layer
        if self._open.get(layer) is not opened:
            return
        if opened.state == "complete":
            self._whole_since.setdefault(layer, anyio.current_time())
        elif opened.failure is not None and opened.failure.code in AT_FAULT:
            logger.warning("layer %s is refused: %s", layer.digest, opened.failure.text)

    def _close_forgotten(self) -> None:
        """Close what has been whole for long without being mounted."""
        before = anyio.current_time() - HELD_SECONDS
        for layer in [layer for layer, since in self._whole_since.items() if since < before]:
            if layer in self._open:
                self.close(layer)
            else:
                del self._whole_since[layer]
