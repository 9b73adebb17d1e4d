"""Which blocks of a data device are ready, chunk by chunk. Pure.

Chunks lie on the device in the order of their numbers; a block may hold the end of one and the
beginning of the next.
"""

from collections.abc import Iterator, Mapping, Sequence

from headstart.content.estargz.chunks import Chunk, ChunkTable
from headstart.store.layer_map import BLOCK_SIZE

Run = tuple[int, int]
"""The first byte of some blocks, and the first byte after them."""


def gaps(chunks: ChunkTable, device_size: int) -> Iterator[Run]:
    """Runs of blocks of the device that no chunk touches: they are zeros."""
    reached = 0
    for number in range(len(chunks)):
        chunk = chunks.chunk(number)
        first = _down(chunk.device_offset)
        if first > reached:
            yield reached, first
        reached = _up(chunk.device_offset + chunk.size)
    if reached < device_size:
        yield reached, device_size


def ready_blocks(
    chunks: ChunkTable, arrived: Mapping[int, Chunk], verified: Sequence[int]
) -> list[Run]:
    """Runs of blocks that are ready now that these chunks are verified.

    ``arrived`` are these, by their numbers and in order; ``verified`` has a true value for every
    chunk that is. A block is ready when all chunks that touch it are verified.
    """
    runs: list[Run] = []
    for number, chunk in arrived.items():
        start, stop = chunk.device_offset, chunk.device_offset + chunk.size
        if start % BLOCK_SIZE:
            before = _all_before(chunks, arrived, number, _down(start), verified)
            start = _down(start) if before else _up(start)
        if stop % BLOCK_SIZE:
            after = _all_after(chunks, arrived, number, _up(stop), verified)
            stop = _up(stop) if after else _down(stop)
        if stop <= start:
            continue
        if runs and start <= runs[-1][1]:
            runs[-1] = runs[-1][0], max(stop, runs[-1][1])
        else:
            runs.append((start, stop))
    return runs


def _all_before(
    chunks: ChunkTable,
    arrived: Mapping[int, Chunk],
    number: int,
    start: int,
    verified: Sequence[int],
) -> bool:
    """Whether all chunks before this one that reach beyond ``start`` are verified."""
    for before in range(number - 1, -1, -1):
        chunk = arrived.get(before) or chunks.chunk(before)
        if chunk.device_offset + chunk.size <= start:
            break
        if not verified[before]:
            return False
    return True


def _all_after(
    chunks: ChunkTable,
    arrived: Mapping[int, Chunk],
    number: int,
    stop: int,
    verified: Sequence[int],
) -> bool:
    """Whether all chunks after this one that begin before ``stop`` are verified."""
    for after in range(number + 1, len(chunks)):
        chunk = arrived.get(after) or chunks.chunk(after)
        if chunk.device_offset >= stop:
            break
        if not verified[after]:
            return False
    return True


def _down(offset: int) -> int:
    return offset // BLOCK_SIZE * BLOCK_SIZE


def _up(offset: int) -> int:
    return -(-offset // BLOCK_SIZE) * BLOCK_SIZE
