"""A blob's bytes in whatever order they are wanted, for layers whose members inflate alone."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from headstart.store.errors import FillFailed
from proxy.fill.fill import Fill
from proxy.fill.layers.blob_reading import BlobReading
from proxy.fill.layers.layer import BACKGROUND
from proxy.fill.parties import BlobSource, Want

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
TRANSIENT = frozenset(("deadline", "upstream"))
"""Codes of what may be otherwise in a moment: readers have their own deadline."""

_orders = itertools.count()


@dataclass(slots=True, eq=False)
class _Asked:
    """Bytes that are wanted until they are here."""

    start: int
    stop: int
    priority: int
    bulk: bool
    reach: int
    want: Want | None = None


class ScatteredBlob(BlobReading):
    """The bytes of one fill; asked for piece by piece on the filler's loop, read in threads."""

    def __init__(self, fill: Fill, size: int, source: BlobSource) -> None:
        """``source`` is asked again after it has failed for a moment."""
        super().__init__(fill, size)
        self._source = source
        self._asked: set[_Asked] = set()
        self._failures = 0
        self.on_arrival: Callable[[], None] = lambda: None
        """Called on the loop when bytes have come."""
        self.readmit: Callable[[Fill, BlobSource], None] = lambda fill, source: None
        """Puts a source that was dropped back; called on the loop."""

    # --- on the filler's loop ---

    def start(self) -> None:
        """Listen to the fill."""
        self.fill.listeners.add(self)

    def close(self) -> None:
        """Want nothing more; threads that still wait fail."""
        if self._closed:
            return
        self._closed = True
        self._leave(self.fill)
        self._asked.clear()
        self.stop()

    def _leave(self, fill: Fill) -> None:
        super()._leave(fill)
        for asked in self._asked:
            if asked.want is not None:
                fill.drop_want(asked.want)
                asked.want = None

    def _join(self) -> None:
        for asked in list(self._asked):
            self._want(asked)

    def ask(self, start: int, stop: int, priority: int, *, bulk: bool, reach: int = 0) -> None:
        """Want bytes until they are here; ``reach`` more after them if they come along."""
        if not self._closed and not self.available(start, stop - start):
            largest = self.fill.largest_range
            if not bulk and largest is not None and stop - start > largest:
                self.fill.outgrown()
            asked = _Asked(start, stop, priority, bulk, reach)
            self._asked.add(asked)
            self._want(asked)

    def raise_priority(self, priority: int, rest: int) -> None:
        """Everything that is asked for is more urgent, what is in the background by ``rest``."""
        for asked in self._asked:
            level = rest if asked.priority == BACKGROUND else priority
            if asked.want is not None and level < asked.priority:
                asked.priority = asked.want.priority = level
        self.fill.around.pump()

    def _want(self, asked: _Asked) -> None:
        def settle(failure: FillFailed | None) -> None:
            asked.want = None
            if failure is None:
                self._failures = 0
                self._asked.discard(asked)
            elif self.patient and failure.code in TRANSIENT and self.failure is None:
                delay = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
                self._failures += 1
                self.fill.later(delay, lambda: self._again(asked))
            else:
                self._asked.discard(asked)
                self.fail(failure)

        want = asked.want = Want(
            asked.start, asked.stop, asked.priority, asked.bulk, next(_orders), settle
        )
        want.reach = asked.reach
        self.fill.add_want(want)

    def _again(self, asked: _Asked) -> None:
        if not self._closed and asked in self._asked and asked.want is None:
            self.readmit(self.fill, self._source)
            self._want(asked)

    def notify_arrived(self, fill: Fill) -> None:
        """Wake the threads, and whoever counts what has come."""
        super().notify_arrived(fill)
        self.on_arrival()

    def notify_evicted(self, fill: Fill) -> None:
        """So it is with what lies in the store; of memory a source was dropped for a moment."""
        if fill.evicted:
            super().notify_evicted(fill)

    def fail(self, failure: FillFailed) -> None:
        """No more will come."""
        super().fail(failure)
        if not self._closed:
            self.fill.on_loop(self.on_arrival)

    # --- memory ---

    def used(self, start: int, stop: int) -> None:
        """These bytes are not read again: whole pages of memory are given back."""
        self._give_back(start, stop)
