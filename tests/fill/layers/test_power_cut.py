"""A power cut: a layer image that was forced to disk is there, another one right or absent."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headstart.store.layout import Layout
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from tests.content.layer.archives import write
from tests.fill.layers.chunked import brought, check_of, chunked, run
from tests.fill.layers.contents import assert_shows, some_members
from tests.fill.layers.making import GZIP, Making, compressed, left_over
from tests.fill.writing import layout_in
from tests.parts.processes import program

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
_LOGFLUSH, _NOLOGFLUSH = 1, 2
TAR = write(some_members())


class Disk:
    """An ext4 on a loop device that loses power."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "mounted"
        self._image = directory / "disk"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(96 << 20)
        subprocess.run([program("mkfs.ext4"), "-q", self._image], check=True)

    def mount(self) -> None:
        subprocess.run([program("mount"), "-o", "loop", self._image, self.path], check=True)

    def cut_power(self, flags: int) -> None:
        """What has not reached the disk is lost; the disk is there again."""
        descriptor = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", flags))
        os.close(descriptor)
        self.unmount()
        self.mount()

    def unmount(self) -> None:
        subprocess.run([program("umount"), self.path], check=True)


@contextmanager
def disk_in(directory: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting has to run as root")
    disk = Disk(directory)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("flags", [_LOGFLUSH, _NOLOGFLUSH])
@pytest.mark.parametrize("ordinary", [True, False])
def test_f32_a_power_cut_leaves_layer_images_right_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool, flags: int, ordinary: bool
) -> None:
    with disk_in(tmp_path) as disk:
        layout = layout_in(disk.path, 1)
        os.sync()
        if ordinary:
            making = Making(layout, compressed(TAR, GZIP), TAR)
            making.run()
            files, digest = making.files, making.digest
        else:
            layer = chunked(TAR)
            files, writer = brought(layer, layout)
            run(check_of(layer, writer))
            writer.close()
            digest = layer.digest
        if synced:
            files.sync()
        files.close()
        disk.cut_power(flags)
        monkeypatch.setattr("proxy.fill.layers.kept_layer.boot_id", lambda: b"another boot now")
        found = _looked_at(layout, LayerFiles.open(layout, digest), tmp_path)
        assert found or not synced
        if not found:
            again = LayerFiles.create(layout, digest, None, 1 << 20, NO_ACCOUNT)
            again.unlink()
            again.close()
            assert left_over(layout) == []


def _looked_at(layout: Layout, files: LayerFiles | None, directory: Path) -> bool:
    """Whether it is there and verified; then it is right."""
    if files is None:
        return False
    right = files.check() and files.verified
    if right:
        assert_shows(files, TAR, directory / "tree")
    files.close()
    return right
