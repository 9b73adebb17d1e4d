"""Bytes of blobs of any size, made from a seed: readable at any offset without a file."""

import hashlib
import random
from collections.abc import Iterator

PIECE = 1 << 20
"""Bytes that :meth:`Pattern.pieces` yields at once."""

_MARK = 1 << 12
"""Each run of so many bytes begins with its own number, so no two of them are equal."""


class Pattern:
    """``size`` incompressible bytes; the same ``seed`` and ``size`` give the same bytes.

    A random mebibyte is repeated, which no deflate window spans, with every 4 KiB numbered: bytes
    delivered at a wrong offset never look right.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self._noise = random.Random(seed).randbytes(PIECE)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``, fewer than ``length`` at the end."""
        stop = min(offset + length, self.size)
        start = offset - offset % PIECE
        parts = (self._piece(at) for at in range(start, max(stop, start), PIECE))
        return b"".join(parts)[offset - start : max(stop - start, 0)]

    def pieces(self) -> Iterator[bytes]:
        """All of it, a mebibyte at a time."""
        for start in range(0, self.size, PIECE):
            yield self._piece(start)[: self.size - start]

    def digest(self) -> str:
        """``sha256:…`` of all of it, computed each time."""
        digester = hashlib.sha256()
        for piece in self.pieces():
            digester.update(piece)
        return f"sha256:{digester.hexdigest()}"

    def _piece(self, start: int) -> bytes:
        piece = bytearray(self._noise)
        for at in range(0, PIECE, _MARK):
            piece[at : at + 8] = (start + at).to_bytes(8, "big")
        return bytes(piece)
