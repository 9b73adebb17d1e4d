"""SIGKILL at the Nth system call that persists something (faults.md 30, 46)."""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from tests.faults.injecting import crashing_call
from tests.snapshotter.layers_double import chain_of, layers_of
from tests.snapshotter.serving import SnapshotsClient
from tests.snapshotter.snapshotter_process import SnapshotterProcess

APP = layers_of("app", 1)
CALLS = "pwrite64,fdatasync,fsync,mkdir,mkdirat,rename,renameat,renameat2,rmdir,unlinkat,ftruncate"
ORDINARY = {"extract", "base", "container", "view"}

Step = tuple[Callable[[SnapshotsClient], Awaitable[object]], set[str]]


def steps() -> list[Step]:
    """Calls, each with the snapshots that there are after it."""
    return [
        (lambda client: client.prepare("extract"), {"extract"}),
        (lambda client: client.commit("base", "extract"), {"base"}),
        (lambda client: client.pull_layer(chain_of(APP, 0), ""), {"base", "layer"}),
        (lambda client: client.prepare("container", "base"), {"base", "layer", "container"}),
        (lambda client: client.view("view", "base"), {"base", "layer", "container", "view"}),
        (lambda client: client.remove("container"), {"base", "layer", "view"}),
        (lambda client: client.remove("view"), {"base", "layer"}),
        (lambda client: client.cleanup(), {"base", "layer"}),
        (lambda client: _remove_layer(client), {"base"}),
        (lambda client: client.remove("base"), set()),
        (lambda client: client.cleanup(), set()),
    ]


async def _remove_layer(client: SnapshotsClient) -> None:
    (name,) = [name for name in await client.names() if "/layer/" in name]
    await client.remove(name)


async def _present(client: SnapshotsClient) -> set[str]:
    """What there is; the name of the layer's snapshot is not ours to know."""
    return {"layer" if "/layer/" in name else name for name in await client.names()}


@pytest.mark.parametrize(
    "number",
    [
        *(1, 2, 5, 9, 14),
        *(pytest.param(number, marks=pytest.mark.soak) for number in range(15, 90)),
    ],
)
def test_f30_a_crash_leaves_what_was_answered_and_nothing_half_done(
    parts: ExitStack, tmp_path: Path, number: int
) -> None:
    process = SnapshotterProcess(tmp_path)
    process.layers.add(APP, [tmp_path / "layers"])
    parts.enter_context(process)
    allowed: list[set[str]] = [set()]

    async def until_the_crash() -> None:
        async with SnapshotsClient(process.socket) as client:
            await client.connected()
            for call, after in itertools.chain.from_iterable(itertools.repeat(steps())):
                allowed.append(after)
                await call(client)
                del allowed[:-1]

    with crashing_call(process.running.pid, CALLS, number, tmp_path / "strace"):
        with pytest.raises(grpc.aio.AioRpcError) as crashed:
            asyncio.run(until_the_crash())
        assert crashed.value.code() is grpc.StatusCode.UNAVAILABLE
    process.kill()
    process.start()

    async def afterwards() -> None:
        async with SnapshotsClient(process.socket) as client:
            await client.connected()
            found = await _present(client)
            assert found in allowed
            for name in found & {"extract", "container", "view"}:
                await client.mounts(name)
            await client.cleanup()
            assert len(os.listdir(process.root / "snapshots")) == len(found & ORDINARY)
            # It goes on from there.
            (mount,) = await client.prepare("after", "base" if "base" in found else "")
            assert mount.type == ("overlay" if "base" in found else "bind")

    asyncio.run(afterwards())
