"""The verdict on a pull: who waited, and why, from measured figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from proxy.control.figures import Figures, StripeFigures, UpstreamFigures
from proxy.control.verdict import (
    CACHE,
    CLIENT_BOUND,
    CPU_BOUND,
    DISK_BOUND,
    LEAST_JUDGED,
    NETWORK_BOUND,
    NOTHING_SENT,
    VERDICTS,
    Measured,
    judge,
)

MIB = 1024 * 1024
HOST = "registry.example"

QUIET = Figures(
    uptime_seconds=10,
    cpu_seconds=1.0,
    cores=2,
    received=1000_000_000,
    upstreams={HOST: UpstreamFigures(active=0, limit=8, received=1000_000_000)},
    stripes=(StripeFigures("/cache0", "8:16", 1240 * MIB, 0.2),),
)
MISS = Measured(
    upstream=HOST,
    seconds=10.0,
    sent=1000_000_000,
    from_cache=0,
    waited_for_filler=8.0,
    waited_for_client=1.0,
    mirror_cpu_seconds=1.0,
    figures=QUIET,
    connections=8,
)


def test_a_pull_that_waited_for_nothing_else_is_bound_by_the_network() -> None:
    verdict = judge(MISS)
    assert verdict.word == NETWORK_BOUND
    assert verdict.evidence == (
        "100 MB/s from registry.example over 8 connections, as many as max_connections allows now"
    )


def test_the_evidence_names_connections_that_were_not_used_and_pauses() -> None:
    upstream = UpstreamFigures(limit=8, received=5_000_000, paused_seconds=3.0)
    measured = replace(MISS, connections=1, figures=replace(QUIET, upstreams={HOST: upstream}))
    assert judge(measured).evidence == (
        "500 KB/s from registry.example over 1 connection, of 8 allowed; "
        "it asked for pauses of 3.0 s"
    )


def test_a_disk_whose_writers_wait_is_named_with_device_and_rate() -> None:
    stripe = StripeFigures("/cache0", "8:16", 1240 * MIB, 9.3)
    verdict = judge(replace(MISS, figures=replace(QUIET, stripes=(stripe,))))
    assert verdict.word == DISK_BOUND
    assert verdict.evidence == (
        "124 MiB/s written to /cache0 (device 8:16) while its writers waited 93 % of the time; "
        "add a stripe"
    )


def test_every_slow_stripe_is_named_and_no_other() -> None:
    stripes = (
        StripeFigures("/cache0", "7:0", 1240 * MIB, 9.3),
        StripeFigures("/cache1", "7:1", 1240 * MIB, 0.1),
        StripeFigures("/cache2", "7:2", 1230 * MIB, 25.0),
    )
    verdict = judge(replace(MISS, figures=replace(QUIET, stripes=stripes)))
    assert verdict.word == DISK_BOUND
    assert "/cache0" in verdict.evidence
    assert "/cache1" not in verdict.evidence
    assert "123 MiB/s written to /cache2 (device 7:2)" in verdict.evidence
    assert "waited 100 % of the time; add a stripe" in verdict.evidence


def test_a_client_that_takes_its_time_is_what_holds_its_pull_up() -> None:
    verdict = judge(replace(MISS, waited_for_client=9.0, waited_for_filler=0.5))
    assert verdict.word == CLIENT_BOUND
    assert verdict.evidence == (
        "the client took 100 MB/s: the mirror waited 9.0 s for it, it waited 0.5 s for bytes"
    )


def test_busy_cores_go_before_whoever_waited() -> None:
    busy = replace(MISS, figures=replace(QUIET, cpu_seconds=14.0), mirror_cpu_seconds=4.0)
    for measured in (busy, replace(busy, waited_for_client=9.0)):
        verdict = judge(measured)
        assert verdict.word == CPU_BOUND
        assert verdict.evidence == (
            "mirror and filler used 18.0 of 20.0 core seconds (90 % of 2 cores)"
        )


def test_hits_are_served_from_the_cache_however_slow_the_client() -> None:
    hit = replace(MISS, from_cache=MISS.sent, waited_for_client=9.0, figures=None)
    verdict = judge(hit)
    assert verdict.word == CACHE
    assert verdict.evidence == "served from the cache; the client took 100 MB/s"


def test_manifests_alone_have_nothing_that_could_be_slow() -> None:
    assert judge(replace(MISS, sent=0, from_cache=0)).word == NOTHING_SENT


def test_without_figures_the_network_is_suspected_and_the_gap_named() -> None:
    verdict = judge(replace(MISS, figures=None))
    assert verdict.word == NETWORK_BOUND
    assert "the filler gave no figures" in verdict.evidence


seconds = some.floats(0, 1e5, allow_nan=False)
counts = some.integers(0, 1 << 45)
figures = some.builds(
    Figures,
    cpu_seconds=seconds,
    cores=some.integers(1, 256),
    upstreams=some.dictionaries(
        some.sampled_from([HOST, "other.example"]),
        some.builds(
            UpstreamFigures,
            active=some.integers(0, 32),
            limit=some.integers(0, 32),
            received=counts,
            paused_seconds=seconds,
        ),
    ),
    stripes=some.lists(
        some.builds(
            StripeFigures,
            path=some.sampled_from(["/a", "/b"]),
            device=some.just("8:0"),
            written=counts,
            waited_seconds=seconds,
        ),
        max_size=3,
    ).map(tuple),
)


@some.composite
def pulls(draw: some.DrawFn) -> Measured:
    """Anything that could be measured, however odd."""
    sent = draw(counts)
    return Measured(
        upstream=HOST,
        seconds=draw(seconds),
        sent=sent,
        from_cache=draw(some.integers(0, sent)),
        waited_for_filler=draw(seconds),
        waited_for_client=draw(seconds),
        mirror_cpu_seconds=draw(seconds),
        figures=draw(some.none() | figures),
        connections=draw(some.integers(0, 64)),
    )


def test_of_a_configuration_alone_nothing_is_said_of_cores_or_network() -> None:
    """A node that mounts layers asks for no more; 0.04 s are too short to be judged by."""
    figures = Figures(uptime_seconds=9.0, cores=2, cpu_seconds=0.08)
    verdict = judge(Measured(HOST, seconds=0.04, sent=985, from_cache=0, figures=figures))
    assert verdict.word == NOTHING_SENT
    assert verdict.evidence.startswith("985 bytes: a configuration, no layer")


@given(pulls())
def test_there_is_always_a_verdict_with_evidence(measured: Measured) -> None:
    verdict = judge(measured)
    assert verdict.word in VERDICTS
    assert verdict.evidence
    assert "\n" not in verdict.evidence
    fetched = measured.sent - measured.from_cache
    little = measured.sent < LEAST_JUDGED and fetched
    assert (verdict.word == NOTHING_SENT) == (measured.sent == 0 or bool(little))
    if measured.sent and measured.from_cache == measured.sent:
        assert verdict.word == CACHE


@given(pulls(), some.floats(0.01, 1e4))
def test_more_waiting_for_the_client_never_acquits_it(measured: Measured, more: float) -> None:
    if judge(measured).word == CLIENT_BOUND:
        slower = replace(measured, waited_for_client=measured.waited_for_client + more)
        assert judge(slower).word == CLIENT_BOUND


@given(pulls(), some.floats(0.01, 1e4))
def test_more_waiting_of_writers_never_acquits_the_disk(measured: Measured, more: float) -> None:
    if judge(measured).word != DISK_BOUND or measured.figures is None:
        return
    stripes = tuple(
        replace(stripe, waited_seconds=stripe.waited_seconds + more)
        for stripe in measured.figures.stripes
    )
    slower = replace(measured, figures=replace(measured.figures, stripes=stripes))
    assert judge(slower).word == DISK_BOUND


@given(pulls())
def test_a_disk_is_blamed_only_when_its_writers_waited_half_of_the_time(
    measured: Measured,
) -> None:
    if judge(measured).word == DISK_BOUND:
        assert measured.figures is not None
        assert max(stripe.waited_seconds for stripe in measured.figures.stripes) >= (
            measured.seconds / 2
        )


MESSAGE: dict[str, object] = {
    "type": "figures",
    "received": 5,
    "cpu_seconds": 1.5,
    "uptime_seconds": 20.0,
    "cores": 2,
    "upstreams": {HOST: {"active": 3, "limit": 8, "received": 5, "ranges": True}},
    "stripes": [{"path": "/c", "device": "8:0", "written": 7, "waited_seconds": 0.5, "dirty": 1}],
    "surprise": "of a newer filler",
}


def test_figures_are_read_from_the_fillers_answer() -> None:
    read = Figures.read(MESSAGE)
    assert (read.received, read.cpu_seconds, read.cores) == (5, 1.5, 2)
    assert read.upstreams == {HOST: UpstreamFigures(active=3, limit=8, received=5)}
    assert read.stripes == (StripeFigures("/c", "8:0", 7, 0.5, 1),)


@pytest.mark.parametrize("odd", [{}, {"upstreams": [1], "stripes": {"a": 1}, "received": "x"}])
def test_an_odd_answer_counts_as_nothing(odd: dict[str, object]) -> None:
    assert Figures.read(odd) == Figures()


def test_what_counted_is_subtracted_and_what_is_stays() -> None:
    earlier = Figures.read(MESSAGE)
    later = replace(
        earlier,
        uptime_seconds=25.0,
        received=105,
        allocated=9,
        upstreams={HOST: UpstreamFigures(active=1, limit=8, received=105)},
        stripes=(StripeFigures("/c", "8:0", 107, 2.5, 4), StripeFigures("/new", "8:1", 3)),
    )
    between = later.since(earlier)
    assert (between.received, between.uptime_seconds, between.allocated) == (100, 5.0, 9)
    assert between.upstreams[HOST] == UpstreamFigures(active=1, limit=8, received=100)
    assert between.stripes == (
        StripeFigures("/c", "8:0", 100, 2.0, 4),
        StripeFigures("/new", "8:1", 3),
    )


def test_a_filler_that_restarted_meanwhile_counts_from_its_start() -> None:
    earlier = Figures.read(MESSAGE)
    later = replace(earlier, uptime_seconds=1.0, received=3)
    assert later.since(earlier) == later
