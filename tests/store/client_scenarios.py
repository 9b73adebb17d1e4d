"""Plays scenarios of a client of fill.sock against a scripted filler; nothing may be left over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from headstart.store.fill_client import FillClient
from headstart.store.open_blob import OpenBlob
from headstart.store.open_object import Want
from tests.store.scripted_filler import DIGEST, SIZE, ScriptedFiller
from tests.store.stored_objects import open_descriptors

PATIENCE_SECONDS = 10.0

Scenario = Callable[[ScriptedFiller, FillClient], Awaitable[None]]


def play(directory: Path, scenario: Scenario) -> None:
    """Run a scenario; it ends within seconds and leaves no descriptor and no task."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), ScriptedFiller(directory) as filler:
            async with FillClient(filler.path, "mirror") as client:
                await scenario(filler, client)
            filler.drop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


async def opened(client: FillClient, timeout_seconds: float = 5.0) -> OpenBlob:
    return await client.open(
        upstream="ghcr.io",
        repository="team/app",
        digest=DIGEST,
        timeout_seconds=timeout_seconds,
    )


@asynccontextmanager
async def waiting(
    filler: ScriptedFiller, handle: OpenBlob, offset: int = 0, length: int = SIZE
) -> AsyncIterator[tuple[Want, asyncio.Task[int]]]:
    """A want that has reached the filler, and a reader that waits for its first byte."""
    count = len(filler.requests("want"))
    async with handle.wanting(offset, length, "client", bulk=True) as want:
        reader = asyncio.create_task(handle.wait(want, offset, length))
        await filler.until("want", count + 1)
        yield want, reader
        if not reader.done():
            reader.cancel()


async def client_caught_up(filler: ScriptedFiller, client: FillClient) -> None:
    """Everything that the client has sent so far has reached the filler."""
    filler.answers["figures"] = lambda _: {"type": "figures"}
    await client.call({"type": "figures"})
