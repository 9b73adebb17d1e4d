"""Keeps dirty memory bounded and knows how fast each stripe's disk takes bytes.

Written pieces are handed to the disk at once (sync_file_range) and the writer of a stripe waits
for the oldest piece when more than :data:`MAX_DIRTY` bytes are under way, so that a slow disk
slows only the ranges that go to it, and readers never meet a machine full of dirty pages.
"""

import collections
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from headstart.store.geometry import MIB
from proxy.fill.system_calls import finish_writing, start_writing

PIECE_SIZE = 8 * MIB
MAX_DIRTY = 96 * MIB
WAIT_SECONDS = 0.01
"""A wait for a piece that takes longer has met the disk."""


@dataclass(slots=True)
class StripeFigures:
    """What a stripe has taken: bytes, and seconds in which a writer waited for its disk."""

    written: int = 0
    waited: float = 0.0


class Pacer:
    """The writes of one stripe, over all objects."""

    def __init__(self, path: Path) -> None:
        """``path`` is the stripe's directory, named in verdicts."""
        self.path = path
        self.figures = StripeFigures()
        self._lock = threading.Lock()
        self._pieces: collections.deque[tuple[int, int, int]] = collections.deque()
        self._open: dict[tuple[int, int], tuple[int, int]] = {}
        self._supported = True
        self._waited_to = 0.0

    def wrote(self, descriptor: int, offset: int, length: int) -> None:
        """Count a write; may wait for the disk. Raises OSError (EIO)."""
        piece: tuple[int, int, int] | None = None
        oldest: tuple[int, int, int] | None = None
        with self._lock:
            self.figures.written += length
            if self._supported:
                start, count = self._open.pop((descriptor, offset), (offset, 0))
                count += length
                if count >= PIECE_SIZE:
                    piece = (descriptor, start, count)
                    self._pieces.append(piece)
                    if sum(entry[2] for entry in self._pieces) > MAX_DIRTY:
                        oldest = self._pieces.popleft()
                else:
                    self._open[descriptor, offset + length] = (start, count)
                    if len(self._open) > 256:
                        self._open.pop(next(iter(self._open)))
        if piece is not None and not start_writing(*piece):
            self._supported = False
        if oldest is not None:
            # Only this wait says that the disk is slow: a write takes long on busy processors too.
            started = time.monotonic()
            if not finish_writing(*oldest):
                self._supported = False
            ended = time.monotonic()
            if ended - started > WAIT_SECONDS:
                self._waited(started, ended)

    def _waited(self, started: float, ended: float) -> None:
        """Count a wait; what several writers waited at once counts once."""
        with self._lock:
            self.figures.waited += max(0.0, ended - max(started, self._waited_to))
            self._waited_to = max(ended, self._waited_to)

    def dirty(self) -> int:
        """Bytes that were handed to the disk and not waited for yet."""
        with self._lock:
            return sum(entry[2] for entry in self._pieces)

    def forget(self, descriptors: set[int]) -> None:
        """Drop the pieces of files that are about to be closed."""
        with self._lock:
            self._pieces = collections.deque(
                piece for piece in self._pieces if piece[0] not in descriptors
            )
            self._open = {
                place: run for place, run in self._open.items() if place[0] not in descriptors
            }
