"""A blob opened for reading: its bytes in order over stripes, and open readers always finish."""

import os
from pathlib import Path

import pytest

from headstart.store.cached_blob import CachedBlob
from headstart.store.extent_map import BlobMap, MapDamaged
from headstart.store.geometry import MIB, UNIT_SIZE, Geometry
from tests.store.stored_objects import create_maps, map_paths, open_descriptors, pattern

GEOMETRY = Geometry(5 * MIB + 100, MIB, 3)


def file_paths(directory: Path) -> list[Path]:
    return [directory / f"{stripe}.bytes" for stripe in range(GEOMETRY.stripes)]


@pytest.fixture
def maps(tmp_path: Path) -> BlobMap:
    """The filler's view of an object whose bytes are all on disk and not yet published."""
    descriptors = [os.open(path, os.O_RDWR | os.O_CREAT) for path in file_paths(tmp_path)]
    for extent in range(GEOMETRY.extents):
        start = extent * GEOMETRY.extent_size
        stripe, offset = GEOMETRY.place(start)
        os.pwrite(descriptors[stripe], pattern(start, GEOMETRY.extent_length(extent)), offset)
    for descriptor in descriptors:
        os.close(descriptor)
    return create_maps(tmp_path, GEOMETRY)


def publish(maps: BlobMap) -> None:
    for extent in range(GEOMETRY.extents):
        stripe, record = maps.locate(extent)
        stripe.set_progress(record, GEOMETRY.extent_length(extent), 0)


def opened(directory: Path) -> CachedBlob:
    return CachedBlob(file_paths(directory), map_paths(directory, GEOMETRY.stripes))


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, GEOMETRY.size),
        (0, 0),
        (MIB - 1, 2),
        (3 * MIB - 7, MIB + 14),
        (5 * MIB, 100),
        (5 * MIB + 99, 1),
    ],
)
def test_bytes_are_read_in_order_over_all_stripes(
    tmp_path: Path, maps: BlobMap, offset: int, length: int
) -> None:
    blob = opened(tmp_path)
    assert blob.read(offset, length) == pattern(offset, length)
    pieces = [os.pread(run.descriptor, run.length, run.file_offset) for run in blob.runs(0, 10)]
    assert b"".join(pieces) == pattern(0, 10)
    blob.close()
    maps.close()


def test_what_the_filler_publishes_is_available_at_once(tmp_path: Path, maps: BlobMap) -> None:
    blob = opened(tmp_path)
    assert (blob.size, blob.available(0), blob.present(), blob.verified) == (
        GEOMETRY.size,
        0,
        0,
        False,
    )
    stripe, record = maps.locate(3)
    stripe.set_progress(record, 0, 0b100)
    assert blob.available(3 * MIB + 2 * UNIT_SIZE) == UNIT_SIZE
    publish(maps)
    assert blob.available(0) == blob.present() == GEOMETRY.size
    assert blob.available(7, 50) == 50
    maps.set_verified(True)
    assert blob.verified
    blob.close()
    maps.close()


def test_an_open_blob_is_read_to_its_end_after_its_eviction(tmp_path: Path, maps: BlobMap) -> None:
    publish(maps)
    maps.set_verified(True)
    maps.close()
    blob = opened(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert blob.verified
    assert blob.available(0) == GEOMETRY.size
    assert blob.read(0, GEOMETRY.size) == pattern(0, GEOMETRY.size)
    blob.close()


def test_a_file_that_was_cut_behind_our_back_is_an_error_and_no_short_read(
    tmp_path: Path, maps: BlobMap
) -> None:
    publish(maps)
    maps.close()
    blob = opened(tmp_path)
    os.truncate(file_paths(tmp_path)[1], 10)
    with pytest.raises(OSError, match="shorter than its blob"):
        blob.read(0, GEOMETRY.size)
    blob.close()


def test_a_blob_that_cannot_be_opened_leaks_nothing(tmp_path: Path, maps: BlobMap) -> None:
    maps.close()
    before = open_descriptors()
    file_paths(tmp_path)[2].unlink()
    with pytest.raises(FileNotFoundError):
        opened(tmp_path)
    os.truncate(map_paths(tmp_path, 3)[2], 5)
    with pytest.raises(MapDamaged):
        opened(tmp_path)
    assert open_descriptors() == before


def test_closing_gives_everything_back_and_may_be_repeated(tmp_path: Path, maps: BlobMap) -> None:
    maps.close()
    before = open_descriptors()
    blob = opened(tmp_path)
    assert open_descriptors() > before
    blob.close()
    blob.close()
    assert open_descriptors() == before
