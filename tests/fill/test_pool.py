"""What a pool hands out: the next range, who gives way for it, what is divided at the end."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.store.errors import FillFailed
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.wire import PRIORITIES
from proxy.fill.fetch import Ending, Fetch
from proxy.fill.fill import Fill
from proxy.fill.pool import SMALLEST_RANGE
from tests.fill.fills import REQUEST_SIZE, Upstreams


@pytest.fixture
def upstreams(loop: asyncio.AbstractEventLoop) -> Upstreams:
    """Four connections, so that tests can fill them; ranges keep their size to the end."""
    return Upstreams(loop, max_connections=4, reissue=False)


def bounds(fetches: list[Fetch]) -> list[tuple[int, int]]:
    return [(fetch.start, fetch.stop) for fetch in fetches]


# --- what goes next ---


def test_a_whole_blob_is_fetched_in_ranges_on_the_grid(upstreams: Upstreams) -> None:
    fill = upstreams.fill(100 * MIB)
    upstreams.want(fill)
    assert bounds(upstreams.take_all()) == [
        (0, 32 * MIB),
        (32 * MIB, 64 * MIB),
        (64 * MIB, 96 * MIB),
        (96 * MIB, 100 * MIB),
    ]


def test_a_want_that_starts_within_a_range_of_the_grid_ends_with_it(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill(), 40 * MIB + 5)
    first = upstreams.take_all()[0]
    assert (first.start, first.stop) == (40 * MIB, 64 * MIB)


def test_a_read_takes_the_units_that_cover_it_and_what_it_has_earned(upstreams: Upstreams) -> None:
    fill = upstreams.fill()
    upstreams.want(fill, 5 * UNIT_SIZE + 1, 5 * UNIT_SIZE + 2, bulk=False)
    upstreams.want(fill, 50 * UNIT_SIZE, 51 * UNIT_SIZE, bulk=False, reach=3 * UNIT_SIZE)
    assert bounds(upstreams.take_all()) == [
        (5 * UNIT_SIZE, 6 * UNIT_SIZE),
        (50 * UNIT_SIZE, 54 * UNIT_SIZE),
    ]


def test_no_more_connections_than_the_limit(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill())
    taken = upstreams.take_all()
    assert len(taken) == upstreams.pool.limit == 4
    upstreams.bring(taken[0], REQUEST_SIZE)
    upstreams.finish(taken[0])
    assert bounds(upstreams.take_all()) == [(4 * REQUEST_SIZE, 5 * REQUEST_SIZE)]


@pytest.mark.parametrize("order", list(itertools.permutations(PRIORITIES))[::17])
def test_the_most_urgent_goes_first_whoever_came_first(
    loop: asyncio.AbstractEventLoop, order: tuple[str, ...]
) -> None:
    upstreams = Upstreams(loop, max_connections=5, reissue=False)
    for priority in order:
        upstreams.want(upstreams.fill(REQUEST_SIZE), priority=priority)
    taken = upstreams.take_all()
    assert [fetch.priority for fetch in taken] == [0, 1, 2, 3, 4]


def test_a_read_goes_before_bulk_of_the_same_priority(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill())
    upstreams.want(upstreams.fill(), 0, 10, bulk=False)
    first = upstreams.pool.next_fetch()
    assert first is not None
    assert not first.bulk


def test_layers_of_one_priority_share_the_connections(upstreams: Upstreams) -> None:
    giant, small = upstreams.fill(), upstreams.fill(64 * MIB)
    upstreams.want(giant)
    upstreams.want(small)
    served = [fetch.fill for fetch in upstreams.take_all()]
    assert served.count(giant) == served.count(small) == 2


def test_a_giant_layer_uses_what_small_ones_leave_idle(upstreams: Upstreams) -> None:
    giant, small = upstreams.fill(), upstreams.fill(MIB)
    upstreams.want(small)
    upstreams.want(giant)
    served = [fetch.fill for fetch in upstreams.take_all()]
    assert served.count(small) == 1
    assert served.count(giant) == 3


def test_no_byte_is_on_its_way_twice(upstreams: Upstreams) -> None:
    fill = upstreams.fill(100 * MIB)
    upstreams.want(fill)
    upstreams.want(fill, 10, 20, bulk=False)
    upstreams.want(fill, 33 * MIB, 34 * MIB, bulk=False)
    spans = sorted(bounds(upstreams.take_all()))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_what_has_failed_or_rests_is_left_out(upstreams: Upstreams) -> None:
    failed, resting, ready = upstreams.fill(), upstreams.fill(), upstreams.fill(MIB)
    for fill in (failed, resting, ready):
        upstreams.want(fill)
    failed.failure = FillFailed("digest", "bad")
    resting.not_before = upstreams.clock.now + 5
    assert [fetch.fill for fetch in upstreams.take_all()] == [ready]
    upstreams.clock.now += 5
    assert {fetch.fill for fetch in upstreams.take_all()} == {resting}


# --- who gives way ---


def test_a_waiting_read_cuts_the_lowest_priority_range_that_has_most_left(
    upstreams: Upstreams,
) -> None:
    for priority in ("client", "warm", "background", "background"):
        upstreams.want(upstreams.fill(REQUEST_SIZE), priority=priority)
    client, warm, first, second = upstreams.take_all()
    upstreams.bring(first, 20 * MIB)
    upstreams.want(upstreams.fill(), 7 * UNIT_SIZE, 8 * UNIT_SIZE, bulk=False)
    taken = upstreams.take_all()
    assert bounds(taken) == [(7 * UNIT_SIZE, 8 * UNIT_SIZE)]
    assert second.cut_reason is not None
    assert second.cut_reason.ending is Ending.CUT
    assert [fetch.cut_reason for fetch in (client, warm, first)] == [None] * 3


def test_what_was_cut_is_kept_and_its_rest_comes_first(upstreams: Upstreams) -> None:
    fill = upstreams.fill(512 * MIB)
    upstreams.want(fill, priority="warm")
    taken = upstreams.take_all()
    for fetch in taken[1:]:
        upstreams.bring(fetch, 20 * MIB)
    upstreams.bring(taken[0], 5 * MIB + 77)
    upstreams.want(upstreams.fill(), 0, 10, bulk=False)
    read = upstreams.take_all()[0]
    assert taken[0].cut_reason is not None
    upstreams.finish(taken[0])
    upstreams.bring(read, UNIT_SIZE)
    upstreams.finish(read)
    assert bounds(upstreams.take_all()) == [(5 * MIB + 77, 32 * MIB)]


def test_a_read_cuts_bulk_of_its_own_priority_too(upstreams: Upstreams) -> None:
    fill = upstreams.fill()
    upstreams.want(fill)
    bulk = upstreams.take_all()
    upstreams.want(fill, 400 * MIB, 400 * MIB + 1, bulk=False)
    assert bounds(upstreams.take_all()) == [(400 * MIB, 400 * MIB + UNIT_SIZE)]
    assert sum(fetch.cut_reason is not None for fetch in bulk) == 1


def test_each_read_cuts_one_range_and_reads_cut_no_reads(upstreams: Upstreams) -> None:
    fill = upstreams.fill()
    upstreams.want(fill)
    bulk = upstreams.take_all()
    for number in range(6):
        offset = (300 + number) * MIB
        upstreams.want(fill, offset, offset + 1, bulk=False)
    reads = upstreams.take_all()
    assert len(reads) == 4
    assert all(fetch.cut_reason is not None for fetch in bulk)
    assert all(fetch.cut_reason is None for fetch in reads)


def test_urgent_bulk_gets_one_connection_of_less_urgent_bulk(upstreams: Upstreams) -> None:
    """One is enough to begin with; the others it takes as they come free."""
    upstreams.want(upstreams.fill(), priority="warm")
    warm = upstreams.take_all()
    pulled = upstreams.fill()
    upstreams.want(pulled)
    assert [fetch.fill for fetch in upstreams.take_all()] == [pulled]
    assert sum(fetch.cut_reason is not None for fetch in warm) == 1


@pytest.mark.parametrize("priority", ["client", "warm", "background"])
def test_bulk_cuts_no_bulk_that_is_as_urgent(upstreams: Upstreams, priority: str) -> None:
    upstreams.want(upstreams.fill(), priority="client")
    running = upstreams.take_all()
    upstreams.want(upstreams.fill(), priority=priority)
    assert upstreams.take_all() == []
    assert all(fetch.cut_reason is None for fetch in running)


def test_a_range_is_as_urgent_as_the_most_urgent_that_wait_for_it(upstreams: Upstreams) -> None:
    """A prefetch that a client has met is promoted: it is no longer what gives way (fault 41)."""
    met, other = upstreams.fill(REQUEST_SIZE), upstreams.fill(3 * REQUEST_SIZE)
    upstreams.want(met, priority="background")
    upstreams.want(other, priority="warm")
    taken = upstreams.take_all()
    assert len(taken) == 4
    upstreams.want(met)
    upstreams.want(upstreams.fill(), 0, 1, bulk=False, priority="mount")
    upstreams.take_all()
    cut = [fetch for fetch in taken if fetch.cut_reason is not None]
    assert [fetch.fill for fetch in cut] == [other]


def test_nothing_is_cut_for_bytes_that_are_on_their_way_already(upstreams: Upstreams) -> None:
    fill = upstreams.fill(4 * REQUEST_SIZE)
    upstreams.want(fill)
    running = upstreams.take_all()
    upstreams.want(fill, 0, 10, bulk=False)
    assert upstreams.take_all() == []
    assert all(fetch.cut_reason is None for fetch in running)


def test_nothing_is_cut_for_what_a_read_may_reach_beyond_its_own_bytes(
    upstreams: Upstreams,
) -> None:
    """The bytes that the reader waits for are on the very connection that would be cut."""
    fill = upstreams.fill()
    upstreams.want(fill)
    running = upstreams.take_all()
    upstreams.want(fill, 0, 10, bulk=False, reach=5 * REQUEST_SIZE)
    assert upstreams.take_all() == []
    assert all(fetch.cut_reason is None for fetch in running)


def test_a_read_does_not_cut_what_brings_its_first_bytes(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=1, reissue=False)
    fill = upstreams.fill()
    upstreams.want(fill)
    running = upstreams.take_all()[0]
    upstreams.bring(running, REQUEST_SIZE - UNIT_SIZE)
    upstreams.want(fill, REQUEST_SIZE - 1, REQUEST_SIZE + UNIT_SIZE, bulk=False)
    assert upstreams.take_all() == []
    assert running.cut_reason is None
    upstreams.bring(running, REQUEST_SIZE)
    upstreams.finish(running)
    assert bounds(upstreams.take_all()) == [(REQUEST_SIZE, REQUEST_SIZE + UNIT_SIZE)]


def test_a_stream_is_never_cut_for_a_read(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=1)
    upstreams.want(upstreams.fill(), priority="background")
    stream = upstreams.take_all()[0]
    stream.stream = True
    upstreams.want(upstreams.fill(), 0, 1, bulk=False)
    assert upstreams.take_all() == []
    assert stream.cut_reason is None


# --- the end of the queue ---


@pytest.mark.parametrize("size", [100 * MIB, 512 * MIB, 2048 * MIB + 5])
def test_ranges_shrink_at_the_end_and_still_tile_the_blob(
    loop: asyncio.AbstractEventLoop, size: int
) -> None:
    """So that all connections end together; never below what is worth a request."""
    upstreams = Upstreams(loop, max_connections=8)
    upstreams.want(upstreams.fill(size))
    spans: list[tuple[int, int]] = []
    while taken := upstreams.take_all():
        spans += bounds(taken)
        for fetch in taken:
            upstreams.bring(fetch, REQUEST_SIZE)
            upstreams.finish(fetch)
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    lengths = [stop - start for start, stop in spans]
    assert lengths == sorted(lengths, reverse=True)
    assert all(length >= SMALLEST_RANGE for length in lengths[:-1])
    assert lengths[0] == REQUEST_SIZE or size < 8 * REQUEST_SIZE


def test_without_reissue_ranges_keep_their_size(loop: asyncio.AbstractEventLoop) -> None:
    """``fetch.reissue: disabled`` makes the number of requests a matter of arithmetic."""
    upstreams = Upstreams(loop, reissue=False)
    upstreams.want(upstreams.fill(512 * MIB))
    requests = 0
    while taken := upstreams.take_all():
        requests += len(taken)
        for fetch in taken:
            upstreams.bring(fetch, REQUEST_SIZE)
            upstreams.finish(fetch)
    assert requests == 16


def nearly_here(upstreams: Upstreams, missing: int) -> Fill:
    """A blob large enough that something of it may be fetched twice; its first are missing."""
    fill = upstreams.fill(4096 * MIB)
    assert fill.table is not None
    fill.table.arrived(missing, 4096 * MIB)
    return fill


def start_endgame(upstreams: Upstreams, megabytes_a_second: float = 10) -> list[Fetch]:
    """The last three ranges of a blob, at one rate; nothing is queued, a connection is idle."""
    upstreams.want(nearly_here(upstreams, 3 * REQUEST_SIZE))
    taken = upstreams.take_all()
    assert len(taken) == 3
    upstreams.pool.reissue = True
    upstreams.pass_seconds(1.0, dict.fromkeys(taken, megabytes_a_second * MIB))
    return taken


def test_an_idle_connection_takes_the_upper_half_of_what_has_most_left(
    upstreams: Upstreams,
) -> None:
    running = start_endgame(upstreams)
    upstreams.bring(running[0], 10 * MIB)
    upstreams.bring(running[2], 10 * MIB)
    (taken,) = upstreams.take_all()
    assert taken.start == running[1].stop < taken.stop
    assert taken.start % UNIT_SIZE == 0
    assert taken.stop == 2 * REQUEST_SIZE
    left, right = running[1].remaining, taken.remaining
    assert abs(left - right) <= UNIT_SIZE
    assert taken.bulk


@pytest.mark.parametrize(("rate", "divided"), [(15.0 * MIB, 0), (1.0 * MIB, 2)])
def test_a_small_blob_is_divided_twice_at_most_and_only_for_whole_seconds(
    loop: asyncio.AbstractEventLoop, rate: float, divided: int
) -> None:
    """What a cut loses on its way would be more than a hundredth of it."""
    upstreams = Upstreams(loop, max_connections=12, reissue=False)
    upstreams.want(upstreams.fill(3 * REQUEST_SIZE))
    running = upstreams.take_all()
    upstreams.pool.reissue = True
    upstreams.pass_seconds(1.0, dict.fromkeys(running, rate))
    assert len(upstreams.take_all()) == divided


def test_without_reissue_nothing_is_divided(upstreams: Upstreams) -> None:
    start_endgame(upstreams)
    upstreams.pool.reissue = False
    assert upstreams.take_all() == []


def test_what_is_nearly_done_is_not_divided(upstreams: Upstreams) -> None:
    running = start_endgame(upstreams, megabytes_a_second=25)
    for fetch in running:
        upstreams.bring(fetch, 3 * MIB)
    assert upstreams.take_all() == []


def test_less_than_a_mebibyte_is_not_taken_over(upstreams: Upstreams) -> None:
    running = start_endgame(upstreams, megabytes_a_second=1)
    for fetch in running:
        upstreams.bring(fetch, fetch.remaining - MIB)
    assert upstreams.take_all() == []


def count_permissions(fill: Fill) -> int:
    return sum(1 for _ in itertools.takewhile(bool, (fill.may_waste(4 * MIB) for _ in range(99))))


def test_ranges_too_small_to_divide_use_up_no_permission_to_waste(upstreams: Upstreams) -> None:
    """Else a straggler that shows up later would not be asked for afresh."""
    running = start_endgame(upstreams, megabytes_a_second=1)
    for fetch in running:
        upstreams.bring(fetch, fetch.remaining - MIB)
    permissions = count_permissions(nearly_here(upstreams, 0))
    for _ in range(100):
        assert upstreams.pool.next_fetch() is None
    assert count_permissions(running[0].fill) == permissions > 4


def test_neither_reads_nor_unanswered_ranges_are_divided(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill(REQUEST_SIZE), 0, 20 * MIB, bulk=False)
    unanswered = upstreams.fill(REQUEST_SIZE)
    upstreams.want(unanswered)
    taken = upstreams.take_all()
    upstreams.pool.reissue = True
    next(fetch for fetch in taken if fetch.bulk).first_byte = None
    upstreams.pass_seconds(1.0, dict.fromkeys(taken[:1], float(MIB)))
    assert upstreams.take_all() == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 32), min_size=3, max_size=3), st.integers(1, 8))
def test_divided_ranges_still_tile_the_blob(
    loop: asyncio.AbstractEventLoop, progress: list[int], connections: int
) -> None:
    upstreams = Upstreams(loop, max_connections=3 + connections, reissue=False)
    fill = upstreams.fill(3 * REQUEST_SIZE)
    fill.may_waste = lambda count, least=0: True  # type: ignore[method-assign]
    upstreams.want(fill)
    taken = [fetch for fetch in (upstreams.pool.next_fetch() for _ in range(3)) if fetch]
    for fetch, megabytes in zip(taken, progress, strict=True):
        upstreams.answer(fetch)
        upstreams.bring(fetch, megabytes * MIB - 5)
    upstreams.pool.reissue = True
    upstreams.pass_seconds(1.0, dict.fromkeys(taken, 1000.0))
    assert [fetch for fetch in taken if fetch.cut_reason is not None] == []
    spans = sorted(bounds(taken + upstreams.take_all()))
    assert spans[0][0] == 0
    assert spans[-1][1] == fill.size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_a_read_does_not_wait_for_the_range_that_would_come_to_it_late(
    upstreams: Upstreams,
) -> None:
    fill = upstreams.fill()
    upstreams.want(fill)
    first, *_ = upstreams.take_all()
    upstreams.bring(first, MIB)
    upstreams.want(fill, 20 * MIB + 7, 20 * MIB + 9, bulk=False)
    read, *rest = upstreams.take_all()
    assert (read.start, read.stop, read.bulk) == (20 * MIB, 20 * MIB + UNIT_SIZE, False)
    assert first.stop == 20 * MIB and first.cut_reason is None
    # What lay behind the read in that range is nobody's now, and comes next.
    upstreams.bring(read, UNIT_SIZE)
    upstreams.finish(read)
    assert (20 * MIB + UNIT_SIZE, REQUEST_SIZE) in bounds([*rest, *upstreams.take_all()])


def test_a_read_waits_for_a_range_that_is_about_to_reach_it(upstreams: Upstreams) -> None:
    fill = upstreams.fill()
    upstreams.want(fill)
    first, *_ = upstreams.take_all()
    upstreams.bring(first, 20 * MIB)
    upstreams.want(fill, 20 * MIB + UNIT_SIZE, 20 * MIB + UNIT_SIZE + 9, bulk=False)
    assert upstreams.take_all() == []
    assert first.stop == REQUEST_SIZE
