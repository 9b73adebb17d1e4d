"""Stripes that cannot be used, and files that somebody else has changed."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.cached_blob import CachedBlob
from headstart.store.extent_map import StripeMap
from headstart.store.geometry import UNIT_SIZE
from headstart.store.layout import STAMP, STAND_INS, Layout
from proxy.fill.blob_files import BlobFiles
from tests.fill.writing import layout_in, write_whole
from tests.store.stored_objects import open_descriptors, pattern

EXTENT = UNIT_SIZE
SIZE = 4 * EXTENT
PAYLOAD = pattern(0, SIZE)
DIGEST = Digest.of(PAYLOAD)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 2)


def stored(layout: Layout) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    write_whole(files, PAYLOAD)
    files.mark_verified()
    files.close()


def lose(stripe: Path) -> None:
    """Put a plain file where the directory was."""
    shutil.rmtree(stripe)
    stripe.write_text("")


def test_the_extents_of_a_stripe_that_is_gone_are_misses_for_good(layout: Layout) -> None:
    stored(layout)
    lose(layout.stripes[1])
    before = open_descriptors()
    files = BlobFiles.open(layout, DIGEST)
    assert files is not None
    assert [files.map.whole(extent) for extent in range(4)] == [True, False, True, False]
    with pytest.raises(OSError, match="cannot be used") as refused:
        files.reserve(1)
    assert refused.value.errno == errno.EIO
    reader = CachedBlob(files.paths, files.maps)
    assert reader.read(2 * EXTENT, EXTENT) == PAYLOAD[2 * EXTENT : 3 * EXTENT]
    assert reader.available(EXTENT) == 0
    assert not reader.verified
    reader.close()
    files.close()
    assert not list((layout.stripes[0] / STAND_INS).iterdir())
    assert open_descriptors() == before


def test_new_files_leave_out_a_stripe_only_where_that_is_asked_for(layout: Layout) -> None:
    lose(layout.stripes[1])
    with pytest.raises(OSError):
        BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    assert not list((layout.stripes[0] / "blobs").rglob("*.map"))
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT, stand_in=True)
    files.reserve(0)
    files.close()


def test_without_any_stripe_there_is_no_blob(layout: Layout) -> None:
    stored(layout)
    for stripe in layout.stripes:
        lose(stripe)
    assert BlobFiles.open(layout, DIGEST) is None
    with pytest.raises(OSError):
        BlobFiles.create(layout, DIGEST, SIZE, EXTENT, stand_in=True)


def test_a_directory_without_its_stamp_is_no_stripe(layout: Layout) -> None:
    (layout.stripes[1] / STAMP).unlink()
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT, stand_in=True)
    assert not list((layout.stripes[1] / "blobs").iterdir())
    files.close()


def test_what_stood_in_when_a_process_was_killed_is_removed_at_the_next_start(
    layout: Layout,
) -> None:
    left = layout.stripes[0] / STAND_INS / "left"
    left.parent.mkdir()
    left.write_text("")
    layout.prepare()
    assert not left.exists()


def test_a_blob_made_anew_does_not_touch_the_files_that_readers_have_open(layout: Layout) -> None:
    stored(layout)
    paths = layout.blob_paths(DIGEST, 2)
    reader = CachedBlob(paths, [path.with_name(path.name + ".map") for path in paths])
    BlobFiles.create(layout, DIGEST, SIZE, EXTENT).close()
    assert reader.read(0, SIZE) == PAYLOAD
    reader.close()


def test_a_map_never_outlives_the_file_that_it_is_of(layout: Layout) -> None:
    """The file is new and the process is killed before its map is: the old one must be gone."""
    stored(layout)
    path = layout.blob_paths(DIGEST, 2)[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    assert not path.with_name(path.name + ".map").exists()


@pytest.mark.parametrize("change", ["write", "truncate", "extend", "unlink"])
def test_open_files_that_somebody_changes_are_not_intact(layout: Layout, change: str) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    write_whole(files, PAYLOAD)
    assert files.intact()
    files.mark_verified()
    path = files.paths[1]
    reader = CachedBlob(files.paths, files.maps)
    assert files.intact()
    assert reader.intact()
    match change:
        case "write":
            with path.open("r+b") as file:
                file.write(b"\0")
        case "truncate":
            os.truncate(path, EXTENT)
        case "extend":
            os.truncate(path, 2 * EXTENT + 1)
        case _:
            path.unlink()
    assert not files.intact()
    assert not reader.intact()
    reader.close()
    files.close()


def test_distrusted_extents_are_checked_before_they_are_believed(layout: Layout) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    write_whole(files, PAYLOAD)
    files.distrust()
    assert all(files.unchecked(extent) for extent in range(4))
    assert not files.map.available(0)
    assert files.check_extent(0)
    files.write(EXTENT, memoryview(b"wrong"))
    assert not files.check_extent(1)
    assert files.map.available(0) == EXTENT
    assert not files.reserved(1)
    files.close()


def test_a_watermark_that_moves_while_its_extent_is_distrusted_does_not_come_back(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    files.write(0, memoryview(PAYLOAD[:2000]))
    files.publish(0, 1000, 0)
    set_progress, reached, release = StripeMap.set_progress, threading.Event(), threading.Event()

    def slow(stripe: StripeMap, record: int, watermark: int, bits: int) -> None:
        if watermark:
            reached.set()
            assert release.wait(20)
        set_progress(stripe, record, watermark, bits)

    monkeypatch.setattr(StripeMap, "set_progress", slow)
    writer = threading.Thread(target=files.publish, args=(0, 2000, 1000))
    writer.start()
    assert reached.wait(20)
    doubter = threading.Thread(target=files.distrust)
    doubter.start()
    doubter.join(0.2)  # it cannot end before the writer does
    release.set()
    writer.join()
    doubter.join()
    assert files.map.available(0) == 0
    files.close()
