"""One range: how it is shortened, cut, and how fast and how slow it is."""

import asyncio
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.store.geometry import MIB, UNIT_SIZE
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from tests.fill.fills import Upstreams

CUT = Outcome(Ending.CUT, "no longer wanted")


@pytest.fixture
def fill(loop: asyncio.AbstractEventLoop) -> Fill:
    return Upstreams(loop).fill()


def fetch_of(fill: Fill, start: int = 0, stop: int = 32 * MIB) -> Fetch:
    return Fetch(fill, start, stop, bulk=True, priority=0, order=1)


# --- dividing ---


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 40).map(UNIT_SIZE.__mul__),
    length=st.integers(1, 16 * MIB),
    progress=st.integers(0, 16 * MIB),
    minimum=st.sampled_from([1, UNIT_SIZE, MIB]),
)
def test_a_range_is_divided_on_a_unit_border_above_what_is_being_written(
    fill: Fill, start: int, length: int, progress: int, minimum: int
) -> None:
    fetch = fetch_of(fill, start, start + length)
    fetch.reserved = min(start + progress, fetch.stop)
    stop = fetch.stop
    taken = fetch.split(minimum)
    if taken is None:
        assert fetch.stop == stop
        return
    border, end = taken
    assert end == stop
    assert fetch.stop == border
    assert border % UNIT_SIZE == 0
    assert border >= fetch.reserved
    assert end - border >= minimum
    assert end - border <= border - fetch.reserved + UNIT_SIZE
    assert fetch.remaining == border - fetch.reserved


def test_a_range_is_divided_again_and_again_until_too_little_is_left(fill: Fill) -> None:
    fetch = fetch_of(fill)
    parts = []
    while (taken := fetch.split(MIB)) is not None:
        parts.append(taken)
    parts.append((fetch.start, fetch.stop))
    assert sorted(parts)[0][0] == 0
    assert all(
        before[1] == after[0]
        for before, after in zip(sorted(parts), sorted(parts)[1:], strict=False)
    )
    assert MIB <= fetch.remaining < 2 * MIB + UNIT_SIZE


def test_neither_a_stream_nor_what_was_cut_is_divided(fill: Fill) -> None:
    stream, cut = fetch_of(fill), fetch_of(fill)
    stream.stream = True
    cut.cut(CUT)
    assert stream.split(MIB) is None
    assert cut.split(MIB) is None


# --- cutting ---


def test_a_cut_wakes_whoever_waits_for_bytes(fill: Fill) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        fetch = fetch_of(fill)
        fetch.attach(ours)
        cutter = threading.Timer(0.05, fetch.cut, [CUT])
        cutter.start()
        assert ours.recv(1) == b""
        cutter.join()


def test_a_connection_that_is_made_after_the_cut_is_shut_at_once(fill: Fill) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        fetch = fetch_of(fill)
        fetch.cut(CUT)
        fetch.attach(ours)
        assert ours.recv(1) == b""


def test_the_first_reason_of_a_cut_stands(fill: Fill) -> None:
    fetch = fetch_of(fill)
    fetch.cut(CUT)
    fetch.cut(Outcome(Ending.DEADLINE))
    assert fetch.cut_reason is CUT


def test_a_connection_that_was_let_go_is_not_shut(fill: Fill) -> None:
    """The next range may be using it already."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fetch = fetch_of(fill)
        fetch.attach(ours)
        fetch.attach(None)
        fetch.cut(CUT)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_cutting_what_has_ended_already_is_harmless(fill: Fill) -> None:
    ours, theirs = socket.socketpair()
    fetch = fetch_of(fill)
    fetch.attach(ours)
    theirs.close()
    ours.close()
    fetch.cut(CUT)
    assert fetch.cut_reason is CUT


# --- rates ---


def test_the_rate_is_that_of_the_last_second(fill: Fill) -> None:
    fetch = fetch_of(fill)
    for tick in range(40):
        fetch.received += 100 if tick < 20 else 1000
        fetch.sample(tick * 0.1)
    assert fetch.rate() == pytest.approx(10_000)


def test_a_young_range_has_no_rate(fill: Fill) -> None:
    fetch = fetch_of(fill)
    assert fetch.rate() is None
    for tick in range(6):
        fetch.sample(tick * 0.1)
    assert fetch.rate() is None
    fetch.sample(0.8)
    assert fetch.rate() == 0.0


def test_a_stall_is_told_by_the_bytes_of_a_whole_period(fill: Fill) -> None:
    fetch = fetch_of(fill)
    told = []
    for second in range(10):
        told.append(fetch.slow_since(float(second), 3.0, 1000))
        fetch.received += 1500 if second < 5 else 10
    assert told == [None] * 9 + [30]


def test_enough_bytes_are_no_stall(fill: Fill) -> None:
    fetch = fetch_of(fill)
    for second in range(20):
        assert fetch.slow_since(float(second), 3.0, 1000) is None
        fetch.received += 1000
