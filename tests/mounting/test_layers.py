"""Layers as the snapshotter wants them, with a scripted filler and real mounts."""

import asyncio
from pathlib import Path

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from mount.layers import FilledLayers
from mount.mounting.leased_mounts import HOLDER
from mount.mounting.mount_table import mounted_at, mounted_below
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.layers import Layers
from tests.mounting.layer_stage import Stage, begun, key, waiting
from tests.mounting.machine import hide


@pytest.fixture
def stage(root: Path) -> Stage:
    return Stage(root)


def test_it_is_what_the_snapshotter_needs(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        needed: Layers = layers
        assert await needed.known(Digest.of(b"x"), manifest=None, image_ref=None) is None

    stage.play(scenario)


def test_a_chain_is_known_by_the_filler(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        chain = stage.filler.chain
        ids = chain_ids([layer.diff_id for layer in chain.layers])
        manifest = Digest.of(b"manifest")
        found = await layers.known(ids[-1], manifest=manifest, image_ref="host/name:1")
        assert found == chain
        (asked,) = stage.filler.requests("chain")
        assert (asked["manifest"], asked["image_ref"]) == (str(manifest), "host/name:1")
        unknown = chain_ids([Digest.of(b"another")])[0]
        assert await layers.known(unknown, manifest=None, image_ref=None) is None

    stage.play(scenario)


def test_a_filler_that_does_not_answer_is_not_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mount.layers.KNOWN_SECONDS", 0.05)
    caplog.set_level("INFO", "mount.layers")
    chain = Digest.of(b"chain")

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        assert await layers.known(chain, manifest=None, image_ref=None) is None

    stage.play(scenario, running=False)
    assert f"{chain} is pulled the ordinary way: the filler has not answered" in caplog.text


def test_a_refused_chain_is_pulled_the_ordinary_way(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mount.layers")

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        stage.filler.chain_refusal = FillFailed("refused", "its TOC lies")
        assert await layers.known(Digest.of(b"x"), manifest=None, image_ref=None) is None

    stage.play(scenario)
    assert "its TOC lies" in caplog.text


def test_all_layers_of_an_image_stream_at_once_the_largest_first(root: Path) -> None:
    stage = Stage(root)
    sizes = [10, 3000, 200]
    for served, size in zip(stage.filler.layers, sizes, strict=True):
        object.__setattr__(served.image.layer, "size", size)

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        for _ in range(3):
            await begun(layers, stage)
        await stage.filler.until("want", 3)
        assert [message["size"] for message in stage.filler.requests("open")] == [3000, 200, 10]
        assert {stage.filler.priority(each) for each in stage.filler.layers} == {"prefetch"}

    stage.play(scenario)


def test_a_layer_that_somebody_waits_for_goes_first(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        await begun(layers, stage)
        task = asyncio.create_task(layers.mountable(stage.top.image.layer))
        await stage.filler.until("want", 4)
        assert stage.filler.priority(stage.top) == "mount"
        await waiting(task)
        task.cancel()
        await stage.filler.until("want", 5)
        assert stage.filler.priority(stage.top) == "prefetch"

    stage.play(scenario)


def test_an_ordinary_layer_is_mounted_once_it_is_whole(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        await begun(layers, stage)
        layer = stage.top.image.layer
        task = asyncio.create_task(layers.mountable(layer))
        await waiting(task)
        assert not list(mounted_below(stage.root / "layers"))
        stage.filler.tell(stage.top, "complete")
        await task
        path = await layers.mounted(layer)
        assert (path / "top").read_bytes() == b"top"
        assert path.parent == stage.root / "layers" and path.name.isdecimal()
        assert stage.filler.leases == {key(stage.top)}
        (lease,) = stage.filler.requests("lease")
        assert lease["holder"] == HOLDER
        await layers.verified(layer, urgent=True)
        await stage.filler.until("close")

    stage.play(scenario)
    assert stage.device_files.asked == 0


def test_a_layer_with_a_toc_is_mounted_before_and_replaced_when_it_is_whole(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.show(stage.top.image)
        await begun(layers, stage)
        stage.filler.tell(stage.top, "mountable")
        await layers.mountable(layer)
        path = await layers.mounted(layer)
        assert (path / "top").read_bytes() == b"top"
        before = mounted_at(path)
        task = asyncio.create_task(layers.verified(layer, urgent=True))
        await waiting(task)
        assert stage.top in stage.filler.open_layers()
        stage.filler.tell(stage.top, "complete")
        await task
        assert await layers.mounted(layer) == path
        assert (path / "top").read_bytes() == b"top"
        assert len(mounted_at(path)) == len(before) == 1
        await stage.filler.until("close")
        assert stage.top not in stage.filler.open_layers()

    stage.play(scenario)


def test_who_waits_without_haste_changes_no_priority(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        await begun(layers, stage)
        calm = asyncio.create_task(layers.verified(layer, urgent=False))
        await waiting(calm)
        urgent = asyncio.create_task(layers.verified(layer, urgent=True))
        await stage.filler.until("want", 4)
        assert stage.filler.priority(stage.top) == "mount"
        urgent.cancel()
        await stage.filler.until("want", 5)
        assert stage.filler.priority(stage.top) == "prefetch"
        assert len(stage.filler.requests("want")) == 5
        both = calm, asyncio.create_task(layers.verified(layer, urgent=True))
        await stage.filler.until("want", 6)
        stage.filler.tell(stage.top, "complete")
        await asyncio.gather(*both)
        await stage.filler.until("close")

    stage.play(scenario)


def test_what_is_mounted_is_mounted_again_without_the_filler(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.filler.tell(stage.top, "complete")
        await layers.mountable(layer)
        path = await layers.mounted(layer)
        hide(path)
        await stage.filler.stop()
        assert await layers.mounted(layer) == path
        assert (path / "top").read_bytes() == b"top"
        assert len(mounted_at(path)) == 1

    stage.play(scenario)


def test_a_layer_whose_files_are_not_known_is_asked_for(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        task = asyncio.create_task(layers.mounted(layer))
        await stage.filler.until("open")
        assert not task.done()
        stage.filler.tell(stage.top, "complete")
        assert ((await task) / "top").read_bytes() == b"top"

    stage.play(scenario)


def test_a_refused_layer_is_unavailable_for_good(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        await begun(layers, stage)
        task = asyncio.create_task(layers.mountable(layer))
        await stage.filler.until("want", 4)
        stage.filler.refuse(stage.top, FillFailed("refused", "a chunk is not what the TOC says"))
        with pytest.raises(LayerUnavailable, match="a chunk is not what") as unavailable:
            await task
        assert unavailable.value.refused
        with pytest.raises(LayerUnavailable) as unavailable:
            await layers.mountable(layer)
        assert unavailable.value.refused

    stage.play(scenario)


def test_a_layer_that_is_refused_after_it_was_mounted_is_not_mounted_anew(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.show(stage.top.image)
        stage.filler.tell(stage.top, "mountable")
        await layers.mountable(layer)
        task = asyncio.create_task(layers.verified(layer, urgent=True))
        await stage.filler.until("want", 2)
        stage.filler.refuse(stage.top, FillFailed("digest", "its diff ID is another"))
        for waiting_for in (task, layers.verified(layer, urgent=True), layers.mounted(layer)):
            with pytest.raises(LayerUnavailable, match="its diff ID is another") as unavailable:
                await waiting_for
            assert unavailable.value.refused

    stage.play(scenario)


def test_what_may_pass_is_no_fault_of_the_layer(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.top.refusal = FillFailed("upstream", "the registry is away")
        with pytest.raises(LayerUnavailable, match="registry is away") as unavailable:
            await layers.mountable(layer)
        assert not unavailable.value.refused
        stage.top.refusal = None
        stage.filler.tell(stage.top, "complete")
        await layers.mountable(layer)
        assert await layers.mounted(layer)

    stage.play(scenario)


def test_a_kernel_that_refuses_makes_it_unavailable(stage: Stage) -> None:
    stage.top.image.meta.write_bytes(bytes(stage.top.image.meta.stat().st_size))

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        stage.filler.tell(stage.top, "complete")
        with pytest.raises(LayerUnavailable, match=r"mount\(.*Invalid argument") as unavailable:
            await layers.mountable(stage.top.image.layer)
        assert not unavailable.value.refused

    stage.play(scenario)
