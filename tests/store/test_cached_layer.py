"""A layer image as the mount reads it, in another process than the one that fills it."""

import os
import threading
from pathlib import Path

import pytest

from headstart.store.cached_layer import CachedLayer
from headstart.store.geometry import MIB, UNIT_SIZE, Geometry
from headstart.store.layer_map import (
    FLAG_COMPLETE,
    FLAG_VERIFIED,
    LayerMap,
    LayerStripeMap,
    MapDamaged,
    MetaRecord,
)
from tests.store.stored_objects import open_descriptors, pattern

GEOMETRY = Geometry(9 * UNIT_SIZE + 8192, 2 * UNIT_SIZE, 3)
PAYLOAD = pattern(0, GEOMETRY.size)


class Stored:
    """The files of a layer image, all bytes written, nothing published."""

    def __init__(self, directory: Path) -> None:
        self.meta = directory / "image.meta"
        self.devices = [directory / f"{stripe}" for stripe in range(GEOMETRY.stripes)]
        self.map_paths = [directory / f"{stripe}.map" for stripe in range(GEOMETRY.stripes)]
        self.meta.write_bytes(b"metadata")
        for stripe, path in enumerate(self.devices):
            with path.open("wb") as file:
                file.truncate(GEOMETRY.stripe_length(stripe))
        position = 0
        for stripe, file_offset, length in GEOMETRY.runs(0, GEOMETRY.size):
            with self.devices[stripe].open("r+b") as file:
                file.seek(file_offset)
                file.write(PAYLOAD[position : position + length])
            position += length
        self.map = LayerMap(
            [
                LayerStripeMap.create(path, GEOMETRY, number)
                for number, path in enumerate(self.map_paths)
            ]
        )

    def opened(self) -> CachedLayer:
        return CachedLayer(self.meta, self.devices, self.map_paths)

    def publish(self, extent: int) -> None:
        stripe, record = self.map.locate(extent)
        stripe.set_blocks(record, 0, self.map.blocks(extent))

    def complete(self) -> None:
        for stripe, path in enumerate(self.devices):
            status = path.stat()
            self.map.stripes[stripe].record(status.st_size, status.st_ctime_ns)
        status = self.meta.stat()
        self.map.stripes[0].record_meta(MetaRecord(status.st_size, status.st_ctime_ns, bytes(32)))
        self.map.set_flag(FLAG_COMPLETE | FLAG_VERIFIED, True)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def test_bytes_that_are_published_are_read_across_stripes(stored: Stored) -> None:
    reader = stored.opened()
    assert reader.size == GEOMETRY.size
    assert reader.geometry == GEOMETRY
    assert reader.available(0, MIB) == 0
    for extent in (0, 1, 2, 4):
        stored.publish(extent)
    three = 3 * GEOMETRY.extent_size
    assert reader.available(100, 1 << 40) == three - 100
    assert reader.read(100, three - 100) == PAYLOAD[100:three]
    assert reader.available(4 * GEOMETRY.extent_size, 1 << 40) == GEOMETRY.extent_length(4)
    assert reader.read(GEOMETRY.size - 3, 3) == PAYLOAD[-3:]
    assert reader.read(17, 0) == b""
    assert reader.present() == three + GEOMETRY.extent_length(4)
    assert not reader.complete
    reader.close()


def test_a_complete_image_is_intact_until_a_file_changes(stored: Stored) -> None:
    stored.complete()
    for path in (*stored.devices, stored.meta):
        reader = stored.opened()
        assert reader.verified and reader.intact()
        os.utime(path)
        assert not reader.intact(), path
        reader.close()
        stored.complete()


def test_a_file_of_another_length_is_not_intact(stored: Stored) -> None:
    reader = stored.opened()
    assert CachedLayer(None, stored.devices, stored.map_paths).intact()
    os.truncate(stored.devices[1], 10)
    assert not reader.intact()
    with pytest.raises(OSError, match="stripe 1"):
        reader.read(GEOMETRY.extent_size, 100)


def test_what_is_in_the_page_cache_is_read_without_waiting(stored: Stored) -> None:
    reader = stored.opened()
    border = GEOMETRY.extent_size
    assert reader.read(0, 2 * border) == PAYLOAD[: 2 * border]  # so that it is there
    found = bytearray(10_000)
    if reader.read_at_once(border - 5000, memoryview(found)):
        assert found == PAYLOAD[border - 5000 : border + 5000], "of two stripes"
    os.truncate(stored.devices[0], 4096)
    assert not reader.read_at_once(0, memoryview(bytearray(8192)))
    reader.close()


def test_an_evicted_image_can_still_be_read(stored: Stored) -> None:
    stored.complete()
    reader = stored.opened()
    for path in (*stored.devices, *stored.map_paths, stored.meta):
        path.unlink()
    assert reader.read(0, reader.available(0, 1 << 40)) == PAYLOAD
    reader.close()
    reader.close()


def test_threads_read_at_once(stored: Stored) -> None:
    stored.complete()
    reader = stored.opened()
    wrong: list[int] = []

    def read(seed: int) -> None:
        for turn in range(50):
            offset = (seed * 7919 + turn * 104_729) % GEOMETRY.size
            length = min(100_000, GEOMETRY.size - offset)
            if reader.read(offset, length) != PAYLOAD[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_cannot_be_opened_leaves_nothing_open(stored: Stored) -> None:
    stored.map.close()
    before = open_descriptors()
    with pytest.raises(MapDamaged):
        CachedLayer(None, stored.devices[:2], stored.map_paths)
    stored.devices[2].unlink()
    with pytest.raises(FileNotFoundError):
        stored.opened()
    stored.map_paths[1].write_bytes(b"no map")
    with pytest.raises(MapDamaged):
        stored.opened()
    assert open_descriptors() == before
