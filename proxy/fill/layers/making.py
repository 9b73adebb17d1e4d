"""Which layer images are made next, and how the making of each ends."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.object_key import LayerKey
from proxy.fill.filler import Filler
from proxy.fill.layers.blob_reading import of_the_bearer
from proxy.fill.layers.bookkeeping import LayerBookkeeping
from proxy.fill.layers.chains import is_chunked
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.layer_fills import LayerFills
from proxy.fill.layers.lazy import LazyMaker
from proxy.fill.layers.planning import KeptReads
from proxy.fill.layers.room import LayerRoom
from proxy.fill.layers.settings import LayerSettings
from proxy.fill.layers.stored_layers import usable_stripes
from proxy.fill.layers.streaming import Streaming
from proxy.fill.layers.whole import WholeMaker

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 4
"""Layers in the making; more would only share the window and the cores in smaller pieces."""


class _Store:
    """Where the files of one layer image are made."""

    def __init__(self, filler: Filler, digest: Digest, extent_size: int) -> None:
        self._filler = filler
        self._digest = digest
        self.extent_size = extent_size
        self.stripes = usable_stripes(filler.layout)

    def create(self, size: int | None) -> LayerFiles:
        """New files for a data device of ``size`` bytes. Raises OSError."""
        room = LayerRoom(self._filler, self._digest)
        layout = self._filler.layout
        return LayerFiles.create(layout, self._digest, size, self.extent_size, room)


class Making:
    """The layers that wait to be made, or are being made; runs on the filler's loop."""

    def __init__(
        self,
        filler: Filler,
        settings: LayerSettings,
        books: LayerBookkeeping,
        openers: ThreadPoolExecutor,
        dropped: Callable[[Layer], None],
    ) -> None:
        """``openers`` are threads for what blocks on the disk.

        ``dropped`` is called for a layer that is to be opened anew: it failed, or was told to stop.
        """
        self._filler = filler
        self._settings = settings
        self._books = books
        self._openers = openers
        self._dropped = dropped
        self._fills = LayerFills(filler, settings)
        self._streaming = Streaming(settings.policy, settings.background)
        self._queued: list[Layer] = []
        self._active: set[Layer] = set()
        """In the making, and not mountable yet."""
        self._syncing: set[Layer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2 * MOST_AT_ONCE, thread_name_prefix="layer")
        self._loop = asyncio.get_running_loop()
        self._closed = False

    # --- the queue ---

    def enqueue(self, layer: Layer) -> None:
        """Make the layer when its turn comes."""
        self._books.busy(layer.known.digest, 1)
        self._queued.append(layer)
        self._begin_next()

    def forget(self, layer: Layer) -> None:
        """The layer need not be begun."""
        if layer in self._queued:
            self._queued.remove(layer)
            self._books.busy(layer.known.digest, -1)

    def stop(self, layer: Layer) -> bool:
        """Have nobody work on the layer any more; whether that is so already."""
        if layer in self._queued:
            self._queued.remove(layer)
            self._books.busy(layer.known.digest, -1)
        if layer.maker is not None:
            layer.closing = True
            layer.maker.close()
            return False
        # Without a maker it may be about to have one.
        return layer not in self._active

    def lasts(self, layer: Layer) -> bool:
        """Whether no thread makes the layer image last at the moment."""
        return layer not in self._syncing

    def _begin_next(self) -> None:
        """Begin the most urgent layers, of those the largest: it takes longest."""
        while self._queued and len(self._active) < MOST_AT_ONCE and not self._closed:
            layer = min(self._queued, key=lambda one: (one.priority, -one.known.size))
            self._queued.remove(layer)
            self._active.add(layer)
            task = asyncio.create_task(self._make(layer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # --- one layer ---

    async def _make(self, layer: Layer) -> None:
        known = layer.known
        try:
            layer.maker = await self._maker(layer)
        except Exception as error:
            # Whatever it is, the layer must not keep its place among those in the making.
            if isinstance(error, FillFailed):
                failure = of_the_bearer(error)
            elif isinstance(error, OSError):
                failure = FillFailed("space", str(error))
            else:
                logger.exception("layers: %s cannot be made", known.digest)
                failure = FillFailed("upstream", f"{known.digest}: cannot be made: {error}")
            layer.refuse(failure)
            self._made(layer)
            return
        if self._closed:
            layer.maker.close()
            return
        layer.maker.start()

    async def _maker(self, layer: Layer) -> WholeMaker | LazyMaker:
        """What works on the layer from now on. Raises FillFailed, OSError."""
        known, filler, run = layer.known, self._filler, self._loop.run_in_executor
        store = _Store(filler, known.digest, self._settings.extent_size)
        if not is_chunked(known):
            arriving = await self._fills.arriving(layer)
            await self._books.begun(known.digest, known.diff_id)
            files = await run(self._openers, store.create, None)
            return WholeMaker(layer, arriving, files, filler, self._threads, self._made)
        blob = await self._fills.scattered(layer)
        if layer.files is None:
            await self._books.begun(known.digest, known.diff_id)
        toc_path = filler.layout.layer_toc_path(known.digest)
        return LazyMaker(
            layer,
            blob,
            await run(self._openers, KeptReads, toc_path),
            layer.files,
            store,
            self._fills.window,
            self._fills.reach(),
            self._streaming,
            await self._books.list_of(known),
            filler,
            self._threads,
            partial(self._fills.afresh, known, blob),
            self._mountable,
            self._made,
        )

    def _mountable(self, layer: Layer) -> None:
        """A layer streams on by itself; others may begin."""
        self._active.discard(layer)
        layer.vouched.add(layer.known.upstream)
        self._books.note(layer)
        self._begin_next()

    def _made(self, layer: Layer) -> None:
        """Nobody works on the layer any more: it is complete, or it will never be."""
        self._active.discard(layer)
        layer.maker = None
        self._books.busy(layer.known.digest, -1)
        if layer.state == "complete":
            # It may have been told to stop too late for that.
            layer.closing = False
            layer.vouched.add(layer.known.upstream)
            self._books.note(layer)
            self._retain(layer.known.digest)
            self._sync(layer)
            logger.info("layer: %s is complete", layer.known.digest)
        else:
            self._drop(layer)
        layer.ended.set()
        self._fills.made(layer)
        self._begin_next()

    def _sync(self, layer: Layer) -> None:
        """Make a complete layer image last, in a thread."""
        files = layer.files
        if files is None:
            return

        def synced(result: object) -> None:
            self._syncing.discard(layer)
            if isinstance(result, OSError):
                # The kernel has dropped the pages: what fsync did not write must not be trusted.
                text = f"{layer.known.digest}: its layer image cannot be written: {result.strerror}"
                logger.error("layer: %s; it is dropped", text)
                if not layer.evicted:
                    files.unlink()
                    self._books.delete(layer.known.digest)
                layer.refuse(FillFailed("space", text))
                self._dropped(layer)

        self._syncing.add(layer)
        self._filler.in_thread(files.sync, synced, self._openers)

    def _drop(self, layer: Layer) -> None:
        """Let go of a layer that does not go on; what is right of it is kept for the next try."""
        failure = layer.failure
        wrong = failure is not None and failure.code == "digest"
        kept = layer.files is not None and not wrong and not layer.evicted
        if kept and failure is None:
            self._books.note(layer)
        if layer.files is not None:
            if wrong and not layer.evicted:
                layer.files.unlink()
            layer.files.close()
        if not kept:
            self._books.delete(layer.known.digest)
        self._dropped(layer)

    def _retain(self, digest: Digest) -> None:
        """Of a blob and its layer image, let go of what ``cache.keep`` does not want first."""
        quota = self._filler.quota
        match self._settings.keep:
            case "auto":
                quota.touch(digest, 0.0)
            case "blob":
                quota.touch(LayerKey(digest), 0.0)
            case "layer":
                quota.evict(digest)

    # --- life ---

    def tick(self) -> None:
        """Close what has come to its end, and tell how far the others are."""
        self._fills.end()
        for layer in self._active:
            if isinstance(layer.maker, WholeMaker):
                layer.maker.tell_used()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True

    def join(self) -> None:
        """Wait for the threads; blocks."""
        self._threads.shutdown()
