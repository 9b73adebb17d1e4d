"""How the blob of an eStargz layer is cut into regions that inflate by themselves. Pure."""

import bisect
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from headstart.content.layer.errors import LayerRefused
from headstart.store.layer_map import BLOCK_SIZE


class Chunk(NamedTuple):
    """A piece of a file: bytes of the data device, and where they are in the blob.

    ``inner_offset``: its first byte in what the blob's bytes from ``start`` to ``stop`` inflate to.
    ``digest``: of its ``size`` uncompressed bytes, as ``sha256:…``.
    """

    device_offset: int
    size: int
    start: int
    stop: int
    inner_offset: int
    digest: str


@dataclass(slots=True)
class Region:
    """Compressed bytes ``start`` to ``stop`` of the blob, which inflate by themselves.

    ``chunks`` are numbers of chunks in the order of their bytes; none where there is only framing.
    """

    start: int
    stop: int
    chunks: list[int] = field(default_factory=list)


class Regions:
    """All regions of a blob, in order and without gaps, and the chunks in them."""

    def __init__(self, chunks: Sequence[Chunk], blob_size: int) -> None:
        """Raises LayerRefused for chunks that overlap, in the blob or on the device."""
        self.chunks = chunks
        self.regions: list[Region] = []
        by_place = sorted(
            range(len(chunks)),
            key=lambda number: (chunks[number].start, chunks[number].inner_offset),
        )
        for number in by_place:
            self._add(number)
        self._close(blob_size)
        self._starts = array("q", (region.start for region in self.regions))
        # In the order of the device.
        self._order = sorted(range(len(chunks)), key=lambda number: chunks[number].device_offset)
        self._rank = array("q", bytes(8 * len(chunks)))
        self._device_starts = array("q")
        for rank, number in enumerate(self._order):
            self._rank[number] = rank
            self._device_starts.append(chunks[number].device_offset)
        for first, second in pairwise(self._order):
            if chunks[first].device_offset + chunks[first].size > chunks[second].device_offset:
                raise LayerRefused("chunks of it overlap in its files")
        self.region_of = array("q", bytes(8 * len(chunks)))
        for position, region in enumerate(self.regions):
            for number in region.chunks:
                self.region_of[number] = position

    def _add(self, number: int) -> None:
        chunk = self.chunks[number]
        reached = self.regions[-1].stop if self.regions else 0
        if self.regions and self.regions[-1].chunks and chunk.start == self.regions[-1].start:
            last = self.chunks[self.regions[-1].chunks[-1]]
            if chunk.stop != reached:
                raise LayerRefused("chunks of it say two things of one compressed member")
            if chunk.inner_offset < last.inner_offset + last.size:
                raise LayerRefused("chunks of it overlap in its tar")
            self.regions[-1].chunks.append(number)
            return
        if chunk.start < reached or chunk.stop <= chunk.start:
            raise LayerRefused("compressed members of it overlap")
        if chunk.start > reached:
            self.regions.append(Region(reached, chunk.start))
        self.regions.append(Region(chunk.start, chunk.stop, [number]))

    def _close(self, blob_size: int) -> None:
        reached = self.regions[-1].stop if self.regions else 0
        if reached > blob_size:
            raise LayerRefused("compressed members of it end beyond its blob")
        if reached < blob_size:
            self.regions.append(Region(reached, blob_size))

    def at(self, start: int, stop: int) -> range:
        """The regions that lie whole within bytes ``start`` to ``stop`` of the blob."""
        first = bisect.bisect_left(self._starts, start)
        last = bisect.bisect_right(self._starts, stop)
        while last > first and self.regions[last - 1].stop > stop:
            last -= 1
        return range(first, last)

    def covering(self, device_start: int, device_stop: int) -> list[int]:
        """The regions that these bytes of the data device come from, in the blob's order."""
        return sorted(
            {self.region_of[number] for number in self._touching(device_start, device_stop)}
        )

    def _touching(self, start: int, stop: int) -> Iterator[int]:
        """The chunks with bytes between ``start`` and ``stop`` of the device."""
        rank = max(bisect.bisect_right(self._device_starts, start) - 1, 0)
        while rank < len(self._order) and self._device_starts[rank] < stop:
            number = self._order[rank]
            if self._device_starts[rank] + self.chunks[number].size > start:
                yield number
            rank += 1

    def gaps(self, device_size: int) -> Iterator[tuple[int, int]]:
        """Runs of whole blocks of the device that no chunk touches: they are zeros."""
        reached = 0
        for number in self._order:
            chunk = self.chunks[number]
            first = chunk.device_offset // BLOCK_SIZE * BLOCK_SIZE
            if first > reached:
                yield reached, first
            reached = -(-(chunk.device_offset + chunk.size) // BLOCK_SIZE) * BLOCK_SIZE
        if reached < device_size:
            yield reached, device_size

    def ready_blocks(
        self, numbers: Iterable[int], verified: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Runs of bytes, in whole blocks, of chunks that have become verified.

        ``verified`` has a true value for every chunk that is. A block counts when all chunks that
        touch it are.
        """
        runs: list[tuple[int, int]] = []
        for rank in sorted(self._rank[number] for number in numbers):
            start = self._border(rank, -1, verified)
            stop = self._border(rank, 1, verified)
            if stop <= start:
                continue
            if runs and start <= runs[-1][1]:
                runs[-1] = runs[-1][0], max(stop, runs[-1][1])
            else:
                runs.append((start, stop))
        return runs

    def _border(self, rank: int, step: int, verified: Sequence[int]) -> int:
        """Where the whole blocks around a chunk's first (-1) or last (1) byte begin or end."""
        chunk = self.chunks[self._order[rank]]
        edge = chunk.device_offset if step < 0 else chunk.device_offset + chunk.size
        block = edge // BLOCK_SIZE * BLOCK_SIZE
        if block == edge:
            return edge
        outside, inside = (block, block + BLOCK_SIZE) if step < 0 else (block + BLOCK_SIZE, block)
        other = rank + step
        while 0 <= other < len(self._order):
            number = self._order[other]
            neighbour = self.chunks[number]
            touches = (
                neighbour.device_offset + neighbour.size > block
                if step < 0
                else neighbour.device_offset < block + BLOCK_SIZE
            )
            if not touches:
                break
            if not verified[number]:
                return inside
            other += step
        return outside
