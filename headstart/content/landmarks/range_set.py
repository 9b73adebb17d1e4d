"""Ranges of a file or of a data device, and sets of their bytes."""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

LARGEST = (1 << 63) - 1
"""No offset and no length is beyond it."""


class Range(NamedTuple):
    """``length`` bytes from ``offset`` on."""

    offset: int
    length: int

    @property
    def stop(self) -> int:
        """Where it ends (exclusive)."""
        return self.offset + self.length

    @classmethod
    def between(cls, start: int, stop: int) -> "Range":
        """The bytes from ``start`` to ``stop`` (exclusive)."""
        return cls(start, stop - start)


class RangeSet:
    """Bytes that have been seen: kept as ranges in order, of which no two touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, added: Range) -> list[Range]:
        """Add bytes; returns those that are new, as ranges in order."""
        start, stop = added.offset, added.stop
        if stop <= start:
            return []
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        fresh: list[Range] = []
        position = start
        known = zip(self._starts[first:last], self._stops[first:last], strict=True)
        for known_start, known_stop in known:
            if known_start > position:
                fresh.append(Range.between(position, known_start))
            position = known_stop
        if position < stop:
            fresh.append(Range.between(position, stop))
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        return fresh

    def has_any(self, asked: Range) -> bool:
        """Whether one of these bytes is in it."""
        found = bisect_right(self._stops, asked.offset)
        return asked.length > 0 and found < len(self._starts) and self._starts[found] < asked.stop
