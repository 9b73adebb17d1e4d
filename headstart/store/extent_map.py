"""The map of an object: which bytes are here, shared by all processes through mmap.

One file a stripe, beside that stripe's extents. Little-endian, every field aligned:

=======  =====  =====================================================================
offset   bytes  header
=======  =====  =====================================================================
0        8      magic ``HSBLBMAP``
8        8      format version
16       8      flags: 1 = verified (the whole object's digest has passed)
24       8      size of the object
32       8      extent size
40       8      number of stripes
48       8      this stripe's number
56       8      recorded size of this stripe's file (0 until the object is whole)
64       8      recorded ctime of this stripe's file in ns
72       16     boot id of the machine when the map was last opened for writing
88       40     zero
=======  =====  =====================================================================

then 64 bytes for each extent of this stripe:

=======  =====  =====================================================================
0        8      watermark: contiguous bytes from the extent's start
8        16     128 unit bits, lowest first; set when the unit is whole
24       8      state: 1 = the BLAKE3 is that of the whole extent, 2 = unchecked (the
                bits are not believed before the extent matches its BLAKE3)
32       32     BLAKE3 of the extent, zero until whole
=======  =====  =====================================================================

The filler is the only writer; it writes the bytes first and then the map, one 8-byte store a
field. Readers look, read what is there, and otherwise ask the filler and look again.
"""

import errno
import mmap
import os
import struct
from pathlib import Path

from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry

MAGIC = b"HSBLBMAP"
VERSION = 1
HEADER_SIZE = 128
RECORD_SIZE = 64

FLAG_VERIFIED = 1
STATE_HASHED = 1
STATE_UNCHECKED = 2

_FLAGS = 2
_RECORDED_SIZE = 7
_RECORDED_CTIME = 8
_BOOT = 72
_WORDS_HEADER = HEADER_SIZE // 8
_WORDS_RECORD = RECORD_SIZE // 8
_LOW = (1 << 64) - 1


class MapDamaged(Exception):
    """A map file that does not fit its object: the object counts as absent."""


def boot_id() -> bytes:
    """The 16 bytes that the kernel draws at each boot (Linux, random(4))."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


class StripeMap:
    """One stripe's map file, mapped shared; writable in the filler only."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map an existing file. Raises OSError, or :class:`MapDamaged`."""
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            length = os.fstat(descriptor).st_size
            if length < HEADER_SIZE or length % RECORD_SIZE:
                raise MapDamaged(f"{path}: {length} bytes are no map")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._mapping = mmap.mmap(descriptor, length, access=access)
        finally:
            os.close(descriptor)
        self._bytes = memoryview(self._mapping)
        self.words = self._bytes.cast("Q")
        self.records = (length - HEADER_SIZE) // RECORD_SIZE
        if bytes(self._bytes[:8]) != MAGIC or self.words[1] != VERSION:
            self.close()
            raise MapDamaged(f"{path}: no map of version {VERSION}")
        self.size = self.words[3]
        self.extent_size = self.words[4]
        self.stripes = self.words[5]
        self.stripe = self.words[6]
        if not self._plausible():
            self.close()
            raise MapDamaged(f"{path}: the header does not fit the file")

    def _plausible(self) -> bool:
        """Whether the header's numbers can be those of an object with so many records."""
        return (
            self.size < 1 << 63
            and self.extent_size in range(UNIT_SIZE, EXTENT_SIZE + 1, UNIT_SIZE)
            and self.stripe < self.stripes
            and self.records
            == Geometry(self.size, self.extent_size, self.stripes).stripe_extents(self.stripe)
        )

    @staticmethod
    def lay_out(descriptor: int, geometry: Geometry, stripe: int) -> None:
        """Make an empty file an empty map. Raises OSError."""
        length = HEADER_SIZE + RECORD_SIZE * geometry.stripe_extents(stripe)
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
        # The size is an upstream's word: its map must not fill the disk before it fails.
        room = os.fstatvfs(descriptor)
        # Anonymous memory names no limit at all.
        if room.f_blocks and length > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, length)
        os.pwrite(descriptor, header.ljust(HEADER_SIZE, b"\0"), 0)

    @classmethod
    def create(cls, path: Path, geometry: Geometry, stripe: int) -> "StripeMap":
        """Write an empty map and map it; its space is reserved, so that no store can fault."""
        temporary = path.with_name(path.name + ".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            cls.lay_out(descriptor, geometry, stripe)
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
        """Size and ctime_ns of the stripe's file when the object became whole; (0, 0) before."""
        return self.words[_RECORDED_SIZE], self.words[_RECORDED_CTIME]

    def record(self, size: int, ctime_ns: int) -> None:
        """Remember size and ctime_ns of the stripe's file."""
        self.words[_RECORDED_SIZE] = size
        self.words[_RECORDED_CTIME] = ctime_ns

    @property
    def flags(self) -> int:
        """The header's flags."""
        return self.words[_FLAGS]

    def set_flags(self, flags: int) -> None:
        """Replace the header's flags."""
        self.words[_FLAGS] = flags

    def watermark(self, record: int) -> int:
        """Contiguous bytes from the start of the stripe's extent number ``record``."""
        return self.words[_WORDS_HEADER + record * _WORDS_RECORD]

    def bits(self, record: int) -> int:
        """Unit bits of one extent, lowest unit in bit 0."""
        word = _WORDS_HEADER + record * _WORDS_RECORD + 1
        return self.words[word] | self.words[word + 1] << 64

    def state(self, record: int) -> int:
        """State flags of one extent."""
        return self.words[_WORDS_HEADER + record * _WORDS_RECORD + 3]

    def blake3(self, record: int) -> bytes:
        """The 32 bytes of one extent's BLAKE3."""
        start = HEADER_SIZE + record * RECORD_SIZE + 32
        return bytes(self._bytes[start : start + 32])

    def set_progress(self, record: int, watermark: int, bits: int) -> None:
        """Publish progress; the bytes must have been written before."""
        word = _WORDS_HEADER + record * _WORDS_RECORD
        self.words[word + 1] = bits & _LOW
        self.words[word + 2] = bits >> 64
        self.words[word] = watermark

    def set_blake3(self, record: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        start = HEADER_SIZE + record * RECORD_SIZE + 32
        self._bytes[start : start + 32] = digest
        self.set_state(record, self.state(record) | STATE_HASHED)

    def set_state(self, record: int, state: int) -> None:
        """Replace the state flags of one extent."""
        self.words[_WORDS_HEADER + record * _WORDS_RECORD + 3] = state

    def clear(self, record: int) -> None:
        """Make one extent a miss."""
        self.set_progress(record, 0, 0)
        self.set_state(record, 0)
        start = HEADER_SIZE + record * RECORD_SIZE + 32
        self._bytes[start : start + 32] = bytes(32)

    def sync(self) -> None:
        """Write the map through to its disk (msync)."""
        self._mapping.flush()

    def close(self) -> None:
        """Unmap."""
        if hasattr(self, "words"):
            self.words.release()
        self._bytes.release()
        self._mapping.close()


class BlobMap:
    """The maps of all stripes of one object, as one."""

    def __init__(self, stripes: list[StripeMap]) -> None:
        """Join the stripes' maps, in their order. Raises :class:`MapDamaged` if they disagree."""
        if not stripes:
            raise MapDamaged("an object has at least one map")
        first = stripes[0]
        self.stripes = stripes
        self.geometry = Geometry(first.size, first.extent_size, first.stripes)
        for number, stripe in enumerate(stripes):
            fits = (
                stripe.stripe == number
                and stripe.stripes == len(stripes)
                and (stripe.size, stripe.extent_size) == (first.size, first.extent_size)
            )
            if not fits:
                raise MapDamaged(f"the map of stripe {number} does not belong to its object")

    @classmethod
    def open(cls, paths: list[Path], *, writable: bool = False) -> "BlobMap":
        """Open the maps of all stripes. Raises OSError or :class:`MapDamaged`; leaks nothing."""
        opened: list[StripeMap] = []
        try:
            for path in paths:
                opened.append(StripeMap(path, writable=writable))
            return cls(opened)
        except (OSError, MapDamaged):
            for stripe in opened:
                stripe.close()
            raise

    @property
    def verified(self) -> bool:
        """Whether the whole object's digest has passed."""
        return all(stripe.flags & FLAG_VERIFIED for stripe in self.stripes)

    def set_verified(self, verified: bool) -> None:
        """Set or clear the verified flag on all stripes."""
        for stripe in self.stripes:
            flags = stripe.flags & ~FLAG_VERIFIED
            stripe.set_flags(flags | FLAG_VERIFIED if verified else flags)

    def locate(self, extent: int) -> tuple[StripeMap, int]:
        """The stripe's map and the record number of an extent."""
        return self.stripes[extent % self.geometry.stripes], extent // self.geometry.stripes

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

    def close(self) -> None:
        """Unmap all."""
        for stripe in self.stripes:
            stripe.close()
