"""Which members are asked for, and in which order those that have come are given out."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.estargz.chunks import ChunkTable
from headstart.content.estargz.footer import TocLocation
from headstart.content.estargz.toc import Toc
from headstart.content.layer.placement import Placement
from headstart.content.layer.tree import LayerTree
from headstart.store.geometry import KIB, MIB, UNIT_SIZE
from proxy.fill.layers.arriving import Window
from proxy.fill.layers.asking import BATCH_SIZE, MOST_IN_BATCH, Asking
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from proxy.fill.layers.members import MemberWriter
from proxy.fill.reach import Reach
from tests.fill.layers.making import Arriving
from tests.fill.writing import layout_in

BLOCK = 4096
MOUNT, PREFETCH = 1, 2
T = TypeVar("T")


class MarkedWriter(MemberWriter):
    """Members are done when a test says so."""

    def mark(self, members: Iterable[int]) -> None:
        for member in members:
            self.left -= not self._done[member]
            self._done[member] = 1


class Blob:
    """Records what is asked for; up to ``here`` everything has come."""

    def __init__(self, size: int, here: int | None = None) -> None:
        self.size = size
        self.here = size if here is None else here
        self.asked: list[tuple[int, int]] = []
        self.given_back: list[tuple[int, int]] = []
        self.come: list[tuple[int, int]] = []
        """More that has come."""
        self.looks = 0

    def ask(self, start: int, stop: int, priority: int, *, bulk: bool, reach: int = 0) -> None:
        assert start < stop
        self.asked.append((start, stop + reach))

    def reached(self, offset: int, limit: int) -> int:
        self.looks += 1
        stops = [self.here, *(stop for start, stop in self.come if start <= offset < stop)]
        return max(0, min(limit, max(stops) - offset))

    def used(self, start: int, stop: int) -> None:
        assert start < stop
        self.given_back.append((start, stop))


class Members:
    """A layer of members of these sizes in its blob, each with a file of one byte."""

    def __init__(self, directory: Path, sizes: list[int], window: int = 96 * MIB) -> None:
        table = ChunkTable()
        position = 0
        self.bounds: list[tuple[int, int]] = []
        for number, size in enumerate(sizes):
            table.begin_member(position)
            table.append(number * BLOCK, 1, 0, bytes(32))
            self.bounds.append((position, position + size))
            position += size
        table.end(position)
        self.device_size = len(sizes) * BLOCK
        location = TocLocation("zstd", position + 8, 8, position + 100)
        toc = Toc(LayerTree(), table, location, Placement(32 * MIB, 1), None, False, tail=None)
        layout = layout_in(directory, 1)
        self.files = LayerFiles.create(
            layout, Digest.of(b""), self.device_size, 32 * MIB, NO_ACCOUNT
        )
        self.writer = MarkedWriter(Arriving(b""), toc, self.files)
        self.blob = Blob(location.blob_size)
        self.asking = Asking(self.writer, self.blob, Window(window, 8), Reach(UNIT_SIZE, 32 * MIB))

    def close(self) -> None:
        self.writer.close()
        self.files.close()

    def batches(self) -> Iterator[range]:
        while (batch := self.asking.next_batch()) is not None:
            yield batch


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection of garbage, which walks all objects of the process."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_turn_of_the_loop_walks_all_of_many_members(tmp_path: Path, count: int) -> None:
    members = Members(tmp_path, [60] * count)
    asking, longest = members.asking, [0.0]

    def timed(call: Callable[[], T]) -> T:
        began = time.thread_time()
        result = call()
        longest.append(time.thread_time() - began)
        return result

    timed(lambda: asking.slide_rest(PREFETCH))
    timed(lambda: asking.want(0, members.device_size, MOUNT))
    given = 0
    while (batch := timed(asking.next_batch)) is not None:
        given += len(batch)
        assert len(batch) <= MOST_IN_BATCH
    assert given >= count
    # As after a restart: every second one is here, then all but one.
    members.writer.mark(range(0, count, 2))
    timed(lambda: asking.want(0, members.device_size, MOUNT))
    for first in range(1, count, count // 50):
        timed(partial(asking.used, first, first + 1))
    members.writer.mark(range(count - 1))
    timed(lambda: asking.slide_rest(PREFETCH))
    assert timed(asking.next_batch) == range(count - 1, count)
    # What walks them takes 20 nanoseconds for each at least, what bisects some microseconds.
    assert max(longest) < count * 0.01e-6, f"{max(longest) * 1000:.1f} ms"
    members.close()


sizes = st.lists(
    st.one_of(st.integers(1, 2000), st.integers(KIB, 2 * MIB)), min_size=1, max_size=40
)


@given(sizes, st.data())
def test_what_is_missing_is_asked_for_and_given_out_and_little_else(
    tmp_path_factory: pytest.TempPathFactory, some: list[int], data: st.DataObject
) -> None:
    members = Members(tmp_path_factory.mktemp("members"), some, window=4 * MIB)
    count = len(some)
    numbers = range(count)
    done = data.draw(st.sets(st.sampled_from(numbers)))
    members.writer.mark(done)
    first = data.draw(st.sampled_from(numbers))
    stop = data.draw(st.integers(first + 1, count))
    members.asking.want(first * BLOCK, stop * BLOCK, MOUNT)
    wanted = set(range(first, stop)) - done
    asked = list(members.blob.asked)
    for number in wanted:
        begin, end = members.bounds[number]
        assert any(one <= begin and end <= other for one, other in asked)
    # Between two that are asked for together less than a unit is not missing.
    missing = sum(members.bounds[n][1] - members.bounds[n][0] for n in set(numbers) - done)
    assert sum(other - one for one, other in asked) <= missing + len(some) * UNIT_SIZE
    batches = list(members.batches())
    assert wanted <= {number for batch in batches for number in batch}
    for batch in batches:
        begin, end = members.bounds[batch[0]][0], members.bounds[batch[-1]][1]
        assert len(batch) <= MOST_IN_BATCH
        assert len(batch) == 1 or end - begin <= BATCH_SIZE
    # The stream brings all that is missing, a window at a time.
    members.writer.mark(wanted)
    while members.writer.left:
        members.asking.slide_rest(PREFETCH)
        given = {number for batch in members.batches() for number in batch}
        assert given & {number for number in numbers if not members.writer.done(number)}
        members.writer.mark(given)
    assert members.asking.next_batch() is None
    members.close()


def test_urgent_members_are_given_out_before_the_stream_and_only_once_they_are_here(
    tmp_path: Path,
) -> None:
    members = Members(tmp_path, [300 * KIB] * 40)
    members.blob.here = 0
    members.asking.slide_rest(PREFETCH)
    members.asking.want(30 * BLOCK, 31 * BLOCK, MOUNT)
    assert list(members.batches()) == []
    members.blob.here = members.bounds[30][1]
    batches = list(members.batches())
    assert batches[0] == range(30, 31)
    assert [number for batch in batches[1:] for number in batch][:30] == list(range(30))
    members.asking.again(range(4, 6))
    assert members.asking.next_batch() == range(4, 5)
    members.close()


def test_a_reach_ends_where_something_is_here_already(tmp_path: Path) -> None:
    members = Members(tmp_path, [100 * KIB] * 40)
    members.writer.mark([12])
    for first in (8, 9):
        members.asking.want(first * BLOCK, (first + 1) * BLOCK, MOUNT)
    assert members.blob.asked[-1] == (members.bounds[9][0], members.bounds[12][0])
    members.close()


def test_bytes_that_came_along_of_members_that_are_done_are_given_back(tmp_path: Path) -> None:
    members = Members(tmp_path, [100 * KIB] * 40)
    members.writer.mark([9, 10, 11, 13])
    members.asking.used(10, 11)
    assert members.blob.given_back == [(members.bounds[9][0], members.bounds[11][1])]
    members.close()


def test_of_many_reads_what_lies_beyond_them_is_left_to_the_stream(tmp_path: Path) -> None:
    members = Members(tmp_path, [100 * KIB] * 2000)
    members.blob.here = 0
    for number in range(0, 2000, 4):
        members.asking.want(number * BLOCK, (number + 1) * BLOCK, MOUNT)
        members.blob.come = [members.bounds[number]]
        assert list(members.batches()) == [range(number, number + 1)]
        members.writer.mark([number])
    members.blob.looks = 0
    assert list(members.batches()) == []
    assert members.blob.looks <= 100
    # Nothing is forgotten.
    members.blob.here = members.blob.size
    members.asking.slide_rest(PREFETCH)
    while members.writer.left:
        for batch in members.batches():
            members.writer.mark(batch)
        members.asking.slide_rest(PREFETCH)
    members.close()


@given(sizes, st.data())
def test_what_is_preferred_is_asked_for_first_and_everything_comes(
    tmp_path_factory: pytest.TempPathFactory, some: list[int], data: st.DataObject
) -> None:
    members = Members(tmp_path_factory.mktemp("members"), some, window=8 * MIB)
    numbers = range(len(some))
    done = data.draw(st.sets(st.sampled_from(numbers)))
    members.writer.mark(done)
    starts = data.draw(st.lists(st.sampled_from(numbers), max_size=8))
    preferred = [range(n, data.draw(st.integers(n, min(len(some), n + 5)))) for n in starts]
    members.asking.prefer(preferred)
    early = {number for run in preferred for number in run} - done
    given: set[int] = set()
    while members.writer.left:
        asked_all = members.asking.slide_preferred(PREFETCH)
        come = {number for batch in members.batches() for number in batch}
        given |= come
        members.writer.mark(come)
        if asked_all:
            break
    assert early <= given
    # Beyond them only what lies within a unit of them has come.
    reach = [
        (members.bounds[number][0] - UNIT_SIZE, members.bounds[number][1] + UNIT_SIZE)
        for number in early
    ]
    for number in given - early - done:
        begin, end = members.bounds[number]
        assert any(low <= begin and end <= high for low, high in reach)
    while members.writer.left:
        members.asking.slide_rest(PREFETCH)
        come = {number for batch in members.batches() for number in batch}
        assert come, "nothing comes any more"
        members.writer.mark(come)
    members.close()


def test_what_is_preferred_is_asked_for_in_its_order_as_far_as_the_window_allows(
    tmp_path: Path,
) -> None:
    members = Members(tmp_path, [MIB] * 64, window=16 * MIB)
    members.blob.here = 0
    members.asking.prefer([range(40, 44), range(8, 28), range(50, 60)])
    assert not members.asking.slide_preferred(PREFETCH)
    assert not members.asking.slide_preferred(PREFETCH), "nothing has come"
    asked = [(start // MIB, stop // MIB) for start, stop in members.blob.asked]
    assert asked[0] == (40, 44)
    assert 16 <= sum(stop - start for start, stop in asked) <= 20
    assert all(8 <= start < 28 for start, _ in asked[1:])
    members.blob.here = members.blob.size
    while not members.asking.slide_preferred(PREFETCH):
        for batch in members.batches():
            members.writer.mark(batch)
    assert members.blob.asked[-1][1] == 60 * MIB
    members.close()


def test_the_rest_takes_what_is_left_of_the_window_and_no_more_than_is_allowed(
    tmp_path: Path,
) -> None:
    members = Members(tmp_path, [MIB] * 64, window=16 * MIB)
    members.blob.here = 0
    members.asking.prefer([range(30, 42)])
    assert members.asking.slide_preferred(PREFETCH)
    assert 2 * MIB <= members.asking.slide_rest(PREFETCH) <= 4 * MIB
    assert members.asking.slide_rest(PREFETCH) == 0
    members.blob.here = members.blob.size
    for batch in members.batches():
        members.writer.mark(batch)
    assert members.asking.slide_rest(PREFETCH, most=3 * MIB) == 3 * MIB
    members.close()
