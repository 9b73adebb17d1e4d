"""Tags: revalidated, served while the upstream is down, and believed when it says no."""

from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import (
    OCI_MANIFEST,
)
from headstart.registry.errors import (
    UpstreamDenied,
    UpstreamMissing,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from tests.doubles.scripted_upstream import (
    Rule,
    ScriptedUpstream,
)
from tests.registry.upstreams import upstream_of
from tests.serve.manifest_stage import BODY, HOUR, OTHER, REPOSITORY, Stage, play


def test_tag_is_revalidated_each_time(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        assert (await stage.find("latest")).cache == "miss"
        assert (await stage.find("latest")).cache == "hit"
        registry.add_manifest(REPOSITORY, OTHER, tags=["latest"])
        assert (await stage.find("latest")).body == OTHER

    play(stage, (upstream_of(registry),), act)
    assert len(registry.requests_to("latest$", "HEAD")) == 3


def test_tag_ttl_saves_the_question(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, tag_ttl=60.0)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.add_manifest(REPOSITORY, OTHER, tags=["latest"])
        stage.pass_time(59)
        assert (await stage.find("latest")).body == BODY
        stage.wall -= 30  # a clock that was set back makes nothing young
        stage.uptime += 2
        assert (await stage.find("latest")).body == OTHER

    play(stage, (upstream_of(registry),), act)


def test_upstream_without_digests_in_its_head_is_asked_by_get(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])
    registry.add_rule(
        Rule(method="HEAD", status=200, headers={"Content-Type": OCI_MANIFEST}, body=b"")
    )

    async def act() -> None:
        found = await stage.find("latest")
        assert (found.body, found.digest) == (BODY, Digest.of(BODY))
        registry.stop()
        assert (await stage.find("latest")).warning is not None

    play(stage, (upstream_of(registry),), act)


DOWN = {
    "500": Rule(status=500),
    "503": Rule(status=503),
    "closed": Rule(close_before_answer=True),
    "silent": Rule(delay=float("inf")),
    "throttled": Rule(status=429, headers={"Retry-After": "1000"}),
}


@pytest.mark.parametrize("rule", DOWN.values(), ids=DOWN.keys())
def test_f24_while_the_upstream_is_down_a_known_tag_is_served_with_a_warning(
    registry: ScriptedUpstream, tmp_path: Path, rule: Rule
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        stage.pass_time(600)
        registry.add_rule(rule)
        found = await stage.find("latest")
        assert found.body == BODY
        assert found.warning is not None and "10m ago" in found.warning
        assert found.warning.isascii() and '"' not in found.warning

    play(stage, (upstream_of(registry),), act)


def test_f24_by_digest_an_outage_is_not_even_noticed(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY)

    async def act() -> None:
        await stage.find(digest)
        registry.stop()
        found = await stage.find(digest)
        assert (found.body, found.warning) == (BODY, None)

    play(stage, (upstream_of(registry),), act)


def test_f24_stale_ends_with_its_window(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.stop()
        stage.pass_time(HOUR - 1)
        assert (await stage.find("latest")).body == BODY
        stage.pass_time(1)
        with pytest.raises(UpstreamUnavailable):
            await stage.find("latest")

    play(stage, (upstream_of(registry),), act)


def test_without_a_window_nothing_is_stale(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, stale_window=0.0)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.add_rule(DOWN["throttled"])
        with pytest.raises(UpstreamThrottled):
            await stage.find("latest")

    play(stage, (upstream_of(registry),), act)


@pytest.mark.parametrize(("wall", "served"), [(-24 * HOUR, False), (24 * HOUR, False), (1, True)])
def test_f26_a_clock_that_jumps_makes_no_tag_young(
    registry: ScriptedUpstream, tmp_path: Path, wall: float, served: bool
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.stop()
        stage.wall += wall
        if served:
            assert (await stage.find("latest")).body == BODY
        else:
            with pytest.raises(UpstreamUnavailable):
                await stage.find("latest")

    play(stage, (upstream_of(registry),), act)


def test_f25_missing_tag_is_not_served_stale_and_forgotten(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    digest = registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.remove_tag(REPOSITORY, "latest")
        with pytest.raises(UpstreamMissing):
            await stage.find("latest")
        registry.stop()
        with pytest.raises(UpstreamUnavailable):
            await stage.find("latest")
        assert (await stage.find(digest)).body == BODY

    play(stage, (upstream_of(registry),), act)


def test_f25_denied_tag_is_not_served_stale(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.add_rule(Rule(status=403))
        with pytest.raises(UpstreamDenied):
            await stage.find("latest")

    play(stage, (upstream_of(registry),), act)


def test_tags_survive_a_restart(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])
    upstream = upstream_of(registry)

    async def before() -> None:
        await stage.find("latest")

    async def after() -> None:
        assert (await stage.find("latest")).body == BODY

    play(stage, (upstream,), before)
    registry.stop()
    play(stage, (upstream,), after)
