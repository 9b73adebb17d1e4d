"""Manifests by digest, what is no manifest, and what clients accept."""

import asyncio
import json
from pathlib import Path

import pytest

from headstart.content.errors import InvalidInput
from headstart.content.manifest import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
)
from headstart.registry.errors import (
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from tests.doubles.scripted_upstream import (
    Rule,
    ScriptedUpstream,
    captive_page,
)
from tests.registry.upstreams import upstream_of
from tests.serve.manifest_stage import (
    BLOB,
    BODY,
    HOUR,
    REPOSITORY,
    Stage,
    document,
    play,
)

# --- by digest ---


def test_digest_is_fetched_once(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY)

    async def act() -> None:
        first, second = await stage.find(digest), await stage.find(digest)
        assert (first.cache, second.cache) == ("miss", "hit")
        for found in (first, second):
            assert (found.body, found.media_type) == (BODY, OCI_MANIFEST)
            assert str(found.digest) == digest
            assert isinstance(found.document, Manifest)
            assert found.warning is None
        assert stage.expected == [(registry.host, REPOSITORY)] * 2

    play(stage, (upstream_of(registry),), act)
    assert [request.method for request in registry.requests] == ["GET"]


def test_those_who_ask_together_cause_one_request(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY, tags=["latest"])
    registry.add_rule(Rule(delay=0.2))

    async def act() -> None:
        found = await asyncio.gather(*(stage.find("latest") for _ in range(20)))
        assert {str(each.digest) for each in found} == {digest}

    play(stage, (upstream_of(registry),), act)
    assert sorted(request.method for request in registry.requests) == ["GET", "HEAD"]


def test_one_who_leaves_does_not_end_the_question_of_others(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY)
    registry.add_rule(Rule(delay=0.2))

    async def act() -> None:
        first = asyncio.ensure_future(stage.find(digest))
        second = asyncio.ensure_future(stage.find(digest))
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second).body == BODY

    play(stage, (upstream_of(registry),), act)
    assert len(registry.requests) == 1


def test_digest_of_another_upstream_is_asked_for_before_it_is_given(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY)
    with ScriptedUpstream() as other:
        here, there = upstream_of(registry), upstream_of(other)

        async def act() -> None:
            await stage.find(digest)
            with pytest.raises(UpstreamMissing):
                await stage.find(digest, upstream=there)
            other.add_manifest(REPOSITORY, BODY)
            for _ in range(2):
                assert (await stage.find(digest, upstream=there)).cache == "hit"

        play(stage, (here, there), act)
        assert [request.method for request in other.requests] == ["HEAD", "HEAD"]


def test_another_upstream_does_not_choose_the_media_type(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    body = json.dumps({"schemaVersion": 2, "config": BLOB, "layers": []}).encode()
    digest = registry.add_manifest(REPOSITORY, body, "application/x+json")
    with ScriptedUpstream() as other:
        other.add_manifest(REPOSITORY, body, OCI_MANIFEST)

        async def act() -> None:
            strange = await stage.find(digest, accept="*/*")
            assert strange.media_type == "application/x+json"
            found = await stage.find(digest, upstream=upstream_of(other))
            assert (found.media_type, found.cache) == (OCI_MANIFEST, "hit")

        play(stage, (upstream_of(registry), upstream_of(other)), act)


def test_docker_hub_keeps_short_names_below_library(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    registry.add_manifest("library/alpine", BODY, tags=["3"])

    async def act() -> None:
        assert (await stage.find("3", repository="alpine")).body == BODY

    play(stage, (upstream_of(registry, host="docker.io"),), act)


# --- what is no manifest ---


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (document(manifests=[]), OCI_MANIFEST),  # CVE-2021-41190
        (document(OCI_INDEX), OCI_MANIFEST),
        (document(OCI_INDEX, layers=[]), OCI_INDEX),
        (b"{}", OCI_MANIFEST),
        (b"[]", "application/x+json"),
        (b"<html>", "text/html"),
    ],
)
def test_ambiguous_documents_are_refused_and_not_kept(
    registry: ScriptedUpstream, tmp_path: Path, body: bytes, media_type: str
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, body, media_type, tags=["latest"])

    async def act() -> None:
        for reference in ("latest", digest, digest):
            with pytest.raises(UpstreamProtocol):
                await stage.find(reference, accept="*/*")

    play(stage, (upstream_of(registry),), act)
    assert len(registry.requests_to("/manifests/", "GET")) >= 2


def test_f14_captive_page_is_never_a_manifest(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    registry.add_manifest(REPOSITORY, BODY, tags=["latest"])
    registry.add_rule(captive_page())

    async def act() -> None:
        with pytest.raises(UpstreamProtocol):
            await stage.find("latest")
        registry.clear_rules()
        assert (await stage.find("latest")).body == BODY

    play(stage, (upstream_of(registry),), act)


def test_other_kinds_of_documents_pass_through(registry: ScriptedUpstream, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    body = b'{"signature": 1}'
    registry.add_manifest(REPOSITORY, body, "application/x+json", tags=["latest"])

    async def act() -> None:
        found = await stage.find("latest", accept="application/x+json")
        assert (found.body, found.media_type) == (body, "application/x+json")
        assert found.document is None

    play(stage, (upstream_of(registry),), act)


@pytest.mark.parametrize("reference", ["-x", "sha256:1", "a" * 200])
def test_malformed_references_are_not_asked_for(
    registry: ScriptedUpstream, tmp_path: Path, reference: str
) -> None:
    stage = Stage(tmp_path)

    async def act() -> None:
        with pytest.raises(InvalidInput):
            await stage.find(reference)

    play(stage, (upstream_of(registry),), act)
    assert registry.requests == []


# --- what the client accepts ---


def test_tag_may_mean_another_document_for_another_client(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    index = document(OCI_INDEX)
    registry.add_manifest(REPOSITORY, index, OCI_INDEX, tags=["latest"])
    old = document(DOCKER_MANIFEST)
    with ScriptedUpstream() as converting:
        converting.add_manifest(REPOSITORY, old, DOCKER_MANIFEST, tags=["latest"])
        registry.add_rule(
            Rule(
                when=lambda request: request.headers["accept"] == DOCKER_MANIFEST,
                status=307,
                location=lambda request: converting.url + request.path,
            )
        )

        async def act() -> None:
            found = await stage.find("latest")
            assert isinstance(found.document, Index)
            found = await stage.find("latest", accept=DOCKER_MANIFEST)
            assert (found.body, found.media_type) == (old, DOCKER_MANIFEST)
            registry.stop()
            assert (await stage.find("latest", accept="*/*")).body == index
            assert (await stage.find("latest", accept=DOCKER_MANIFEST)).body == old

        play(stage, (upstream_of(registry, allow_private=True),), act)


def test_a_client_of_few_kinds_gets_stale_what_others_have_asked_for(
    tmp_path: Path, registry: ScriptedUpstream
) -> None:
    stage = Stage(tmp_path, stale_window=HOUR)
    body = document(OCI_MANIFEST)
    registry.add_manifest(REPOSITORY, body, OCI_MANIFEST, tags=["latest"])

    async def act() -> None:
        await stage.find("latest")
        registry.stop()
        found = await stage.find("latest", accept=OCI_MANIFEST)
        assert found.body == body and found.warning is not None
        with pytest.raises(UpstreamUnavailable):
            await stage.find("latest", accept=DOCKER_MANIFEST)

    play(stage, (upstream_of(registry, allow_private=True),), act)


def test_kept_document_of_a_kind_that_is_not_accepted_is_asked_for_again(
    registry: ScriptedUpstream, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    digest = registry.add_manifest(REPOSITORY, BODY)

    async def act() -> None:
        await stage.find(digest)
        registry.add_rule(Rule(times=1, status=404))
        with pytest.raises(UpstreamMissing):
            await stage.find(digest, accept=DOCKER_MANIFEST)
        assert registry.requests[-1].headers["accept"] == DOCKER_MANIFEST
        assert (await stage.find(digest, accept=DOCKER_MANIFEST)).cache == "miss"
        registry.stop()
        assert (await stage.find(digest, accept=DOCKER_MANIFEST)).cache == "hit"

    play(stage, (upstream_of(registry),), act)
