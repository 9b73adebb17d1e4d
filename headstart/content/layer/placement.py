"""Where the contents of files go on a data device."""

import math

BLOCK_SIZE = 4096
"""Bytes of a block of the data device; EROFS maps whole blocks."""

LARGE_FILE = 1 << 20
"""From this many bytes on a file begins on a border of its own, if there are several stripes."""


class Placement:
    """Where contents go on the data device, in the order in which they are given out.

    With several stripes a file is mapped in pieces of equal size, a power of two, of which none
    crosses an extent border: a large file that began anywhere would need a piece a block.
    """

    def __init__(self, extent_size: int, stripes: int) -> None:
        """``extent_size``: bytes, a multiple of :data:`BLOCK_SIZE`; ``stripes``: at least one."""
        if extent_size <= 0 or extent_size % BLOCK_SIZE or stripes < 1:
            raise ValueError(f"no placement in extents of {extent_size} on {stripes} stripes")
        self._large_border = math.gcd(extent_size, LARGE_FILE) if stripes > 1 else BLOCK_SIZE
        self._stop = 0

    def place(self, size: int) -> int:
        """The device offset of the next file's contents; an empty file takes no room."""
        border = self._large_border if size >= LARGE_FILE else BLOCK_SIZE
        offset = -(-self._stop // border) * border
        if size:
            self._stop = offset + size
        return offset

    @property
    def device_size(self) -> int:
        """Bytes up to the end of the last placed file, rounded up to :data:`BLOCK_SIZE`."""
        return -(-self._stop // BLOCK_SIZE) * BLOCK_SIZE
