"""Manifests and tags: from the store, from the upstream, and while the upstream is down."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import (
    ACCEPT,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
)
from headstart.registry.client import RegistryClient
from headstart.registry.errors import (
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.retry import Retry
from headstart.registry.upstream import Upstream
from proxy.serve.grants import GRANT_SECONDS, Grants
from proxy.serve.kept import Kept, Moment
from proxy.serve.manifests import Manifests
from proxy.serve.records import AsyncIndex
from tests.doubles.scripted_upstream import (
    BasicAccess,
    Rule,
    ScriptedUpstream,
    basic_authorization,
    captive_page,
)
from tests.registry.upstreams import upstream_of

REPOSITORY = "team/app"
BLOB = {"mediaType": "application/x", "digest": str(Digest.of(b"layer")), "size": 5}
HOUR = 3600.0


def document(kind: str = OCI_MANIFEST, **more: object) -> bytes:
    content: dict[str, object] = {"schemaVersion": 2, "mediaType": kind, **more}
    if "index" in kind or "list" in kind:
        content.setdefault("manifests", [])
    else:
        content.update(config=BLOB, layers=[BLOB])
    return json.dumps(content).encode()


BODY = document()
OTHER = document(annotations={"version": "2"})


class Stage:
    """One upstream (several where a test wants more), an index, and clocks that a test turns."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.wall = 1_000_000.0
        self.uptime = 500.0
        self.settings = settings
        self.directory = directory
        self.expected: list[tuple[str, str]] = []
        self.clients: dict[str, RegistryClient] = {}
        self.find: Callable[..., Awaitable[Any]]

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    @asynccontextmanager
    async def open(self, *upstreams: Upstream) -> Any:
        index = AsyncIndex(self.directory, lambda: True)
        self.clients = {
            given.host: RegistryClient(given, retry=Retry(first_delay=0.01)) for given in upstreams
        }
        manifests = Manifests(
            self.clients,
            Kept(index, lambda: Moment(self.wall, self.uptime, "boot")),
            Grants(lambda: self.uptime),
            expect=lambda host, repository, _: self.expected.append((host, repository)),
            **self.settings,
        )

        async def find(reference: str, **changes: Any) -> Any:
            given = {
                "upstream": upstreams[0],
                "repository": REPOSITORY,
                "reference": reference,
                "accept": ACCEPT,
                **changes,
            }
            return await manifests.find(**given)

        self.find = find
        try:
            yield manifests
        finally:
            await manifests.aclose()
            await index.aclose()
            for client in self.clients.values():
                await client.aclose()


@pytest.fixture
def registry() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


def play(stage: Stage, upstreams: tuple[Upstream, ...], act: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with stage.open(*upstreams):
            await act()

    asyncio.run(run())


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


# --- tags ---


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


# --- access: passthrough ---

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
