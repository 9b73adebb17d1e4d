"""Which members of a layer with a TOC are asked for, and which of those have come.

What somebody waits for is urgent. Everything else streams, as far ahead as the window allows: what
is wanted first, then the rest in the blob's order. Runs on the filler's loop: no turn of it walks
all members.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from headstart.store.geometry import KIB, MIB, UNIT_SIZE
from proxy.fill.layers.arriving import Window
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.preferred import Preferred
from proxy.fill.reach import Reach

BATCH_SIZE = 512 * KIB
"""Compressed bytes for which a thread is given members at a time: layers of small files have one
member each, and a turn of the loop for every file takes longer than to inflate it."""
MOST_IN_BATCH = 1024
"""Members of a batch, however small: a read that somebody waits for comes after it."""
MOST_BEYOND = 64
"""Reads whose surplus may still be on its way; of more it is left to the stream."""
WANT_SIZE = 8 * MIB
"""Bytes of the data device that are asked for at a time on behalf of one want."""


class AskedBlob(Protocol):
    """A blob of which any bytes can be asked for (:class:`.scattered.ScatteredBlob`)."""

    size: int

    def ask(self, start: int, stop: int, priority: int, *, bulk: bool, reach: int = 0) -> None:
        """Want bytes until they are here; ``reach`` more after them if they come along."""

    def reached(self, offset: int, limit: int) -> int:
        """How many bytes from ``offset`` on are here, at most ``limit``."""

    def used(self, start: int, stop: int) -> None:
        """These bytes are not read again."""


@dataclass(slots=True)
class _Cell:
    """Members whose bytes are on their way; those before ``next`` have been given out.

    From ``wanted`` on nobody waits for them.
    """

    next: int
    wanted: int
    stop: int


class Asking:
    """Asks for members, and gives out those that have come, the urgent ones first."""

    def __init__(self, writer: MemberWriter, blob: AskedBlob, window: Window, reach: Reach) -> None:
        """Nothing is asked for yet."""
        self._writer = writer
        self._chunks = writer.chunks
        self._blob = blob
        self._window = window
        self._reach = reach
        self._urgent: list[_Cell] = []
        self._stream: list[_Cell] = []
        self._preferred: Preferred | None = None
        self._low = 0
        self._streamed = 0

    # --- asking ---

    def want(self, offset: int, stop: int, priority: int) -> None:
        """Ask for the members that these bytes of the device come from."""
        reach = self._reach.of(offset, stop)
        numbers = self._writer.members_covering(offset, stop)
        for first, last in self._runs(numbers):
            start, end = self._chunks.member(first).start, self._chunks.member(last).stop
            until = last + 1
            beyond = 0
            if self._writer.next_missing(until, numbers.stop) is None:
                # No further than what is here already: that need not come again.
                beyond = min(
                    reach - (end - start), self._begin(self._writer.next_done(until)) - end
                )
                beyond = max(0, beyond)
                until = max(until, self._writer.members_within(start, end + beyond).stop)
            self._blob.ask(start, end, priority, bulk=False, reach=beyond)
            self._urgent.append(_Cell(first, last + 1, until))

    def prefer(self, members: Iterable[range]) -> None:
        """Have the stream bring these members first, in this order."""
        self._preferred = Preferred(self._writer, members, self._window.range_size)

    def slide_preferred(self, priority: int) -> bool:
        """Let the stream go on with what comes first; whether all of that has been asked for."""
        while self._preferred is not None:
            if self._on_their_way() >= self._window.share:
                return False
            runs = self._preferred.next_runs()
            if runs is None:
                self._preferred = None
            for run in runs or ():
                self._ask_stream(run, priority)
        return True

    def _on_their_way(self) -> int:
        """Bytes of the stream that have been asked for and not been given out, by units."""
        size = 0
        for cell in self._stream:
            first = self._writer.next_missing(cell.next, cell.stop)
            if first is not None:
                size += max(UNIT_SIZE, self._begin(cell.stop) - self._begin(first))
        return size

    def _ask_stream(self, numbers: range, priority: int) -> None:
        self._stream.append(_Cell(numbers.start, numbers.stop, numbers.stop))
        for first, last in self._runs(numbers):
            start, stop = self._chunks.member(first).start, self._chunks.member(last).stop
            self._blob.ask(start, stop, priority, bulk=True)

    def slide_rest(self, priority: int, most: int | None = None) -> int:
        """Let the stream go on in the blob's order; how many bytes of it, at most ``most``.

        But a member at least.
        """
        low = self._writer.next_missing(self._low)
        if low is None:
            return 0
        self._low = low
        first = max(low, self._streamed)
        start, stop, _ = self._chunks.member(low)
        # What came first takes its part of the window.
        room = self._window.share - self._on_their_way()
        limit = self._begin(first) + (room if most is None else min(room, most))
        stop = min(self._blob.size, max(min(self._window.stop(start), limit), stop))
        until = self._writer.members_within(start, stop).stop
        if until <= first:
            return 0
        self._streamed = until
        self._ask_stream(range(first, until), priority)
        return self._begin(until) - self._begin(first)

    def again(self, numbers: range) -> None:
        """Members that were given out were not written; their bytes are here."""
        if numbers:
            self._urgent.append(_Cell(numbers.start, numbers.stop, numbers.stop))

    def _begin(self, number: int) -> int:
        """Where a member begins; beyond the last one, where that ends."""
        chunks = self._chunks
        return chunks.member(number).start if number < chunks.members else chunks.stop

    def _runs(self, numbers: range) -> Iterator[tuple[int, int]]:
        """First and last of those among some members that are missing and lie together.

        Between two runs is at least a unit, less than that would come along anyway.
        """
        writer = self._writer
        first = writer.next_missing(numbers.start, numbers.stop)
        while first is not None:
            last: int = first
            further: int | None = first
            while further is not None:
                last = further
                near = writer.beginning_before(self._chunks.member(last).stop + UNIT_SIZE)
                further = writer.last_missing(last + 1, min(near, numbers.stop))
            yield first, last
            first = writer.next_missing(last + 1, numbers.stop)

    # --- what has come ---

    def next_batch(self) -> range | None:
        """Members that have come, in a row, for one thread; those among them that are done too."""
        for cells in (self._urgent, self._stream):
            for cell in list(cells):
                batch = self._take(cell)
                surplus = cell.next >= cell.wanted and len(cells) > MOST_BEYOND
                if surplus or cell.next >= cell.stop:
                    cells.remove(cell)
                if batch:
                    return batch
        return None

    def _take(self, cell: _Cell) -> range:
        first = self._writer.next_missing(cell.next, cell.stop)
        if first is None:
            cell.next = cell.stop
            return range(0)
        start, stop, _ = self._chunks.member(first)
        limit = min(max(stop - start, BATCH_SIZE), self._begin(cell.stop) - start)
        come = self._blob.reached(start, limit)
        until = min(
            self._writer.members_within(start, start + come).stop, first + MOST_IN_BATCH, cell.stop
        )
        cell.next = max(first, until)
        return range(first, until)

    def used(self, first: int, stop: int) -> None:
        """Members ``first`` to ``stop`` are written: give back their bytes in memory.

        And what came along with them of others that are done.
        """
        writer = self._writer
        start, end = self._begin(first), self._begin(stop)
        before = writer.beginning_before(start - UNIT_SIZE)
        after = max(stop, writer.beginning_before(end + UNIT_SIZE))
        missing = writer.last_missing(before, first)
        next_missing = writer.next_missing(stop, after)
        self._blob.used(
            self._begin(before if missing is None else missing + 1),
            self._begin(after if next_missing is None else next_missing),
        )
