"""The framing of a tar: what lies between the contents of files, kept until the diff ID is known.

A file of records, in the order in which they came; little-endian:

=======  =====  =====================================================================
offset   bytes  record
=======  =====  =====================================================================
0        4      number of the region of the blob
4        4      twice the number of the part of that region's framing, plus 1 in the
                last one
8        8      bytes of framing
16       16     first half of the BLAKE3 of the 16 bytes before and the framing
32              the framing: of what the region inflates to, all that is in no chunk
=======  =====  =====================================================================

A record that a crash has left half written does not match its BLAKE3; it and what follows is cut.
A region counts once its last part is here; parts that begin anew replace those before.
"""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from headstart.store.geometry import MIB

_NUMBERS = struct.Struct("<IIQ")
_HEAD_SIZE = 32
PART_SIZE = MIB
"""The most framing of one region that waits in memory."""


class _Place(NamedTuple):
    offset: int
    length: int


class FrameFile:
    """The framing of the regions that have come; regions may be added by several threads."""

    def __init__(
        self, path: Path, regions: int, reserve: Callable[[int], None] = lambda length: None
    ) -> None:
        """Open or make the file of a blob of so many regions; ``reserve`` is told of its growth.

        Raises OSError.
        """
        self._path = path
        self._reserve = reserve
        self._begun: dict[int, list[_Place]] = {}
        self._whole: dict[int, list[_Place]] = {}
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._stop = self._read_all(regions)
            os.ftruncate(self._descriptor, self._stop)
        except OSError:
            self.close()
            raise
        self._begun.clear()

    def _read_all(self, regions: int) -> int:
        """Find the records; where the last right one ends."""
        size = os.fstat(self._descriptor).st_size
        position = 0
        while position + _HEAD_SIZE <= size:
            head = os.pread(self._descriptor, _HEAD_SIZE, position)
            region, part, length = _NUMBERS.unpack_from(head)
            start = position + _HEAD_SIZE
            if region >= regions or length > min(size - start, 2 * PART_SIZE):
                break
            framing = os.pread(self._descriptor, length, start)
            if _checksum(head[:16], framing) != head[16:]:
                break
            self._note(region, part, _Place(start, length))
            position = start + length
        return position

    def _note(self, region: int, part: int, place: _Place) -> None:
        if part < 2:
            self._begun[region] = []
        places = self._begun.get(region)
        if places is None or len(places) != part >> 1:
            return
        places.append(place)
        if part & 1:
            self._whole[region] = self._begun.pop(region)

    def __contains__(self, region: int) -> bool:
        """Whether the framing of a region is here."""
        return region in self._whole

    def length(self, region: int) -> int:
        """Bytes of a region's framing, which is here."""
        return sum(place.length for place in self._whole[region])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._stop

    def begin(self, region: int) -> "RegionFraming":
        """Take the framing of a region, by one thread."""
        return RegionFraming(self, region)

    def write(self, region: int, part: int, framing: bytes) -> None:
        """Append a record; ``part`` as in the record. Raises OSError."""
        numbers = _NUMBERS.pack(region, part, len(framing))
        record = memoryview(b"".join((numbers, _checksum(numbers, framing), framing)))
        with self._lock:
            self._reserve(len(record))
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], self._stop + written)
            self._note(region, part, _Place(self._stop + _HEAD_SIZE, len(framing)))
            self._stop += len(record)

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Framing of a region from ``offset`` on, at most ``length`` bytes. Raises OSError."""
        for place in self._whole[region]:
            if offset >= place.length:
                offset -= place.length
                continue
            count = min(length, place.length - offset)
            piece = os.pread(self._descriptor, count, place.offset + offset)
            if len(piece) != count:
                raise OSError(f"{self._path} ends before byte {place.offset + offset + count}")
            return piece
        return b""

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RegionFraming:
    """The framing of one region, piece by piece."""

    def __init__(self, file: FrameFile, region: int) -> None:
        """Made by :meth:`FrameFile.begin`."""
        self._file = file
        self._region = region
        self._part = 0
        self._waiting = bytearray()

    def add(self, piece: memoryview) -> None:
        """Take more, at most :data:`PART_SIZE` at once. Raises OSError."""
        if len(self._waiting) + len(piece) > PART_SIZE:
            self._flush(last=False)
        self._waiting += piece

    def finish(self) -> None:
        """That was all of it; from now on the region's framing is here. Raises OSError."""
        self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        self._file.write(self._region, self._part << 1 | last, bytes(self._waiting))
        self._waiting.clear()
        self._part += 1


def _checksum(numbers: bytes, framing: bytes) -> bytes:
    return blake3(numbers + framing).digest()[:16]
