"""The map of a blob: which bytes are here, shared by all processes through mmap.

Magic ``HSBLBMAP``, version 1. The header of :mod:`headstart.store.map_file` has 128 bytes here,
nothing added, and its flags are: 1 = verified (the digest of the whole blob has passed). Then 64
bytes for each extent of the stripe:

=======  =====  =====================================================================
0        8      watermark: contiguous bytes from the extent's start
8        16     128 unit bits, lowest first; set when the unit is whole
24       8      state
32       32     BLAKE3
=======  =====  =====================================================================

Every field but the last is written by 8-byte stores, the watermark after the bits.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from headstart.store.geometry import UNIT_SIZE
from headstart.store.map_file import (
    STATE_HASHED,
    STATE_UNCHECKED,
    JoinedMap,
    MapDamaged,
    MapFile,
    boot_id,
)

__all__ = [
    "FLAG_VERIFIED",
    "HEADER_SIZE",
    "RECORD_SIZE",
    "STATE_HASHED",
    "STATE_UNCHECKED",
    "BlobMap",
    "MapDamaged",
    "StripeMap",
    "boot_id",
]

HEADER_SIZE = 128
RECORD_SIZE = 64

FLAG_VERIFIED = 1

_WORDS_HEADER = HEADER_SIZE // 8
_WORDS_RECORD = RECORD_SIZE // 8
_LOW = (1 << 64) - 1


class StripeMap(MapFile):
    """One stripe's map file, mapped shared; writable in the filler only."""

    MAGIC = b"HSBLBMAP"
    VERSION = 1
    HEADER_SIZE = HEADER_SIZE
    STATE = 24

    @classmethod
    def record_size(cls, extent_size: int) -> int:
        """Bytes of one extent's record: there is room for the units of the largest extent."""
        return RECORD_SIZE

    def watermark(self, record: int) -> int:
        """Contiguous bytes from the start of the stripe's extent number ``record``."""
        return self._words[_WORDS_HEADER + record * _WORDS_RECORD]

    def bits(self, record: int) -> int:
        """Unit bits of one extent, lowest unit in bit 0."""
        word = _WORDS_HEADER + record * _WORDS_RECORD + 1
        return self._words[word] | self._words[word + 1] << 64

    def set_progress(self, record: int, watermark: int, bits: int) -> None:
        """Publish progress; the bytes must have been written before."""
        word = _WORDS_HEADER + record * _WORDS_RECORD
        self._words[word + 1] = bits & _LOW
        self._words[word + 2] = bits >> 64
        self._words[word] = watermark

    def _clear_presence(self, record: int) -> None:
        self.set_progress(record, 0, 0)


class BlobMap(JoinedMap[StripeMap]):
    """The maps of all stripes of one blob, as one."""

    @classmethod
    def open(cls, paths: Sequence[Path], *, writable: bool = False) -> "BlobMap":
        """Open the maps of all stripes. Raises OSError or :class:`MapDamaged`; leaks nothing."""
        return cls._open(partial(StripeMap, writable=writable), paths)

    @property
    def verified(self) -> bool:
        """Whether the whole object's digest has passed."""
        return all(stripe.flags & FLAG_VERIFIED for stripe in self.stripes)

    def set_verified(self, verified: bool) -> None:
        """Set or clear the verified flag on all stripes."""
        self.set_flag(FLAG_VERIFIED, verified)

    def whole(self, extent: int) -> bool:
        """Whether every byte of the extent is here and believed."""
        stripe, record = self.locate(extent)
        if stripe.state(record) & STATE_UNCHECKED:
            return False
        return stripe.watermark(record) >= self.geometry.extent_length(extent)

    def complete(self) -> bool:
        """Whether every byte of the object is here and believed."""
        return all(self.whole(extent) for extent in range(self.geometry.extents))

    def present(self) -> int:
        """How many bytes are here and believed, wherever they lie; whole units and watermarks."""
        return sum(self._present(extent) for extent in range(self.geometry.extents))

    def _present(self, extent: int) -> int:
        stripe, record = self.locate(extent)
        if stripe.state(record) & STATE_UNCHECKED:
            return 0
        length = self.geometry.extent_length(extent)
        watermark = stripe.watermark(record)
        if watermark >= length:
            return length
        below = -(-watermark // UNIT_SIZE)
        bits = stripe.bits(record) >> below << below
        count = watermark + bits.bit_count() * UNIT_SIZE
        units = self.geometry.extent_units(extent)
        if bits >> units - 1 & 1:  # the last unit may be short
            count -= units * UNIT_SIZE - length
        return count

    def available(self, offset: int, limit: int | None = None) -> int:
        """How many bytes can be read from ``offset`` on, looking no further than ``limit``."""
        geometry = self.geometry
        end = geometry.size if limit is None else min(geometry.size, offset + limit)
        position = offset
        while position < end:
            extent, within = divmod(position, geometry.extent_size)
            stripe, record = self.locate(extent)
            if stripe.state(record) & STATE_UNCHECKED:
                break
            length = geometry.extent_length(extent)
            reached = self._reached(stripe, record, within, length)
            if reached <= within:
                break
            position = extent * geometry.extent_size + reached
            if reached < length:
                break
        return max(0, min(position, end) - offset)

    @staticmethod
    def _reached(stripe: StripeMap, record: int, within: int, length: int) -> int:
        """The first byte of the extent after ``within`` that is not here (``within`` if none)."""
        watermark = stripe.watermark(record)
        if within < watermark:
            if watermark >= length:
                return length
            within = watermark
        bits = stripe.bits(record) >> within // UNIT_SIZE
        run = (~bits & bits + 1).bit_length() - 1
        if run == 0:
            return within
        return min(length, (within // UNIT_SIZE + run) * UNIT_SIZE)
