"""The layer images of this node: which are open, and who may have them.

Runs on the filler's loop, beside the filler's own care for blobs. What is made of them next is the
business of :mod:`proxy.fill.layers.making`.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from headstart.content.digest import Digest
from headstart.registry.errors import RegistryError
from headstart.store.errors import FillFailed
from headstart.store.index import Index
from headstart.store.known_layer import KnownChain, KnownLayer
from proxy.fill.filler import Filler
from proxy.fill.judgement import failure_of
from proxy.fill.layers.bookkeeping import TOUCH_SECONDS, LayerBookkeeping
from proxy.fill.layers.chains import Chains, is_chunked
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.layer_records import LayerRecord, LayerRecords
from proxy.fill.layers.making import Making
from proxy.fill.layers.room import LayerRoom
from proxy.fill.layers.settings import LayerSettings
from proxy.fill.layers.stored_layers import remove_layer
from proxy.fill.parties import BlobSource

logger = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""How long a layer image that nobody has open goes on: a mount that restarts finds it again."""
TICK_SECONDS = 1.0


def _claim(known: KnownLayer) -> tuple[object, ...]:
    """What must be the same for two to mean one layer image; where it comes from need not be."""
    annotations = frozenset(known.annotations.items())
    # Above others it may not be made (:func:`.whole.refusal_of`) where it may as a base.
    above = known.position > 0
    return known.digest, known.diff_id, known.size, known.media_type, annotations, above


def _raise_implied(known: KnownLayer) -> None:
    """Raises FillFailed for a layer that would stand above others."""
    if known.position > 0:
        text = f"{known.digest}: it has no entries for some of its directories"
        raise FillFailed("refused", text)


class Layers:
    """Everything about layer images on this node."""

    def __init__(self, filler: Filler, index: Index, settings: LayerSettings) -> None:
        """Make it on the loop that it will run on."""
        self._filler = filler
        self._chains = Chains(index)
        self._records = LayerRecords(index, filler.layout)
        self._books = LayerBookkeeping(self._records, filler.quota)
        self._layers: dict[Digest, Layer] = {}
        self._idle_since: dict[Layer, float] = {}
        self._retired: set[Layer] = set()
        """Not to be opened any more, though somebody may have them open."""
        self._openers = ThreadPoolExecutor(2, thread_name_prefix="layer-opener")
        self._making = Making(filler, settings, self._books, self._openers, self._retire)
        self._loop = asyncio.get_running_loop()

    # --- life ---

    async def run(self) -> None:
        """Tick until cancelled."""
        self._books.fill_account()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._tick(time.monotonic())
            except Exception:
                logger.exception("layers: an error of the filler itself")

    async def close(self) -> None:
        """Stop what is in the making and write what is known."""
        self._making.close()
        for layer in list(self._layers.values()):
            if layer.maker is not None:
                layer.maker.close()
        for join in (self._making.join, self._openers.shutdown):
            await self._loop.run_in_executor(None, join)
        for layer in {*self._layers.values(), *self._retired}:
            if layer.files is not None:
                layer.files.close()
        self._books.close()

    def _tick(self, now: float) -> None:
        for layer in list(self._layers.values()):
            if layer.state == "mountable" and now - layer.noted_at > TOUCH_SECONDS:
                layer.noted_at = now
                self._books.note(layer)
            if layer.listeners or not self._making.lasts(layer):
                self._idle_since.pop(layer, None)
            elif now - self._idle_since.setdefault(layer, now) > IDLE_SECONDS:
                self._close(layer)
        for layer in list(self._retired):
            if not layer.listeners and self._making.lasts(layer) and layer.maker is None:
                self._retired.discard(layer)
                if layer.files is not None:
                    layer.files.close()
        self._making.tick()

    def _close(self, layer: Layer) -> None:
        """Nobody has it open: stop what works on it, and close it then."""
        if layer.closing or layer.opening is not None:
            return
        if self._making.stop(layer):
            self._forget(layer)
            layer.ended.set()
            if layer.files is not None:
                layer.files.close()

    def _forget(self, layer: Layer) -> None:
        digest = layer.known.digest
        if self._layers.get(digest) is layer:
            del self._layers[digest]
            self._books.closed(digest)
        self._making.forget(layer)
        self._idle_since.pop(layer, None)

    def _retire(self, layer: Layer) -> None:
        """Who asks for it now opens it anew."""
        self._forget(layer)
        self._retired.add(layer)

    # --- chain IDs ---

    async def tell(self, manifest: Digest, layers: tuple[KnownLayer, ...]) -> None:
        """Remember an image; durable when this returns."""
        await self._books.in_turn(lambda: self._chains.tell(manifest, layers))

    async def find(
        self, chain: Digest, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        """What a chain ID stands for. Raises FillFailed where the layer has been refused."""
        return await self._books.in_turn(lambda: self._find(chain, manifest, image_ref))

    def _find(
        self, chain: Digest, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        found = self._chains.find(chain, manifest, image_ref)
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
        await self._books.in_turn(lambda: self._raise_refused(known))
        while True:
            layer = await self._open(known)
            if layer.opening is not None:
                await asyncio.shield(layer.opening)
            if layer.failure is not None and layer.failure.code == "refused":
                raise layer.failure
            if layer.implied:
                _raise_implied(known)
            await self._prove(layer, known)
            if layer.failure is not None or self._layers.get(known.digest) is layer:
                # Else it was closed or evicted while another upstream was asked.
                break
        self._books.touch(layer)
        return layer

    async def _open(self, known: KnownLayer) -> Layer:
        """The layer that is open, or a new one. Raises FillFailed."""
        while True:
            layer = self._layers.get(known.digest)
            if layer is None:
                layer = self._layers[known.digest] = Layer(known)
                layer.on_refused = self._books.refused
                # Before the first await, so that two who ask at once get the same one.
                layer.opening = asyncio.create_task(self._look_up(layer))
            elif layer.failure is not None or layer.closing:
                # Its files are still somebody's.
                await layer.ended.wait()
                continue
            self._raise_other(layer, known)
            return layer

    @staticmethod
    def _raise_other(layer: Layer, known: KnownLayer) -> None:
        """Raises FillFailed where what is open is not what ``known`` says."""
        if layer.known.diff_id != known.diff_id:
            text = f"{known.digest}: is open with the diff ID {layer.known.diff_id}"
            raise FillFailed("refused", f"{text} as another layer than this one says")
        if layer.state != "complete" and _claim(layer.known) != _claim(known):
            # Neither need be wrong, so it is no refusal: whole, it is the same for both.
            text = "is being made for an image whose manifest says something else of it"
            raise FillFailed("upstream", f"{known.digest}: {text}; try again when it is whole")

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
        self._books.note(layer)

    async def _look_up(self, layer: Layer) -> None:
        """Take over what is on disk, or begin to make it."""
        try:
            found = await self._loop.run_in_executor(self._openers, self._look, layer.known)
            if found is not None:
                layer.found = True
                record, layer.files = found
                layer.vouched.update(record.vouched)
                layer.implied = record.implied
                self._books.opened(layer.known.digest, record)
            if layer.files is not None and layer.files.verified:
                layer.enter("complete")
            else:
                self._making.enqueue(layer)
        except FillFailed as failure:
            self._give_up(layer, failure)
        except Exception as error:
            logger.exception("layers: %s cannot be opened", layer.known.digest)
            text = f"the layer image cannot be opened: {error}"
            self._give_up(layer, FillFailed("upstream", text))
        finally:
            layer.opening = None

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
            record.allocated = files.allocated()
            return record, files
        files.unlink()
        files.close()
        return None

    # --- use and eviction ---

    def touch(self, layer: Layer) -> None:
        """The layer image is used now."""
        self._books.touch(layer)

    async def is_complete(self, digest: Digest) -> bool:
        """Whether the layer image can be mounted without a daemon."""
        layer = self._layers.get(digest)
        if layer is not None:
            return layer.state == "complete"
        record = await self._books.in_turn(lambda: self._records.get(digest))
        return record is not None and record.whole

    def pin(self, digest: Digest, pinned: bool) -> bool:
        """Pin or unpin; False when it is not here."""
        return self._books.pin(digest, pinned)

    def evicted(self, digest: Digest) -> None:
        """Called by the quota, from any thread, before it forgets a layer image."""
        remove_layer(self._filler.layout, digest)
        self._books.delete(digest)
        self._loop.call_soon_threadsafe(self._after_eviction, digest)

    def _after_eviction(self, digest: Digest) -> None:
        layer = self._layers.get(digest)
        if layer is not None:
            layer.evicted = True
            self._books.delete(digest)  # a use meanwhile may have entered it again
            self._retire(layer)
            layer.ended.set()
            for listener in list(layer.listeners):
                listener.notify_evicted()
