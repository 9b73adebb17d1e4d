"""A process without descriptors learns nothing about its files: what is whole stays."""

import errno
import os
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.geometry import UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from tests.fill.writing import layout_in, write_whole
from tests.store.stored_objects import open_descriptors, pattern

EXTENT = UNIT_SIZE
SIZE = 4 * EXTENT
PAYLOAD = pattern(0, SIZE)
DIGEST = Digest.of(PAYLOAD)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 2)


def run_out_of_descriptors(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let this file be the one too many; others may be closed right after it."""
    opened = os.open

    def limited(name: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(name) == path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", limited)


@pytest.mark.parametrize("stripe", [0, 1])
def test_f29_a_blob_is_not_taken_for_an_absent_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, stripe: int
) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    write_whole(files, PAYLOAD)
    files.mark_verified()
    files.close()
    before = open_descriptors()
    with monkeypatch.context() as patched:
        run_out_of_descriptors(patched, layout.blob_paths(DIGEST, 2)[stripe])
        with pytest.raises(OSError, match="Too many open files"):
            BlobFiles.open(layout, DIGEST)
    assert open_descriptors() == before
    again = BlobFiles.open(layout, DIGEST)
    assert again is not None and again.map.verified
    again.close()


@pytest.mark.parametrize("name", ["map", "device"])
def test_f29_a_layer_image_is_not_taken_for_an_absent_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = LayerFiles.create(layout, DIGEST, SIZE, EXTENT, NO_ACCOUNT)
    files.write_meta(b"metadata")
    files.write(0, [PAYLOAD])
    for extent in files.publish(0, SIZE):
        files.set_blake3(extent, files.blake3_of(extent))
    files.mark_verified()
    short = {"map": files.maps[0], "device": files.paths[1]}[name]
    files.close()
    before = open_descriptors()
    with monkeypatch.context() as patched:
        run_out_of_descriptors(patched, short)
        with pytest.raises(OSError, match="Too many open files"):
            LayerFiles.open(layout, DIGEST)
    assert open_descriptors() == before
    again = LayerFiles.open(layout, DIGEST)
    assert again is not None and again.verified
    again.close()
