"""Layers that are released, taken over at a start, and slow ones."""

import asyncio
import threading
from pathlib import Path

import pytest

from mount.layers import USER, FilledLayers
from mount.mounting.layer_mounts import LayerImage, LayerMounts
from mount.mounting.mount_table import mounted_below
from tests.mounting.layer_images import known_layer
from tests.mounting.layer_stage import PATIENCE_SECONDS, Stage, key, waiting


@pytest.fixture
def stage(root: Path) -> Stage:
    return Stage(root)


def test_an_unmounted_layer_is_released(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.complete()
        await layers.mountable(layer)
        path = await layers.mounted(layer)
        await layers.unmount(layer)
        assert not path.exists()
        assert stage.filler.leases == set()
        await layers.unmount(layer)
        await layers.unmount(known_layer())

    stage.play(scenario)


def test_a_layer_that_a_person_uses_keeps_mount_and_lease(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.complete()
        await layers.mountable(layer)
        path = await layers.mounted(layer)
        stage.mounts().mount(stage.top.image, "mount-1234")
        await layers.unmount(layer)
        assert (path / "top").exists()
        assert stage.filler.leases == {key(stage.top)}

    stage.play(scenario)


def test_a_release_that_a_new_mount_has_overtaken_is_taken_back(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        stage.complete()
        await layers.mountable(layer)
        stage.filler.silent.add("release")
        task = asyncio.create_task(layers.unmount(layer))
        release = await stage.filler.until("release")
        stage.mounts().mount(stage.top.image, "mount-1234")
        stage.filler.leases.clear()
        stage.filler.answer(release)
        await task
        assert stage.filler.leases == {key(stage.top)}

    stage.play(scenario)


def test_a_start_takes_over_what_snapshots_use(stage: Stage) -> None:
    kept, dropped, _ = stage.filler.layers

    async def first(stage: Stage, layers: FilledLayers) -> None:
        stage.complete()
        for served in (kept, dropped):
            await layers.mountable(served.image.layer)

    async def second(stage: Stage, layers: FilledLayers) -> None:
        stage.filler.leases = {"layer:sha256:" + "0" * 64}
        await layers.adopt([kept.image.layer, stage.top.image.layer])
        await stage.filler.until("leases")
        assert stage.filler.leases == {key(kept), key(stage.top)}
        (mounted,) = mounted_below(stage.root / "layers")
        assert await layers.mounted(kept.image.layer) == mounted.path
        assert stage.mounts().used_by(USER) == [int(mounted.path.name)]

    stage.play(first)
    opened = len(stage.filler.requests("open"))
    stage.play(second)
    assert len(stage.filler.requests("open")) == opened


def test_a_start_does_not_wait_for_the_filler(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(stage: Stage, layers: FilledLayers) -> None:
        stage.complete()
        await layers.mountable(stage.top.image.layer)

    async def second(stage: Stage, layers: FilledLayers) -> None:
        layer = stage.top.image.layer
        await layers.adopt([layer])
        path = await layers.mounted(layer)
        assert (path / "top").read_bytes() == b"top"
        await stage.filler.start()
        await stage.filler.until("leases")

    stage.play(first)
    stage.play(second, running=False)


def test_a_layer_that_was_not_whole_goes_on_after_a_start(stage: Stage) -> None:
    async def first(stage: Stage, layers: FilledLayers) -> None:
        stage.show(stage.top.image)
        stage.filler.tell(stage.top, "mountable")
        await layers.mountable(stage.top.image.layer)

    async def second(stage: Stage, layers: FilledLayers) -> None:
        opened = len(stage.filler.requests("open"))
        wanted = len(stage.filler.requests("want"))
        await layers.adopt([stage.top.image.layer])
        await stage.filler.until("open", opened + 1)
        want = await stage.filler.until("want", wanted + 1)
        assert want["priority"] == "prefetch"

    stage.play(first)
    stage.play(second)


def test_a_mount_that_takes_its_time_holds_up_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released, finished = (threading.Event() for _ in range(3))
    mount = LayerMounts.mount

    def slow(self: LayerMounts, image: LayerImage, user: str) -> object:
        if image.layer != stage.top.image.layer:
            return mount(self, image, user)
        entered.set()
        released.wait(PATIENCE_SECONDS)
        try:
            return mount(self, image, user)
        finally:
            finished.set()

    monkeypatch.setattr(LayerMounts, "mount", slow)

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        stage.complete()
        stuck = asyncio.create_task(layers.mountable(stage.top.image.layer))
        await asyncio.to_thread(entered.wait, PATIENCE_SECONDS)
        base = stage.filler.layers[0].image.layer
        await layers.mountable(base)
        assert ((await layers.mounted(base)) / "base").exists()
        await waiting(stuck)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        released.set()
        await asyncio.to_thread(finished.wait, PATIENCE_SECONDS)
        assert stage.mounts().mount(stage.top.image, USER).direct

    try:
        stage.play(scenario)
    finally:
        released.set()
