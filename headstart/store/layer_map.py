"""The map of a layer image: which blocks of its data device are here, shared through mmap.

One file a stripe, beside that stripe's extents. Little-endian, every field aligned:

=======  =====  =====================================================================
offset   bytes  header
=======  =====  =====================================================================
0        8      magic ``HSLYRMAP``
8        8      format version
16       8      flags: 1 = complete (every block is here), 2 = verified (by the diff
                ID), 4 = doubted (extents must be checked before either is believed)
24       8      size of the data device, a multiple of 4096
32       8      extent size
40       8      number of stripes
48       8      this stripe's number
56       8      recorded size of this stripe's file (0 until the image is complete)
64       8      recorded ctime of this stripe's file in ns
72       16     boot id of the machine when the map was last opened for writing
88       8      size of the metadata file (stripe 0; 0 until it is written)
96       8      ctime of the metadata file in ns (stripe 0)
104      32     BLAKE3 of the metadata file (stripe 0)
136      56     zero
=======  =====  =====================================================================

then for each extent of this stripe, ``64 + extent size / 32768`` bytes rounded up to a multiple
of 8:

=======  =====  =====================================================================
0        8      state: 1 = the BLAKE3 is that of the whole extent, 2 = unchecked (the
                bits are not believed before the extent matches its BLAKE3)
8        24     zero
32       32     BLAKE3 of the extent, zero until whole
64              one bit a block of 4096 bytes, lowest first; set when everything that
                touches the block is written and verified
=======  =====  =====================================================================

The filler is the only writer; it writes the bytes first and then the map. Readers look, read what
is there, and otherwise ask the filler and look again. Bits are only ever set while readers believe
them, so what a reader sees half written is a block too few, never one too many.
"""

import errno
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.store.extent_map import STATE_HASHED, STATE_UNCHECKED, MapDamaged, boot_id
from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry

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

MAGIC = b"HSLYRMAP"
VERSION = 1
HEADER_SIZE = 192
BLOCK_SIZE = 4096
"""Bytes of a block of the data device: what EROFS maps and the page cache holds."""

FLAG_COMPLETE = 1
FLAG_VERIFIED = 2
FLAG_DOUBTED = 4

_FLAGS = 2
_RECORDED_SIZE = 7
_RECORDED_CTIME = 8
_BOOT = 72
_META_SIZE = 11
_META_CTIME = 12
_META_BLAKE3 = 104
_BITS = 64
_BLAKE3 = 32


class MetaRecord(NamedTuple):
    """What the map remembers of the metadata file; all zero before it is written."""

    size: int
    ctime_ns: int
    blake3: bytes


def record_size(extent_size: int) -> int:
    """Bytes of one extent's record."""
    blocks = extent_size // BLOCK_SIZE
    return _BITS + -(-blocks // 64) * 8


class LayerStripeMap:
    """One stripe's map file, mapped shared; writable in the filler only."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map an existing file. Raises OSError, or :class:`MapDamaged`."""
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size
            if length < HEADER_SIZE or length % 8:
                raise MapDamaged(f"{path}: {length} bytes are no map")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._mapping = mmap.mmap(descriptor, length, access=access)
        finally:
            os.close(descriptor)
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes.cast("Q")
        if bytes(self._bytes[:8]) != MAGIC or self._words[1] != VERSION:
            self.close()
            raise MapDamaged(f"{path}: no map of version {VERSION}")
        self.size = self._words[3]
        self.extent_size = self._words[4]
        self.stripes = self._words[5]
        self.stripe = self._words[6]
        if not self._plausible(length):
            self.close()
            raise MapDamaged(f"{path}: the header does not fit the file")
        self.records = Geometry(self.size, self.extent_size, self.stripes).stripe_extents(
            self.stripe
        )
        self._record_size = record_size(self.extent_size)

    def _plausible(self, length: int) -> bool:
        """Whether the header's numbers can be those of a map of so many bytes."""
        if (
            self.size >= 1 << 63
            or self.size % BLOCK_SIZE
            or self.extent_size not in range(UNIT_SIZE, EXTENT_SIZE + 1, UNIT_SIZE)
            or self.stripe >= self.stripes
        ):
            return False
        geometry = Geometry(self.size, self.extent_size, self.stripes)
        return length == map_length(geometry, self.stripe)

    @classmethod
    def create(cls, path: Path, geometry: Geometry, stripe: int) -> "LayerStripeMap":
        """Write an empty map and map it; its space is reserved, so that no store can fault.

        ``geometry.size`` is a multiple of :data:`BLOCK_SIZE`. Raises OSError and leaves nothing.
        """
        if geometry.size % BLOCK_SIZE:
            raise ValueError(f"a data device of {geometry.size} bytes has no whole blocks")
        header = struct.pack(
            "<8s8Q",
            MAGIC,
            VERSION,
            0,
            geometry.size,
            geometry.extent_size,
            geometry.stripes,
            stripe,
            0,
            0,
        )
        header += boot_id()
        length = map_length(geometry, stripe)
        temporary = path.with_name(path.name + ".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            # The size is what a TOC says: its map must not fill the disk before it fails.
            room = os.fstatvfs(descriptor)
            if length > room.f_bavail * room.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(descriptor, 0, length)
            os.pwrite(descriptor, header.ljust(HEADER_SIZE, b"\0"), 0)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return cls(path, writable=True)

    @property
    def boot(self) -> bytes:
        """Boot id of the last writer."""
        return bytes(self._bytes[_BOOT : _BOOT + 16])

    def set_boot(self, boot: bytes) -> None:
        """Record the boot in which the map is written from now on."""
        self._bytes[_BOOT : _BOOT + 16] = boot

    @property
    def recorded(self) -> tuple[int, int]:
        """Size and ctime_ns of the stripe's file when the image was complete; (0, 0) before."""
        return self._words[_RECORDED_SIZE], self._words[_RECORDED_CTIME]

    def record(self, size: int, ctime_ns: int) -> None:
        """Remember size and ctime_ns of the stripe's file."""
        self._words[_RECORDED_SIZE] = size
        self._words[_RECORDED_CTIME] = ctime_ns

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

    @property
    def flags(self) -> int:
        """The header's flags."""
        return self._words[_FLAGS]

    def set_flags(self, flags: int) -> None:
        """Replace the header's flags."""
        self._words[_FLAGS] = flags

    def _start(self, record: int) -> int:
        return HEADER_SIZE + record * self._record_size

    def state(self, record: int) -> int:
        """State flags of the stripe's extent number ``record``."""
        return self._words[self._start(record) // 8]

    def set_state(self, record: int, state: int) -> None:
        """Replace the state flags of one extent."""
        self._words[self._start(record) // 8] = state

    def blake3(self, record: int) -> bytes:
        """The 32 bytes of one extent's BLAKE3."""
        start = self._start(record) + _BLAKE3
        return bytes(self._bytes[start : start + 32])

    def set_blake3(self, record: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        start = self._start(record) + _BLAKE3
        self._bytes[start : start + 32] = digest
        self.set_state(record, self.state(record) | STATE_HASHED)

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

    def clear(self, record: int) -> None:
        """Make one extent a miss."""
        start = self._start(record)
        self._bytes[start : start + self._record_size] = bytes(self._record_size)

    def sync(self) -> None:
        """Write the map through to its disk (msync). Raises OSError."""
        self._mapping.flush()

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._bytes.release()
        self._mapping.close()


def map_length(geometry: Geometry, stripe: int) -> int:
    """Bytes of one stripe's map file."""
    return HEADER_SIZE + record_size(geometry.extent_size) * geometry.stripe_extents(stripe)


class LayerMap:
    """The maps of all stripes of one layer image, as one."""

    def __init__(self, stripes: Sequence[LayerStripeMap]) -> None:
        """Join the stripes' maps, in their order. Raises :class:`MapDamaged` if they disagree."""
        if not stripes:
            raise MapDamaged("a layer image has at least one map")
        first = stripes[0]
        self.stripes = list(stripes)
        self.geometry = Geometry(first.size, first.extent_size, first.stripes)
        for number, stripe in enumerate(stripes):
            fits = (
                stripe.stripe == number
                and stripe.stripes == len(stripes)
                and (stripe.size, stripe.extent_size) == (first.size, first.extent_size)
            )
            if not fits:
                raise MapDamaged(f"the map of stripe {number} does not belong to its layer image")

    @classmethod
    def open(cls, paths: Sequence[Path], *, writable: bool = False) -> "LayerMap":
        """Open the maps of all stripes. Raises OSError or :class:`MapDamaged`; leaks nothing."""
        opened: list[LayerStripeMap] = []
        try:
            for path in paths:
                opened.append(LayerStripeMap(path, writable=writable))
            return cls(opened)
        except (OSError, MapDamaged):
            for stripe in opened:
                stripe.close()
            raise

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

    def set_flag(self, flag: int, on: bool) -> None:
        """Set or clear one flag on all stripes."""
        for stripe in self.stripes:
            flags = stripe.flags & ~flag
            stripe.set_flags(flags | flag if on else flags)

    def locate(self, extent: int) -> tuple[LayerStripeMap, int]:
        """The stripe's map and the record number of an extent."""
        return self.stripes[extent % self.geometry.stripes], extent // self.geometry.stripes

    def blocks(self, extent: int) -> int:
        """Blocks of one extent; the last extent may be short."""
        return self.geometry.extent_length(extent) // BLOCK_SIZE

    def unchecked(self, extent: int) -> bool:
        """Whether the extent must match its BLAKE3 before it is believed."""
        stripe, record = self.locate(extent)
        return bool(stripe.state(record) & STATE_UNCHECKED)

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
            if self.unchecked(extent):
                break
            stripe, record = self.locate(extent)
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

    def close(self) -> None:
        """Unmap all."""
        for stripe in self.stripes:
            stripe.close()
