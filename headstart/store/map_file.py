"""What the maps of blobs and of layer images have in common, shared by all processes through mmap.

One file a stripe, beside that stripe's extents. Little-endian, every field aligned:

=======  =====  =====================================================================
offset   bytes  header
=======  =====  =====================================================================
0        8      magic
8        8      format version
16       8      flags
24       8      size of the object
32       8      extent size
40       8      number of stripes
48       8      this stripe's number
56       8      recorded size of this stripe's file (0 until the object is whole)
64       8      recorded ctime of this stripe's file in ns
72       16     boot id of the machine when the map was last opened for writing
88              what the kind of map adds, then zero
=======  =====  =====================================================================

then for each extent of this stripe a record, in which are, beside what is here of the extent:

=======  =====  =====================================================================
         8      state: 1 = the BLAKE3 is that of the whole extent, 2 = unchecked (what
                the record says is not believed before the extent matches its BLAKE3)
32       32     BLAKE3 of the extent, zero until whole
=======  =====  =====================================================================

The filler is the only writer; it writes the bytes first and then the map. Readers look, read what
is there, and otherwise ask the filler and look again.
"""

import errno
import mmap
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry

STATE_HASHED = 1
STATE_UNCHECKED = 2

_FLAGS = 2
_RECORDED_SIZE = 7
_RECORDED_CTIME = 8
_BOOT = 72
_BLAKE3 = 32


class MapDamaged(Exception):
    """A map file that does not fit its object: the object counts as absent."""


def boot_id() -> bytes:
    """The 16 bytes that the kernel draws at each boot (Linux, random(4))."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


class MapFile(ABC):
    """One stripe's map file, mapped shared; writable in the filler only."""

    MAGIC: ClassVar[bytes]
    VERSION: ClassVar[int]
    HEADER_SIZE: ClassVar[int]
    STATE: ClassVar[int]
    """Offset of the state in a record."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map an existing file. Raises OSError, or :class:`MapDamaged`."""
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size
            if length < self.HEADER_SIZE or length % 8:
                raise MapDamaged(f"{path}: {length} bytes are no map")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._mapping = mmap.mmap(descriptor, length, access=access)
        finally:
            os.close(descriptor)
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes.cast("Q")
        if bytes(self._bytes[:8]) != self.MAGIC or self._words[1] != self.VERSION:
            self.close()
            raise MapDamaged(f"{path}: no map of version {self.VERSION}")
        self.size, self.extent_size, self.stripes, self.stripe = self._words[3:7].tolist()
        if not self._plausible(length):
            self.close()
            raise MapDamaged(f"{path}: the header does not fit the file")
        self.records = Geometry(self.size, self.extent_size, self.stripes).stripe_extents(
            self.stripe
        )
        self._record_size = self.record_size(self.extent_size)
        # In words of 8 bytes: every read of presence looks at a state.
        self._record_words = self._record_size // 8
        self._first_state = (self.HEADER_SIZE + self.STATE) // 8

    @classmethod
    @abstractmethod
    def record_size(cls, extent_size: int) -> int:
        """Bytes of one extent's record, a multiple of 8."""

    @classmethod
    def length(cls, geometry: Geometry, stripe: int) -> int:
        """Bytes of one stripe's map file."""
        records = geometry.stripe_extents(stripe)
        return cls.HEADER_SIZE + cls.record_size(geometry.extent_size) * records

    def _plausible(self, length: int) -> bool:
        """Whether the header's numbers can be those of a map of so many bytes."""
        return (
            self.size < 1 << 63
            and self.extent_size in range(UNIT_SIZE, EXTENT_SIZE + 1, UNIT_SIZE)
            and self.stripe < self.stripes
            and length
            == self.length(Geometry(self.size, self.extent_size, self.stripes), self.stripe)
        )

    @classmethod
    def lay_out(cls, descriptor: int, geometry: Geometry, stripe: int) -> None:
        """Make an empty file an empty map. Raises OSError."""
        numbers = (geometry.size, geometry.extent_size, geometry.stripes, stripe)
        header = struct.pack("<8s8Q", cls.MAGIC, cls.VERSION, 0, *numbers, 0, 0) + boot_id()
        length = cls.length(geometry, stripe)
        # The size is an upstream's word: its map must not fill the disk before it fails.
        room = os.fstatvfs(descriptor)
        # Anonymous memory names no limit at all.
        if room.f_blocks and length > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, length)
        os.pwrite(descriptor, header.ljust(cls.HEADER_SIZE, b"\0"), 0)

    @classmethod
    def create(cls, path: Path, geometry: Geometry, stripe: int) -> Self:
        """Write an empty map and map it; its space is reserved, so that no store can fault.

        Raises OSError and leaves nothing.
        """
        temporary = path.with_name(path.name + ".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o640)
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
        return self._words[_RECORDED_SIZE], self._words[_RECORDED_CTIME]

    def record(self, size: int, ctime_ns: int) -> None:
        """Remember size and ctime_ns of the stripe's file."""
        self._words[_RECORDED_SIZE] = size
        self._words[_RECORDED_CTIME] = ctime_ns

    @property
    def flags(self) -> int:
        """The header's flags."""
        return self._words[_FLAGS]

    def set_flags(self, flags: int) -> None:
        """Replace the header's flags."""
        self._words[_FLAGS] = flags

    def _start(self, record: int) -> int:
        return self.HEADER_SIZE + record * self._record_size

    def state(self, record: int) -> int:
        """State flags of the stripe's extent number ``record``."""
        return self._words[self._first_state + record * self._record_words]

    def set_state(self, record: int, state: int) -> None:
        """Replace the state flags of one extent."""
        self._words[self._first_state + record * self._record_words] = state

    def blake3(self, record: int) -> bytes:
        """The 32 bytes of one extent's BLAKE3."""
        start = self._start(record) + _BLAKE3
        return bytes(self._bytes[start : start + 32])

    def set_blake3(self, record: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        start = self._start(record) + _BLAKE3
        self._bytes[start : start + 32] = digest
        self.set_state(record, self.state(record) | STATE_HASHED)

    def distrust(self, record: int) -> bool:
        """Make one extent unchecked; without a BLAKE3 to be checked against a miss, and False."""
        if not self.state(record) & STATE_HASHED:
            self.clear(record)
            return False
        self.set_state(record, STATE_HASHED | STATE_UNCHECKED)
        return True

    def clear(self, record: int) -> None:
        """Make one extent a miss."""
        # Its state last: what is unchecked is not believed until nothing is left to believe.
        self._clear_presence(record)
        self.set_state(record, 0)
        start = self._start(record) + _BLAKE3
        self._bytes[start : start + 32] = bytes(32)

    @abstractmethod
    def _clear_presence(self, record: int) -> None:
        """Let one extent's record say that nothing is here."""

    def sync(self) -> None:
        """Write the map through to its disk (msync). Raises OSError."""
        self._mapping.flush()

    def close(self) -> None:
        """Unmap; a second time does nothing."""
        self._words.release()
        self._bytes.release()
        self._mapping.close()


FileT = TypeVar("FileT", bound=MapFile, covariant=True)


class JoinedMap(Generic[FileT]):
    """The maps of all stripes of one object, as one."""

    def __init__(self, stripes: Sequence[FileT]) -> None:
        """Join the stripes' maps, in their order. Raises :class:`MapDamaged` if they disagree."""
        if not stripes:
            raise MapDamaged("an object has at least one map")
        first = stripes[0]
        self.stripes = tuple(stripes)
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
    def _open(cls, opener: Callable[[Path], FileT], paths: Sequence[Path]) -> Self:
        """Open the maps of all stripes. Raises OSError or :class:`MapDamaged`; leaks nothing."""
        opened: list[FileT] = []
        try:
            for path in paths:
                opened.append(opener(path))
            return cls(opened)
        except (OSError, MapDamaged):
            for stripe in opened:
                stripe.close()
            raise

    def set_flag(self, flag: int, on: bool) -> None:
        """Set or clear one flag on all stripes."""
        for stripe in self.stripes:
            flags = stripe.flags & ~flag
            stripe.set_flags(flags | flag if on else flags)

    def locate(self, extent: int) -> tuple[FileT, int]:
        """The stripe's map and the record number of an extent."""
        return self.stripes[extent % self.geometry.stripes], extent // self.geometry.stripes

    def unchecked(self, extent: int) -> bool:
        """Whether the extent must match its BLAKE3 before it is believed."""
        stripe, record = self.locate(extent)
        return bool(stripe.state(record) & STATE_UNCHECKED)

    def close(self) -> None:
        """Unmap all."""
        for stripe in self.stripes:
            stripe.close()
