"""Layers as the snapshotter wants them, with a scripted filler and real mounts."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.object_key import LayerKey
from mount.device.table import DeviceTable
from mount.layers import USER, FilledLayers
from mount.mounting.layer_mounts import LayerImage, LayerMounts
from mount.mounting.leased_mounts import HOLDER
from mount.mounting.mount_table import mounted_at, mounted_below
from mount.mounting.probe import choose_mode
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.layers import Layers
from tests.mounting.layer_images import known_layer, small_image
from tests.mounting.scripted_layers import LayerFiller, ServedLayer
from tests.mounting.test_layer_mounts import DeviceFiles, hide
from tests.mounting.test_modes import open_descriptors

PATIENCE_SECONDS = 20.0
NAMES = ("base", "middle", "top")

Scenario = Callable[["Stage", FilledLayers], Awaitable[None]]


class Stage:
    """An image of three layers at a filler, and a ``mount.root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        images = [small_image(root / "store" / name, {name: name.encode()}) for name in NAMES]
        self.filler = LayerFiller(root / "fill.sock", images)
        self.device_files = DeviceFiles(root / "devices-fs")
        self.mode = choose_mode("auto", root / "run").mode

    def mounts(self) -> LayerMounts:
        """What a process of its own has."""
        return LayerMounts(self.root, self.mode, self.device_files)

    def play(self, scenario: Scenario, *, running: bool = True) -> None:
        """Run a scenario; it ends within seconds and leaves no descriptor, task and handle."""

        async def run() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if running:
                    await self.filler.start()
                try:
                    async with (
                        FillClient(self.filler.path, "snapshotter") as client,
                        FilledLayers(client, self.mounts()) as layers,
                    ):
                        await scenario(self, layers)
                finally:
                    await self.filler.stop()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        before = open_descriptors()
        asyncio.run(run())
        assert open_descriptors() == before

    @property
    def top(self) -> ServedLayer:
        return self.filler.layers[-1]

    def complete(self) -> None:
        """All layers are whole."""
        for served in self.filler.layers:
            self.filler.tell(served, "complete")

    def show(self, image: LayerImage) -> None:
        """Put the data device into the device file system, under the number it will have."""
        geometry = image.geometry
        shape = geometry.size, geometry.extent_size, geometry.stripes
        self.device_files.show(DeviceTable(self.root).add(image.layer, *shape), image)


@pytest.fixture
def stage(root: Path) -> Stage:
    return Stage(root)


def key(served: ServedLayer) -> str:
    return str(LayerKey(served.image.layer.digest))


async def begun(layers: FilledLayers, stage: Stage) -> None:
    layers.begin(stage.filler.chain)
    await stage.filler.until("open", 3)


async def waiting(task: "asyncio.Task[None]") -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


def test_it_is_what_the_snapshotter_needs(stage: Stage) -> None:
    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        needed: Layers = layers
        assert needed is layers

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
        await layers.verified(layer)
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
        task = asyncio.create_task(layers.verified(layer))
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
        task = asyncio.create_task(layers.verified(layer))
        await stage.filler.until("want", 2)
        stage.filler.refuse(stage.top, FillFailed("digest", "its diff ID is another"))
        for waiting_for in (task, layers.verified(layer), layers.mounted(layer)):
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
    released, finished = threading.Event(), threading.Event()
    mount = LayerMounts.mount

    def slow(self: LayerMounts, image: LayerImage, user: str) -> object:
        if image.layer != stage.top.image.layer:
            return mount(self, image, user)
        released.wait(PATIENCE_SECONDS)
        try:
            return mount(self, image, user)
        finally:
            finished.set()

    monkeypatch.setattr(LayerMounts, "mount", slow)

    async def scenario(stage: Stage, layers: FilledLayers) -> None:
        stage.complete()
        stuck = asyncio.create_task(layers.mountable(stage.top.image.layer))
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
