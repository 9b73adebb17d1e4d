"""The filler as a whole, in this process: what it does when nothing is asked of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from headstart.registry.client import RegistryClient
from headstart.registry.upstream import Upstream
from headstart.store.index import Index
from headstart.store.layout import Layout
from proxy.fill.filler import IDLE_TICK_SECONDS, Filler, FillSettings
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecords

MIB = 1 << 20
HOST = "registry.example"


def run_filler(directory: Path, work: Callable[[Filler], Awaitable[None]]) -> None:
    """Run ``work`` beside a filler of one upstream, which is never asked."""

    async def run() -> None:
        layout = Layout((directory / "cache",))
        layout.prepare()
        index = Index(layout.index)
        upstream = Upstream(HOST, f"https://{HOST}")
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
