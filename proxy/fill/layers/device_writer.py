"""Writes the contents of files to the data device, in the order in which they were placed."""

from blake3 import blake3

from headstart.store.geometry import KIB, MIB
from headstart.store.layer_map import BLOCK_SIZE
from proxy.fill.layers.layer_files import LayerFiles

BATCH_SIZE = MIB
MOST_PIECES = 1000
"""Of one batch, below Linux's IOV_MAX."""
_ZEROS = memoryview(bytes(64 * KIB))


class DeviceWriter:
    """Gathers neighbours to batches."""

    def __init__(self, files: LayerFiles, digests: "ExtentDigests | None" = None) -> None:
        """Nothing written yet; ``digests`` are given everything that is written."""
        self._files = files
        self._digests = digests
        self._batch: list[memoryview] = []
        self._start = 0
        self._length = 0

    def begin(self, offset: int) -> None:
        """A file's contents follow, which begin at ``offset``, beyond all before.

        Up to a block between them and what is waiting to be written becomes zeros.
        """
        gap = offset - self._start - self._length
        if self._batch and gap < BLOCK_SIZE and len(self._batch) < MOST_PIECES:
            if gap:
                self._batch.append(_ZEROS[:gap])
                self._length += gap
        else:
            self.flush()
            self._start = offset

    def add(self, payload: memoryview) -> None:
        """The next bytes; they must not change before the next :meth:`flush`. Raises OSError."""
        if self._length + len(payload) > BATCH_SIZE or len(self._batch) >= MOST_PIECES:
            self.flush()
        self._batch.append(payload)
        self._length += len(payload)

    def flush(self) -> None:
        """Write what was gathered. Raises OSError."""
        if not self._batch:
            return
        self._files.write(self._start, self._batch)
        if self._digests is not None:
            self._digests.wrote(self._start, self._batch)
        self._start += self._length
        self._length = 0
        self._batch = []


class ExtentDigests:
    """The BLAKE3 of each extent of a device that is written in order; gaps are zeros."""

    def __init__(self, extent_size: int) -> None:
        """``extent_size`` in bytes."""
        self._extent_size = extent_size
        self._position = 0
        self._hasher = blake3()
        self._done: dict[int, bytes] = {}

    def wrote(self, offset: int, pieces: list[memoryview]) -> None:
        """Take pieces that lie one after the other from ``offset`` on."""
        self._skip_to(offset)
        for piece in pieces:
            self._take(piece)

    def finish(self, size: int) -> dict[int, bytes]:
        """All digests, of a device of ``size`` bytes."""
        self._skip_to(size)
        if self._position % self._extent_size:
            self._done[self._position // self._extent_size] = self._hasher.digest()
        return self._done

    def _skip_to(self, offset: int) -> None:
        if offset < self._position:
            raise ValueError(f"byte {offset} is written after byte {self._position}")
        while self._position < offset:
            self._take(_ZEROS[: offset - self._position])

    def _take(self, piece: memoryview) -> None:
        while True:
            room = self._extent_size - self._position % self._extent_size
            count = min(room, len(piece))
            self._hasher.update(piece if count == len(piece) else piece[:count])
            self._position += count
            if count == room:
                self._done[self._position // self._extent_size - 1] = self._hasher.digest()
                self._hasher = blake3()
            if count == len(piece):
                return
            piece = piece[count:]
