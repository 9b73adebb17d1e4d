"""Where the bytes of a layer's blob come from: memory, or the store where the blob is kept too.

In memory a blob is never but in pieces: what comes only whole, or in pieces that are too large, is
kept in the store from then on.
"""

import asyncio
import logging
from functools import partial

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from proxy.fill.fill import Fill
from proxy.fill.filler import Filler
from proxy.fill.layers.arriving import ArrivingBlob, Window
from proxy.fill.layers.blob_reading import BlobReading
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.scattered import TRANSIENT, ScatteredBlob
from proxy.fill.layers.settings import LayerSettings
from proxy.fill.layers.staging import StagingSurroundings
from proxy.fill.parties import BlobSource
from proxy.fill.reach import Reach

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class LayerFills:
    """The fills of the blobs of layers in the making; runs on the filler's loop."""

    def __init__(self, filler: Filler, settings: LayerSettings) -> None:
        """Make it on the loop that it will run on."""
        self.window = Window(settings.window, settings.connections)
        self._filler = filler
        self._kept_too = settings.keep in ("blob", "both")
        self._around = StagingSurroundings(filler, settings.extent_size)
        self._staged: dict[Layer, Fill] = {}
        self._moving: dict[Layer, asyncio.Task[None]] = {}
        self._ending: set[Fill] = set()
        self._loop = asyncio.get_running_loop()

    async def scattered(self, layer: Layer) -> ScatteredBlob:
        """The blob of a layer, in any order. Raises FillFailed."""
        fill = await self._fill_of(layer)
        blob = self._reading(layer.known, fill)
        fill.outgrown = partial(self._outgrown, layer, blob)
        return blob

    async def arriving(self, layer: Layer) -> ArrivingBlob:
        """The blob of a layer, in stream order. Raises FillFailed."""
        fill = await self._fill_of(layer)
        window = self.window if layer in self._staged else None
        blob = ArrivingBlob(fill, layer.known.size, window, layer.stream_priority)
        fill.outgrown = partial(self._outgrown, layer, blob)
        return blob

    def reach(self) -> Reach:
        """For the reads of one layer: no further than memory holds."""
        settings = self._filler.settings
        most = min(settings.request_size, self.window.range_size)
        return Reach(settings.on_demand_size, most)

    def afresh(self, known: KnownLayer, blob: BlobReading) -> ScatteredBlob:
        """A second reading of a blob, of which the first one has brought something wrong."""
        fill = self._in_memory(known)
        second = self._reading(known, fill)

        def drop() -> None:
            # All of it has to come again: the next open begins with that.
            text = f"{known.digest}: a piece is wrong, and comes again only with all of the blob"
            blob.fill.around.quarantine(blob.fill, FillFailed("upstream", text))
            second.fail(FillFailed("upstream", text))

        fill.outgrown = drop
        second.start()
        self._ending.add(fill)
        return second

    def _reading(self, known: KnownLayer, fill: Fill) -> ScatteredBlob:
        blob = ScatteredBlob(fill, known.size, _source_of(known))
        blob.readmit = self._readmit
        return blob

    async def _fill_of(self, layer: Layer) -> Fill:
        known, filler = layer.known, self._filler
        ranges = filler.carriages[known.upstream].pool.ranges
        too_large = not ranges and known.size > self.window.range_size
        if self._kept_too or too_large or self._on_disk(known.digest):
            return await filler.open(known.digest, _source_of(known), known.size)
        fill = self._staged[layer] = self._in_memory(known)
        return fill

    def _on_disk(self, digest: Digest) -> bool:
        return digest in self._filler.fills or self._filler.quota.known(digest)

    def _in_memory(self, known: KnownLayer) -> Fill:
        """A fill of the blob of which nothing is here, nor will be kept."""
        fill = Fill(
            known.digest,
            None,
            known.size,
            self._around,
            self._loop,
            digested=False,
            largest_range=self.window.range_size,
        )
        # Replicas of one registry differ in entity tags; the digests decide.
        fill.etag_ignored = True
        self._readmit(fill, _source_of(known))
        return fill

    def _readmit(self, fill: Fill, source: BlobSource) -> None:
        """Ask a source again that was dropped because it failed."""
        if source not in fill.sources:
            fill.refusal = None
            fill.add_source(source, 1)
        self._filler.carriages[source.upstream].pool.fills.add(fill)

    # --- from memory to the store ---

    def _outgrown(self, layer: Layer, blob: BlobReading) -> None:
        """More of the blob comes at once than memory may hold: have the store keep it."""
        if self._staged.get(layer) is blob.fill and layer not in self._moving:
            logger.info("layer: %s comes in too large pieces for memory", layer.known.digest)
            self._forget(blob.fill)
            self._moving[layer] = asyncio.create_task(self._move(layer, blob))

    async def _move(self, layer: Layer, blob: BlobReading) -> None:
        known = layer.known
        try:
            while layer in self._staged:
                try:
                    fill = await self._filler.open(known.digest, _source_of(known), known.size)
                except FillFailed as failure:
                    if not blob.patient or failure.code not in TRANSIENT:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    blob.go_on_with(fill)
                    return
        except FillFailed as failure:
            blob.fail(failure)
        except Exception as error:
            logger.exception("layers: %s cannot be kept in the store", known.digest)
            blob.fail(FillFailed("upstream", f"{known.digest}: cannot be kept: {error}"))
        finally:
            del self._moving[layer]

    # --- the end ---

    def made(self, layer: Layer) -> None:
        """Nobody reads the layer's blob any more."""
        fill = self._staged.pop(layer, None)
        if fill is not None:
            self._ending.add(fill)
        self.end()

    def end(self) -> None:
        """Close what was staged and is needed no more, once no thread writes to it."""
        for fill in list(self._ending):
            if not fill.listeners and not fill.fetches:
                self._ending.discard(fill)
                self._forget(fill)
                if fill.files is not None:
                    fill.files.close()

    def _forget(self, fill: Fill) -> None:
        """Ask no upstream for it."""
        for carriage in self._filler.carriages.values():
            carriage.pool.fills.discard(fill)


def _source_of(known: KnownLayer) -> BlobSource:
    return BlobSource(known.upstream, known.repository)
