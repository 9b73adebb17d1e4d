"""The blocks of a directory: names in order, cut into blocks that can be searched by halves."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from headstart.content.erofs.errors import Inexpressible
from headstart.content.erofs.format import BLOCK_SIZE, DIRENT, LONGEST_NAME

SELF = b"."
PARENT = b".."


class Listing:
    """The names of a directory with ``.`` and ``..``, and how they are cut into blocks.

    Raises :class:`Inexpressible` for names that no directory can have.
    """

    __slots__ = ("_starts", "names", "size")

    names: list[bytes]
    """In the order of their bytes."""

    size: int
    """Bytes of all blocks; the last one may be short."""

    def __init__(self, children: Iterable[bytes]) -> None:
        self.names = sorted((*children, SELF, PARENT))
        joined = b"".join(self.names)
        lengths = list(map(len, self.names))
        if max(lengths) > LONGEST_NAME:
            raise Inexpressible(f"a name of {max(lengths)} bytes is in it")
        if not lengths[0] or b"/" in joined or b"\0" in joined:
            raise Inexpressible("a name in it is empty, or has a slash or a zero")
        self._starts = [0]
        self.size = DIRENT.size * len(lengths) + len(joined)
        if self.size > BLOCK_SIZE:
            self.size = self._cut(lengths)

    @property
    def blocks(self) -> int:
        """How many blocks."""
        return len(self._starts)

    @property
    def last_size(self) -> int:
        """Bytes of the last block."""
        return self.size - BLOCK_SIZE * (len(self._starts) - 1)

    def _cut(self, lengths: Sequence[int]) -> int:
        """Begin a new block wherever a name does not fit any more; the size of all."""
        taken = 0
        for number, length in enumerate(lengths):
            needed = DIRENT.size + length
            if taken + needed > BLOCK_SIZE:
                self._starts.append(number)
                taken = 0
            taken += needed
        return BLOCK_SIZE * (len(self._starts) - 1) + taken

    def encode(self, nids: Sequence[int], types: Sequence[int]) -> list[bytes]:
        """The blocks, when the nid and the file type of each name are known; not padded."""
        if len(self._starts) == 1:
            return [_block(self.names, nids, types)]
        stops = [*self._starts[1:], len(self.names)]
        return [
            _block(self.names[start:stop], nids[start:stop], types[start:stop])
            for start, stop in zip(self._starts, stops, strict=True)
        ]


def _block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    # The sums run one further than the names; map ends with the shortest.
    offsets = accumulate(map(len, names), initial=DIRENT.size * len(names))
    return b"".join((*map(DIRENT.pack, nids, offsets, types), *names))
