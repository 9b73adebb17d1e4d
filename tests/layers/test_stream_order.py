"""What of eStargz layers comes before anybody reads it: by ``prefetch.policy``, over all layers."""

import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from headstart.content.landmarks.prefetch_list import ListedFile, PrefetchList
from headstart.content.landmarks.range_set import Range
from headstart.store.open_layer import OpenLayer
from tests.control.calls import Caller
from tests.doubles.scripted_upstream import Rule
from tests.layers.images import MadeLayer, estargz, serve, tar_of
from tests.layers.stage import Stage, running_stage
from tests.warm.situation import until

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
MIB = 1 << 20
FIRST = 2 * MIB
REST = 6 * MIB
UNIT = 256 << 10
BORDER = FIRST + UNIT
TREE = FIRST + REST - UNIT


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def policy_stage(directory: Path, **prefetch: str) -> Iterator[Stage]:
    """One connection, so that requests are made in the order in which bytes are to come."""
    fetch = {"max_connections": 1, "request_size": "1MiB"}
    settings: Mapping[str, Mapping[str, object]] = {"prefetch": prefetch, "fetch": fetch}
    with running_stage(directory, settings=settings) as stage:
        yield stage


def marked_layer(seed: int) -> MadeLayer:
    """First what a start reads, then the landmark, then the rest; nothing compresses."""
    content = random.Random(seed)
    files = {
        f"first-{seed}": content.randbytes(FIRST),
        ".prefetch.landmark": b"\x0f",
        f"rest-{seed}": content.randbytes(REST),
    }
    return estargz(tar_of(files))


@asynccontextmanager
async def hinted(stage: Stage, *layers: MadeLayer) -> AsyncIterator[list[OpenLayer]]:
    """Layers of an image that is mounted, while nobody reads any of it."""
    image = serve(stage.upstream, layers)
    stage.seen(image)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(stage.client())
        opened = [
            (await stack.enter_async_context(stage.opened(client, chain)))[1]
            for chain in image.chains
        ]
        for layer in opened:
            layer.raise_priority("prefetch")
        for layer in opened:
            await layer.wait_mountable()
        yield opened


async def test_what_lies_before_the_landmarks_comes_first_over_all_layers(tmp_path: Path) -> None:
    layers = marked_layer(1), marked_layer(2)
    with policy_stage(tmp_path) as stage, anyio.fail_after(PATIENCE):
        stage.upstream.add_rule(Rule(path="/blobs/", rate=8 * MIB))
        async with hinted(stage, *layers) as opened:
            for layer in opened:
                await layer.wait_complete()
        order = []
        for request in stage.upstream.blob_requests():
            first, last = request.range or (None, None)
            of_layer = any(request.path.endswith(str(layer.digest)) for layer in layers)
            # The landmark lies in a unit of its own; what tells the tree is at the end of each.
            if of_layer and first is not None and last is not None and last < TREE:
                order.append("first" if first < BORDER else "rest")
        assert order == sorted(order)
        assert order.count("first") >= 4
        assert order.count("rest") >= 4


@pytest.mark.parametrize("prefetch", [{"policy": "none"}, {"background": "disabled"}])
async def test_what_no_policy_brings_comes_when_it_is_read_or_waited_for(
    tmp_path: Path, prefetch: dict[str, str]
) -> None:
    layer = marked_layer(3)
    expected = 0 if "policy" in prefetch else FIRST
    with policy_stage(tmp_path, **prefetch) as stage, anyio.fail_after(PATIENCE):
        async with hinted(stage, layer) as (opened,):
            await until(lambda: opened.cached.present() >= expected)
            await anyio.sleep(0.5)
            assert stage.fetched(layer.digest) < expected + 2 * MIB
            await opened.wait(opened.size - MIB, 4096)
            assert stage.fetched(layer.digest) < expected + 4 * MIB
            async with opened.wanting(0, None, "warm", bulk=False):
                await opened.wait_complete()
            assert opened.cached.verified


async def test_with_the_policy_all_the_landmark_is_no_border(tmp_path: Path) -> None:
    layer = marked_layer(4)
    with policy_stage(tmp_path, policy="all", background="disabled") as stage:
        async with hinted(stage, layer) as (opened,):
            with anyio.fail_after(PATIENCE):
                await opened.wait_complete()


async def test_the_rest_keeps_to_its_rate(tmp_path: Path) -> None:
    layer = marked_layer(5)
    with policy_stage(tmp_path, background="4MiB") as stage, anyio.fail_after(PATIENCE):
        async with hinted(stage, layer) as (opened,):
            await until(lambda: opened.cached.present() >= FIRST)
            began = time.monotonic()
            await opened.wait_complete()
        # The first four of six MiB may be asked for at once.
        assert time.monotonic() - began >= 0.9


async def test_a_list_says_what_comes_first_whatever_the_landmark_says(tmp_path: Path) -> None:
    layers = marked_layer(6), marked_layer(7)
    listed = PrefetchList(
        (
            ListedFile(b"rest-7", layers[1].digest, ranges=(Range(4 * MIB, MIB),)),
            ListedFile(b"rest-6", 0, ranges=(Range(2 * MIB, MIB), Range(MIB, MIB))),
            ListedFile(b"no-such-file", 0),
        )
    )
    with policy_stage(tmp_path, background="disabled") as stage, anyio.fail_after(PATIENCE):
        caller = Caller(("127.0.0.1", stage.mirror.port))
        image = serve(stage.upstream, layers)
        body = json.loads(listed.encode())
        assert caller.call(f"/landmarks/{image.manifest}", "PUT", body).status == 204
        assert caller.call(f"/landmarks/{image.manifest}").body == listed.encode()
        async with hinted(stage, *layers) as (lower, upper):
            await until(lambda: lower.cached.present() >= 2 * MIB)
            await until(lambda: upper.cached.present() >= MIB)
            await anyio.sleep(0.5)
            # What comes along are the units in which it is fetched, and the tree's.
            assert lower.cached.present() <= 3 * MIB
            assert upper.cached.present() <= 2 * MIB
            # The landmark has a block of its own between the two files.
            begin = FIRST + 4096
            assert upper.cached.available(begin + 4 * MIB, MIB) == MIB
            assert lower.cached.available(begin + MIB, 2 * MIB) == 2 * MIB


async def test_the_policy_landmark_passes_a_list_over(tmp_path: Path) -> None:
    layer = marked_layer(8)
    listed = PrefetchList((ListedFile(b"rest-8", 0),))
    with policy_stage(tmp_path, policy="landmark", background="disabled") as stage:
        image = serve(stage.upstream, [layer])
        path = f"/landmarks/{image.manifest}"
        body = json.loads(listed.encode())
        assert Caller(("127.0.0.1", stage.mirror.port)).call(path, "PUT", body).status == 204
        async with hinted(stage, layer) as (opened,):
            with anyio.fail_after(PATIENCE):
                await until(lambda: opened.cached.present() >= FIRST)
            assert opened.cached.present() <= FIRST + 2 * MIB
