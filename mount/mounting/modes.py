"""The ways in which a layer image becomes a directory: from files, over loop devices, as a tree.

A tree is for kernels that can do neither of the others: the process that serves the device files
shows each file of a layer by itself (:mod:`mount.tree`), and this package mounts the directory.
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from mount.device.places import MountPlaces
from mount.mounting import system_calls
from mount.mounting.loop_devices import attached

EROFS = "erofs"
TREES = "trees"
"""The directory of the trees in the FUSE file system."""

LAYER_FLAGS = system_calls.MS_RDONLY | system_calls.MS_NOSUID | system_calls.MS_NODEV
"""Of the layer's own mount point, which only root reaches. An overlay above it goes by the flags of
its own mount: set-user-ID bits, capabilities and device nodes of a layer work in containers."""


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """What is mounted: the metadata, and one data device a stripe in the order of the stripes.

    ``number`` is the layer's in the device table, for modes that read nothing but that.
    """

    meta: Path
    devices: tuple[Path, ...]
    number: int = 0


class Mode(Protocol):
    """One way of mounting layer images."""

    @property
    def name(self) -> str:
        """As ``mount.mode`` calls it."""

    @property
    def magic(self) -> int:
        """``f_type`` of what it mounts."""

    @property
    def through_fuse(self) -> bool:
        """Whether even a whole layer is read through FUSE."""

    def mount(self, files: LayerFiles, target: Path) -> None:
        """Mount a layer image read-only; loop devices it needs go with the mount.

        Raises OSError.
        """


class FileMode:
    """EROFS straight from files: Linux 6.12 and later, where its configuration has it."""

    name: ClassVar[str] = "file"
    magic: ClassVar[int] = system_calls.EROFS_MAGIC
    through_fuse: ClassVar[bool] = False

    def mount(self, files: LayerFiles, target: Path) -> None:
        """Raises OSError, ENOTBLK where the kernel wants a block device."""
        with ExitStack() as stack:
            named: list[Path] = []
            for device in files.devices:
                # By descriptor: a comma in a path would end the option, and O_PATH asks nothing of
                # the file system that the device is on.
                descriptor = os.open(device, os.O_PATH | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                named.append(Path(f"/proc/self/fd/{descriptor}"))
            mount_erofs(files.meta, named, target)


class LoopMode:
    """EROFS over loop devices: one for the metadata, one for the data device.

    Only for layer images on one stripe. Where a file goes on from the last stripe's file to the
    first one's, its next byte has the number in that device which follows the last one in the
    other, and Linux reads on in the old device: iomap compares sectors, not devices (measured with
    Linux 6.18). The bytes are wrong, silently. Reads of files are joined only within a device.
    """

    name: ClassVar[str] = "loop"
    magic: ClassVar[int] = system_calls.EROFS_MAGIC
    through_fuse: ClassVar[bool] = False

    def mount(self, files: LayerFiles, target: Path) -> None:
        """Raises OSError, EOPNOTSUPP for a layer image on several stripes."""
        if len(files.devices) > 1:
            raise OSError(
                errno.EOPNOTSUPP,
                f"{files.meta}: Linux mixes up block devices of a layer on {len(files.devices)} "
                "stripes; use one directory in cache.stripes, or Linux 6.12 with file-backed EROFS",
            )
        with ExitStack() as stack:
            meta = stack.enter_context(attached(files.meta))
            devices = [stack.enter_context(attached(device)) for device in files.devices]
            mount_erofs(meta, devices, target)


class TreeMode:
    """A directory of the FUSE file system that shows the layer file by file.

    Only the layer's number is read of what is mounted: the daemon knows where its metadata is from
    the record of the mount (:mod:`mount.mounting.mounted_from`). Number 0 is the probe's own image.
    """

    name: ClassVar[str] = "tree"
    magic: ClassVar[int] = system_calls.FUSE_MAGIC
    through_fuse: ClassVar[bool] = True

    def __init__(self, root: Path, device_files: Callable[[], Path]) -> None:
        """``device_files`` brings up the FUSE file system of ``mount.root`` and says where it is.

        It blocks, and raises OSError or MountError.
        """
        self._mark = MountPlaces(root).tree_mark
        self._device_files = device_files

    def mount(self, files: LayerFiles, target: Path) -> None:
        """Raises OSError, ENOENT where the metadata has gone, and what ``device_files`` raises."""
        source = self._device_files() / TREES / str(files.number)
        self._mark.touch()
        # The flags are those of the mount that it is a part of: LAYER_FLAGS.
        system_calls.mount(source, target, "none", system_calls.MS_BIND)


def mount_erofs(meta: Path, devices: Sequence[Path], target: Path) -> None:
    """mount(2) of an EROFS image with its device table. Raises OSError."""
    options = ",".join(f"device={device}" for device in devices)
    system_calls.mount(meta, target, EROFS, LAYER_FLAGS, options)
