"""The framing of a tar: what lies between the contents of files, kept until the diff ID is known.

A file of records, in the order in which they came; little-endian:

=======  =====  =====================================================================
offset   bytes  record
=======  =====  =====================================================================
0        4      number of the member of the blob
4        4      twice the number of the part of that member's framing, plus 1 in the
                last one
8        8      bytes of framing
16       16     boot id of the machine when it was written
32       16     first half of the BLAKE3 of the 32 bytes before and the framing
48              the framing: of what the member inflates to, all that is in no chunk
=======  =====  =====================================================================

A record that a crash has left half written does not match its BLAKE3; it and what follows is cut.
A member counts once its last part is here; parts that begin anew replace those before.
"""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from headstart.store.extent_map import boot_id
from headstart.store.geometry import MIB

_HEAD = struct.Struct("<IIQ16s")
_CHECKSUM_SIZE = 16
_HEAD_SIZE = _HEAD.size + _CHECKSUM_SIZE
PART_SIZE = MIB
"""The most framing of one member that waits in memory."""


class _Place(NamedTuple):
    offset: int
    length: int


class FrameFile:
    """The framing of the members that have come; members may be added by several threads."""

    def __init__(
        self, path: Path, members: int, reserve: Callable[[int], None] = lambda length: None
    ) -> None:
        """Open or make the file of a blob of so many members.

        ``reserve`` is told of its growth, by one thread at a time, and may refuse it by any
        exception. Raises OSError.
        """
        self._path = path
        self._reserve = reserve
        self._begun: dict[int, list[_Place]] = {}
        self._whole: dict[int, list[_Place]] = {}
        self._of_this_boot: set[int] = set()
        self._boot = boot_id()
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._stop = self._read_all(members)
            os.ftruncate(self._descriptor, self._stop)
        except OSError:
            self.close()
            raise
        self._begun.clear()

    def _read_all(self, members: int) -> int:
        """Find the records; where the last right one ends."""
        size = os.fstat(self._descriptor).st_size
        position = 0
        while position + _HEAD_SIZE <= size:
            head = os.pread(self._descriptor, _HEAD_SIZE, position)
            member, part, length, boot = _HEAD.unpack_from(head)
            start = position + _HEAD_SIZE
            if member >= members or length > min(size - start, 2 * PART_SIZE):
                break
            framing = os.pread(self._descriptor, length, start)
            if _checksum(head[: _HEAD.size], framing) != head[_HEAD.size :]:
                break
            self._note(member, part, _Place(start, length), boot)
            position = start + length
        return position

    def _note(self, member: int, part: int, place: _Place, boot: bytes) -> None:
        if part < 2:
            self._begun[member] = []
        places = self._begun.get(member)
        if places is None or len(places) != part >> 1:
            return
        places.append(place)
        if part & 1:
            self._whole[member] = self._begun.pop(member)
            if boot == self._boot:
                self._of_this_boot.add(member)

    def __contains__(self, member: int) -> bool:
        """Whether the framing of a member is here."""
        return member in self._whole

    def of_this_boot(self, member: int) -> bool:
        """Whether it came in this boot: what was written to other files before it is there too."""
        return member in self._of_this_boot

    def length(self, member: int) -> int:
        """Bytes of a member's framing, which is here."""
        return sum(place.length for place in self._whole[member])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._stop

    def begin(self, member: int) -> "MemberFraming":
        """Take the framing of a member, by one thread."""
        return MemberFraming(self, member)

    def write(self, member: int, part: int, framing: bytes) -> None:
        """Append a record; ``part`` as in the record. Raises OSError."""
        head = _HEAD.pack(member, part, len(framing), self._boot)
        record = memoryview(b"".join((head, _checksum(head, framing), framing)))
        with self._lock:
            self._reserve(len(record))
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], self._stop + written)
            place = _Place(self._stop + _HEAD_SIZE, len(framing))
            self._note(member, part, place, self._boot)
            self._stop += len(record)

    def read(self, member: int, offset: int, length: int) -> bytes:
        """Framing of a member from ``offset`` on, at most ``length`` bytes. Raises OSError."""
        for place in self._whole[member]:
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


class MemberFraming:
    """The framing of one member, piece by piece."""

    def __init__(self, file: FrameFile, member: int) -> None:
        """Made by :meth:`FrameFile.begin`."""
        self._file = file
        self._member = member
        self._part = 0
        self._waiting = bytearray()

    def add(self, piece: memoryview) -> None:
        """Take more, at most :data:`PART_SIZE` at once. Raises OSError."""
        if len(self._waiting) + len(piece) > PART_SIZE:
            self._flush(last=False)
        self._waiting += piece

    def finish(self) -> None:
        """That was all of it; from now on the member's framing is here. Raises OSError."""
        self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        self._file.write(self._member, self._part << 1 | last, bytes(self._waiting))
        self._waiting.clear()
        self._part += 1


def _checksum(head: bytes, framing: bytes) -> bytes:
    return blake3(head + framing).digest()[:_CHECKSUM_SIZE]
