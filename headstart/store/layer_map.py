"""The map of a layer image: which blocks of its data device are here, shared through mmap.

Magic ``HSLYRMAP``, version 1. The header of :mod:`headstart.store.map_file` has 192 bytes here. Its
size is that of the data device, a multiple of 4096, and its flags are: 1 = complete (every block is
here), 2 = verified (by the diff ID), 4 = doubted (extents must be checked before either is
believed). It goes on with what only stripe 0 knows, the others have zero there:

=======  =====  =====================================================================
88       8      size of the metadata file (0 until it is written)
96       8      ctime of the metadata file in ns
104      32     BLAKE3 of the metadata file
136      56     zero
=======  =====  =====================================================================

Then for each extent of the stripe, ``64 + extent size / 32768`` bytes rounded up to a multiple of
8:

=======  =====  =====================================================================
0        8      state
8        24     zero
32       32     BLAKE3
64              one bit a block of 4096 bytes, lowest first; set when everything that
                touches the block is written and verified
=======  =====  =====================================================================

Bits are only ever set while readers believe them, so what a reader sees half written is a block too
few, never one too many.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from headstart.store.geometry import Geometry
from headstart.store.map_file import STATE_UNCHECKED, JoinedMap, MapDamaged, MapFile

__all__ = [
    "BLOCK_SIZE",
    "FLAG_COMPLETE",
    "FLAG_DOUBTED",
    "FLAG_VERIFIED",
    "LayerMap",
    "LayerStripeMap",
    "MapDamaged",
    "MetaRecord",
]

BLOCK_SIZE = 4096
"""Bytes of a block of the data device: what EROFS maps and the page cache holds."""

FLAG_COMPLETE = 1
FLAG_VERIFIED = 2
FLAG_DOUBTED = 4

_META_SIZE = 11
_META_CTIME = 12
_META_BLAKE3 = 104
_BITS = 64


class MetaRecord(NamedTuple):
    """What the map remembers of the metadata file; all zero before it is written."""

    size: int
    ctime_ns: int
    blake3: bytes


class LayerStripeMap(MapFile):
    """One stripe's map file, mapped shared; writable in the filler only."""

    MAGIC = b"HSLYRMAP"
    VERSION = 1
    HEADER_SIZE = 192
    STATE = 0

    @classmethod
    def record_size(cls, extent_size: int) -> int:
        """Bytes of one extent's record: whole words of a bit a block."""
        return _BITS + -(-extent_size // BLOCK_SIZE // 64) * 8

    def _plausible(self, length: int) -> bool:
        return self.size % BLOCK_SIZE == 0 and super()._plausible(length)

    @classmethod
    def create(cls, path: Path, geometry: Geometry, stripe: int) -> Self:
        """Write an empty map and map it; ``geometry.size`` is a multiple of :data:`BLOCK_SIZE`.

        Raises OSError and leaves nothing.
        """
        if geometry.size % BLOCK_SIZE:
            raise ValueError(f"a data device of {geometry.size} bytes has no whole blocks")
        return super().create(path, geometry, stripe)

    @property
    def meta(self) -> MetaRecord:
        """What is remembered of the metadata file (stripe 0)."""
        digest = bytes(self._bytes[_META_BLAKE3 : _META_BLAKE3 + 32])
        return MetaRecord(self._words[_META_SIZE], self._words[_META_CTIME], digest)

    def record_meta(self, meta: MetaRecord) -> None:
        """Remember the metadata file; it must have been written before."""
        self._bytes[_META_BLAKE3 : _META_BLAKE3 + 32] = meta.blake3
        self._words[_META_CTIME] = meta.ctime_ns
        self._words[_META_SIZE] = meta.size

    def run(self, record: int, first: int, stop: int) -> int:
        """How many of the extent's blocks from ``first`` to ``stop`` are set, up to a gap."""
        start = self._start(record) + _BITS
        low = first // 8
        bits = int.from_bytes(self._bytes[start + low : start + -(-stop // 8)], "little")
        bits >>= first % 8
        return min(stop - first, (~bits & bits + 1).bit_length() - 1)

    def count(self, record: int, first: int, stop: int) -> int:
        """How many of the extent's blocks from ``first`` to ``stop`` are set, wherever they are."""
        start = self._start(record) + _BITS
        low = first // 8
        bits = int.from_bytes(self._bytes[start + low : start + -(-stop // 8)], "little")
        return (bits >> first % 8 & (1 << stop - first) - 1).bit_count()

    def set_blocks(self, record: int, first: int, stop: int) -> None:
        """Show readers blocks of an extent; their bytes must have been written before.

        Two threads must not do this at once.
        """
        start = self._start(record) + _BITS
        low, high = first // 8, stop // 8
        head, tail = 0xFF << first % 8 & 0xFF, (1 << stop % 8) - 1
        if low == high:
            self._bytes[start + low] |= head & tail
            return
        self._bytes[start + low] |= head
        self._bytes[start + low + 1 : start + high] = b"\xff" * (high - low - 1)
        if tail:
            self._bytes[start + high] |= tail

    def _clear_presence(self, record: int) -> None:
        bits, stop = self._start(record) + _BITS, self._start(record + 1)
        self._bytes[bits:stop] = bytes(stop - bits)


class LayerMap(JoinedMap[LayerStripeMap]):
    """The maps of all stripes of one layer image, as one."""

    @classmethod
    def open(cls, paths: Sequence[Path], *, writable: bool = False) -> "LayerMap":
        """Open the maps of all stripes. Raises OSError or :class:`MapDamaged`; leaks nothing."""
        return cls._open(partial(LayerStripeMap, writable=writable), paths)

    @property
    def doubted(self) -> bool:
        """Whether there are extents that must match their BLAKE3 before they are believed."""
        return any(stripe.flags & FLAG_DOUBTED for stripe in self.stripes)

    def _all(self, flag: int) -> bool:
        return all(stripe.flags & (flag | FLAG_DOUBTED) == flag for stripe in self.stripes)

    @property
    def complete(self) -> bool:
        """Whether every block is here and believed."""
        return self._all(FLAG_COMPLETE)

    @property
    def verified(self) -> bool:
        """Whether it is complete and its tar had the layer's diff ID."""
        return self._all(FLAG_COMPLETE | FLAG_VERIFIED)

    def blocks(self, extent: int) -> int:
        """Blocks of one extent; the last extent may be short."""
        return self.geometry.extent_length(extent) // BLOCK_SIZE

    def whole(self, extent: int) -> bool:
        """Whether every block of the extent is here and believed."""
        if self.unchecked(extent):
            return False
        stripe, record = self.locate(extent)
        blocks = self.blocks(extent)
        return stripe.run(record, 0, blocks) == blocks

    def present(self) -> int:
        """How many bytes are here and believed, wherever they lie."""
        total = 0
        for extent in range(self.geometry.extents):
            if not self.unchecked(extent):
                stripe, record = self.locate(extent)
                total += stripe.count(record, 0, self.blocks(extent))
        return total * BLOCK_SIZE

    def available(self, offset: int, limit: int) -> int:
        """How many bytes can be read from ``offset`` on, looking no further than ``limit``."""
        geometry = self.geometry
        end = min(geometry.size, offset + limit)
        if self.complete:
            return max(0, end - offset)
        position = offset
        while position < end:
            extent, within = divmod(position, geometry.extent_size)
            stripe, record = self.locate(extent)
            if stripe.state(record) & STATE_UNCHECKED:
                break
            base = extent * geometry.extent_size
            first = within // BLOCK_SIZE
            stop = -(-(min(end, base + geometry.extent_size) - base) // BLOCK_SIZE)
            run = stripe.run(record, first, stop)
            if run == 0:
                break
            position = base + (first + run) * BLOCK_SIZE
            if run < stop - first:
                break
        return max(0, min(position, end) - offset)
