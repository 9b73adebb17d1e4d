"""An image of three layers at a scripted filler, and what the snapshotter has of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from headstart.store.fill_client import FillClient
from headstart.store.object_key import LayerKey
from mount.device.table import DeviceTable
from mount.layers import FilledLayers
from mount.mounting.layer_mounts import LayerImage, LayerMounts
from mount.mounting.probe import choose_mode
from tests.mounting.layer_images import small_image
from tests.mounting.machine import DeviceFiles, assert_descriptors, open_descriptors
from tests.mounting.scripted_layers import LayerFiller, ServedLayer

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
        assert_descriptors(before)

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


def key(served: ServedLayer) -> str:
    return str(LayerKey(served.image.layer.digest))


async def begun(layers: FilledLayers, stage: Stage) -> None:
    layers.begin(stage.filler.chain)
    await stage.filler.until("open", 3)


async def waiting(task: "asyncio.Task[None]") -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
