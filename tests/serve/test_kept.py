"""Ages of tags by two clocks, and manifests that the index gives back exactly."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.errors import FillerUnreachable
from proxy.serve import records
from proxy.serve.kept import Kept, KeptManifest, Moment, age, now
from proxy.serve.records import AsyncIndex

BODY = bytes(range(256))


def with_index(directory: Path, work: Callable[[AsyncIndex], Awaitable[None]]) -> None:
    async def run() -> None:
        index = AsyncIndex(directory, lambda: True)
        try:
            await work(index)
        finally:
            await index.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("then", "at", "passed"),
    [
        (Moment(100, 50, "a"), Moment(160, 110, "a"), 60),
        (Moment(100, 50, "a"), Moment(99, 110, "a"), None),  # set back behind the moment itself
        (Moment(100, 50, "a"), Moment(105, 5000, "a"), 4950),  # set back a little less
        (Moment(100, 50, "a"), Moment(90_000, 60, "a"), 89_900),
        (Moment(100, 5000, "a"), Moment(160, 10, "b"), 60),  # another boot
        (Moment(100, 5000, "a"), Moment(10, 10, "b"), None),
    ],
)
def test_age(then: Moment, at: Moment, passed: float | None) -> None:
    assert age(then, at) == passed


def test_the_present_is_of_this_boot() -> None:
    first, second = now(), now()
    assert first.boot == second.boot
    passed = age(first, second)
    assert passed is None or 0 <= passed < 60


def test_manifest_bytes_are_kept_exactly(tmp_path: Path) -> None:
    manifest = KeptManifest(Digest.of(BODY, "sha512"), "application/x", BODY)

    async def work(index: AsyncIndex) -> None:
        await Kept(index).keep_manifest(manifest)
        assert await Kept(index).manifest(manifest.digest) == manifest
        assert await Kept(index).manifest(Digest.of(b"")) is None

    with_index(tmp_path, work)


@pytest.mark.parametrize("record", [{}, {"body": "x", "media_type": "y"}, {"body": "\u4e00"}])
def test_damaged_manifest_counts_as_absent(tmp_path: Path, record: dict[str, object]) -> None:
    async def work(index: AsyncIndex) -> None:
        await index.put("manifest", str(Digest.of(BODY)), {"media_type": "z", **record})
        assert await Kept(index).manifest(Digest.of(BODY)) is None

    with_index(tmp_path, work)


def test_tag_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    async def work(index: AsyncIndex) -> None:
        kept = Kept(index, lambda: Moment(5.0, 6.0, "boot"))
        await kept.keep_tag("a:1", Digest.of(BODY))
        found = await kept.tag("a:1")
        assert found is not None
        assert (found.digest, found.checked) == (Digest.of(BODY), Moment(5.0, 6.0, "boot"))
        await kept.forget_tag("a:1")
        assert await kept.tag("a:1") is None

    with_index(tmp_path, work)


@pytest.mark.parametrize(
    "record", [{}, {"digest": "x", "wall": 1, "uptime": 1, "boot": "b"}, {"digest": 7}]
)
def test_damaged_tag_counts_as_absent(tmp_path: Path, record: dict[str, object]) -> None:
    async def work(index: AsyncIndex) -> None:
        await index.put("tag", "a:1", record)
        assert await Kept(index).tag("a:1") is None

    with_index(tmp_path, work)


def test_index_is_not_opened_before_the_filler_has_greeted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "OPEN_SECONDS", 0.1)
    greeted = False

    async def run() -> None:
        nonlocal greeted
        index = AsyncIndex(tmp_path / "index", lambda: greeted)
        try:
            with pytest.raises(FillerUnreachable):
                await index.get("tag", "x")
            assert not (tmp_path / "index").exists()
            greeted = True
            await asyncio.gather(*(index.put("tag", str(number), {}) for number in range(20)))
            assert len(await index.items("tag")) == 20
        finally:
            await index.aclose()

    asyncio.run(run())
