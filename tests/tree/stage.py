"""Layers shown as trees by a real daemon, their bytes brought by a scripted filler."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.placement import Placement
from mount.mounting.layer_mounts import LayerImage, LayerMounts
from mount.mounting.modes import TreeMode
from tests.device.layers import StoredLayer
from tests.device.mounted import Mounted, mounted
from tests.mounting.conftest import unmount_below
from tests.mounting.layer_images import EXTENT, Tree

USER = "test"


class TreeStage:
    """A ``mount.root`` in mode ``tree``; the layers' contents are not here until they are read."""

    def __init__(self, directory: Path, devices: Mounted) -> None:
        self.devices = devices
        self.filler = devices.filler
        self._directory = directory
        self._stored: list[StoredLayer] = []
        self.mode = TreeMode(devices.root, self.device_files)

    def device_files(self) -> Path:
        """As :class:`mount.mounting.supervised_devices.SupervisedDevices`."""
        self.devices.ensure()
        return self.devices.places.device_files

    def mounts(self) -> LayerMounts:
        """What a process of its own has."""
        return LayerMounts(self.devices.root, self.mode, self.device_files)

    def store(self, name: str, tree: Tree, stripes: int = 1) -> StoredLayer:
        """A layer image at the filler, without any of its contents."""
        placement = Placement(EXTENT, stripes)
        for inode, content in tree.contents.values():
            inode.offset = placement.place(len(content))
        size = placement.device_size
        device = bytearray(size)
        for inode, content in tree.contents.values():
            device[inode.offset : inode.offset + len(content)] = content
        stored = StoredLayer(
            self._directory / name,
            size,
            extent_size=EXTENT,
            stripes=stripes,
            content=bytes(device),
            meta=build(tree.root, DeviceGeometry(size, EXTENT, stripes)),
        )
        self._stored.append(stored)
        self.filler.add(stored)
        return stored

    def mount(self, stored: StoredLayer) -> Path:
        """Where the layer is mounted."""
        return self.mounts().mount(image_of(stored), USER).path

    def close(self) -> None:
        """Unmount everything."""
        unmount_below(self._directory)
        for stored in self._stored:
            stored.close()


def image_of(stored: StoredLayer, *, verified: bool = False) -> LayerImage:
    """What the mounts are told of a layer image."""
    devices = tuple(stored.devices)
    return LayerImage(stored.layer, stored.meta, devices, stored.geometry, verified)


@contextmanager
def tree_stage(directory: Path) -> Iterator[TreeStage]:
    """A stage for as long as the context lasts; the test is skipped where it cannot mount."""
    with mounted(directory) as devices:
        stage = TreeStage(directory, devices)
        try:
            yield stage
        finally:
            stage.close()
