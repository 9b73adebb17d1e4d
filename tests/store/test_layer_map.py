"""The map of a layer image: blocks in, blocks out; damage is never believed."""

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.store.geometry import EXTENT_SIZE, MIB, UNIT_SIZE, Geometry
from headstart.store.layer_map import (
    BLOCK_SIZE,
    FLAG_COMPLETE,
    FLAG_DOUBTED,
    FLAG_VERIFIED,
    LayerMap,
    LayerStripeMap,
    MapDamaged,
    MetaRecord,
)
from headstart.store.map_file import STATE_HASHED, STATE_UNCHECKED, boot_id
from tests.store.stored_objects import open_descriptors

THREE_STRIPES = Geometry(5 * MIB + 3 * BLOCK_SIZE, MIB, 3)


def paths_of(directory: Path, geometry: Geometry) -> list[Path]:
    return [directory / f"{stripe}.map" for stripe in range(geometry.stripes)]


def created(directory: Path, geometry: Geometry) -> LayerMap:
    return LayerMap(
        [
            LayerStripeMap.create(path, geometry, number)
            for number, path in enumerate(paths_of(directory, geometry))
        ]
    )


@contextmanager
def maps_of(geometry: Geometry) -> Iterator[tuple[LayerMap, LayerMap]]:
    """The filler's mapping of a layer image and a reader's."""
    with tempfile.TemporaryDirectory() as directory:
        writer = created(Path(directory), geometry)
        reader = LayerMap.open(paths_of(Path(directory), geometry))
        try:
            yield writer, reader
        finally:
            writer.close()
            reader.close()


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    extent_size = draw(st.sampled_from([UNIT_SIZE, 3 * UNIT_SIZE, EXTENT_SIZE]))
    blocks = draw(st.integers(0, 4 * min(extent_size, MIB) // BLOCK_SIZE))
    return Geometry(blocks * BLOCK_SIZE, extent_size, draw(st.integers(1, 3)))


def set_bytes(layer_map: LayerMap, start: int, stop: int) -> None:
    """Publish whole blocks, wherever they lie."""
    extent_size = layer_map.geometry.extent_size
    while start < stop:
        extent, within = divmod(start, extent_size)
        reached = min(extent_size, within + stop - start)
        stripe, record = layer_map.locate(extent)
        stripe.set_blocks(record, within // BLOCK_SIZE, reached // BLOCK_SIZE)
        start += reached - within


@settings(max_examples=150, deadline=None)
@given(geometries(), st.data())
def test_readers_see_the_blocks_that_were_set_and_no_others(
    geometry: Geometry, data: st.DataObject
) -> None:
    blocks = geometry.size // BLOCK_SIZE
    here: set[int] = set()
    with maps_of(geometry) as (writer, reader):
        for _ in range(data.draw(st.integers(0, 6))):
            first = data.draw(st.integers(0, blocks))
            stop = data.draw(st.integers(first, blocks))
            set_bytes(writer, first * BLOCK_SIZE, stop * BLOCK_SIZE)
            here.update(range(first, stop))
        assert reader.present() == len(here) * BLOCK_SIZE
        for extent in range(geometry.extents):
            stripe, record = reader.locate(extent)
            first = data.draw(st.integers(0, reader.blocks(extent)))
            stop = data.draw(st.integers(first, reader.blocks(extent)))
            base = extent * geometry.extent_size // BLOCK_SIZE
            expected = sum(block in here for block in range(base + first, base + stop))
            assert stripe.count(record, first, stop) == expected
        for _ in range(4):
            offset = data.draw(st.integers(0, geometry.size + BLOCK_SIZE))
            limit = data.draw(st.sampled_from([0, 1, BLOCK_SIZE, 3 * MIB, 1 << 40]))
            end = min(geometry.size, offset + limit)
            position = offset
            while position < end and position // BLOCK_SIZE in here:
                position = (position // BLOCK_SIZE + 1) * BLOCK_SIZE
            assert reader.available(offset, limit) == max(0, min(position, end) - offset)
        for extent in range(geometry.extents):
            first = extent * geometry.extent_size // BLOCK_SIZE
            assert reader.whole(extent) == here.issuperset(
                range(first, first + writer.blocks(extent))
            )


def test_a_run_of_blocks_ends_before_the_extent_that_is_unchecked() -> None:
    with maps_of(Geometry(3 * MIB, MIB, 1)) as (writer, reader):
        set_bytes(writer, 0, 3 * MIB)
        assert reader.available(5, 1 << 40) == 3 * MIB - 5
        stripe, record = writer.locate(1)
        stripe.set_state(record, STATE_HASHED | STATE_UNCHECKED)
        assert reader.available(5, 1 << 40) == MIB - 5
        assert reader.available(MIB, 1) == 0
        assert reader.available(2 * MIB, 10) == 10
        assert reader.present() == 2 * MIB
        assert not reader.whole(1)


def test_clearing_an_extent_leaves_its_neighbours_alone() -> None:
    with maps_of(Geometry(3 * MIB, MIB, 1)) as (writer, reader):
        set_bytes(writer, 0, 3 * MIB)
        for extent in range(3):
            writer.stripes[0].set_blake3(extent, bytes([extent + 1]) * 32)
        writer.stripes[0].clear(1)
        assert [reader.whole(extent) for extent in range(3)] == [True, False, True]
        assert [reader.stripes[0].blake3(extent)[0] for extent in range(3)] == [1, 0, 3]
        assert [reader.stripes[0].state(extent) for extent in range(3)] == [1, 0, 1]


def test_what_is_cleared_is_not_believed_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with maps_of(Geometry(MIB, MIB, 1)) as (writer, reader):
        stripe, record = writer.locate(0)
        set_bytes(writer, 0, MIB)
        stripe.set_state(record, STATE_HASHED | STATE_UNCHECKED)
        seen: list[int] = []
        set_state = LayerStripeMap.set_state

        def watched(stripe: LayerStripeMap, record: int, state: int) -> None:
            set_state(stripe, record, state)
            seen.append(reader.available(0, MIB))

        monkeypatch.setattr(LayerStripeMap, "set_state", watched)
        stripe.clear(record)
        assert seen == [0]


def test_verified_needs_every_stripe_and_no_doubt() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):

        def state() -> tuple[bool, bool, bool]:
            return reader.complete, reader.verified, reader.doubted

        writer.set_flag(FLAG_VERIFIED, True)
        assert state() == (False, False, False)
        writer.set_flag(FLAG_VERIFIED, False)
        writer.set_flag(FLAG_COMPLETE, True)
        assert state() == (True, False, False)
        assert reader.available(0, 1 << 40) == THREE_STRIPES.size
        writer.set_flag(FLAG_VERIFIED, True)
        assert state() == (True, True, False)
        writer.stripes[2].set_flags(FLAG_COMPLETE)
        assert state() == (True, False, False)
        writer.set_flag(FLAG_VERIFIED, True)
        writer.stripes[1].set_flags(FLAG_COMPLETE | FLAG_VERIFIED | FLAG_DOUBTED)
        assert state() == (False, False, True)
        assert reader.available(0, 1) == 0
        writer.set_flag(FLAG_DOUBTED, False)
        assert state() == (True, True, False)


def test_the_header_remembers_file_metadata_and_boot() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):
        assert reader.stripes[1].boot == boot_id()
        assert reader.stripes[1].recorded == (0, 0)
        assert reader.stripes[0].meta == MetaRecord(0, 0, bytes(32))
        writer.stripes[1].record(123, 456)
        writer.stripes[1].set_boot(b"another boot ago")
        writer.stripes[0].record_meta(MetaRecord(7, 8, b"m" * 32))
        assert reader.stripes[1].recorded == (123, 456)
        assert reader.stripes[1].boot == b"another boot ago"
        assert reader.stripes[0].meta == MetaRecord(7, 8, b"m" * 32)
        assert reader.stripes[0].recorded == (0, 0)
        assert reader.geometry == THREE_STRIPES


def test_the_format_on_disk_is_the_documented_one(tmp_path: Path) -> None:
    """Read without the module, every byte of it: a changed layout needs another version."""
    writer = created(tmp_path, THREE_STRIPES)
    for number, stripe in enumerate(writer.stripes):
        stripe.set_boot(bytes(range(16)))
        stripe.record(77 + number, 88)
    writer.stripes[0].record_meta(MetaRecord(99, 111, b"m" * 32))
    writer.set_flag(FLAG_COMPLETE | FLAG_DOUBTED, True)
    set_bytes(writer, 3 * MIB + BLOCK_SIZE, 3 * MIB + 11 * BLOCK_SIZE)
    stripe, record = writer.locate(3)
    stripe.set_blake3(record, bytes(range(32)))
    stripe.set_state(record, STATE_HASHED | STATE_UNCHECKED)
    stripe, record = writer.locate(4)
    set_bytes(writer, 4 * MIB, 5 * MIB)
    writer.close()
    size, extent_size = THREE_STRIPES.size, THREE_STRIPES.extent_size
    header = struct.Struct("<8s8Q16sQQ32s56x")
    head = (b"HSLYRMAP", 1, 1 | 4, size, extent_size, 3)
    first = header.pack(*head, 0, 77, 88, bytes(range(16)), 99, 111, b"m" * 32)
    first += bytes(64 + 32)  # extent 0
    first += struct.pack("<Q24x32s", 1 | 2, bytes(range(32))) + b"\xfe\x07" + bytes(30)
    second = header.pack(*head, 1, 78, 88, bytes(range(16)), 0, 0, b"")
    second += bytes(64 + 32)  # extent 1
    second += bytes(64) + b"\xff" * 32
    assert (tmp_path / "0.map").read_bytes() == first
    assert (tmp_path / "1.map").read_bytes() == second


def test_a_device_without_bytes_has_a_map(tmp_path: Path) -> None:
    made = created(tmp_path, Geometry(0, MIB, 2))
    assert made.available(0, 10) == 0
    assert made.present() == 0
    made.close()


def test_a_device_of_half_a_block_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        LayerStripeMap.create(tmp_path / "map", Geometry(BLOCK_SIZE + 1, MIB, 1), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (0, 0x5041_4D4C_4253_4850),  # another magic
        (1, 99),  # another version
        (3, 5 * MIB + 1),  # no whole blocks
        (3, 6 * MIB),  # more extents than records
        (3, (1 << 63) + MIB),
        (4, 0),
        (4, MIB + 1),
        (4, 2 * EXTENT_SIZE),
        (5, 0),
        (5, 1),
        (6, 3),
    ],
)
def test_a_header_that_does_not_fit_is_damage(tmp_path: Path, word: int, value: int) -> None:
    created(tmp_path, THREE_STRIPES).close()
    before = open_descriptors()
    with open(tmp_path / "1.map", "r+b") as file:
        file.seek(word * 8)
        file.write(struct.pack("<Q", value))
    with pytest.raises(MapDamaged):
        LayerMap.open(paths_of(tmp_path, THREE_STRIPES))
    assert open_descriptors() == before


@pytest.mark.parametrize("length", [0, 100, 191, 200, 1000])
def test_a_map_cut_short_is_damage(tmp_path: Path, length: int) -> None:
    created(tmp_path, THREE_STRIPES).close()
    os.truncate(tmp_path / "0.map", length)
    with pytest.raises(MapDamaged):
        LayerMap.open(paths_of(tmp_path, THREE_STRIPES))


def test_maps_of_different_images_are_not_joined(tmp_path: Path) -> None:
    created(tmp_path, THREE_STRIPES).close()
    other = tmp_path / "other"
    other.mkdir()
    created(other, Geometry(6 * MIB, MIB, 3)).close()
    os.replace(other / "2.map", tmp_path / "2.map")
    with pytest.raises(MapDamaged, match="stripe 2"):
        LayerMap.open(paths_of(tmp_path, THREE_STRIPES))
    with pytest.raises(MapDamaged):
        LayerMap([])


def test_a_map_that_the_disk_has_no_room_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fstatvfs", lambda descriptor: os.statvfs_result((1,) * 10))
    with pytest.raises(OSError, match="No space"):
        LayerStripeMap.create(tmp_path / "map", THREE_STRIPES, 0)
    assert not list(tmp_path.iterdir())


@given(geometries())
def test_a_map_file_has_room_for_every_block(geometry: Geometry) -> None:
    for stripe in range(geometry.stripes):
        length = LayerStripeMap.length(geometry, stripe)
        bits = (length - 192 - 64 * geometry.stripe_extents(stripe)) * 8
        assert bits >= geometry.stripe_length(stripe) // BLOCK_SIZE
        assert length % 8 == 0
