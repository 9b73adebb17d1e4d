"""What a pool sees in time: who is late, how many connections are worth it, when to pause."""

import asyncio

import pytest

from headstart.registry.upstream import Deadlines
from headstart.store.geometry import MIB
from proxy.fill.fetch import Ending, Fetch
from proxy.fill.pool import MOST_CONNECTIONS, START_CONNECTIONS
from tests.fill.fills import REQUEST_SIZE, Upstreams


@pytest.fixture
def upstreams(loop: asyncio.AbstractEventLoop) -> Upstreams:
    """Four connections, so that tests can fill them."""
    return Upstreams(loop, max_connections=4)


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


def test_a_range_that_is_merely_slower_is_left_alone(loop: asyncio.AbstractEventLoop) -> None:
    """A new connection begins slowly too: only what is far behind is worth one."""
    upstreams = Upstreams(loop, max_connections=8)
    running = eight_running(upstreams)
    upstreams.pass_seconds(2.0, dict.fromkeys(running, 5.0 * MIB) | {running[3]: 2.0 * MIB})
    assert running[3].cut_reason is None


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
    assert upstreams.pool.holding == [fetch]
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
    assert upstreams.pool.holding == [fetch]
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


@pytest.mark.parametrize("connections", [None, 8])
def test_f18_connections_that_a_pause_has_cost_come_back(
    loop: asyncio.AbstractEventLoop, connections: int | None
) -> None:
    upstreams = Upstreams(loop, max_connections=connections)
    pool = upstreams.pool
    pool.throttled(1.0)
    upstreams.pass_seconds(2.0)
    pool.throttled(1.0)
    assert pool.limit == 2
    upstreams.pass_seconds(30.0)
    assert pool.limit == 2
    upstreams.pass_seconds(60.0)
    assert pool.limit == 8
