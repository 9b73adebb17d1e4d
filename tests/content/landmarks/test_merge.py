"""What several starts agree on."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.landmarks.caps import ListCaps
from headstart.content.landmarks.merge import MOST_STARTS, Read, merge, reads_of
from headstart.content.landmarks.prefetch_list import ListedFile, parse_prefetch_list
from headstart.content.landmarks.range_set import Range
from tests.content.landmarks.lists import names

LAYER = Digest.of(b"layer")
SIZE = 12
"""Bytes of a file that tests with Hypothesis read."""

READS = st.builds(
    Read,
    st.just(0),
    st.sampled_from((b"a", b"b", b"c", b"d")),
    st.builds(
        lambda start, length: Range(start, min(length, SIZE - start)),
        st.integers(0, SIZE - 1),
        st.integers(1, SIZE),
    ),
    st.none() | st.integers(0, 60_000).map(lambda milliseconds: milliseconds / 1000),
)
STARTS = st.lists(READS, max_size=10)

Byte = tuple[bytes, int]


def reads(text: str) -> list[Read]:
    """A start that reads these files, whole, one a second."""
    return [Read(0, name.encode(), None, number) for number, name in enumerate(text.split())]


def merged(*starts: str) -> str:
    return " ".join(names(merge([reads(start) for start in starts])))


def order(listed: list[Read]) -> list[Byte]:
    """Every byte where it comes first."""
    return list(
        dict.fromkeys(
            (read.path, at)
            for read in listed
            if read.range is not None
            for at in range(read.range.offset, read.range.stop)
        )
    )


def listed_order(starts: list[list[Read]]) -> list[Byte]:
    listed = list(reads_of(merge(starts)))
    found = order(listed)
    assert len(found) == sum(read.range.length for read in listed if read.range), "a byte twice"
    return found


def test_a_single_start_is_its_own_list() -> None:
    given = [
        Read(0, b"bin/app", Range(0, 4096), 0.5),
        Read(0, b"bin/app", Range(4096, 4096), 0.6),
        Read(1, b"lib", None, 0.7),
        Read(0, b"bin/app", Range(0, 9000), 0.8),
        Read(1, b"lib", Range(5, 10), 0.9),
        Read(1, b"models/weights", Range(1 << 30, 100), 1.0),
        Read(1, b"models/weights", Range(0, 100), 1.25),
        Read(None, b"etc/motd"),
    ]
    assert merge([given]).files == (
        ListedFile(b"bin/app", 0, None, (Range(0, 8192),), 0.5),
        ListedFile(b"lib", 1, None, (), 0.7),
        ListedFile(b"bin/app", 0, None, (Range(8192, 808),), 0.8),
        ListedFile(b"models/weights", 1, None, (Range(1 << 30, 100), Range(0, 100)), 1.0),
        ListedFile(b"etc/motd"),
    )


@given(STARTS)
def test_a_single_start_keeps_its_order(start: list[Read]) -> None:
    assert listed_order([start]) == order(start)
    kept = merge([start])
    assert merge([reads_of(kept)]) == kept
    assert parse_prefetch_list(kept.encode()) == kept


@given(STARTS, st.integers(1, MOST_STARTS + 2))
def test_starts_that_agree_are_the_list_of_each(start: list[Read], count: int) -> None:
    assert merge([start] * count) == merge([start])


@given(STARTS, STARTS, st.integers(2, MOST_STARTS - 1), st.data())
def test_one_odd_start_among_three_or_more_changes_nothing(
    start: list[Read], odd: list[Read], agreeing: int, data: st.DataObject
) -> None:
    starts = [start] * agreeing
    starts.insert(data.draw(st.integers(0, agreeing)), odd)
    files = [(file.path, file.ranges) for file in merge(starts).files]
    assert files == [(file.path, file.ranges) for file in merge([start]).files]


@given(st.lists(STARTS, min_size=1, max_size=MOST_STARTS))
def test_a_byte_is_listed_when_half_of_the_starts_have_seen_it(starts: list[list[Read]]) -> None:
    seen = [set(order(start)) for start in starts]
    expected = {
        byte
        for byte in set().union(*seen)
        if 2 * sum(byte in start for start in seen) >= len(starts)
    }
    assert set(listed_order(starts)) == expected


@given(st.permutations("abcdef"), st.lists(st.permutations("abcdef"), min_size=1, max_size=8))
def test_files_that_all_starts_read_in_one_order_are_listed_in_it(
    first: list[str], others: list[list[str]]
) -> None:
    starts = [first, *others][:MOST_STARTS]
    listed = merged(*(" ".join(start) for start in starts)).split()
    assert sorted(listed) == sorted(first)
    for early in first:
        for late in first:
            if all(start.index(early) < start.index(late) for start in starts):
                assert listed.index(early) < listed.index(late)


@given(st.lists(STARTS, max_size=MOST_STARTS), st.lists(STARTS, max_size=3))
def test_older_starts_do_not_count(recent: list[list[Read]], older: list[list[Read]]) -> None:
    recent = [*recent, *[[Read(0, b"a", Range(0, 1), 0.0)]] * (MOST_STARTS - len(recent))]
    assert merge([*older, *recent]) == merge(recent)


@given(st.lists(STARTS, max_size=MOST_STARTS))
def test_the_list_does_not_depend_on_how_reads_were_cut(starts: list[list[Read]]) -> None:
    cut = [
        [
            Read(read.layer, read.path, Range(at, 1), read.seconds)
            for read in start
            if read.range is not None
            for at in range(read.range.offset, read.range.stop)
        ]
        for start in starts
    ]
    assert merge(cut) == merge(starts)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], ""),
        (["a b c"], "a b c"),
        # Half is enough; of two orders the newer one.
        (["a b", "b a"], "b a"),
        (["a b", "a c"], "a c b"),
        (["a", "b", "b"], "b"),
        (["a", "b", "c"], ""),
        # Positions 0 0 2, 1 2 0, 2 1 1.
        (["a b c", "a c b", "b c a"], "a b c"),
        (["x y a b", "a b", "a b"], "a b"),
    ],
)
def test_files_are_ordered_by_their_median_position(starts: list[str], expected: str) -> None:
    assert merged(*starts) == expected


def test_seconds_are_the_median_of_those_that_are_known() -> None:
    times = [1.0, None, 3.0, 10.0]
    starts = [[Read(0, b"a", None, seconds)] for seconds in times]
    assert merge(starts).files == (ListedFile(b"a", 0, seconds=3.0),)


def test_a_file_that_half_have_read_whole_is_listed_to_its_end() -> None:
    head, other = Read(0, b"a", Range(0, 100)), Read(0, b"b")
    whole = Read(0, b"a")
    assert merge([[head], [whole]]).files == (ListedFile(b"a", 0),)
    assert merge([[head], [head], [whole]]).files == (ListedFile(b"a", 0, None, (Range(0, 100),)),)
    # Of the head everybody agrees, the rest comes after the other file.
    starts = [[head, other, whole]] * 2
    assert merge(starts).files == (
        ListedFile(b"a", 0, None, (Range(0, 100),)),
        ListedFile(b"b", 0),
        ListedFile(b"a", 0),
    )


def test_the_rest_of_a_file_is_an_entry_of_its_own() -> None:
    start = [Read(0, b"a", Range(50, 50), 1.0), Read(0, b"a", None, 2.0), Read(0, b"b")]
    assert merge([start]).files == (
        ListedFile(b"a", 0, None, (Range(50, 50), Range(0, 50)), 1.0),
        ListedFile(b"a", 0, None, (), 2.0),
        ListedFile(b"b", 0),
    )


def test_the_same_path_in_two_layers_is_two_files() -> None:
    upper = Digest.of(b"upper")
    start = [Read(0, b"a", Range(0, 5)), Read(upper, b"a", Range(5, 5)), Read(0, b"a", Range(5, 5))]
    listed = merge([start]).files
    assert [(file.layer, file.ranges) for file in listed] == [
        (0, (Range(0, 5),)),
        (upper, (Range(5, 5),)),
        (0, (Range(5, 5),)),
    ]


def test_what_is_over_the_caps_is_left_out_from_the_end() -> None:
    caps = ListCaps(files=3, ranges=2)
    pieces = [Read(0, b"a", Range(10 * number, 5)) for number in range(5)]
    listed = merge([[*pieces, *reads("b c")]], caps)
    assert [file.ranges for file in listed.files] == [
        (Range(0, 5), Range(10, 5)),
        (Range(20, 5), Range(30, 5)),
        (Range(40, 5),),
    ]
    assert parse_prefetch_list(listed.encode(), caps) == listed


def test_eight_long_starts_are_merged_in_seconds() -> None:
    """5,000 files, and a model of 1.25 GiB read by eight threads."""
    randomly = random.Random(1)
    starts: list[list[Read]] = []
    for _ in range(MOST_STARTS):
        start = [
            Read(0, b"lib/%d" % (number + randomly.randrange(5)), Range(0, 5000), number / 1000)
            for number in range(5000)
        ]
        for at in range(0, 10_000, 8):
            row = [Range(128 * 1024 * number, 128 * 1024) for number in range(at, at + 8)]
            randomly.shuffle(row)
            start += [Read(1, b"weights", piece) for piece in row]
        starts.append(start)
    before = time.process_time()
    listed = merge(starts)
    assert time.process_time() - before < 15
    assert parse_prefetch_list(listed.encode()) == listed
    weights = sum(piece.length for file in listed.of_layer(1, LAYER) for piece in file.ranges)
    assert weights == 10_000 * 128 * 1024
