"""Ordinary layers become layer images while they arrive, and never lie on disk as blobs."""

import io
import os
import random
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from tests.doubles.scripted_upstream import Rule
from tests.faults.reading import read
from tests.faults.watching import eventually
from tests.layers.images import REPOSITORY, MadeLayer, gzipped, plain, serve, tar_of, tree, zstd
from tests.layers.stage import Stage, contents, running_stage, tree_of

pytestmark = pytest.mark.anyio
PATIENCE = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("pack", [gzipped, zstd, plain])
async def test_an_ordinary_layer_can_be_mounted_when_it_is_whole(
    stage: Stage, tmp_path: Path, pack: Callable[[bytes], MadeLayer]
) -> None:
    files = tree(1, 300)
    image = serve(stage.upstream, [pack(tar_of(files))])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_mountable()
            assert layer.state == "complete"
            assert layer.cached.verified
            with tree_of(layer, tmp_path / "root") as root:
                assert contents(root) == files
    digest = image.layers[0].digest
    assert stage.fetched(digest) == len(image.layers[0].blob)
    assert not [path for path in stage.files_below("blobs") if path.name.startswith(digest.hex)]


async def test_how_far_an_ordinary_layer_is_is_told_while_it_streams(stage: Stage) -> None:
    weights = random.Random(3).randbytes(16 << 20)
    image = serve(stage.upstream, [plain(tar_of({"weights": weights}))])
    made = image.layers[0]
    second_half = Rule(
        path=str(made.digest),
        when=lambda asked: asked.range is not None and (asked.range[0] or 0) >= 8 << 20,
        delay=2.5,
    )
    stage.upstream.add_rule(second_half)
    stage.seen(image)
    told: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.on_change = lambda: told.append(layer.used)
            layer.raise_priority("prefetch")
            await layer.wait_complete()
    assert told == sorted(told)
    assert any(0 < used < len(made.blob) for used in told), told


async def test_all_layers_of_an_image_stream_together(stage: Stage, tmp_path: Path) -> None:
    trees = [tree(seed, 40) for seed in range(8)]
    image = serve(stage.upstream, [gzipped(tar_of(files)) for files in trees])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            known = await client.chain(image.chains[-1])
            assert known is not None and known.position == 7
            layers = [await client.open_layer(layer) for layer in known.layers]
            for layer in layers:
                layer.raise_priority("prefetch")
            for layer, files in zip(layers, trees, strict=True):
                await layer.wait_complete()
                with tree_of(layer, tmp_path / layer.layer.digest.hex) as root:
                    assert contents(root) == files


async def test_a_layer_image_is_found_again_after_a_restart_with_the_upstream_down(
    own_stage: Stage, tmp_path: Path
) -> None:
    files = tree(2, 50)
    image = serve(own_stage.upstream, [gzipped(tar_of(files))])
    own_stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")
            await layer.wait_complete()
        await anyio.to_thread.run_sync(own_stage.mirror.stop)
        own_stage.upstream.forget_requests()
        own_stage.upstream.add_rule(Rule(close_before_answer=True))
        await anyio.to_thread.run_sync(own_stage.mirror.start)
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                assert contents(root) == files
    assert own_stage.upstream.blob_bytes_sent() == 0


async def test_a_filler_killed_while_it_makes_a_layer_image_makes_it_anew(
    own_stage: Stage, tmp_path: Path
) -> None:
    files = tree(3, 100)
    image = serve(own_stage.upstream, [gzipped(tar_of(files))])
    own_stage.seen(image)
    slow = own_stage.upstream.add_rule(Rule(path=str(image.layers[0].digest), rate=1 << 20))
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")

            def some_is_here() -> bool:
                return own_stage.fetched(image.layers[0].digest) >= 500_000

            await anyio.to_thread.run_sync(eventually, some_is_here, PATIENCE, "some is here")
            os.kill(own_stage.mirror.process_id("proxy.fill.process"), signal.SIGKILL)
            slow.rate = None
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                assert contents(root) == files


async def test_a_layer_with_another_diff_id_is_refused_and_then_left_to_ordinary_pulls(
    own_stage: Stage,
) -> None:
    layer = gzipped(tar_of(tree(4, 20)))
    image = serve(own_stage.upstream, [layer], diff_ids=[Digest.of(b"another tar")])
    own_stage.seen(image)
    claimed = Digest.of(b"another tar")
    with anyio.fail_after(PATIENCE):
        async with own_stage.client() as client:
            async with own_stage.opened(client, claimed) as (known, opened):
                opened.raise_priority("mount")
                with pytest.raises(FillFailed, match="diff ID") as refused:
                    await opened.wait_mountable()
                assert refused.value.code == "digest"
            with pytest.raises(FillFailed, match="diff ID") as again:
                await client.chain(claimed)
            assert again.value.code == "refused"
            with pytest.raises(FillFailed, match="diff ID"):
                await client.open_layer(known.layer)
    assert not own_stage.files_below("layers")


async def test_a_layer_image_is_not_shown_under_another_diff_id_than_its_own(
    stage: Stage, tmp_path: Path
) -> None:
    honest = gzipped(tar_of(tree(5, 20)))
    image = serve(stage.upstream, [honest])
    other = serve(stage.upstream, [honest], tag="v2", diff_ids=[Digest.of(b"another")])
    stage.seen(image)
    stage.seen(other)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_complete()
            with pytest.raises(FillFailed, match="diff ID") as refused:
                async with stage.opened(client, Digest.of(b"another")):
                    pass
            assert refused.value.code == "refused"
            assert layer.state == "complete", "the honest image is as it was"


async def test_a_whole_blob_makes_its_layer_image_without_the_network(
    stage: Stage, tmp_path: Path
) -> None:
    files = tree(6, 60)
    image = serve(stage.upstream, [gzipped(tar_of(files))])
    stage.seen(image)
    digest = image.layers[0].digest
    target = f"/v2/{REPOSITORY}/blobs/{digest}?ns={stage.upstream.host}"
    assert read(stage.mirror.port, target).body == image.layers[0].blob
    sent = stage.fetched(digest)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_complete()
            with tree_of(layer, tmp_path / "root") as root:
                assert contents(root) == files
    assert stage.fetched(digest) == sent == len(image.layers[0].blob)


async def test_a_get_of_a_blob_of_which_only_the_layer_image_is_here_is_a_miss(
    stage: Stage,
) -> None:
    image = serve(stage.upstream, [gzipped(tar_of(tree(7, 30)))])
    stage.seen(image)
    digest = image.layers[0].digest
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_complete()
    reply = read(stage.mirror.port, f"/v2/{REPOSITORY}/blobs/{digest}?ns={stage.upstream.host}")
    assert reply.body == image.layers[0].blob
    assert stage.fetched(digest) == 2 * len(image.layers[0].blob)


async def test_a_layer_image_is_listed_and_evicted_by_its_key(
    own_stage: Stage, tmp_path: Path
) -> None:
    files = tree(8, 30)
    image = serve(own_stage.upstream, [gzipped(tar_of(files))])
    own_stage.seen(image)
    key = f"layer:{image.layers[0].digest}"
    with anyio.fail_after(PATIENCE):
        async with (
            own_stage.client() as client,
            own_stage.opened(client, image.chains[0]) as (_, layer),
        ):
            layer.raise_priority("mount")
            await layer.wait_complete()
            listed = await client.call({"type": "cache"})
            objects = listed["objects"]
            assert isinstance(objects, list)
            (mine,) = [entry for entry in objects if entry["digest"] == key]
            assert mine["allocated"] >= sum(map(len, files.values()))
            with tree_of(layer, tmp_path / "root") as root:
                await client.call({"type": "evict", "digest": key})
                assert not own_stage.files_below("layers")
                assert contents(root) == files, "what is mounted stays"


async def test_an_upstream_without_the_blob_fails_the_layer_with_its_reason(stage: Stage) -> None:
    image = serve(stage.upstream, [gzipped(tar_of(tree(9, 5)))])
    stage.seen(image)
    stage.upstream.add_rule(Rule(path=str(image.layers[0].digest), status=404))
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            # It may be known by the time that it is opened, or only afterwards.
            with pytest.raises(FillFailed) as missing:
                async with stage.opened(client, image.chains[0]) as (_, layer):
                    layer.raise_priority("mount")
                    await layer.wait_mountable()
            assert missing.value.code == "missing"
        stage.upstream.clear_rules()
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_complete()


@pytest.mark.parametrize("keep", ["auto", "blob", "layer", "both"])
async def test_what_is_kept_of_a_blob_and_its_layer_image_is_for_the_configuration(
    tmp_path: Path, keep: str
) -> None:
    layer = gzipped(tar_of(tree(11, 20)))
    with running_stage(tmp_path, settings={"cache": {"keep": keep}}) as stage:
        image = serve(stage.upstream, [layer])
        stage.seen(image)
        with anyio.fail_after(PATIENCE):
            async with stage.client() as client:
                async with stage.opened(client, image.chains[0]) as (_, opened):
                    opened.raise_priority("mount")
                    await opened.wait_complete()
                blobs = {path.name for path in stage.files_below("blobs")}
        assert (layer.digest.hex in blobs) is (keep in ("blob", "both"))
        assert stage.files_below("layers")
        # Whatever is kept, it was fetched once.
        assert stage.fetched(layer.digest) == len(layer.blob)


async def test_a_pulled_blob_is_not_kept_beside_its_layer_image_where_layers_are_wanted_only(
    tmp_path: Path,
) -> None:
    layer = gzipped(tar_of(tree(12, 20)))
    with running_stage(tmp_path, settings={"cache": {"keep": "layer"}}) as stage:
        image = serve(stage.upstream, [layer])
        stage.seen(image)
        path = f"/v2/{REPOSITORY}/blobs/{layer.digest}?ns={stage.upstream.host}"
        assert read(stage.mirror.port, path).body == layer.blob
        with anyio.fail_after(PATIENCE):
            async with (
                stage.client() as client,
                stage.opened(client, image.chains[0]) as (_, opened),
            ):
                opened.raise_priority("mount")
                await opened.wait_complete()
                gone = stage.cache / "blobs/sha256" / layer.digest.hex[:2] / layer.digest.hex
                await anyio.to_thread.run_sync(
                    eventually, lambda: not gone.exists(), PATIENCE, "the blob is evicted"
                )


async def test_directories_without_an_entry_leave_a_layer_above_others_to_ordinary_pulls(
    stage: Stage,
) -> None:
    # containerd gives such a directory what the layers below say of it; a layer image cannot.
    loose = gzipped(bare_tar("opt/tool", b"x"))
    base = gzipped(tar_of({"etc/motd": b"hello\n"}))
    below = serve(stage.upstream, [loose], tag="v1")
    above = serve(stage.upstream, [base, loose], tag="v2")
    stage.seen(below)
    stage.seen(above)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            async with stage.opened(client, below.chains[0]) as (_, layer):
                layer.raise_priority("mount")
                await layer.wait_complete()
            with pytest.raises(FillFailed, match="directories") as refused:
                await client.chain(above.chains[1])
            assert refused.value.code == "refused"


async def test_a_layer_above_others_is_refused_once_its_tar_has_shown_such_a_directory(
    stage: Stage,
) -> None:
    loose = gzipped(bare_tar("opt/tool", b"y"))
    image = serve(stage.upstream, [gzipped(tar_of({"etc/motd": b"hi\n"})), loose])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            async with stage.opened(client, image.chains[1]) as (_, layer):
                layer.raise_priority("mount")
                with pytest.raises(FillFailed, match="no entry for its directory 'opt'"):
                    await layer.wait_mountable()
            with pytest.raises(FillFailed, match="no entry"):
                await client.chain(image.chains[1])


def bare_tar(name: str, content: bytes) -> bytes:
    """A tar of one file, without entries for its directories."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


async def test_a_configuration_that_lies_takes_nothing_from_the_image_that_is_right(
    stage: Stage, tmp_path: Path
) -> None:
    files = tree(14, 15)
    honest = gzipped(tar_of(files))
    image = serve(stage.upstream, [honest])
    claimed = Digest.of(b"claimed by somebody else")
    liar = serve(stage.upstream, [honest], tag="lie", diff_ids=[claimed])
    stage.seen(image)
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client:
            async with stage.opened(client, image.chains[0]) as (_, layer):
                layer.raise_priority("mount")
                await layer.wait_complete()
            stage.seen(liar)
            with pytest.raises(FillFailed, match="diff ID"):
                async with stage.opened(client, claimed) as (_, layer):
                    layer.raise_priority("mount")
                    await layer.wait_complete()
            async with stage.opened(client, image.chains[0]) as (_, layer):
                await layer.wait_complete()
                with tree_of(layer, tmp_path / "root") as root:
                    assert contents(root) == files
    assert stage.fetched(honest.digest) == len(honest.blob), "it was there all the time"


async def test_replicas_that_name_a_blob_differently_give_its_layer_image(stage: Stage) -> None:
    layer_blob = plain(tar_of({"weights": random.Random(15).randbytes(40 << 20)}))
    image = serve(stage.upstream, [layer_blob])
    stage.seen(image)
    for number in range(3):
        tag = f'"replica {number}"'
        stage.upstream.add_rule(Rule(path=str(layer_blob.digest), times=1, etag=tag))
    with anyio.fail_after(PATIENCE):
        async with stage.client() as client, stage.opened(client, image.chains[0]) as (_, layer):
            layer.raise_priority("mount")
            await layer.wait_complete()
