"""The layer images of this node: which are open, what is made of them next, what was refused.

Runs on the filler's loop, beside the filler's own care for blobs.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from headstart.content.digest import Digest
from headstart.content.estargz.announced import announced_toc
from headstart.content.layer.errors import LayerRefused
from headstart.registry.errors import RegistryError
from headstart.store.errors import FillFailed
from headstart.store.index import Index
from headstart.store.known_layer import KnownChain, KnownLayer
from headstart.store.object_key import LayerKey
from headstart.store.wire import PRIORITIES
from proxy.fill.fill import Fill
from proxy.fill.filler import Filler
from proxy.fill.judgement import failure_of
from proxy.fill.layers.arriving import ArrivingBlob, Window
from proxy.fill.layers.chains import Chains
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.layer_records import LayerRecord, LayerRecords
from proxy.fill.layers.lazy import LazyMaker
from proxy.fill.layers.planning import KeptReads
from proxy.fill.layers.room import LayerRoom
from proxy.fill.layers.scattered import ScatteredBlob
from proxy.fill.layers.staging import StagingSurroundings
from proxy.fill.layers.stored_layers import remove_layer, usable_stripes
from proxy.fill.layers.whole import WholeMaker
from proxy.fill.parties import BlobSource

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 4
"""Layers in the making; more would only share the window and the cores in smaller pieces."""
IDLE_SECONDS = 30.0
"""How long a layer image that nobody has open goes on: a mount that restarts finds it again."""
TICK_SECONDS = 1.0
TOUCH_SECONDS = 60.0
PREFETCH = PRIORITIES.index("prefetch")


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """Of the configuration: what is kept, sizes in bytes."""

    keep: str
    window: int
    connections: int
    extent_size: int


def is_chunked(known: KnownLayer) -> bool:
    """Whether the layer's descriptor announces a TOC under which it may be mounted early."""
    try:
        return announced_toc(known.annotations, known.size) is not None
    except LayerRefused as error:
        logger.warning("layer: %s is taken for an ordinary one: %s", known.digest, error)
        return False


def _claim(known: KnownLayer) -> tuple[object, ...]:
    """What must be the same for two to mean one layer image; where it comes from need not be."""
    annotations = frozenset(known.annotations.items())
    return known.digest, known.diff_id, known.size, known.media_type, annotations


def _raise_implied(known: KnownLayer) -> None:
    """Raises FillFailed for a layer that would stand above others."""
    if known.position > 0:
        text = f"{known.digest}: it has no entries for some of its directories"
        raise FillFailed("refused", text)


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


class Layers:
    """Everything about layer images on this node."""

    def __init__(self, filler: Filler, index: Index, settings: LayerSettings) -> None:
        """Make it on the loop that it will run on."""
        self._filler = filler
        self._settings = settings
        self._chains = Chains(index)
        self._records = LayerRecords(index, filler.layout)
        self._window = Window(settings.window, settings.connections)
        self._layers: dict[Digest, Layer] = {}
        self._known: dict[Digest, LayerRecord] = {}
        self._queued: list[Layer] = []
        self._making: set[Layer] = set()
        self._idle_since: dict[Layer, float] = {}
        self._retired: set[Layer] = set()
        """Evicted while somebody had them open."""
        self._closed = False
        self._staged: dict[Layer, Fill] = {}
        self._ending: set[Fill] = set()
        self._syncing: set[Layer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._around = StagingSurroundings(filler, settings.extent_size)
        self._threads = ThreadPoolExecutor(2 * MOST_AT_ONCE, thread_name_prefix="layer")
        self._openers = ThreadPoolExecutor(2, thread_name_prefix="layer-opener")
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="layer-index")
        self._loop = asyncio.get_running_loop()

    # --- life ---

    async def run(self) -> None:
        """Tick until cancelled."""
        self._clerk.submit(self._records.fill_account, self._filler.quota)
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._tick(time.monotonic())
            except Exception:
                logger.exception("layers: an error of the filler itself")

    async def close(self) -> None:
        """Stop what is in the making and write what is known."""
        self._closed = True
        for layer in list(self._layers.values()):
            if layer.maker is not None:
                layer.maker.close()
        for threads in (self._threads, self._openers):
            await self._loop.run_in_executor(None, threads.shutdown)
        for layer in {*self._layers.values(), *self._retired}:
            if layer.files is not None:
                layer.files.close()
        self._clerk.shutdown(wait=True)

    def _tick(self, now: float) -> None:
        for layer in list(self._layers.values()):
            if layer.state == "mountable" and now - layer.noted_at > TOUCH_SECONDS:
                layer.noted_at = now
                self._note(layer)
            if layer.listeners or layer in self._syncing:
                self._idle_since.pop(layer, None)
            elif now - self._idle_since.setdefault(layer, now) > IDLE_SECONDS:
                self._close(layer)
        for layer in list(self._retired):
            if not layer.listeners and layer not in self._syncing and layer.maker is None:
                self._retired.discard(layer)
                if layer.files is not None:
                    layer.files.close()
        self._end_fills()

    def _close(self, layer: Layer) -> None:
        """Nobody has it open: stop what works on it, and close it then."""
        if layer.closing or layer.opening is not None:
            return
        if layer in self._queued:
            self._filler.quota.busy(LayerKey(layer.known.digest), -1)
        if layer.maker is not None:
            layer.closing = True
            layer.maker.close()
            return
        if layer in self._making:
            return  # it is about to have a maker
        self._forget(layer)
        layer.ended.set()
        if layer.files is not None:
            layer.files.close()

    def _forget(self, layer: Layer) -> None:
        digest = layer.known.digest
        if self._layers.get(digest) is layer:
            del self._layers[digest]
            self._known.pop(digest, None)
        if layer in self._queued:
            self._queued.remove(layer)
        self._idle_since.pop(layer, None)

    # --- chain IDs ---

    async def tell(self, manifest: Digest, layers: tuple[KnownLayer, ...]) -> None:
        """Remember an image; durable when this returns."""
        await self._loop.run_in_executor(self._clerk, self._chains.tell, manifest, layers)

    async def find(self, chain: Digest, manifest: Digest | None) -> KnownChain | None:
        """What a chain ID stands for. Raises FillFailed where the layer has been refused."""
        return await self._loop.run_in_executor(self._clerk, self._find, chain, manifest)

    def _find(self, chain: Digest, manifest: Digest | None) -> KnownChain | None:
        found = self._chains.find(chain, manifest)
        if found is not None:
            self._raise_refused(found.layer)
            record = self._records.get(found.layer.digest)
            if record is not None and record.implied:
                _raise_implied(found.layer)
        return found

    def _raise_refused(self, known: KnownLayer) -> None:
        """In the index's thread. Raises FillFailed for what has been refused lately."""
        text = self._records.refusal(known)
        if text is not None:
            raise FillFailed("refused", text)

    # --- opening ---

    async def open(self, known: KnownLayer) -> Layer:
        """The layer image of a layer, in any state. Raises FillFailed."""
        if known.upstream not in self._filler.upstreams:
            raise FillFailed("refused", f"{known.upstream} is not among the upstreams")
        await self._loop.run_in_executor(self._clerk, self._raise_refused, known)
        layer = await self._open(known)
        if layer.opening is not None:
            await asyncio.shield(layer.opening)
        if layer.failure is not None and layer.failure.code == "refused":
            raise layer.failure
        if layer.implied:
            _raise_implied(known)
        await self._prove(layer, known)
        self._filler.quota.touch(LayerKey(known.digest), time.time())
        return layer

    async def _open(self, known: KnownLayer) -> Layer:
        """The layer that is open, or a new one. Raises FillFailed."""
        while True:
            layer = self._layers.get(known.digest)
            if layer is None:
                layer = self._layers[known.digest] = Layer(known)
                layer.on_refused = self._remember
                # Before the first await, so that two who ask at once get the same one.
                layer.opening = asyncio.create_task(self._look_up(layer))
            elif layer.failure is not None or layer.closing:
                # Its files are still somebody's.
                await layer.ended.wait()
                continue
            if _claim(layer.known) != _claim(known):
                text = f"{known.digest}: is open with the diff ID {layer.known.diff_id}"
                raise FillFailed("refused", f"{text} as another layer than this one says")
            return layer

    async def _prove(self, layer: Layer, known: KnownLayer) -> None:
        """Another upstream's layer image is only for those whose own upstream has the blob too."""
        if known.upstream in layer.vouched:
            return
        if known.upstream == layer.known.upstream and not layer.found:
            return  # it is being asked for the bytes themselves
        source = BlobSource(known.upstream, known.repository)
        try:
            await self._filler.access.ask(source, known.digest)
        except RegistryError as error:
            raise failure_of(error) from None
        layer.vouched.add(known.upstream)
        self._note(layer)

    async def _look_up(self, layer: Layer) -> None:
        """Take over what is on disk, or begin to make it."""
        try:
            found = await self._loop.run_in_executor(self._openers, self._look, layer.known)
            if found is not None:
                layer.found = True
                record, layer.files = found
                layer.vouched.update(record.vouched)
                layer.implied = record.implied
                self._known[layer.known.digest] = record
                self._account(layer)
            if layer.files is not None and layer.files.verified:
                layer.enter("complete")
            else:
                self._enqueue(layer)
        except FillFailed as failure:
            self._give_up(layer, failure)
        except Exception as error:
            logger.exception("layers: %s cannot be opened", layer.known.digest)
            text = f"the layer image cannot be opened: {error}"
            self._give_up(layer, FillFailed("upstream", text))
        finally:
            layer.opening = None

    def _remember(self, layer: Layer, failure: FillFailed) -> None:
        """What is wrong in itself is not tried again soon."""
        if failure.code == "digest":
            self._clerk.submit(self._records.refuse, layer.known, failure.text)

    def _give_up(self, layer: Layer, failure: FillFailed) -> None:
        self._forget(layer)
        layer.refuse(failure)
        layer.ended.set()

    def _look(self, known: KnownLayer) -> tuple[LayerRecord, LayerFiles] | None:
        """In a thread: what is on disk, if it can be believed.

        Raises FillFailed where a verified one is of another diff ID: it stays as it is.
        """
        record = self._records.get(known.digest)
        room = LayerRoom(self._filler, known.digest)
        files = LayerFiles.open(self._filler.layout, known.digest, room)
        if files is None:
            return None
        if record is not None and record.diff_id != known.diff_id and files.verified:
            files.close()
            text = f"{known.digest}: its diff ID is {record.diff_id}, not {known.diff_id}"
            raise FillFailed("refused", text)
        same = record is not None and record.diff_id == known.diff_id and files.check()
        if record is not None and same and (files.verified or is_chunked(known)):
            return record, files
        files.unlink()
        files.close()
        return None

    # --- making ---

    def _enqueue(self, layer: Layer) -> None:
        self._filler.quota.busy(LayerKey(layer.known.digest), 1)
        self._queued.append(layer)
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin the most urgent layers, of those the largest: it takes longest."""
        while self._queued and len(self._making) < MOST_AT_ONCE and not self._closed:
            layer = min(self._queued, key=lambda one: (one.priority, -one.known.size))
            self._queued.remove(layer)
            self._making.add(layer)
            self._start(self._make(layer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, layer: Layer) -> None:
        known = layer.known
        try:
            fill, window = await self._source(layer)
            if layer.files is None:
                record = self._known[known.digest] = LayerRecord(known.diff_id)
                record.used_at = time.time()
                await self._loop.run_in_executor(
                    self._clerk, self._records.put, known.digest, record
                )
            layer.maker = self._maker(layer, fill, window)
        except Exception as error:
            # Whatever it is, the layer must not keep its place among those in the making.
            if isinstance(error, FillFailed):
                failure = error
            elif isinstance(error, OSError):
                failure = FillFailed("space", str(error))
            else:
                logger.exception("layers: %s cannot be made", known.digest)
                failure = FillFailed("upstream", f"{known.digest}: cannot be made: {error}")
            layer.refuse(failure)
            self._made(layer)
            return
        layer.maker.start()

    def _maker(self, layer: Layer, fill: Fill, window: Window | None) -> WholeMaker | LazyMaker:
        known, filler = layer.known, self._filler
        store = _Store(filler, known.digest, self._settings.extent_size)
        if is_chunked(known):
            source = BlobSource(known.upstream, known.repository)
            scattered = ScatteredBlob(fill, known.size, source)
            scattered.readmit = self._readmit
            return LazyMaker(
                layer,
                scattered,
                KeptReads(filler.layout.layer_toc_path(known.digest)),
                layer.files,
                store,
                self._window,
                filler.settings.on_demand_size,
                filler.settings.request_size,
                filler,
                self._threads,
                self._mountable,
                self._made,
            )
        blob = ArrivingBlob(fill, known.size, window, min(layer.priority, PREFETCH))
        return WholeMaker(layer, blob, store.create(None), filler, self._threads, self._made)

    def _readmit(self, fill: Fill, source: BlobSource) -> None:
        """Ask a source again that was dropped because it failed."""
        if source not in fill.sources:
            fill.refusal = None
            fill.add_source(source, 1)
        self._filler.carriages[source.upstream].pool.fills.add(fill)

    async def _source(self, layer: Layer) -> tuple[Fill, Window | None]:
        """The blob's fill: in memory, or in the store where the blob is kept there too."""
        known = layer.known
        source = BlobSource(known.upstream, known.repository)
        filler = self._filler
        on_disk = known.digest in filler.fills or filler.quota.known(known.digest)
        if on_disk or self._settings.keep in ("blob", "both"):
            return await filler.open(known.digest, source, known.size), None
        fill = Fill(
            known.digest,
            None,
            known.size,
            self._around,
            self._loop,
            digested=False,
            largest_range=self._window.range_size,
        )
        # Replicas of one registry differ in entity tags; the digests decide.
        fill.etag_ignored = True
        self._readmit(fill, source)
        self._staged[layer] = fill
        return fill, self._window

    def _mountable(self, layer: Layer) -> None:
        """A layer streams on by itself; others may begin."""
        self._making.discard(layer)
        layer.vouched.add(layer.known.upstream)
        self._note(layer)
        self._begin_next()

    def _made(self, layer: Layer) -> None:
        """Nobody works on the layer any more: it is complete, or it will never be."""
        self._making.discard(layer)
        layer.maker = None
        staged = self._staged.pop(layer, None)
        if staged is not None:
            self._ending.add(staged)
        self._filler.quota.busy(LayerKey(layer.known.digest), -1)
        if layer.state == "complete":
            layer.vouched.add(layer.known.upstream)
            self._note(layer)
            self._retain(layer.known.digest)
            self._sync(layer)
            logger.info("layer: %s is complete", layer.known.digest)
        else:
            self._drop(layer)
        layer.ended.set()
        self._end_fills()
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
                    self._filler.quota.forget(LayerKey(layer.known.digest))
                    self._clerk.submit(self._records.delete, layer.known.digest)
                layer.refuse(FillFailed("space", text))
                self._forget(layer)
                self._retired.add(layer)

        self._syncing.add(layer)
        self._filler.in_thread(files.sync, synced, self._openers)

    def _drop(self, layer: Layer) -> None:
        """Forget a layer that does not go on; what is right of it is kept for the next try."""
        digest, failure = layer.known.digest, layer.failure
        wrong = failure is not None and failure.code == "digest"
        kept = layer.files is not None and not wrong and not layer.evicted
        if kept and failure is None:
            self._note(layer)
        if layer.files is not None:
            if wrong and not layer.evicted:
                layer.files.unlink()
            layer.files.close()
        if not kept:
            self._filler.quota.forget(LayerKey(digest))
            self._clerk.submit(self._records.delete, digest)
        self._forget(layer)

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

    def _end_fills(self) -> None:
        """Close what was staged for layers that need no more of it, once no thread writes to it."""
        for fill in list(self._ending):
            if fill.listeners or fill.fetches:
                continue
            self._ending.discard(fill)
            for carriage in self._filler.carriages.values():
                carriage.pool.fills.discard(fill)
            if fill.files is not None:
                fill.files.close()

    # --- use and eviction ---

    def touch(self, layer: Layer) -> None:
        """The layer image is used now."""
        now = time.time()
        self._filler.quota.touch(LayerKey(layer.known.digest), now)
        record = self._known.get(layer.known.digest)
        if record is not None and now - record.used_at > TOUCH_SECONDS:
            self._note(layer)

    def is_complete(self, digest: Digest) -> bool:
        """Whether the layer image can be mounted without a daemon: all that is kept unopened is."""
        layer = self._layers.get(digest)
        return layer is None or layer.state == "complete"

    def pin(self, digest: Digest, pinned: bool) -> bool:
        """Pin or unpin; False when it is not here."""
        if not self._filler.quota.pin(LayerKey(digest), pinned):
            return False

        def store() -> None:
            record = self._records.get(digest)
            if record is not None:
                record.pinned = pinned
                self._records.put(digest, record)

        record = self._known.get(digest)
        if record is not None:
            record.pinned = pinned
        self._clerk.submit(store)
        return True

    def evicted(self, digest: Digest) -> None:
        """Called by the quota, from any thread, before it forgets a layer image."""
        remove_layer(self._filler.layout, digest)
        self._clerk.submit(self._records.delete, digest)
        self._loop.call_soon_threadsafe(self._after_eviction, digest)

    def _after_eviction(self, digest: Digest) -> None:
        layer = self._layers.get(digest)
        if layer is not None:
            layer.evicted = True
            self._forget(layer)
            layer.ended.set()
            self._retired.add(layer)
            for listener in list(layer.listeners):
                listener.notify_evicted()

    def _note(self, layer: Layer) -> None:
        """Enter a layer image's state into the account and the index."""
        digest, files = layer.known.digest, layer.files
        if files is None or layer.evicted or layer.failure is not None:
            return
        record = self._known.setdefault(digest, LayerRecord(layer.known.diff_id))
        record.used_at = time.time()
        record.vouched = sorted(layer.vouched)
        record.implied = layer.implied
        record.allocated = files.allocated()
        self._account(layer)
        self._clerk.submit(self._records.put, digest, record)

    def _account(self, layer: Layer) -> None:
        record = self._known[layer.known.digest]
        self._filler.quota.account(
            LayerKey(layer.known.digest), record.allocated, record.used_at, pinned=record.pinned
        )
