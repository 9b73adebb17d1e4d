"""When a block of the data device is ready: all that touches it is verified. Arithmetic only."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.estargz.chunks import Chunk
from proxy.fill.layers.ready_blocks import gaps, ready_blocks
from tests.fill.layers.chunked import table_of


def chunk(device_offset: int, size: int, start: int) -> Chunk:
    return Chunk(device_offset, size, start, start + 10, 0, bytes(32))


def test_blocks_between_chunks_are_gaps() -> None:
    table = table_of([0, 10, 20], 30, [chunk(0, 10, 0), chunk(10, 5, 10), chunk(8192, 10, 20)])
    assert list(gaps(table, 5 * 4096)) == [(4096, 8192), (12288, 20480)]
    assert list(gaps(table_of([0], 10, []), 4096)) == [(0, 4096)]
    assert list(gaps(table_of([0], 10, []), 0)) == []


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 9000)), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_a_block_is_ready_when_all_that_touches_it_is(
    lengths: list[tuple[int, int]], seed: int
) -> None:
    chunks: list[Chunk] = []
    reached = 0
    for number, (gap, size) in enumerate(lengths):
        chunks.append(chunk(reached + gap, size, 10 * number))
        reached += gap + size
    table = table_of([one.start for one in chunks], 1000, chunks)
    device_size = -(-reached // 4096) * 4096
    published = {
        block
        for start, stop in gaps(table, device_size)
        for block in range(start // 4096, stop // 4096)
    }
    touching: dict[int, set[int]] = {block: set() for block in range(device_size // 4096)}
    for number, one in enumerate(chunks):
        last = (one.device_offset + one.size - 1) // 4096
        for block in range(one.device_offset // 4096, last + 1):
            touching[block].add(number)
    verified = bytearray(len(chunks))
    order = list(range(len(chunks)))
    random.Random(seed).shuffle(order)
    while True:
        for block, numbers in touching.items():
            assert (block in published) == all(verified[number] for number in numbers)
        if not order:
            break
        arrived = sorted(order.pop() for _ in range(min(len(order), 1 + seed % 3)))
        for number in arrived:
            verified[number] = 1
        for start, stop in ready_blocks(
            table, {number: table.chunk(number) for number in arrived}, verified
        ):
            assert start % 4096 == stop % 4096 == 0
            published |= set(range(start // 4096, stop // 4096))
