"""Which bytes of a data device are asked for, and in which order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headstart.content.landmarks.plan import SMALLEST_KEPT_GAP, plan
from headstart.content.landmarks.prefetch_list import ListedFile
from headstart.content.landmarks.range_set import Range
from headstart.content.layer.placement import BLOCK_SIZE, Placement

KIB = 1024
MIB = 1024 * KIB


def blocks(*ranges: Range) -> list[int]:
    """The numbers of the device's blocks that some ranges touch, in order."""
    return [
        number
        for one in ranges
        for number in range(one.offset // BLOCK_SIZE, -(-one.stop // BLOCK_SIZE))
    ]


@st.composite
def layers(draw: st.DrawFn) -> dict[bytes, list[Range]]:
    """Files on a device, as they are placed; with them files that are never listed."""
    sizes = draw(st.lists(st.integers(0, 12 * BLOCK_SIZE), min_size=1, max_size=10))
    placement = Placement(32 * MIB, 1)
    places = {}
    for number, size in enumerate(sizes):
        offset = placement.place(size)
        cut = draw(st.integers(0, size // BLOCK_SIZE)) * BLOCK_SIZE
        pieces = [Range(offset, cut), Range(offset + cut, size - cut)]
        places[b"%d" % number] = [piece for piece in pieces if piece.length]
    return places


RANGES = st.lists(
    st.builds(Range, st.integers(0, 13 * BLOCK_SIZE), st.integers(1, 6 * BLOCK_SIZE)), max_size=3
)
FILES = st.lists(
    st.builds(
        ListedFile,
        st.integers(0, 10).map(lambda number: b"%d" % number),
        ranges=RANGES.map(tuple),
    ),
    max_size=12,
)
REQUESTS = st.sampled_from((BLOCK_SIZE, 3 * BLOCK_SIZE, 64 * KIB, 8 * MIB))


def listed_blocks(files: list[ListedFile], places: dict[bytes, list[Range]]) -> list[int]:
    """By bytes, one by one: every block where the list has it first."""
    found: dict[int, None] = {}
    for file in files:
        device = [at for piece in places.get(file.path, []) for at in range(*piece_of(piece))]
        for wanted in file.ranges or (Range(0, len(device)),):
            here = device[wanted.offset : wanted.stop]
            found.update(dict.fromkeys(at // BLOCK_SIZE for at in here[:: BLOCK_SIZE // 2]))
            found.update(dict.fromkeys(at // BLOCK_SIZE for at in here[-1:]))
    return list(found)


def piece_of(piece: Range) -> tuple[int, int]:
    return piece.offset, piece.stop


@given(FILES, layers(), REQUESTS)
def test_the_plan_is_the_listed_blocks_and_few_more_each_once(
    files: list[ListedFile], places: dict[bytes, list[Range]], request_size: int
) -> None:
    listed = listed_blocks(files, places)
    planned = blocks(*plan(files, places, request_size))
    assert len(planned) == len(set(planned))
    bridged = set(planned) - set(listed)
    assert set(listed) <= set(planned)
    assert 10 * len(bridged) <= len(listed)


@given(FILES, layers(), REQUESTS)
def test_no_listed_block_waits_for_one_that_is_listed_later(
    files: list[ListedFile], places: dict[bytes, list[Range]], request_size: int
) -> None:
    turn = {number: at for at, number in enumerate(listed_blocks(files, places))}
    ranges = plan(files, places, request_size)
    openers = [turn[one.offset // BLOCK_SIZE] for one in ranges]
    assert openers == sorted(openers)
    for opener, one in zip(openers, ranges, strict=True):
        assert all(turn.get(number, opener) >= opener for number in blocks(one))


@given(FILES, layers(), REQUESTS)
def test_a_range_is_longer_than_a_request_only_where_the_list_has_it_so(
    files: list[ListedFile], places: dict[bytes, list[Range]], request_size: int
) -> None:
    for one in plan(files, places, request_size):
        assert one.offset % BLOCK_SIZE == one.length % BLOCK_SIZE == 0
        pieces = [piece.length for file in files for piece in places.get(file.path, [])]
        assert 0 < one.length <= max(request_size, *(size + BLOCK_SIZE for size in pieces))


@given(FILES, layers())
def test_ranges_that_could_be_joined_are_joined(
    files: list[ListedFile], places: dict[bytes, list[Range]]
) -> None:
    for one, other in pairwise(plan(files, places, 8 * MIB)):
        assert one.stop != other.offset


def whole(*names: bytes) -> list[ListedFile]:
    return [ListedFile(name) for name in names]


def test_small_files_side_by_side_are_one_range() -> None:
    placement = Placement(32 * MIB, 1)
    places = {b"%d" % number: [Range(placement.place(100), 100)] for number in range(1000)}
    assert plan(whole(*places), places, 8 * MIB) == [Range(0, 1000 * BLOCK_SIZE)]
    halves = plan(whole(*places), places, 500 * BLOCK_SIZE)
    assert halves == [Range(0, 500 * BLOCK_SIZE), Range(500 * BLOCK_SIZE, 500 * BLOCK_SIZE)]


def test_the_order_of_the_list_is_kept() -> None:
    places = {b"a": [Range(0, MIB)], b"b": [Range(MIB, MIB)], b"c": [Range(2 * MIB, MIB)]}
    assert plan(whole(b"c", b"b", b"a"), places, 8 * MIB) == [
        Range(2 * MIB, MIB),
        Range(MIB, MIB),
        Range(0, MIB),
    ]


def test_a_large_file_stays_whole() -> None:
    places = {b"a": [Range(0, 100 * MIB)], b"b": [Range(100 * MIB, 4 * KIB)]}
    ranges = plan(whole(b"a", b"b"), places, 8 * MIB)
    assert ranges == [Range(0, 100 * MIB), Range(100 * MIB, 4 * KIB)]


def test_a_gap_is_bridged_when_it_is_small() -> None:
    def planned(gap: int) -> list[Range]:
        places = {b"a": [Range(0, MIB)], b"b": [Range(MIB + gap, MIB)]}
        return plan(whole(b"a", b"b"), places, 8 * MIB)

    smaller = SMALLEST_KEPT_GAP - BLOCK_SIZE
    assert planned(smaller) == [Range(0, 2 * MIB + smaller)]
    assert planned(SMALLEST_KEPT_GAP) == [Range(0, MIB), Range(MIB + SMALLEST_KEPT_GAP, MIB)]


def test_gaps_are_bridged_in_the_order_of_the_list_up_to_a_tenth() -> None:
    """100 files of one block with a block between two: ten gaps are a tenth."""
    places = {b"%d" % number: [Range(2 * number * BLOCK_SIZE, 4096)] for number in range(100)}
    ranges = plan(whole(*places), places, 8 * MIB)
    assert ranges[0] == Range(0, 21 * BLOCK_SIZE)
    assert ranges[1:] == [Range(2 * number * BLOCK_SIZE, 4096) for number in range(11, 100)]


def test_a_bridged_file_that_is_listed_later_is_not_asked_for_again() -> None:
    places = {
        b"a": [Range(0, MIB)],
        b"b": [Range(MIB, 8 * KIB)],
        b"c": [Range(MIB + 8 * KIB, MIB)],
        b"d": [Range(10 * MIB, MIB)],
    }
    ranges = plan(whole(b"a", b"c", b"d", b"b"), places, 8 * MIB)
    assert ranges == [Range(0, 2 * MIB + 8 * KIB), Range(10 * MIB, MIB)]


def test_no_gap_is_bridged_over_what_was_asked_for_before() -> None:
    places = {
        b"a": [Range(0, MIB)],
        b"b": [Range(MIB + 4 * KIB, 4 * KIB)],
        b"c": [Range(MIB + 16 * KIB, MIB)],
    }
    assert plan(whole(b"b", b"a", b"c"), places, 8 * MIB) == [
        Range(MIB + 4 * KIB, 4 * KIB),
        Range(0, MIB),
        Range(MIB + 16 * KIB, MIB),
    ]


def test_ranges_of_a_file_are_cut_at_its_end_and_unknown_files_passed_over() -> None:
    places = {b"a": [Range(8 * KIB, 4 * KIB), Range(MIB, 6 * KIB)], b"empty": []}
    files = [
        ListedFile(b"unknown"),
        ListedFile(b"empty", ranges=(Range(0, 5),)),
        ListedFile(b"a", ranges=(Range(9 * KIB, 50), Range(4095, 2), Range(10 * KIB, 5))),
        ListedFile(b"a", ranges=(Range(1 << 50, 1),)),
    ]
    assert plan(files, places, 8 * MIB) == [
        Range(MIB + 4 * KIB, 4 * KIB),
        Range(8 * KIB, 4 * KIB),
        Range(MIB, 4 * KIB),
    ]
    assert plan([], places, 8 * MIB) == []
