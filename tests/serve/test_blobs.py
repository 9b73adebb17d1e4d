"""Handles of blobs: lent, kept for a while, closed; found again only by those who may."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import Index, Manifest, read_manifest
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from proxy.serve.blobs import Blobs
from proxy.serve.grants import Grants
from tests.serve.running_server import open_descriptors
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import LAYER_DIGEST, MANIFEST, whole_blob

ONE = Upstream("one.example", "https://one.example")
TWO = Upstream("two.example", "https://two.example")
PASSING = Upstream("passing.example", "https://passing.example", access="passthrough")


def play(filler: ScriptedFiller, act: Callable[[Blobs], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with FillClient(filler.layout.fill_socket, "mirror") as client:
            blobs = Blobs(client, Grants(), **settings)
            try:
                await act(blobs)
            finally:
                await blobs.aclose()

    asyncio.run(run())


def opened(filler: ScriptedFiller) -> int:
    return len(filler.messages("open"))


def test_handle_is_shared_by_all_repositories_of_an_upstream(filler: ScriptedFiller) -> None:
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        first = await blobs.borrow(ONE, "team/app", digest)
        second = await blobs.borrow(ONE, "team/other", digest)
        assert first is second and first.users == 2
        assert await blobs.borrow(TWO, "team/app", digest) is not first
        assert opened(filler) == 2

    play(filler, act)


def test_those_who_open_together_end_with_one_handle(filler: ScriptedFiller) -> None:
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        lent = await asyncio.gather(*(blobs.borrow(ONE, "app", digest) for _ in range(8)))
        assert len(set(map(id, lent))) == 1
        assert lent[0].users == 8
        for each in lent:
            blobs.give_back(each)
        assert blobs.open_handles == 1

    play(filler, act)


def test_passed_credentials_find_only_their_own_handle(filler: ScriptedFiller) -> None:
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        mine = await blobs.borrow(PASSING, "app", digest, authorization="Basic mine")
        assert blobs.at_hand(PASSING, "app", digest, "Basic mine") is mine
        for repository, authorization in (
            ("app", "Basic other"),
            ("app", None),
            ("other", "Basic mine"),
        ):
            assert blobs.at_hand(PASSING, repository, digest, authorization) is None
        assert filler.messages("open")[0]["authorization"] == "Basic mine"

    play(filler, act)


def test_passed_credentials_are_checked_again_after_a_while(
    filler: ScriptedFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.serve.blobs.GRANT_SECONDS", 0.1)
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        lent = await blobs.borrow(PASSING, "app", digest, authorization="Basic mine")
        await asyncio.sleep(0.15)
        filler.refuse(str(digest), FillFailed("denied", "no longer"))
        with pytest.raises(FillFailed):
            await blobs.borrow(PASSING, "app", digest, authorization="Basic mine")
        assert lent.handle.blob.size  # who has it open reads on
        blobs.give_back(lent)
        assert blobs.open_handles == 0

    play(filler, act)


def test_idle_handles_are_few_and_the_longest_idle_one_goes_first(filler: ScriptedFiller) -> None:
    digests = [Digest.parse(whole_blob(filler, bytes(1000 + number))) for number in range(5)]

    async def act(blobs: Blobs) -> None:
        lent = [await blobs.borrow(ONE, "app", digest) for digest in digests]
        assert blobs.open_handles == 5
        for each in lent:
            blobs.give_back(each)
        assert blobs.open_handles == 3
        assert blobs.at_hand(ONE, "app", digests[1], None) is None
        assert blobs.at_hand(ONE, "app", digests[2], None) is lent[2]

    play(filler, act, most_idle=3)


def test_idle_handles_are_closed_and_used_ones_are_not(filler: ScriptedFiller) -> None:
    digests = [Digest.parse(whole_blob(filler, bytes(1000 + number))) for number in range(3)]

    async def act(blobs: Blobs) -> None:
        blobs.give_back(await blobs.borrow(ONE, "app", digests[0]))
        await asyncio.sleep(0.3)
        before = open_descriptors()
        lent = [await blobs.borrow(ONE, "app", digest) for digest in digests]
        assert open_descriptors() > before
        for each in lent[:2]:
            blobs.give_back(each)
        await asyncio.sleep(0.3)
        assert blobs.open_handles == 1
        blobs.give_back(lent[2])
        await asyncio.sleep(0.3)
        assert blobs.open_handles == 0
        assert open_descriptors() == before

    play(filler, act, idle_seconds=0.1)


def test_a_stale_handle_is_lent_no_more(filler: ScriptedFiller) -> None:
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        reader = await blobs.borrow(ONE, "app", digest)
        reader.handle.stale = True
        fresh = await blobs.borrow(ONE, "app", digest)
        assert fresh is not reader
        assert reader.handle.blob.read(0, 10)
        blobs.give_back(reader)
        blobs.give_back(fresh)
        assert blobs.open_handles == 1

    play(filler, act)


def test_uses_are_told_at_most_once_a_minute(filler: ScriptedFiller) -> None:
    digest = Digest.parse(whole_blob(filler))

    async def act(blobs: Blobs) -> None:
        for _ in range(10):
            blobs.give_back(await blobs.borrow(ONE, "app", digest))
        lent = await blobs.borrow(ONE, "app", digest)
        lent.handle.stale = True
        blobs.give_back(lent)
        blobs.give_back(await blobs.borrow(ONE, "app", digest))
        await asyncio.sleep(0.1)
        assert (len(filler.messages("touch")), opened(filler)) == (1, 2)

    play(filler, act)


def test_sizes_are_believed_of_the_same_upstream_and_repository_only(
    filler: ScriptedFiller,
) -> None:
    digest = Digest.parse(LAYER_DIGEST)
    document = read_manifest(MANIFEST, "application/vnd.oci.image.manifest.v1+json")
    assert isinstance(document, Manifest)

    async def act(blobs: Blobs) -> None:
        blobs.expect("one.example", "team/app", document)
        blobs.expect("one.example", "team/app", Index("x", ()))
        for upstream, repository in ((ONE, "team/app"), (ONE, "team/other"), (TWO, "team/app")):
            with pytest.raises(FillFailed):
                await blobs.borrow(upstream, repository, digest)
        sizes = [message.get("size") for message in filler.messages("open")]
        assert sizes == [12_345, None, None]

    play(filler, act)


def test_docker_hub_keeps_short_names_below_library(filler: ScriptedFiller, tmp_path: Path) -> None:
    digest = Digest.parse(whole_blob(filler))
    hub = Upstream("docker.io", "https://registry-1.docker.io")

    async def act(blobs: Blobs) -> None:
        await blobs.borrow(hub, "alpine", digest)
        assert filler.messages("open")[0]["repository"] == "library/alpine"

    play(filler, act)
