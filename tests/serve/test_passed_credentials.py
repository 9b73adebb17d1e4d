"""``access: passthrough``: manifests for those whom the upstream lets in, and nobody else."""

from pathlib import Path

import pytest

from headstart.registry.errors import (
    UpstreamDenied,
    UpstreamMissing,
    UpstreamUnavailable,
)
from proxy.serve.grants import GRANT_SECONDS
from tests.doubles.scripted_upstream import (
    BasicAccess,
    ScriptedUpstream,
    basic_authorization,
)
from tests.registry.upstreams import upstream_of
from tests.serve.manifest_stage import BODY, HOUR, REPOSITORY, Stage, play

RIGHT = basic_authorization("user", "secret")
WRONG = basic_authorization("user", "other-secret")


@pytest.fixture
def private(registry: ScriptedUpstream) -> ScriptedUpstream:
    registry.access = BasicAccess("user", "secret")
    return registry


def test_passed_credentials_are_checked_for_every_client(
    private: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = private.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        for reference in ("latest", digest):
            assert (await stage.find(reference, authorization=RIGHT)).body == BODY
            for wrong in (WRONG, None):
                with pytest.raises(UpstreamDenied):
                    await stage.find(reference, authorization=wrong)

    play(stage, (upstream_of(private, access="passthrough"),), act)


def test_passed_credentials_are_checked_again_after_a_minute_and_fail_closed(
    private: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    digest = private.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find(digest, authorization=RIGHT)
        await stage.find("latest", authorization=RIGHT)
        private.forget_requests()
        stage.uptime += GRANT_SECONDS - 1
        await stage.find(digest, authorization=RIGHT)
        assert private.requests == []
        stage.uptime += 1
        await stage.find(digest, authorization=RIGHT)
        assert {request.method for request in private.requests} == {"HEAD"}
        stage.uptime += GRANT_SECONDS
        private.stop()
        for reference in (digest, "latest"):
            with pytest.raises(UpstreamUnavailable):
                await stage.find(reference, authorization=RIGHT)

    play(stage, (upstream_of(private, access="passthrough"),), act)


def test_a_grant_is_for_one_repository(private: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    digest = private.add_manifest(REPOSITORY, BODY)

    async def act() -> None:
        await stage.find(digest, authorization=RIGHT)
        with pytest.raises(UpstreamMissing):
            await stage.find(digest, repository="team/other", authorization=RIGHT)

    play(stage, (upstream_of(private, access="passthrough"),), act)


@pytest.mark.parametrize("access", ["anonymous", "shared"])
def test_clients_credentials_go_nowhere_by_default(
    registry: ScriptedUpstream, tmp_path: Path, access: str
) -> None:
    stage = Stage(tmp_path)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])

    async def act() -> None:
        await stage.find("latest", authorization=RIGHT)

    play(stage, (upstream_of(registry, access=access),), act)
    assert {request.authorization for request in registry.requests} == {None}
