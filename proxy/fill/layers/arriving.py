"""A blob's bytes for the threads that make its layer image, while they arrive.

The bytes come out of memory, a window of them at a time, or out of the store's files where the blob
is kept there too. Wants are set on the filler's loop; threads wait on a condition.
"""

import itertools
from typing import Protocol

from headstart.store.errors import FillFailed
from headstart.store.geometry import MIB
from proxy.fill.fill import Fill
from proxy.fill.layers.blob_reading import BlobReading
from proxy.fill.parties import Want

SMALLEST_RANGE = 4 * MIB
"""Below this a range costs more in round trips than it saves in memory."""
_orders = itertools.count()


class Holder(Protocol):
    """What holds bytes of a blob in memory."""

    def slide(self) -> None:
        """The window has changed."""


class Window:
    """The bytes that all layers together may hold in memory (``fetch.window``)."""

    def __init__(self, size: int, connections: int) -> None:
        """``size`` in bytes, over so many connections."""
        self._size = size
        self.range_size = max(SMALLEST_RANGE, size // connections // MIB * MIB)
        self._holders: set[Holder] = set()

    def join(self, holder: Holder) -> None:
        """One more that holds bytes."""
        self._holders.add(holder)

    def leave(self, holder: Holder) -> None:
        """It is done; the others may hold more."""
        self._holders.discard(holder)
        for other in list(self._holders):  # one that ends by it leaves too
            other.slide()

    @property
    def share(self) -> int:
        """How many bytes each holder may have on their way or not yet used."""
        return max(self._size // max(1, len(self._holders)), 2 * SMALLEST_RANGE)

    def stop(self, released: int) -> int:
        """Up to which byte one may want, of which those before ``released`` are used.

        At least two ranges ahead, so that one arrives while one is used; on a grid, so that the
        ranges are large; never so near that who uses whole pieces waits for the rest of one.
        """
        share = self.share
        grid = max(MIB, min(self.range_size, share // 2 // MIB * MIB))
        return max((released + share) // grid * grid, released + 2 * MIB)


class ArrivingBlob(BlobReading):
    """The bytes of one fill, in stream order; a listener of the fill."""

    def __init__(self, fill: Fill, size: int, window: Window | None, priority: int) -> None:
        """Without a ``window`` everything is wanted at once: the blob's files keep it."""
        super().__init__(fill, size)
        self.priority = priority
        self._window = window
        self._wants: list[Want] = []
        self._wanted = 0
        self._released = 0
        self._given_back = 0
        self._sliding = False

    @property
    def used(self) -> int:
        """Bytes before which nothing is read again."""
        return self._released

    # --- on the filler's loop ---

    def start(self) -> None:
        """Want what the window allows."""
        self.fill.listeners.add(self)
        if self._window is not None:
            self._window.join(self)
        self.slide()

    def close(self) -> None:
        """Want nothing more; threads that still wait fail."""
        if self._closed:
            return
        self._closed = True
        self._leave(self.fill)
        if self._window is not None:
            self._window.leave(self)
        self.stop()

    def _leave(self, fill: Fill) -> None:
        super()._leave(fill)
        wants, self._wants = self._wants, []
        for want in wants:
            fill.drop_want(want)

    def _join(self) -> None:
        # The files keep everything: nothing is bounded by memory any more.
        if self._window is not None:
            self._window.leave(self)
            self._window = None
        self._wanted = self._released
        self.slide()

    def raise_priority(self, priority: int) -> None:
        """Somebody more urgent waits."""
        if priority < self.priority:
            self.priority = priority
            for want in self._wants:
                want.priority = priority
            self.fill.around.pump()

    def slide(self) -> None:
        """Want what has come within the window."""
        self._sliding = False
        if self._closed or self.failure is not None:
            return
        stop = self.size
        if self._window is not None:
            stop = min(stop, self._window.stop(self._released))
        if stop > self._wanted:
            self._add_want(self._wanted, stop)
            self._wanted = stop

    def _add_want(self, start: int, stop: int) -> None:
        def settle(failure: FillFailed | None) -> None:
            if want in self._wants:
                self._wants.remove(want)
            if failure is not None:
                self.fail(failure)

        want = Want(start, stop, self.priority, True, next(_orders), settle)
        self._wants.append(want)
        self.fill.add_want(want)

    # --- in the thread that reads ---

    def release(self, stop: int) -> None:
        """Bytes before ``stop`` are not read again."""
        self._released = max(self._released, stop)
        # A range that is on its way is written in pieces of a MiB: whole ones are given back.
        border = stop if stop >= self.size else stop // MIB * MIB
        if border > self._given_back:
            self._give_back(self._given_back, border)
            self._given_back = border
        if self._window is not None and not self._sliding:
            self._sliding = True
            self.fill.on_loop(self.slide)
