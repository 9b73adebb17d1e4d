"""What a pool decides: the next range, who gives way, who is late, how many connections."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.registry.upstream import Deadlines
from headstart.store.errors import FillFailed
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.wire import PRIORITIES
from proxy.fill.fetch import Ending, Fetch
from proxy.fill.fill import Fill
from proxy.fill.pool import MOST_CONNECTIONS, START_CONNECTIONS
from tests.fill.fills import REQUEST_SIZE, Upstreams


@pytest.fixture
def upstreams(loop: asyncio.AbstractEventLoop) -> Upstreams:
    """Four connections, so that tests can fill them."""
    return Upstreams(loop, max_connections=4)


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
    upstreams = Upstreams(loop, max_connections=5)
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


def test_a_stream_is_never_cut_for_a_read(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=1)
    upstreams.want(upstreams.fill(), priority="background")
    stream = upstreams.take_all()[0]
    stream.stream = True
    upstreams.want(upstreams.fill(), 0, 1, bulk=False)
    assert upstreams.take_all() == []
    assert stream.cut_reason is None


# --- the end of the queue ---


def nearly_here(upstreams: Upstreams, missing: int) -> Fill:
    """A blob large enough that something of it may be fetched twice; its first bytes are missing."""
    fill = upstreams.fill(4096 * MIB)
    assert fill.table is not None
    fill.table.arrived(missing, 4096 * MIB)
    return fill


def start_endgame(upstreams: Upstreams, megabytes_a_second: float = 10) -> list[Fetch]:
    """The last three ranges of a blob, at one rate; nothing is queued, a connection is idle."""
    upstreams.want(nearly_here(upstreams, 3 * REQUEST_SIZE))
    taken = upstreams.take_all()
    assert len(taken) == 3
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


def test_a_blob_of_which_nothing_may_be_fetched_twice_is_not_divided(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill(3 * REQUEST_SIZE))
    running = upstreams.take_all()
    upstreams.pass_seconds(1.0, dict.fromkeys(running, 5.0 * MIB))
    assert upstreams.take_all() == []


def test_without_reissue_nothing_is_divided(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=4, reissue=False)
    start_endgame(upstreams)
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
    next(fetch for fetch in taken if fetch.bulk).first_byte = None
    upstreams.pass_seconds(1.0, dict.fromkeys(taken[:1], float(MIB)))
    assert upstreams.take_all() == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 32), min_size=3, max_size=3), st.integers(1, 8))
def test_divided_ranges_still_tile_the_blob(
    loop: asyncio.AbstractEventLoop, progress: list[int], connections: int
) -> None:
    upstreams = Upstreams(loop, max_connections=3 + connections)
    fill = upstreams.fill(3 * REQUEST_SIZE)
    fill.may_waste = lambda count, least=0: True  # type: ignore[method-assign]
    upstreams.want(fill)
    taken = [fetch for fetch in (upstreams.pool.next_fetch() for _ in range(3)) if fetch]
    for fetch, megabytes in zip(taken, progress, strict=True):
        upstreams.answer(fetch)
        upstreams.bring(fetch, megabytes * MIB - 5)
    upstreams.pass_seconds(1.0, dict.fromkeys(taken, 1000.0))
    assert [fetch for fetch in taken if fetch.cut_reason is not None] == []
    spans = sorted(bounds(taken + upstreams.take_all()))
    assert spans[0][0] == 0
    assert spans[-1][1] == fill.size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


# --- what is late ---


def eight_running(upstreams: Upstreams) -> list[Fetch]:
    upstreams.want(upstreams.fill(2048 * MIB))
    taken = upstreams.take_all()
    assert len(taken) == 8
    return taken


def test_a_range_far_behind_its_peers_is_asked_for_afresh(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=8)
    running = eight_running(upstreams)
    rates = dict.fromkeys(running, 5.0 * MIB) | {running[3]: 0.5 * MIB}
    upstreams.pass_seconds(1.5, rates)
    assert [fetch for fetch in running if fetch.cut_reason is not None] == [running[3]]
    upstreams.finish(running[3])
    (again,) = upstreams.take_all()
    assert (again.start, again.stop) == (running[3].committed, running[3].stop)


def test_ranges_that_are_all_slow_are_left_alone(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=8)
    running = eight_running(upstreams)
    upstreams.pass_seconds(1.0, dict.fromkeys(running, 5.0 * MIB))
    upstreams.pass_seconds(5.0, dict.fromkeys(running, 0.2 * MIB))
    assert not [fetch for fetch in running if fetch.cut_reason is not None]


def test_an_upstream_that_stands_still_for_a_moment_is_borne(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop, max_connections=8)
    running = eight_running(upstreams)
    upstreams.pass_seconds(3.0, dict.fromkeys(running, 0.0))
    upstreams.pass_seconds(3.0, dict.fromkeys(running, 1.0 * MIB))
    assert not [fetch for fetch in running if fetch.cut_reason is not None]


def test_a_range_that_is_nearly_done_is_left_alone(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=8)
    running = eight_running(upstreams)
    upstreams.bring(running[3], REQUEST_SIZE - MIB // 2)
    rates = dict.fromkeys(running, 5.0 * MIB) | {running[3]: 0.4 * MIB}
    upstreams.pass_seconds(1.0, rates)
    assert running[3].cut_reason is None


def test_without_reissue_the_slow_are_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, max_connections=8, reissue=False)
    running = eight_running(upstreams)
    upstreams.pass_seconds(3.0, dict.fromkeys(running, 5.0 * MIB) | {running[3]: 100_000.0})
    assert running[3].cut_reason is None


def test_an_upstream_that_sends_no_byte_is_given_up_by_the_first_byte_deadline(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop, max_connections=1, deadlines=Deadlines(first_byte=3.0))
    upstreams.want(upstreams.fill())
    fetch = upstreams.pool.next_fetch()
    assert fetch is not None
    fetch.request_sent = upstreams.clock.now
    upstreams.pass_seconds(3.0)
    assert fetch.cut_reason is None
    upstreams.pass_seconds(0.25)
    reason = fetch.cut_reason
    assert reason is not None
    assert (reason.ending, reason.key, reason.value) == (Ending.DEADLINE, "first_byte", "3s")
    assert "ghcr.io sent no byte within 3.2 s" in reason.text


def test_a_range_that_waits_for_its_connection_is_not_held_to_the_first_byte_deadline(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop, max_connections=1, deadlines=Deadlines(first_byte=3.0))
    upstreams.want(upstreams.fill())
    fetch = upstreams.pool.next_fetch()
    assert fetch is not None
    upstreams.pass_seconds(60.0)
    assert fetch.cut_reason is None


def test_a_stalled_range_is_given_up_by_the_stall_deadline(loop: asyncio.AbstractEventLoop) -> None:
    deadlines = Deadlines(stall=2.0, stall_rate=1000)
    upstreams = Upstreams(loop, max_connections=1, deadlines=deadlines)
    upstreams.want(upstreams.fill())
    (fetch,) = upstreams.take_all()
    upstreams.pass_seconds(10.0, {fetch: 2000.0})
    assert fetch.cut_reason is None
    upstreams.pass_seconds(4.5, {fetch: 40.0})
    reason = fetch.cut_reason
    assert reason is not None
    assert (reason.ending, reason.key, reason.value) == (Ending.DEADLINE, "stall", "2s")
    assert "less than stall_rate 1000 bytes/s" in reason.text
    assert f"up to byte {fetch.committed}" in reason.text


# --- how many connections ---


def grow(upstreams: Upstreams, total_rate: float, seconds: int) -> list[int]:
    """The limit after each second in which all connections share a rate."""
    limits = []
    for _ in range(seconds):
        for fetch in list(upstreams.pool.active):
            if fetch.remaining == 0:
                upstreams.finish(fetch)
        upstreams.take_all()
        holding = upstreams.pool.holding
        upstreams.pass_seconds(1.0, dict.fromkeys(holding, total_rate / len(holding)))
        limits.append(upstreams.pool.limit)
    return limits


def test_connections_grow_while_the_throughput_grows_with_them(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop, reissue=False)
    upstreams.want(upstreams.fill(1 << 36))
    assert upstreams.pool.limit == START_CONNECTIONS == 8
    limits = [grow(upstreams, upstreams.pool.limit * 1.0 * MIB, 1)[0] for _ in range(20)]
    assert limits[:3] == [10, 12, 14]
    assert max(limits) <= MOST_CONNECTIONS
    assert limits == sorted(limits)[: len(limits)] or limits[-1] < max(limits)


def test_connections_that_bring_nothing_more_are_given_back_for_good(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop, reissue=False)
    upstreams.want(upstreams.fill(1 << 36))
    assert grow(upstreams, 80.0 * MIB, 6) == [10, 8, 8, 8, 8, 8]


def test_idle_connections_are_no_reason_to_grow(loop: asyncio.AbstractEventLoop) -> None:
    upstreams = Upstreams(loop, reissue=False)
    upstreams.want(upstreams.fill(4 * REQUEST_SIZE))
    assert grow(upstreams, 1000.0, 5) == [8] * 5


def test_a_configured_number_is_kept(upstreams: Upstreams) -> None:
    upstreams.want(upstreams.fill(1 << 36))
    assert grow(upstreams, 8.0 * MIB, 3) == [4, 4, 4]


def test_a_throttled_upstream_is_left_alone_and_then_asked_by_fewer(
    loop: asyncio.AbstractEventLoop,
) -> None:
    upstreams = Upstreams(loop)
    upstreams.want(upstreams.fill())
    upstreams.pool.throttled(10.0)
    assert upstreams.take_all() == []
    upstreams.clock.now += 9.9
    assert upstreams.take_all() == []
    upstreams.clock.now += 0.1
    assert len(upstreams.take_all()) == 4


def test_a_burst_of_throttled_answers_counts_once(loop: asyncio.AbstractEventLoop) -> None:
    """Eight ranges that are refused together are one refusal; the longest pause stands."""
    upstreams = Upstreams(loop)
    upstreams.want(upstreams.fill())
    for seconds in (1.0, 5.0, 2.0):
        upstreams.pool.throttled(seconds)
    upstreams.clock.now += 4.9
    assert upstreams.take_all() == []
    upstreams.clock.now += 0.1
    assert len(upstreams.take_all()) == 4
    upstreams.pool.throttled(1.0)
    upstreams.pool.throttled(1.0)
    assert upstreams.pool.limit == 2
    for _ in range(9):
        upstreams.clock.now += 1.0
        upstreams.pool.throttled(1.0)
    assert upstreams.pool.limit == 1


# --- upstreams without ranges ---


def test_without_ranges_there_is_one_connection_a_blob(upstreams: Upstreams) -> None:
    first, second = upstreams.fill(), upstreams.fill()
    upstreams.want(first)
    upstreams.want(second)
    upstreams.pool.without_ranges()
    assert {fetch.fill for fetch in upstreams.take_all()} == {first, second}
    assert len(upstreams.pool.active) == 2


def test_ranges_are_tried_again_after_a_while(upstreams: Upstreams) -> None:
    upstreams.pool.without_ranges()
    upstreams.pass_seconds(590.0, step=10.0)
    assert not upstreams.pool.ranges
    upstreams.pass_seconds(10.0, step=10.0)
    assert upstreams.pool.ranges


# --- back-off ---


def test_the_back_off_grows_is_capped_and_has_jitter(upstreams: Upstreams) -> None:
    for attempts in (0, 1, 2, 5, 10, 5000):
        waits = {upstreams.pool.back_off(attempts) for _ in range(50)}
        expected = min(5.0, 0.1 * 2.0 ** min(attempts, 20))
        assert len(waits) > 1
        assert all(0.5 * expected <= wait <= 1.5 * expected for wait in waits)
