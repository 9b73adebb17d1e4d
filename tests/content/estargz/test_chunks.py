"""Look-ups in a table of chunks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.estargz.chunks import ChunkTable, ChunkTableBuilder, Span
from headstart.content.estargz.footer import TocLocation
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.memory import at_most

TOC_AT = 1 << 40
LOCATION = TocLocation("gzip", TOC_AT, 50, TOC_AT + 101)
DIGEST = bytes(32)

Step = tuple[int, int, int, bool]


def build(steps: list[Step], location: TocLocation = LOCATION) -> ChunkTable:
    """Chunks (room before it on the device, size, framing before it, in a new member)."""
    builder = ChunkTableBuilder(location)
    device = 0
    start = inner = 512
    for number, (room, size, framing, fresh) in enumerate(steps):
        device += room
        if fresh or not number:
            start, inner = start + 4096, 0
        builder.add(device, size, start, inner + framing, number.to_bytes(32, "big"))
        device += size
        inner += framing + size
    return builder.finish()


STEPS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(0, 20), st.booleans()),
    max_size=20,
)


@given(STEPS, st.integers(0, 1000), st.integers(0, 200))
def test_a_range_of_the_device_is_covered_by_the_chunks_in_it(
    steps: list[Step], start: int, length: int
) -> None:
    table = build(steps)
    stop = start + length
    expected = [
        number
        for number in range(len(table))
        if table.chunk(number).device_offset < stop
        and start < table.chunk(number).device_offset + table.chunk(number).size
        and length
    ]
    assert list(table.chunks_covering(start, stop)) == expected


def test_the_borders_of_chunks_are_exact() -> None:
    table = build([(0, 10, 0, True), (0, 10, 0, False), (4076, 10, 0, True)])
    covering = {
        (0, 0): [],
        (0, 1): [0],
        (9, 10): [0],
        (10, 11): [1],
        (9, 11): [0, 1],
        (20, 4096): [],
        (19, 4097): [1, 2],
        (4096, 4097): [2],
        (4105, 5000): [2],
        (4106, 5000): [],
    }
    assert {at: list(table.chunks_covering(*at)) for at in covering} == covering


@given(STEPS)
def test_members_are_the_whole_layer_in_order(steps: list[Step]) -> None:
    table = build(steps)
    members = [table.member(number) for number in range(table.members)]
    assert members[0].start == 0
    assert [member.stop for member in members] == [
        *(member.start for member in members[1:]),
        LOCATION.stop,
    ]
    assert members[-1].start == TOC_AT
    assert [chunk for member in members for chunk in member.chunks] == list(range(len(steps)))
    for number, member in enumerate(members):
        for chunk in member.chunks:
            found = table.chunk(chunk)
            assert table.member_of(chunk) == number
            assert (found.start, found.stop) == member[:2]
            assert found.digest == chunk.to_bytes(32, "big")


@given(STEPS)
def test_spans_are_chunks_and_the_framing_between_them(steps: list[Step]) -> None:
    table = build(steps)
    for number in range(table.members):
        spans = list(table.spans(number))
        assert spans[0].start == 0
        assert spans[-1][1:] == (None, None)
        for one, other in pairwise(spans):
            assert one.stop == other.start > one.start
            # Framing is one stretch.
            assert one.chunk is not None or other.chunk is not None
        found = {span.chunk: (span.start, span.stop) for span in spans if span.chunk is not None}
        chunks = {index: table.chunk(index) for index in table.member(number).chunks}
        assert found == {
            index: (chunk.inner_offset, chunk.inner_offset + chunk.size)
            for index, chunk in chunks.items()
        }


@given(STEPS, st.integers(0, 100_000))
def test_chunks_before_an_offset_are_those_of_members_that_begin_there(
    steps: list[Step], offset: int
) -> None:
    table = build(steps)
    expected = [index for index in range(len(table)) if table.chunk(index).start < offset]
    assert list(table.chunks_before(offset)) == expected


def test_framing_may_be_members_of_its_own() -> None:
    builder = ChunkTableBuilder(LOCATION)
    builder.add(0, 10, 100, 0, DIGEST)
    builder.begin_member(200)
    builder.add(4096, 10, 300, 0, DIGEST)
    builder.begin_member(400)
    table = builder.finish()
    assert [table.member(number).chunks for number in range(table.members)] == [
        range(0),
        range(1),
        range(1, 1),
        range(1, 2),
        range(2, 2),
        range(2, 2),
    ]
    assert [table.member_of(0), table.member_of(1)] == [1, 3]
    assert list(table.spans(2)) == [Span(0, None, None)]


def test_a_file_may_begin_where_framing_has_been_said_to() -> None:
    builder = ChunkTableBuilder(LOCATION)
    builder.add(0, 10, 100, 0, DIGEST)
    builder.begin_member(200)
    builder.add(4096, 10, 200, 512, DIGEST)
    assert builder.finish().chunk(1)[2:5] == (200, TOC_AT, 512)


@pytest.mark.parametrize("start", [0, 99, 100, TOC_AT, TOC_AT + 1, 1 << 70])
def test_a_member_outside_of_its_place_is_refused(start: int) -> None:
    builder = ChunkTableBuilder(LOCATION)
    builder.begin_member(100)
    with pytest.raises(LayerRefused):
        builder.begin_member(start)


def test_no_file_is_where_there_is_no_layer() -> None:
    builder = ChunkTableBuilder(TocLocation("gzip", 0, 50, 101))
    with pytest.raises(LayerRefused):
        builder.add(0, 1, 0, 512, DIGEST)


def test_a_million_chunks_take_less_than_100_mb() -> None:
    count = 200_000
    with at_most(100 * count):
        builder = ChunkTableBuilder(LOCATION)
        for number in range(count):
            builder.add(number * 4096, 4096, 1000 + number * 1000, 0, DIGEST)
        table = builder.finish()
    assert table.chunks_covering(4096 * (count - 1), 4096 * count) == range(count - 1, count)
