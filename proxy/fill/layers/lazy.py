"""Makes the layer image of an eStargz or zstd:chunked layer: mountable once its TOC is here.

Everything streams: what is wanted first (:mod:`.streaming`), then the rest in the blob's order;
what somebody waits for goes before it. Members are written by two threads as their bytes come, in
any order. The diff ID is checked when all are here.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from headstart.content.landmarks.range_set import Range
from headstart.content.layer.errors import LayerRefused
from headstart.store.errors import FillFailed
from headstart.store.index import type_json
from headstart.store.prefetch_lists import read_list
from headstart.store.wire import PRIORITIES
from proxy.fill.layers.arriving import Window
from proxy.fill.layers.asking import WANT_SIZE, Asking
from proxy.fill.layers.batch import Written, write_all
from proxy.fill.layers.diff_id_check import DiffIdCheck
from proxy.fill.layers.layer import BACKGROUND, Layer, LayerWant
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.listed import listed_ranges
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.planning import KeptReads, make_plan
from proxy.fill.layers.scattered import ScatteredBlob
from proxy.fill.layers.second_copies import SecondCopies
from proxy.fill.layers.source import SourceFailed
from proxy.fill.layers.streaming import Streaming
from proxy.fill.layers.whole import Workshop, failure_of, refusal_of
from proxy.fill.reach import Reach

logger = logging.getLogger(__name__)

WRITERS = 2
"""Threads that inflate one layer: two bring 1.8-1.97 times what one does, on two cores."""
AGAIN_SECONDS = 1.0
"""After which what could not be written is tried again."""
MOUNT = PRIORITIES.index("mount")


class LayerStore(Protocol):
    """Makes and finds the files of a layer image; its methods block."""

    extent_size: int
    stripes: int

    def create(self, size: int) -> LayerFiles:
        """New files for a data device of ``size`` bytes. Raises OSError."""


class LazyMaker:
    """Works on one layer from its TOC to its diff ID."""

    def __init__(
        self,
        layer: Layer,
        blob: ScatteredBlob,
        kept: KeptReads,
        files: LayerFiles | None,
        store: LayerStore,
        window: Window,
        reach: Reach,
        streaming: Streaming,
        record: type_json | None,
        workshop: Workshop,
        threads: ThreadPoolExecutor,
        afresh: Callable[[], ScatteredBlob],
        mountable: Callable[[Layer], None],
        done: Callable[[Layer], None],
    ) -> None:
        """``files`` are what is here already, ``record`` is of the image's prefetch list.

        ``afresh`` makes a reading of the blob of which nothing is here yet. ``mountable`` is called
        when the TOC is here, ``done`` once at the end, when no thread works on the layer any more.
        """
        self._layer = layer
        self._blob = blob
        self._kept = kept
        self._files = files
        self._store = store
        self._window = window
        self._reach = reach
        self._streaming = streaming
        self._record = record
        self._listed: Sequence[Range] | None = None
        self._workshop = workshop
        self._threads = threads
        self._afresh = afresh
        self._mountable = mountable
        self._done = done
        self._second: ScatteredBlob | None = None
        """For the TOC, when the first one was wrong."""
        self._making: _Making | None = None
        self._paused = False
        """Whether the rest waits for its rate."""
        self._writing = 0
        self._check: DiffIdCheck | None = None
        self._running = 0
        self._ended = False
        self._told = False

    # --- life ---

    def start(self) -> None:
        """Ask for the TOC."""
        self._blob.on_arrival = self.collect
        self._blob.start()
        self._run(partial(self._make_plan, self._blob), self._planned)
        if self._layer.state == "planning":
            self._layer.enter("streaming")

    def close(self) -> None:
        """Stop; what is here stays."""
        self._end()

    def _end(self, failure: FillFailed | None = None) -> None:
        """Ask for nothing more; who waits hears of a failure at once."""
        if self._ended:
            return
        self._ended = True
        self._window.leave(self)
        self._blob.close()
        if self._second is not None:
            self._second.stop()
        if self._making is not None:
            self._making.copies.stop()
        if failure is not None:
            self._layer.refuse(failure)
        self._tell_done()

    def _tell_done(self) -> None:
        """Once no thread works on it: its files may be closed now."""
        if self._ended and not self._running and not self._told:
            self._told = True
            if self._second is not None:
                self._second.close()
            if self._making is not None:
                self._making.copies.close()
                self._making.writer.close()
            self._done(self._layer)

    def _run(self, work: Callable[[], object], done: Callable[[object], None]) -> None:
        def guarded() -> object:
            try:
                return work()
            except (LayerRefused, SourceFailed) as error:
                return error

        def ran(result: object) -> None:
            self._running -= 1
            if not self._ended or isinstance(result, MemberWriter):
                done(result)
            self._tell_done()

        self._running += 1
        self._workshop.in_thread(guarded, ran, self._threads)

    # --- the TOC ---

    def _make_plan(self, blob: ScatteredBlob) -> object:
        known, store = self._layer.known, self._store
        try:
            plan = make_plan(known, partial(self._read, blob), store.extent_size, store.stripes)
        except LayerRefused as refusal:
            return _Doubted(refusal)
        implied = plan.toc.tree.implied
        self._layer.implied = implied is not None
        unmountable = refusal_of(known, implied)
        if unmountable is not None:
            raise unmountable
        listed = read_list(self._record)
        if listed is not None:
            named = tuple(listed.of_layer(known.position, known.digest))
            self._listed = listed_ranges(named, plan.toc.tree.root)
        if self._files is not None:
            if self._files.size != plan.toc.device_size:
                raise LayerRefused("its layer image was made for another TOC")
            if blob is self._second:
                self._kept.save()
            return MemberWriter(self._blob, plan.toc, self._files)
        files = self._store.create(plan.toc.device_size)
        try:
            files.write_meta(plan.meta)
            self._kept.save()
            writer = MemberWriter(self._blob, plan.toc, files)
        except BaseException:
            files.unlink()
            files.close()
            raise
        self._files = files
        return writer

    def _read(self, blob: ScatteredBlob, start: int, stop: int) -> bytes:
        """Bytes of the blob, in the thread that plans."""
        known = self._kept.get(start, stop)
        if known is not None:
            return known
        blob.fill.on_loop(
            lambda: blob.ask(start, stop, min(self._layer.priority, MOUNT), bulk=False)
        )
        target = memoryview(bytearray(stop - start))
        filled = 0
        while filled < len(target):
            filled += blob.read_into(start + filled, target[filled:])
        self._kept.put(start, stop, bytes(target))
        return bytes(target)

    def _planned(self, result: object) -> None:
        if isinstance(result, _Doubted) and self._second is None:
            # It may have been damaged on its way, or where it was kept.
            logger.warning("layer: %s: again: %s", self._layer.known.digest, result.refusal)
            self._kept.clear()
            self._second = self._afresh()
            self._run(partial(self._make_plan, self._second), self._planned)
            return
        if self._second is not None:
            self._second.close()
        self._kept.clear()
        if not isinstance(result, MemberWriter):
            refusal = result.refusal if isinstance(result, _Doubted) else result
            self._end(failure_of(self._layer, refusal))
            return
        copies = SecondCopies(result.chunks, self._afresh, self.collect)
        asking = Asking(result, self._blob, self._window, self._reach)
        first = self._streaming.first(result, self._listed)
        if first is not None:
            asking.prefer(first)
        self._making = _Making(result, asking, copies, first is not None)
        self._layer.files = self._files
        if not self._ended:
            self._begin(result)

    def _begin(self, writer: MemberWriter) -> None:
        """The members can be brought."""
        self._window.join(self)
        self._blob.patient = True
        # Footer and TOC are not read again; that of gzip is a member too.
        self._blob.used(writer.chunks.stop, self._blob.size)
        largest = self._blob.fill.largest_range
        if largest is not None and writer.largest_member > largest:
            # A member is written when all of it is here.
            self._blob.fill.outgrown()
        self._layer.enter("mountable")
        self._mountable(self._layer)
        logger.info(
            "layer: %s can be mounted; %d of %d pieces are missing",
            self._layer.known.digest,
            writer.left,
            writer.chunks.members,
        )
        self.wanted()
        self.slide()
        self.collect()
        self._look_whether_whole()

    # --- what is asked for ---

    def wanted(self) -> None:
        """The wants have changed: ask for what somebody waits for."""
        if self._making is None or self._ended:
            return
        self._blob.raise_priority(self._layer.stream_priority, self._layer.rest_priority)
        for want in self._layer.wants:
            self._ask(self._making, want)
        # Somebody may wait for all of it now, whatever the policy brings.
        self.slide()

    def _ask(self, making: "_Making", want: LayerWant) -> None:
        """Ask for the next bytes of a want, once those before are here."""
        files = self._files
        if want.stop is None or want.asked >= want.stop or files is None:
            return
        asked = max(want.asked, want.offset)
        if files.available(want.offset, asked - want.offset) >= asked - want.offset:
            want.asked = min(want.stop, asked + WANT_SIZE)
            making.asking.want(asked, want.asked, want.priority)

    def slide(self) -> None:
        """Let the stream go on as far as the window allows."""
        if self._making is None or self._ended or self._blob.failure is not None:
            return
        if self._making.asking.slide_preferred(self._layer.stream_priority):
            self._slide_rest(self._making)
        # What is here already comes with no arrival.
        self.collect()

    def _slide_rest(self, making: "_Making") -> None:
        """Behind what is wanted first, of all layers together, unless somebody waits for all."""
        streaming = self._streaming
        if not making.preferring:
            making.asking.slide_rest(self._layer.stream_priority)
        elif self._layer.rest_priority < BACKGROUND:
            making.asking.slide_rest(self._layer.rest_priority)
        elif not streaming.brings_rest or self._paused:
            return
        elif wait := streaming.wait():
            self._paused = True
            self._blob.fill.later(wait, self._go_on)
        else:
            streaming.asked(making.asking.slide_rest(BACKGROUND, streaming.most))

    def _go_on(self) -> None:
        self._paused = False
        self.slide()

    # --- what has come ---

    def collect(self) -> None:
        """Take what has come to the writers."""
        making = self._making
        if self._ended or making is None:
            return
        failure = self._blob.failure or making.copies.failure
        if failure is not None:
            self._end(failure)
            return
        while self._writing < WRITERS:
            copy = making.copies.take()
            if copy is not None:
                number, blob = copy
                self._write(making, range(number, number + 1), blob)
                continue
            numbers = making.asking.next_batch()
            if numbers is None:
                return
            self._write(making, numbers, None)

    def _write(self, making: "_Making", numbers: range, copy: ScatteredBlob | None) -> None:
        self._writing += 1
        work = partial(write_all, making.writer, numbers, copy)
        self._run(work, partial(self._wrote, making, numbers, copy is not None))

    def _wrote(self, making: "_Making", numbers: range, second: bool, result: object) -> None:
        self._writing -= 1
        if not isinstance(result, Written):
            self._end(failure_of(self._layer, result))
            return
        for first, stop in result.runs:
            making.asking.used(first, stop)
        self._layer.progressed()
        rest = range(result.stop, numbers.stop)
        if isinstance(result.error, OSError):
            digest = self._layer.known.digest
            logger.error("layer: %s: cannot be written: %s", digest, result.error)
            again = making.copies.again if second else partial(making.asking.again, rest)
            self._blob.fill.later(AGAIN_SECONDS, partial(self._write_again, again))
        elif isinstance(result.error, LayerRefused) and not second and not self._whole_blob:
            logger.warning("layer: %s: again: %s", self._layer.known.digest, result.error)
            making.copies.doubt(rest.start)
            making.asking.again(rest[1:])
        elif result.error is not None:
            self._end(failure_of(self._layer, result.error))
            return
        elif second and making.writer.done(numbers.start):
            making.copies.over()
        elif second:
            # Another thread had it, with the first copy, and found that wrong too.
            making.copies.again()
        for want in self._layer.wants:
            self._ask(making, want)
        self.slide()
        self.collect()
        self._look_whether_whole()

    @property
    def _whole_blob(self) -> bool:
        """Whether the blob is here, as its digest says: another copy would be no other."""
        return self._blob.fill.verified

    def _write_again(self, again: Callable[[], None]) -> None:
        """A full disk may have room by now; who waits has a deadline of its own."""
        if not self._ended:
            again()
            self.collect()

    # --- the whole ---

    def _look_whether_whole(self) -> None:
        if self._making is None or self._ended or self._check is not None:
            return
        writer = self._making.writer
        if writer.left == 0:
            self._check = DiffIdCheck(writer, self._layer.known.diff_id)
            self._advance(self._check)

    def _advance(self, check: DiffIdCheck) -> None:
        def advanced(result: object) -> None:
            if self._ended:
                return
            if result is True:
                self._layer.enter("complete")
                self._end()
            elif result is False:
                self._advance(check)
            else:
                self._end(failure_of(self._layer, result))

        self._run(check.advance, advanced)


@dataclass(slots=True)
class _Making:
    """What works on a layer once its TOC is here."""

    writer: MemberWriter
    asking: Asking
    copies: SecondCopies
    preferring: bool
    """Whether some of the members come before the rest."""


@dataclass(slots=True)
class _Doubted:
    """What was read for the plan makes none."""

    refusal: LayerRefused
