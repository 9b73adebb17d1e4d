"""The filler as a whole, in this process: its ticks, and fills that end while they are opened."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.errors import RegistryError
from headstart.registry.upstream import Access, Upstream
from headstart.store.errors import FillFailed
from headstart.store.index import Index
from headstart.store.layout import Layout
from proxy.fill import filler as module
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.filler import IDLE_TICK_SECONDS, Filler, FillSettings
from proxy.fill.parties import BlobSource, Want
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecords
from proxy.fill.source import BlobRequest, ReceiverMaker

MIB = 1 << 20
HOST = "registry.example"
DIGEST = Digest.of(b"a blob")
SOURCE, OTHER = BlobSource(HOST, "some/repository"), BlobSource(HOST, "another/repository")
CHANGED = FillFailed("upstream", "the content changed")


def run_filler(
    directory: Path, work: Callable[[Filler], Awaitable[None]], access: Access = "anonymous"
) -> None:
    """Run ``work`` beside a filler of one upstream, which is never asked."""

    async def run() -> None:
        layout = Layout((directory / "cache",))
        layout.prepare()
        index = Index(layout.index)
        upstream = Upstream(HOST, f"https://{HOST}", access=access)
        client = RegistryClient(upstream)
        filler = Filler(
            layout,
            BlobRecords(index, layout),
            Quota(1 << 40, 1 << 39, lambda digest: None),
            {HOST: upstream},
            {HOST: client},
            FillSettings(32 * MIB, 256 * 1024, 32 * MIB, reissue=True),
        )
        ticking = asyncio.create_task(filler.run())
        try:
            await work(filler)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            await filler.close()
            await client.aclose()
            index.close()

    asyncio.run(run())


def test_a_filler_with_nothing_to_do_rests(tmp_path: Path) -> None:
    async def count_ticks(filler: Filler) -> None:
        pool = filler.carriages[HOST].pool
        ticks = 0
        tick = pool.tick

        def counted(now: float) -> None:
            nonlocal ticks
            ticks += 1
            tick(now)

        pool.tick = counted  # type: ignore[method-assign]
        filler.pump()
        await asyncio.sleep(IDLE_TICK_SECONDS * 2.5)
        # One for the pump, and one an idle tick.
        assert 2 <= ticks <= 4

    run_filler(tmp_path, count_ticks)


def test_a_blob_held_in_memory_has_its_ticks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_TICK_SECONDS", 3600.0)

    async def wait_for_ticks(filler: Filler) -> None:
        pool = filler.carriages[HOST].pool
        ticked = asyncio.Event()
        fill = Fill(DIGEST, None, MIB, filler, asyncio.get_running_loop())
        fill.add_source(SOURCE, 1)
        fill.not_before = float("inf")  # nothing else would wake the filler
        pool.fills.add(fill)
        fill.add_want(Want(0, MIB, 0, True, 0, lambda failure: None))
        await asyncio.sleep(0)
        ticks = 0
        tick = pool.tick

        def counted(now: float) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 5:
                ticked.set()
            tick(now)

        pool.tick = counted  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            await ticked.wait()
        pool.fills.clear()

    run_filler(tmp_path, wait_for_ticks)


async def opened(filler: Filler) -> Fill:
    """A blob of a MiB that somebody has open; its upstream has not delivered any of it."""
    fill = await filler.open(DIGEST, SOURCE, None)
    await filler.learn_size(fill, MIB)
    return fill


def test_f12_who_opens_a_blob_while_its_content_changes_gets_the_new_one(tmp_path: Path) -> None:
    async def change(filler: Filler) -> None:
        old = await opened(filler)

        async def ask(source: BlobSource, digest: Digest) -> int:
            filler.restart(old, CHANGED)
            return 2 * MIB

        filler.access.ask = ask  # type: ignore[method-assign]
        fill = await filler.open(DIGEST, OTHER, None)
        assert old.failure is CHANGED
        assert fill is not old and fill.failure is None
        assert filler.fills[DIGEST] is fill and fill.etag_ignored
        assert fill.sources == [OTHER]

    run_filler(tmp_path, change)


def test_f12_content_that_keeps_changing_is_given_up(tmp_path: Path) -> None:
    async def keep_changing(filler: Filler) -> None:
        asked = 0

        async def ask(source: BlobSource, digest: Digest) -> int:
            nonlocal asked
            asked += 1
            filler.restart(filler.fills[digest], CHANGED)
            return MIB

        filler.access.ask = ask  # type: ignore[method-assign]
        with pytest.raises(FillFailed) as refused:
            await filler.open(DIGEST, SOURCE, None)
        assert (refused.value, asked) == (CHANGED, 2)

    run_filler(tmp_path, keep_changing, access="passthrough")


def test_what_fails_after_its_eviction_leaves_the_new_files_alone(tmp_path: Path) -> None:
    async def fail_late(filler: Filler) -> None:
        old = await opened(filler)
        filler.evicted(DIGEST)
        await asyncio.sleep(0)
        assert DIGEST not in filler.fills
        new = await opened(filler)
        filler.vouched(new, SOURCE)
        filler.quarantine(old, FillFailed("digest", "other bytes"))
        assert old.failure is not None and new.failure is None
        assert filler.fills[DIGEST] is new and filler.quota.known(DIGEST)
        assert new.files is not None and new.files.intact()

    run_filler(tmp_path, fail_late)


def test_an_upstream_with_a_blob_of_another_size_does_not_vouch_for_it(tmp_path: Path) -> None:
    async def ask_other(filler: Filler) -> None:
        fill = await opened(filler)

        async def ask(source: BlobSource, digest: Digest) -> int:
            return MIB + 1

        filler.access.ask = ask  # type: ignore[method-assign]
        with pytest.raises(FillFailed, match="not of 1048576"):
            await filler.prove(fill, OTHER)
        assert not filler.proven(fill, OTHER)

    run_filler(tmp_path, ask_other)


class OtherSize:
    """A source whose every answer is of a blob of another size."""

    def perform(self, fetch: Fetch, request: BlobRequest, receiver_of: ReceiverMaker) -> Outcome:
        return Outcome(Ending.DISPUTED, "the answer is of another blob")

    def close_idle(self) -> None:
        return

    def close(self) -> None:
        return


@pytest.mark.parametrize("told", [MIB, None])
def test_f05_who_waits_hears_of_sizes_that_cannot_be_settled(
    tmp_path: Path, told: int | None
) -> None:
    async def dispute(filler: Filler) -> None:
        carriage = filler.carriages[HOST]
        fill = await opened(filler)

        async def authorization(repository: str, passed: str | None) -> str | None:
            return None

        async def head(repository: str, digest: Digest, passed: str | None) -> int:
            if told is None:
                raise RegistryError("the registry does not answer")
            return told

        carriage.source = OtherSize()
        carriage.client.blob_authorization = authorization  # type: ignore[method-assign, assignment]
        carriage.client.head_blob = head  # type: ignore[method-assign, assignment]
        carriage.pool.back_off = lambda attempts: 0.0  # type: ignore[method-assign]
        heard: asyncio.Future[FillFailed | None] = asyncio.get_running_loop().create_future()
        fill.add_want(Want(0, MIB, 0, True, 0, heard.set_result))
        async with asyncio.timeout(20):
            failure = await heard
        assert failure is not None and failure.code == "protocol"
        assert fill.failure is None  # what is here stays

    run_filler(tmp_path, dispute)
