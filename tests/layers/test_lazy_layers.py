"""eStargz and zstd:chunked layers can be mounted once their TOC is here; reads bring the rest."""

import math
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.open_layer import OpenLayer
from tests.content.estargz.writer import Form
from tests.doubles.scripted_upstream import RecordedRequest, Rule
from tests.layers.images import MadeLayer, ServedImage, estargz, serve, tar_of, tree
from tests.layers.stage import Stage, contents, tree_of
from tests.warm.situation import until

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
MIB = 1 << 20
FORMS = {
    "gzip": Form(chunk_size=256 << 10),
    "packed": Form(chunk_size=256 << 10, least_member=MIB),
    "zstd": Form(chunk_size=256 << 10, compression="zstd", footer="zstd"),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def shown(layer: MadeLayer, root: Path, files: dict[str, bytes]) -> None:
    """What is mounted has these files, and those that the format adds."""
    found = contents(root)
    for extra in ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"):
        found.pop(extra, None)
    assert found == files


@pytest.mark.parametrize("form", FORMS)
async def test_a_layer_with_a_toc_becomes_whole_and_is_verified_by_its_diff_id(
    stage: Stage, tmp_path: Path, form: str
) -> None:
    files = {**tree(1, 120), "weights": random.Random(1).randbytes(5 * MIB)}
    image = serve(stage.upstream, [estargz(tar_of(files), FORMS[form])])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            await layer.wait_mountable()
            layer.raise_priority("mount")
            await layer.wait_complete()
            assert layer.cached.verified
            with tree_of(layer, tmp_path / "root") as root:
                shown(image.layers[0], root, files)
    assert stage.fetched(image.layers[0].digest) <= len(image.layers[0].blob) * 1.01
    digest = image.layers[0].digest
    assert not [path for path in stage.files_below("blobs") if path.name.startswith(digest.hex)]


async def test_a_read_that_somebody_waits_on_goes_before_the_stream(stage: Stage) -> None:
    image, wanted = slow_image(stage)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("prefetch")
            await layer.wait_mountable()
            assert layer.state == "mountable"
            offset = layer.size - 2 * MIB
            await layer.wait(offset, 64 << 10)
            assert layer.cached.read(offset, 64 << 10) in wanted
            assert layer.state == "mountable", "most of it is still missing"
            assert stage.fetched(image.layers[0].digest) < len(image.layers[0].blob) // 2


def slow_image(stage: Stage, rate: int = MIB) -> tuple[ServedImage, bytes]:
    """A layer of one large file that comes slowly over each connection, and the file."""
    weights = random.Random(2).randbytes(24 * MIB)
    image = serve(stage.upstream, [estargz(tar_of({"weights": weights}))])
    stage.seen(image)
    stage.upstream.add_rule(Rule(path=str(image.layers[0].digest), rate=rate))
    return image, weights


async def test_a_filler_killed_in_the_middle_goes_on_where_it_was(
    own_stage: Stage, tmp_path: Path
) -> None:
    image, weights = slow_image(own_stage, 2 * MIB)
    digest = image.layers[0].digest
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")
            await layer.wait_mountable()
            await layer.wait(0, 6 * MIB)
            os.kill(own_stage.mirror.process_id("proxy.fill.process"), signal.SIGKILL)
            own_stage.upstream.clear_rules()
            await layer.wait(8 * MIB, 64 << 10)
            assert layer.cached.available(0, 4 * MIB) == 4 * MIB
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                shown(image.layers[0], root, {"weights": weights})
    again = own_stage.fetched(digest) - len(image.layers[0].blob)
    assert again < len(image.layers[0].blob), "what was written is not fetched again"


async def test_what_is_here_of_a_layer_can_be_read_with_the_upstream_down(own_stage: Stage) -> None:
    image, weights = slow_image(own_stage, 2 * MIB)
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")
            await layer.wait_mountable()
            await layer.wait(0, 4 * MIB)
        await anyio.to_thread.run_sync(own_stage.mirror.stop)
        own_stage.upstream.clear_rules()
        own_stage.upstream.add_rule(Rule(close_before_answer=True))
        await anyio.to_thread.run_sync(own_stage.mirror.start)
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            await layer.wait_mountable()
            await layer.wait(0, 2 * MIB)
            assert layer.cached.read(MIB, 4096) in weights
            with pytest.raises(FillFailed) as late:
                await layer.wait(layer.size - MIB, 4096, deadline_seconds=1.0)
            assert late.value.code == "deadline"
            own_stage.upstream.clear_rules()
            await layer.wait(layer.size - MIB, 4096)


@pytest.mark.parametrize("what", ["chunk", "toc"])
async def test_f51_a_wrong_digest_fails_that_layer_with_its_reason_and_is_remembered(
    own_stage: Stage, what: str
) -> None:
    honest = estargz(tar_of({"weights": random.Random(3).randbytes(3 * MIB)}))
    blob = bytearray(honest.blob)
    annotations = dict(honest.annotations)
    if what == "chunk":
        blob[len(blob) // 2] ^= 1
    else:
        annotations = {name: f"sha256:{'0' * 64}" for name in annotations if "digest" in name}
    lying = MadeLayer(bytes(blob), honest.tar, honest.media_type, annotations)
    image = serve(own_stage.upstream, [lying])
    own_stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with own_stage.client() as client:
            # It may be known by the time that it is opened, or only afterwards.
            with pytest.raises(FillFailed) as refused:
                async with own_stage.opened(client, image.chains[0]) as (_, layer):
                    layer.raise_priority("mount")
                    await layer.wait_complete()
            assert refused.value.code == "digest"
            with pytest.raises(FillFailed) as again:
                await client.chain(image.chains[0])
            assert again.value.code == "refused"
        # Once no thread works on it.
        await until(lambda: not own_stage.files_below("layers"))


@dataclass(frozen=True, slots=True)
class Flipped:
    """A layer, and a byte of it that is damaged on the way."""

    image: ServedImage
    where: int
    files: dict[str, bytes]


def flipped(stage: Stage, what: str, *, form: str = "gzip", times: int = 1) -> Flipped:
    """A bit of the layer's TOC or of a chunk is turned over in the first answers that have it."""
    chance = random.Random(f"{what} {form}")
    files = {"bin/first": b"#!", "weights": chance.randbytes(6 * MIB), "z": chance.randbytes(MIB)}
    made = estargz(tar_of(files), FORMS[form])
    where = len(made.blob) // 2 if what == "chunk" else len(made.blob) - 300
    image = serve(stage.upstream, [made])
    stage.seen(image)

    def has_it(request: RecordedRequest) -> bool:
        first, last = request.range or (0, None)
        return (first or 0) <= where and (last is None or where <= last)

    rule = Rule(path=str(made.digest), when=has_it, flip=where, times=times)
    stage.upstream.add_rule(rule)
    return Flipped(image, where, files)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["chunk", "toc"])
async def test_one_bit_that_the_network_turned_over_does_not_condemn_a_layer(
    stage: Stage, tmp_path: Path, what: str, form: str
) -> None:
    found = flipped(stage, what, form=form)
    made = found.image.layers[0]
    with anyio.fail_after(PATIENCE):
        async with (
            stage.client() as client,
            stage.opened(client, found.image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")
            await layer.wait_mountable()
            await layer.wait(0, layer.size)
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                shown(made, root, found.files)
    # The piece that was wrong came once more, and no more than that.
    assert stage.fetched(made.digest) <= len(made.blob) + 3 * MIB
    await until(lambda: not stage.staged())


async def test_a_wrong_member_that_memory_cannot_hold_fails_this_try_and_not_the_next(
    own_stage: Stage, tmp_path: Path
) -> None:
    files = {name: random.Random(name).randbytes(20 * MIB) for name in ("first", "second")}
    files["third"] = b"third"
    made = estargz(tar_of(files), Form(chunk_size=20 * MIB))
    image = serve(own_stage.upstream, [made])
    own_stage.seen(image)

    def is_of_the_second(request: RecordedRequest) -> bool:
        return 20 * MIB < ((request.range or (0, 0))[0] or 0) < 40 * MIB

    # While it does not come the blob is not whole, and its own digest says nothing.
    never = Rule(path=str(made.digest), when=is_of_the_second, delay=math.inf)
    own_stage.upstream.add_rule(never)
    own_stage.upstream.add_rule(Rule(path=str(made.digest), flip=10 * MIB))
    with anyio.fail_after(PATIENCE):
        async with own_stage.client() as client:
            async with own_stage.opened(client, image.chains[0]) as (_, layer):
                with pytest.raises(FillFailed) as failed:
                    await layer.wait(0, 4096)
                assert failed.value.code == "upstream"
            own_stage.upstream.clear_rules()
            async with own_stage.opened(client, image.chains[0]) as (_, layer):
                layer.raise_priority("mount")
                await layer.wait_complete()
                with tree_of(layer, tmp_path / "root") as root:
                    shown(made, root, files)


async def test_a_toc_under_another_images_chain_id_is_quarantined_when_it_is_whole(
    stage: Stage,
) -> None:
    hostile = estargz(tar_of({"bin/tool": b"hostile" * 1000}))
    honest = estargz(tar_of({"bin/tool": b"honest!" * 1000}))
    claimed = honest.diff_id
    image = serve(stage.upstream, [hostile], diff_ids=[claimed])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            async with stage.opened(client, claimed) as (_, layer):
                layer.raise_priority("mount")
                with pytest.raises(FillFailed, match="diff ID"):
                    await layer.wait_complete()
            other = serve(stage.upstream, [honest], tag="v2")
            stage.seen(other)
            async with stage.opened(client, claimed) as (known, layer):
                assert known.layer.digest == honest.digest
                layer.raise_priority("mount")
                await layer.wait_complete()


async def test_f52_a_toc_that_nothing_announces_makes_an_ordinary_layer(
    stage: Stage, tmp_path: Path
) -> None:
    files = tree(4, 20)
    made = estargz(tar_of(files))
    plain = MadeLayer(made.blob, made.tar, made.media_type)
    image = serve(stage.upstream, [plain])
    stage.seen(image)
    states: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            record_states(layer, states)
            layer.raise_priority("mount")
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                shown(plain, root, files)
    assert "mountable" not in states


def record_states(layer: OpenLayer, states: list[str]) -> None:
    """Collect what a layer goes through."""
    states.append(layer.state)
    layer.on_change = lambda: states.append(layer.state)


async def test_half_a_layer_image_is_counted_and_can_be_evicted_after_a_restart(
    own_stage: Stage, tmp_path: Path
) -> None:
    image, weights = slow_image(own_stage, 4 * MIB)
    key = f"layer:{image.layers[0].digest}"
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            await layer.wait_mountable()
            await layer.wait(0, 3 * MIB)
            os.kill(own_stage.mirror.process_id("proxy.fill.process"), signal.SIGKILL)
        await anyio.to_thread.run_sync(own_stage.mirror.stop)
        await anyio.to_thread.run_sync(own_stage.mirror.start)
        taken = sum(path.stat().st_blocks * 512 for path in own_stage.files_below("layers"))
        assert taken >= 3 * MIB
        async with own_stage.client() as client:
            mine = await listed_soon(client, key)
            assert (mine["allocated"], mine["verified"]) == (taken, False)
            await client.call({"type": "evict", "digest": key})
            assert await listed(client, key) is None
            assert not own_stage.files_below("layers")
            own_stage.upstream.clear_rules()
            async with own_stage.opened(client, image.chains[0]) as (_, layer):
                layer.raise_priority("mount")
                await layer.wait_complete()
                assert (await listed_soon(client, key))["verified"]
                with tree_of(layer, tmp_path / "root") as root:
                    shown(image.layers[0], root, {"weights": weights})


async def listed(client: FillClient, key: str) -> dict[str, object] | None:
    """What the filler's account says of an object."""
    answer = await client.call({"type": "cache"})
    objects = answer["objects"]
    assert isinstance(objects, list)
    return next((entry for entry in objects if entry["digest"] == key), None)


async def listed_soon(client: FillClient, key: str) -> dict[str, object]:
    """A start enters what is on disk after a moment."""
    for _ in range(2000):
        found = await listed(client, key)
        if found is not None:
            return found
        await anyio.sleep(0.01)
    raise AssertionError(f"{key} is not listed")
