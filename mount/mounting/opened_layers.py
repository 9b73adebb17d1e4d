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
    """Opens layers and keeps them open until they are whole: what nobody has open stops to come."""

    def __init__(self, client: FillClient) -> None:
        """Nothing is open yet."""
        self._client = client
        self._open: dict[Digest, OpenLayer] = {}
        self._opening: WeakValueDictionary[Digest, anyio.Lock] = WeakValueDictionary()
        self._held: Counter[Digest] = Counter()
        """How many wait for a layer."""
        self._waiting: Counter[Digest] = Counter()
        """How many of them urgently."""
        self._whole_since: dict[Digest, float] = {}

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
        digest = layer.digest
        lock = self._opening.get(digest)
        if lock is None:
            lock = self._opening[digest] = anyio.Lock()
        async with lock:
            known = self._open.get(digest)
            if known is not None and not known.stale:
                return known
            opened = await self._client.open_layer(layer)
            if known is not None:
                self._client.close(known)
            self._open[digest] = opened
        self._changed(opened)
        opened.on_change = lambda: self._changed(opened)
        if opened.state != "complete":
            opened.raise_priority(MOUNT if self._waiting[digest] else PREFETCH)
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
        opened = self._open.get(layer.digest)
        return opened if opened is not None and opened.state == "complete" else None

    def failure(self, layer: KnownLayer) -> FillFailed | None:
        """Why an open layer is refused; None when it is not, or not open."""
        opened = self._open.get(layer.digest)
        return opened.failure if opened is not None else None

    def close(self, layer: KnownLayer) -> None:
        """Stop to ask for a layer, unless somebody waits for it."""
        opened = self._open.get(layer.digest)
        if opened is not None and not self._held[layer.digest]:
            del self._open[layer.digest]
            self._whole_since.pop(layer.digest, None)
            self._client.close(opened)

    async def _wait(self, layer: KnownLayer, *, whole: bool, urgent: bool) -> OpenLayer:
        digest = layer.digest
        self._held[digest] += 1
        self._waiting[digest] += urgent
        try:
            opened = await self.open(layer)
            ready = ("complete",) if whole else ("mountable", "complete")
            if opened.state not in ready:
                if urgent:
                    opened.raise_priority(MOUNT)
                await (opened.wait_complete() if whole else opened.wait_mountable())
            return opened
        finally:
            self._held[digest] -= 1
            self._waiting[digest] -= urgent
            if urgent and not self._waiting[digest]:
                self._calm(digest)
            if not self._held[digest]:
                del self._held[digest], self._waiting[digest]

    def _calm(self, digest: Digest) -> None:
        """Nobody waits for it any more."""
        opened = self._open.get(digest)
        if opened is not None and opened.state in ("planning", "streaming", "mountable"):
            opened.raise_priority(PREFETCH)

    def _changed(self, opened: OpenLayer) -> None:
        digest = opened.layer.digest
        if self._open.get(digest) is not opened:
            return
        if opened.state == "complete":
            self._whole_since.setdefault(digest, anyio.current_time())
        elif opened.failure is not None and opened.failure.code in AT_FAULT:
            logger.warning("layer %s is refused: %s", digest, opened.failure.text)

    def _close_forgotten(self) -> None:
        """Close what has been whole for long without being mounted."""
        before = anyio.current_time() - HELD_SECONDS
        for digest in [digest for digest, since in self._whole_since.items() if since < before]:
            opened = self._open.get(digest)
            if opened is None:
                del self._whole_since[digest]
            else:
                self.close(opened.layer)
