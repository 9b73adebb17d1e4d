"""One block of a directory as it lies in an image: searched by halves, or listed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headstart.content.erofs.format import DIRENT, LONGEST_NAME
from headstart.content.erofs.read_errors import ImageDamaged

if TYPE_CHECKING:
    from mmap import mmap

_NAME_OFFSET = 8


class DirectoryBlock:
    """Bytes ``start`` to ``stop`` of an image; the first dirent's name follows the last dirent."""

    __slots__ = ("_block", "_count", "_start")

    def __init__(self, image: "bytes | mmap", start: int, stop: int) -> None:
        """Raises :class:`ImageDamaged`."""
        self._block = image[start:stop]
        self._start = start
        if len(self._block) < DIRENT.size:
            raise ImageDamaged(f"the directory block at {start} holds no entry")
        first = int.from_bytes(self._block[_NAME_OFFSET : _NAME_OFFSET + 2], "little")
        self._count, rest = divmod(first, DIRENT.size)
        if rest or not self._count or first >= len(self._block):
            raise ImageDamaged(f"the directory block at {start} has its names at {first}")

    def name(self, index: int) -> bytes:
        """The name with a number."""
        return self._entry(index)[0]

    def find(self, name: bytes) -> int | None:
        """The nid behind a name; None where it is not there."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            found, nid = self._entry(middle)
            if found == name:
                return nid
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None

    def entries(self, index: int) -> Iterator[tuple[bytes, int]]:
        """Names and nids from a number on."""
        return map(self._entry, range(index, self._count))

    def _entry(self, index: int) -> tuple[bytes, int]:
        block = self._block
        nid, start, _ = DIRENT.unpack_from(block, index * DIRENT.size)
        if index + 1 < self._count:
            _, stop, _ = DIRENT.unpack_from(block, (index + 1) * DIRENT.size)
            name = block[start:stop]
        else:
            # Zeros follow the last name of a block that is not full.
            name = block[start:].partition(b"\0")[0]
            stop = len(block)
        if (
            not start < stop <= len(block)
            or not 0 < len(name) <= LONGEST_NAME
            or start < self._count * DIRENT.size
            or b"\0" in name
            or b"/" in name
        ):
            raise ImageDamaged(f"entry {index} of the directory block at {self._start} has no name")
        return name, nid
