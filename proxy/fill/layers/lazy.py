"""Makes the layer image of an eStargz or zstd:chunked layer: mountable once its TOC is here.

Everything streams in the blob's order, landmark files first because they lie first; what somebody
waits for goes before it. Members are written by two threads as their bytes come, in any order. The
diff ID is checked when all are here.
"""

import heapq
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from headstart.content.layer.errors import LayerRefused
from headstart.store.errors import FillFailed
from headstart.store.geometry import UNIT_SIZE
from headstart.store.wire import PRIORITIES
from proxy.fill.layers.arriving import Window
from proxy.fill.layers.diff_id_check import DiffIdCheck
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.planning import KeptReads, make_plan
from proxy.fill.layers.scattered import ScatteredBlob
from proxy.fill.layers.source import SourceFailed
from proxy.fill.layers.whole import Workshop, failure_of, refusal_of

logger = logging.getLogger(__name__)

WRITERS = 2
"""Threads that inflate one layer: two bring 1.8-1.97 times what one does, on two cores."""
BATCH_SIZE = 512 * 1024
"""Compressed bytes for which a thread is given members at a time: layers of small files have one
member each, and a turn of the loop for every file takes longer than to inflate it."""
PREFETCH = PRIORITIES.index("prefetch")
MOUNT = PRIORITIES.index("mount")
URGENT, STREAMED = 0, 1


class LayerStore(Protocol):
    """Makes and finds the files of a layer image; its methods block."""

    extent_size: int
    stripes: int

    def create(self, size: int) -> LayerFiles:
        """New files for a data device of ``size`` bytes. Raises OSError."""


@dataclass(slots=True)
class _Cell:
    """Members whose bytes are on their way; those before ``next`` have come."""

    next: int
    stop: int
    urgency: int


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
        on_demand_size: int,
        request_size: int,
        workshop: Workshop,
        threads: ThreadPoolExecutor,
        mountable: Callable[[Layer], None],
        done: Callable[[Layer], None],
    ) -> None:
        """``files`` are what is here already.

        ``mountable`` is called when the TOC is here, ``done`` once at the end, when no thread works
        on the layer any more.
        """
        self._layer = layer
        self._blob = blob
        self._kept = kept
        self._files = files
        self._store = store
        self._window = window
        self._on_demand_size = on_demand_size
        self._request_size = request_size
        self._workshop = workshop
        self._threads = threads
        self._mountable = mountable
        self._done = done
        self._writer: MemberWriter | None = None
        self._check: DiffIdCheck | None = None
        self._cells: list[_Cell] = []
        self._ready: list[tuple[int, int]] = []
        self._queued: set[int] = set()
        self._writing = 0
        self._left = 0
        self._low = 0
        self._streamed = 0
        self._asked_until = -1
        self._reach = 0
        self._running = 0
        self._ended = False
        self._told = False

    # --- life ---

    def start(self) -> None:
        """Ask for the TOC."""
        self._blob.on_arrival = self.collect
        self._blob.start()
        self._run(self._make_plan, self._planned)
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
        if failure is not None:
            self._layer.refuse(failure)
        self._tell_done()

    def _tell_done(self) -> None:
        """Once no thread works on it: its files may be closed now."""
        if self._ended and not self._running and not self._told:
            self._told = True
            if self._writer is not None:
                self._writer.close()
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

    def _make_plan(self) -> object:
        known = self._layer.known
        plan = make_plan(known, self._read, self._store.extent_size, self._store.stripes)
        self._layer.implied = plan.toc.tree.implied is not None
        refusal = refusal_of(known, plan.toc.tree.implied)
        if refusal is not None:
            raise refusal
        if self._files is not None:
            if self._files.size != plan.toc.device_size:
                raise LayerRefused("its layer image was made for another TOC")
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

    def _read(self, start: int, stop: int) -> bytes:
        """Bytes of the blob, in the thread that plans."""
        known = self._kept.get(start, stop)
        if known is not None:
            return known
        self._blob.fill.on_loop(
            lambda: self._blob.ask(start, stop, min(self._layer.priority, MOUNT), bulk=False)
        )
        target = memoryview(bytearray(stop - start))
        filled = 0
        while filled < len(target):
            filled += self._blob.read_into(start + filled, target[filled:])
        self._kept.put(start, stop, bytes(target))
        return bytes(target)

    def _planned(self, result: object) -> None:
        if not isinstance(result, MemberWriter):
            self._end(failure_of(self._layer, result))
            return
        self._writer = result
        self._layer.files = self._files
        if self._ended:
            return
        self._left = sum(1 for _ in self._writer.missing())
        self._window.join(self)
        self._blob.patient = True
        self._layer.enter("mountable")
        self._mountable(self._layer)
        logger.info(
            "layer: %s can be mounted; %d of %d pieces are missing",
            self._layer.known.digest,
            self._left,
            self._writer.chunks.members,
        )
        self.wanted()
        self.slide()
        self.collect()
        self._look_whether_whole()

    # --- what is asked for ---

    def wanted(self) -> None:
        """The wants have changed: ask for what somebody waits for."""
        writer = self._writer
        if writer is None or self._ended:
            return
        self._blob.raise_priority(min(self._layer.priority, PREFETCH))
        for want in self._layer.wants:
            if want.stop is not None and not want.asked:
                want.asked = True
                self._ask(writer, want.offset, want.stop, want.priority)

    def _ask(self, writer: MemberWriter, offset: int, stop: int, priority: int) -> None:
        """Ask for the members that these bytes of the device come from."""
        sequential = 0 <= self._asked_until <= offset < self._asked_until + UNIT_SIZE
        self._reach = (
            min(max(2 * self._reach, self._on_demand_size), self._request_size)
            if sequential
            else self._on_demand_size
        )
        self._asked_until = stop
        chunks = writer.chunks
        numbers = writer.members_covering(offset, stop)
        missing = [number for number in numbers if not writer.done(number)]
        for first, last in _runs(missing):
            start, end = chunks.member(first).start, chunks.member(last).stop
            reach = max(0, self._reach - (end - start)) if last == missing[-1] else 0
            self._blob.ask(start, end, priority, bulk=False, reach=reach)
            until = last + 1
            while until < chunks.members and chunks.member(until).stop <= end + reach:
                until += 1
            self._cells.append(_Cell(first, until, URGENT))
        self.collect()

    def slide(self) -> None:
        """Let the stream go on as far as the window allows."""
        writer = self._writer
        if writer is None or self._ended or self._blob.failure is not None:
            return
        chunks = writer.chunks
        while self._low < chunks.members and writer.done(self._low):
            self._low += 1
        if self._low == chunks.members:
            return
        low = chunks.member(self._low)
        stop = min(self._blob.size, max(self._window.stop(low.start), low.stop))
        first = max(self._low, self._streamed)
        until = first
        while until < chunks.members and chunks.member(until).stop <= stop:
            until += 1
        if until > first:
            self._cells.append(_Cell(first, until, STREAMED))
            self._streamed = until
            missing = [number for number in range(first, until) if not writer.done(number)]
            priority = min(self._layer.priority, PREFETCH)
            for begin, end in _runs(missing):
                self._blob.ask(
                    chunks.member(begin).start, chunks.member(end).stop, priority, bulk=True
                )
            # What is here already comes with no arrival.
            self.collect()

    # --- what has come ---

    def collect(self) -> None:
        """Take what has come to the writers."""
        writer = self._writer
        if writer is None or self._ended:
            return
        if self._blob.failure is not None:
            self._end(self._blob.failure)
            return
        chunks = writer.chunks
        for cell in self._cells:
            while cell.next < cell.stop:
                member = chunks.member(cell.next)
                if not writer.done(cell.next):
                    if not self._blob.available(member.start, member.stop - member.start):
                        break
                    if cell.next not in self._queued or cell.urgency == URGENT:
                        self._queued.add(cell.next)
                        heapq.heappush(self._ready, (cell.urgency, cell.next))
                cell.next += 1
        self._cells = [cell for cell in self._cells if cell.next < cell.stop]
        self._write_next()

    def _write_next(self) -> None:
        writer = self._writer
        while writer is not None and self._ready and self._writing < WRITERS and not self._ended:
            numbers = self._next_batch(writer)
            if numbers:
                self._writing += 1
                self._run(partial(_write_all, writer, numbers), self._wrote)

    def _next_batch(self, writer: MemberWriter) -> list[int]:
        """Members of one urgency that are worth a turn of the loop together."""
        numbers: list[int] = []
        size, urgency = 0, self._ready[0][0]
        while self._ready and self._ready[0][0] == urgency and size < BATCH_SIZE:
            _, number = heapq.heappop(self._ready)
            if not writer.done(number):
                member = writer.chunks.member(number)
                size += member.stop - member.start
                numbers.append(number)
        return numbers

    def _wrote(self, result: object) -> None:
        self._writing -= 1
        writer = self._writer
        if writer is None:
            return
        if not isinstance(result, _Written):
            self._end(failure_of(self._layer, result))
            return
        for number in result.numbers:
            member = writer.chunks.member(number)
            self._blob.used(member.start, member.stop)
        self._left -= len(result.numbers)
        self._layer.progressed()
        if isinstance(result.error, OSError):
            logger.error("layer: %s: cannot be written: %s", self._layer.known.digest, result.error)
            self._blob.fill.later(1.0, partial(self._write_again, result.rest))
        elif result.error is not None:
            self._end(failure_of(self._layer, result.error))
            return
        self._write_next()
        self.slide()
        self._look_whether_whole()

    def _write_again(self, numbers: list[int]) -> None:
        """A full disk may have room by now; who waits has a deadline of its own."""
        if not self._ended:
            for number in numbers:
                heapq.heappush(self._ready, (URGENT, number))
            self._write_next()

    # --- the whole ---

    def _look_whether_whole(self) -> None:
        writer = self._writer
        if writer is None or self._left > 0 or self._ended or self._check is not None:
            return
        known = self._layer.known
        self._check = DiffIdCheck(writer, known.diff_id)
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
class _Written:
    """What a thread has brought: these members, and not the rest because of an error."""

    numbers: list[int]
    rest: list[int]
    error: Exception | None


def _write_all(writer: MemberWriter, numbers: list[int]) -> _Written:
    """In a thread: inflate, verify and write members."""
    written: list[int] = []
    for index, number in enumerate(numbers):
        try:
            if writer.write(number):  # else another thread has it, and tells
                written.append(number)
        except (LayerRefused, SourceFailed, OSError) as error:
            return _Written(written, numbers[index:], error)
    return _Written(written, [], None)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
