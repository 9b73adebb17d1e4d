"""Where the contents of files lie: one address space over several devices. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from headstart.content.erofs.format import BLOCK_BITS, BLOCK_SIZE, LARGEST_CHUNK_BITS


class ChunkPlace(NamedTuple):
    """Where one chunk begins: a stripe, and the block in that stripe's file."""

    stripe: int
    block: int


@dataclass(frozen=True, slots=True)
class DeviceGeometry:
    """A data device of ``size`` bytes in extents of ``extent_size`` over ``stripes`` files.

    Extent ``e`` lies in stripe ``e mod stripes`` at ``(e div stripes) * extent_size`` of that
    stripe's file. ``extent_size`` is a multiple of 4096. Raises ValueError for other numbers.
    """

    size: int
    extent_size: int
    stripes: int

    def __post_init__(self) -> None:
        if self.size < 0 or self.stripes < 1:
            raise ValueError(f"no data device has {self.size} bytes on {self.stripes} stripes")
        if self.extent_size < BLOCK_SIZE or self.extent_size % BLOCK_SIZE:
            raise ValueError(f"extents of {self.extent_size} bytes are not whole blocks")

    def stripe_length(self, stripe: int) -> int:
        """Bytes of one stripe's file."""
        rows, rest = divmod(self.size, self.extent_size * self.stripes)
        within = rest - stripe * self.extent_size
        return rows * self.extent_size + min(max(within, 0), self.extent_size)

    def place(self, offset: int) -> ChunkPlace:
        """Where the block that holds the device's byte ``offset`` lies."""
        extent, within = divmod(offset, self.extent_size)
        row, stripe = divmod(extent, self.stripes)
        return ChunkPlace(stripe, (row * self.extent_size + within) >> BLOCK_BITS)

    def chunk_bits(self, offset: int, size: int) -> int:
        """log2 of the blocks of a chunk, for a file of ``size`` > 0 bytes at ``offset``.

        The largest power of two with which no chunk crosses from one stripe to another; where the
        file does not cross either, the smallest which makes it one chunk.
        """
        first_border = self.extent_size - offset % self.extent_size
        if self.stripes == 1 or size <= first_border:
            return min(((size - 1) >> BLOCK_BITS).bit_length(), LARGEST_CHUNK_BITS)
        distances = first_border
        if size > first_border + self.extent_size:
            distances |= self.extent_size
        return (distances & -distances).bit_length() - 1 - BLOCK_BITS

    def chunks(self, offset: int, size: int, bits: int) -> Iterator[ChunkPlace]:
        """Where the chunks of such a file begin, in the file's order."""
        return map(self.place, range(offset, offset + size, BLOCK_SIZE << bits))
