"""Where the bytes of an object lie: extents, units and stripes. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB

UNIT_SIZE = 256 * KIB
"""Bytes of a unit: the smallest piece whose presence the map records by itself."""

EXTENT_SIZE = 32 * MIB
"""Default bytes of an extent; the map has room for this many units and no more."""

UNITS_PER_EXTENT = EXTENT_SIZE // UNIT_SIZE


class FileRun(NamedTuple):
    """Bytes that lie together in one stripe's file."""

    stripe: int
    file_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """An object of ``size`` bytes in extents of ``extent_size`` over ``stripes`` directories.

    Extent ``e`` lies in stripe ``e mod stripes`` at ``(e div stripes) * extent_size`` of that
    stripe's file. ``extent_size`` is a multiple of :data:`UNIT_SIZE`, at most 128 units.
    """

    size: int
    extent_size: int
    stripes: int

    @property
    def extents(self) -> int:
        """How many extents the object has; none when it is empty."""
        return -(-self.size // self.extent_size)

    @property
    def units(self) -> int:
        """How many units the object has; the last one may be short."""
        return -(-self.size // UNIT_SIZE)

    @property
    def units_per_extent(self) -> int:
        """Units of a full extent."""
        return self.extent_size // UNIT_SIZE

    def extent_length(self, extent: int) -> int:
        """Bytes of one extent; the last one may be short."""
        return min(self.extent_size, self.size - extent * self.extent_size)

    def extent_units(self, extent: int) -> int:
        """Units of one extent; the last unit of the last extent may be short."""
        return -(-self.extent_length(extent) // UNIT_SIZE)

    def stripe_of(self, extent: int) -> int:
        """The stripe that holds an extent."""
        return extent % self.stripes

    def place(self, offset: int) -> tuple[int, int]:
        """Stripe and offset in that stripe's file of the object's byte ``offset``."""
        extent, within = divmod(offset, self.extent_size)
        return extent % self.stripes, (extent // self.stripes) * self.extent_size + within

    def stripe_extents(self, stripe: int) -> int:
        """How many of the object's extents lie in one stripe."""
        return (self.extents - stripe + self.stripes - 1) // self.stripes

    def stripe_length(self, stripe: int) -> int:
        """Bytes of one stripe's file."""
        count = self.stripe_extents(stripe)
        if count == 0:
            return 0
        last = (count - 1) * self.stripes + stripe
        return (count - 1) * self.extent_size + self.extent_length(last)

    def runs(self, start: int, stop: int) -> Iterator[FileRun]:
        """The file runs that hold bytes ``start`` (inclusive) to ``stop`` (exclusive), in order."""
        if self.stripes == 1:
            if stop > start:
                yield FileRun(0, start, stop - start)
            return
        while start < stop:
            stripe, file_offset = self.place(start)
            length = min(stop - start, self.extent_size - start % self.extent_size)
            yield FileRun(stripe, file_offset, length)
            start += length
