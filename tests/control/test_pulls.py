"""The pull book: which requests are one pull, when it has ended, and what its line says."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest
from proxy.control.figures import Figures, StripeFigures, UpstreamFigures
from proxy.control.pulls import MOST_RECENT, MOST_RUNNING, PullBook

MIB = 1024 * 1024
HOST = "registry.example"
IDLE = 0.15
LAYER = Descriptor("application/layer", Digest.of(b"layer"), 4 * MIB)
CONFIG = Descriptor("application/config", Digest.of(b"config"), 100)
MANIFEST = Manifest(OCI_MANIFEST, CONFIG, (LAYER, LAYER), {})
AGENT = "containerd/2.0"


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run one coroutine, with a bound."""
    asyncio.run(asyncio.wait_for(test(), 20))


async def no_figures() -> Figures | None:
    return None


def book(figures: Callable[[], Awaitable[Figures | None]] = no_figures) -> PullBook:
    return PullBook(figures, idle_seconds=IDLE)


def serve_manifest(
    pulls: PullBook, client: str = "10.0.0.1", reference: str = "1.2", agent: str = AGENT
) -> None:
    pulls.manifest_served(
        client, agent, HOST, "team/app", reference, str(Digest.of(b"m")), MANIFEST
    )


def serve_layer(pulls: PullBook, client: str = "10.0.0.1", *, from_cache: bool = True) -> None:
    with pulls.blob(client, HOST, "team/app", str(LAYER.digest), LAYER.size) as watch:
        watch.sent(LAYER.size, from_cache)
        watch.waited_for_filler(0.5)
        watch.waited_for_client(0.1)


async def ended(pulls: PullBook, count: int = 1) -> list[dict[str, Any]]:
    """The recent pulls, as soon as there are ``count``."""
    while True:
        recent = pulls.describe()["recent"]
        assert isinstance(recent, list)
        if len(recent) >= count:
            return recent
        await asyncio.sleep(0.02)


def test_manifest_and_layers_of_one_client_are_one_pull() -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_manifest(pulls)
            serve_layer(pulls)
            serve_layer(pulls, from_cache=False)
            assert pulls.running == 1
            (pull,) = await ended(pulls)
            assert pull["image"] == f"{HOST}/team/app:1.2"
            assert (pull["client"], pull["agent"], pull["state"]) == ("10.0.0.1", AGENT, "ended")
            assert (pull["bytes"], pull["bytes_from_cache"]) == (8 * MIB, 4 * MIB)
            assert pull["hit_ratio"] == 0.5
            assert pull["bytes_wanted"] == 4 * MIB + 100
            assert pull["waited_for_filler_seconds"] == 1.0
            assert pull["verdict"] == "network-bound"
            assert pulls.running == 0
            assert pulls.sent_bytes == (4 * MIB, 4 * MIB)
            assert pulls.by_verdict == {"network-bound": 1}

    run(test)


def test_other_clients_and_other_repositories_are_other_pulls() -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_layer(pulls, "10.0.0.1")
            serve_layer(pulls, "10.0.0.2")
            with pulls.blob("10.0.0.1", HOST, "team/other", str(LAYER.digest), 5) as watch:
                watch.sent(5, True)
            assert len(await ended(pulls, 3)) == 3

    run(test)


def test_a_pull_goes_on_while_a_request_is_open_and_between_quick_ones() -> None:
    async def test() -> None:
        async with book() as pulls:
            with pulls.blob("10.0.0.1", HOST, "team/app", str(LAYER.digest), 10) as watch:
                await asyncio.sleep(4 * IDLE)
                watch.sent(10, True)
            for _ in range(6):
                await asyncio.sleep(IDLE / 3)
                serve_layer(pulls)
            assert pulls.describe()["recent"] == []
            (pull,) = await ended(pulls)
            assert pull["requests"] == 7
            # The silence that tells the end is none of its time.
            assert pull["seconds"] < 4 * IDLE + 6 * IDLE / 3 + IDLE

    run(test)


def test_a_tag_names_the_image_and_a_digest_where_there_is_none() -> None:
    async def test() -> None:
        async with book() as pulls:
            digest = str(Digest.of(b"m"))
            serve_manifest(pulls, reference=digest)
            running: Any = pulls.describe()["running"]
            assert running[0]["image"] == f"{HOST}/team/app@{digest}"
            pulls.manifest_served(
                "10.0.0.1", AGENT, HOST, "team/app", "1.2", "sha256:0", Index(OCI_INDEX, ())
            )
            running = pulls.describe()["running"]
            assert running[0]["image"] == f"{HOST}/team/app:1.2"
            assert running[0]["digest"] == digest

    run(test)


def test_another_tag_and_another_program_begin_another_pull() -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_manifest(pulls)
            serve_layer(pulls)
            serve_manifest(pulls, reference="1.3")
            serve_layer(pulls)
            serve_manifest(pulls, reference="1.3", agent="skopeo/1.9")
            recent = await ended(pulls, 3)
            assert [(pull["image"][-3:], pull["agent"], pull["bytes"]) for pull in recent] == [
                ("1.3", "skopeo/1.9", 0),
                ("1.3", AGENT, 4 * MIB),
                ("1.2", AGENT, 4 * MIB),
            ]

    run(test)


def test_another_tag_while_bytes_are_sent_is_the_same_pull() -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_manifest(pulls)
            with pulls.blob("10.0.0.1", HOST, "team/app", str(LAYER.digest), LAYER.size):
                serve_manifest(pulls, reference="1.3")
                assert pulls.running == 1
            assert len(await ended(pulls)) == 1

    run(test)


def test_the_verdict_comes_from_the_figures_of_the_pulls_own_time() -> None:
    """Counters are those since the filler's start; only what the pull saw of them counts."""
    ticks = 0

    async def figures() -> Figures | None:
        nonlocal ticks
        ticks += 1
        return Figures(
            uptime_seconds=1000.0 + ticks,
            cores=2,
            upstreams={HOST: UpstreamFigures(active=5, limit=8, received=ticks * MIB)},
            stripes=(StripeFigures("/cache0", "8:0", (5000 + ticks) * MIB, 500.0 + ticks),),
        )

    async def test() -> None:
        async with book(figures) as pulls:
            with pulls.blob("10.0.0.1", HOST, "team/app", str(LAYER.digest), MIB) as watch:
                await asyncio.sleep(0.6)
                watch.sent(MIB, False)
                watch.waited_for_filler(0.5)
            (pull,) = await ended(pulls)
            assert pull["verdict"] == "disk-bound"
            assert "MiB/s written to /cache0 (device 8:0)" in pull["evidence"]
            written = re.match(r"([\d.]+) MiB/s", pull["evidence"])
            assert written is not None
            assert 1 <= float(written[1]) <= 20

    run(test)


def test_requests_too_short_to_be_seen_open_count_too() -> None:
    ticks = 0

    async def figures() -> Figures | None:
        nonlocal ticks
        ticks += 1
        upstream = UpstreamFigures(active=1, limit=8, received=ticks * 10_000_000)
        return Figures(uptime_seconds=1000.0 + ticks, cores=2, upstreams={HOST: upstream})

    async def test() -> None:
        async with PullBook(figures, idle_seconds=0.8) as pulls:
            for _ in range(3):
                serve_layer(pulls, from_cache=False)
                await asyncio.sleep(0.35)
            (pull,) = await ended(pulls)
            assert re.match(r"[1-9]\d* MB/s from registry\.example", pull["evidence"])

    run(test)


def test_a_pull_leaves_one_structured_line_without_anything_private(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_manifest(pulls)
            serve_layer(pulls)
            with pulls.blob("10.0.0.1", HOST, "team/app", str(LAYER.digest), 10) as watch:
                watch.failed(
                    "GET https://bucket.example/blob?X-Amz-Signature=5ec2e7 failed\nwith 403"
                )
            await ended(pulls)

    with caplog.at_level(logging.INFO, "headstart.pull"):
        run(test)
    (record,) = [each for each in caplog.records if each.name == "headstart.pull"]
    line = record.getMessage()
    assert re.fullmatch(
        r"pull image=registry\.example/team/app:1\.2 client=10\.0\.0\.1 bytes=4194304 "
        r"hit_ratio=1\.00 seconds=\d+\.\d\d rate=[\d.]+MB/s failed=1 "
        r'reason="GET https://bucket\.example/blob failed with 403" '
        r'verdict=cache evidence="served from the cache.*"',
        line,
    )
    assert "5ec2e7" not in line


def test_what_clients_say_of_themselves_is_bounded_and_printable() -> None:
    async def test() -> None:
        async with book() as pulls:
            agent = "evil\x1b[2J\n" + "x" * 1000
            pulls.manifest_served("c", agent, HOST, "a", "1", "sha256:0", None)
            running: Any = pulls.describe()["running"]
            assert running[0]["agent"].startswith("evil[2Jx")
            assert len(running[0]["agent"]) <= 200

    run(test)


def test_books_stay_small() -> None:
    async def test() -> None:
        async with book() as pulls:
            for number in range(MOST_RUNNING + 50):
                serve_layer(pulls, f"client-{number}")
            assert pulls.running == MOST_RUNNING
            assert pulls.sent_bytes == ((MOST_RUNNING + 50) * LAYER.size, 0)
            assert len(await ended(pulls, MOST_RECENT)) == MOST_RECENT
            assert pulls.sent_bytes == ((MOST_RUNNING + 50) * LAYER.size, 0)

    run(test)


def test_the_end_of_the_process_ends_the_pulls(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with book() as pulls:
            serve_layer(pulls)

    with caplog.at_level(logging.INFO, "headstart.pull"):
        run(test)
    assert [each.name for each in caplog.records] == ["headstart.pull"]
