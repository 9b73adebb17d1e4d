"""The same tree in the ways in which a container can have it, mounted anew whenever wanted.

After :meth:`Tree.mount` nothing of it is in the caches of the file systems that show it; the bytes
below (ext4's image, the store's files) are in the page cache. Needs root.
"""

import abc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.layer_images import LayerImage
from bench.llm_image import LIBRARY, WEIGHTS
from bench.page_cache import drop, warm
from mount.device.places import MountPlaces
from mount.device.table import DeviceTable
from mount.mounting import system_calls
from mount.mounting.modes import LayerFiles, Mode
from mount.mounting.mount_table import mounted_at
from mount.mounting.overlay import mount_overlay
from mount.supervisor import control
from tests.parts.processes import cpu_seconds, run

_READ_DEADLINE_SECONDS = 60.0
_EXT4_SHARE = 1.15
_EXT4_SPARE = 64 << 20


class Tree(abc.ABC):
    """One way; :attr:`root` shows the image's files while it is mounted."""

    def __init__(self, name: str, directory: Path) -> None:
        """``directory`` is made; everything is mounted below it."""
        self.name = name
        self.directory = directory
        self.root = directory / "merged"
        self.root.mkdir(parents=True)

    @property
    def library(self) -> Path:
        return self.root / LIBRARY

    @property
    def weights(self) -> Path:
        return self.root / WEIGHTS

    @abc.abstractmethod
    def mount(self) -> None:
        """Mount it, with nothing of it in its caches. Raises OSError, ProcessFailed."""

    @abc.abstractmethod
    def below(self) -> Sequence[Path]:
        """The files that have the bytes."""

    def caches(self) -> dict[str, Sequence[Path]]:
        """Files whose pages are copies of the tree's bytes; while it is mounted."""
        return {"store": self.below()}

    def cpu_seconds(self) -> float | None:
        """Of the process that answers reads; None where there is none."""
        return None

    def unmount(self) -> None:
        """Unmount everything. Raises OSError."""
        # What is above first: the others are below it.
        for path in (self.root, *sorted(self.directory.iterdir())):
            while mounted_at(path):
                system_calls.unmount(path)

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for path in (self.root, *sorted(self.directory.iterdir())):
            while mounted_at(path):
                system_calls.unmount(path, system_calls.MNT_DETACH)


class Native(Tree):
    """A directory of an ext4 that has just been mounted (a loop device on a file)."""

    def __init__(self, name: str, directory: Path, image: Path) -> None:
        """``image`` is what :func:`make_ext4` has made."""
        super().__init__(name, directory)
        self._image = image

    def mount(self) -> None:
        warm(self.below())
        run(["mount", "-o", "loop,ro", self._image, self.root])

    def below(self) -> Sequence[Path]:
        return [self._image]


class Stacked(Tree):
    """overlayfs over the same ext4: what containerd makes of an unpacked image."""

    def __init__(self, name: str, directory: Path, image: Path) -> None:
        super().__init__(name, directory)
        self._image = image

    def mount(self) -> None:
        warm(self.below())
        lower = self.directory / "lower"
        lower.mkdir(exist_ok=True)
        run(["mount", "-o", "loop,ro", self._image, lower])
        stack(self.directory, [lower], self.root)

    def below(self) -> Sequence[Path]:
        return [self._image]


class Layers(Tree):
    """overlayfs over layer images that are whole: EROFS from the store's own files."""

    def __init__(
        self, name: str, directory: Path, images: Sequence[LayerImage], mode: Mode
    ) -> None:
        super().__init__(name, directory)
        self._images = images
        self._mode = mode

    def mount(self) -> None:
        warm(self.below())
        lower = []
        for number, image in enumerate(self._images):
            target = self.directory / f"l{number}"
            target.mkdir(exist_ok=True)
            self._mode.mount(self._files(number, image), target)
            lower.append(target)
        stack(self.directory, lower[::-1], self.root)

    def below(self) -> Sequence[Path]:
        return [file for image in self._images for file in (image.meta, *image.devices)]

    def caches(self) -> dict[str, Sequence[Path]]:
        shown = [
            path
            for number in range(len(self._images))
            for path in sorted((self.directory / f"l{number}" / WEIGHTS).glob("*"))
        ]
        return {"store": self.below(), "EROFS": shown}

    def _files(self, number: int, image: LayerImage) -> LayerFiles:
        return LayerFiles(image.meta, image.devices)


class LayersThroughFuse(Layers):
    """The same with the devices of layers that are not whole: files that the daemon answers."""

    def __init__(
        self,
        name: str,
        directory: Path,
        images: Sequence[LayerImage],
        mode: Mode,
        fill_socket: Path,
    ) -> None:
        """Starts the mount daemon. Raises SupervisorError, OSError."""
        super().__init__(name, directory, images, mode)
        self._mount_root = directory.parent / "mount-root"
        self._places = MountPlaces(self._mount_root)
        control.ensure(self._mount_root, fill_socket, _READ_DEADLINE_SECONDS)
        table = DeviceTable(self._mount_root)
        self._devices: list[tuple[Path, ...]] = []
        for image in images:
            shape = image.geometry
            number = table.add(image.layer, shape.size, shape.extent_size, shape.stripes)
            self._devices.append(tuple(table.device_paths(number, shape.stripes)))

    def caches(self) -> dict[str, Sequence[Path]]:
        return {**super().caches(), "FUSE": self._shown}

    def cpu_seconds(self) -> float | None:
        daemon = control.status(self._mount_root)["daemon"]
        assert isinstance(daemon, int)
        return cpu_seconds(daemon)

    def unmount(self) -> None:
        super().unmount()
        # Its pages live as long as the inode of the device file.
        drop(self._shown)

    def end(self) -> None:
        super().end()
        control.stop(self._mount_root, force=True)

    @property
    def _shown(self) -> list[Path]:
        return [path for devices in self._devices for path in devices]

    def _files(self, number: int, image: LayerImage) -> LayerFiles:
        return LayerFiles(image.meta, self._devices[number])


def make_ext4(image: Path, source: Path, size: int) -> None:
    """An ext4 in a file, with a copy of the directory ``source``, which has ``size`` bytes."""
    image.touch()
    os.truncate(image, int(size * _EXT4_SHARE) + _EXT4_SPARE)
    # Inodes as for a root file system; -d copies without a mount.
    run(["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", "-d", source, image], deadline=600)


def stack(directory: Path, lower: Sequence[Path], target: Path) -> None:
    """overlayfs as a container has it: with a directory for changes. Raises OSError."""
    upper, work = directory / "upper", directory / "work"
    for made in (upper, work):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    mount_overlay(directory, lower, target, 0, upper=upper, work=work)
