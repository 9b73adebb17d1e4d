"""What the filler holds of blobs in memory is bounded, however an upstream sends them."""

import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.content.estargz.writer import Form
from tests.doubles.scripted_upstream import Rule
from tests.layers.images import MadeLayer, ServedImage, estargz, gzipped, plain, serve, tar_of
from tests.layers.stage import Stage, contents, running_stage, tree_of
from tests.warm.situation import until

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
MIB = 1 << 20
WINDOW = 96 * MIB
"""``fetch.window`` by default."""
LEAST_SHARE = 8 * MIB
"""What every layer may hold, however small the window."""
PAUSE = 0.005


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Stage]:
    """A mirror with the smallest window."""
    with running_stage(tmp_path, settings={"fetch": {"window": "4MiB"}}) as running:
        yield running


async def most_held(stage: Stage, image: ServedImage, target: Path | None = None) -> int:
    """The most bytes that are held in memory while the layer becomes whole; it is mounted then."""
    held = [0]
    async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
        layer.raise_priority("mount")
        while layer.state != "complete":
            held.append(sum(stage.staged()))
            await anyio.sleep(PAUSE)
            if layer.failure is not None:
                raise layer.failure
        if target is not None:
            with tree_of(layer, target) as root:
                assert contents(root)["weights"] in image.layers[0].tar
    await until(lambda: not stage.staged())
    return max(held)


async def test_bytes_held_for_a_layer_stay_within_the_window(own_stage: Stage) -> None:
    blob = plain(tar_of({"weights": random.Random(10).randbytes(160 * MIB)}))
    image = serve(own_stage.upstream, [blob])
    own_stage.seen(image)
    with anyio.fail_after(2 * PATIENCE):
        held = await most_held(own_stage, image)
    assert 0 < held <= WINDOW + 16 * MIB, f"{held >> 20} MiB were held"
    assert own_stage.fetched(blob.digest) == len(blob.blob)


def slow_to_inflate() -> MadeLayer:
    """An ordinary layer that comes faster than it can be written."""
    chance = random.Random(20)
    content = b"".join(chance.randbytes(2048) * 5 for _ in range(10_000))
    return gzipped(tar_of({"weights": content}), 1)


def lazy(chunk_size: int, **more: bytes) -> MadeLayer:
    """A layer with a TOC whose members are of this size at most; ``more`` files come last."""
    content = random.Random(chunk_size).randbytes(24 * MIB)
    return estargz(tar_of({"weights": content, **more}), Form(chunk_size=chunk_size))


@pytest.mark.parametrize("lazily", [False, True], ids=["ordinary", "lazy"])
async def test_a_blob_that_comes_only_whole_is_kept_on_disk_and_not_in_memory(
    narrow: Stage, tmp_path: Path, lazily: bool
) -> None:
    made = lazy(MIB) if lazily else slow_to_inflate()
    assert len(made.blob) > 2 * LEAST_SHARE
    image = serve(narrow.upstream, [made])
    narrow.seen(image)
    narrow.upstream.add_rule(Rule(path=str(made.digest), without_range_support=True))
    with anyio.fail_after(PATIENCE):
        held = await most_held(narrow, image, tmp_path / "root")
    assert held <= LEAST_SHARE, f"{held >> 20} MiB were held"
    sent = [one.bytes_sent for one in narrow.upstream.blob_requests() if one.status == 200]
    assert max(sent) == len(made.blob)
    assert narrow.fetched(made.digest) < 1.6 * len(made.blob), "it was fetched once"


async def test_a_mountable_layer_goes_on_when_its_upstream_loses_ranges(
    narrow: Stage, tmp_path: Path
) -> None:
    made = lazy(MIB)
    image = serve(narrow.upstream, [made])
    narrow.seen(image)
    narrow.upstream.add_rule(Rule(path=str(made.digest), rate=MIB))
    with anyio.fail_after(PATIENCE):
        async with narrow.client() as client, narrow.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("prefetch")
            await layer.wait_mountable()
            await layer.wait(2 * MIB, MIB)
            assert layer.state == "mountable", "it is not whole yet"
            narrow.upstream.clear_rules()
            narrow.upstream.add_rule(Rule(path=str(made.digest), without_range_support=True))
            await layer.wait(20 * MIB, MIB)
            held = await most_held(narrow, image, tmp_path / "root")
    assert held <= LEAST_SHARE + 4 * MIB, f"{held >> 20} MiB were held"
    whole = [one for one in narrow.upstream.blob_requests() if one.bytes_sent == len(made.blob)]
    assert len(whole) == 1


@pytest.mark.parametrize("last", [False, True])
async def test_a_member_larger_than_the_window_is_kept_on_disk_until_it_is_whole(
    narrow: Stage, tmp_path: Path, last: bool
) -> None:
    made = lazy(24 * MIB) if last else lazy(25 * MIB, small=b"small")
    image = serve(narrow.upstream, [made])
    narrow.seen(image)
    with anyio.fail_after(PATIENCE):
        held = await most_held(narrow, image, tmp_path / "root")
    assert held <= LEAST_SHARE, f"{held >> 20} MiB were held"
    assert narrow.fetched(made.digest) < 1.2 * len(made.blob)
