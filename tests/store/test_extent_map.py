"""The shared map: what the filler publishes is what readers see, and damage is never believed."""

import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.store.extent_map import (
    STATE_HASHED,
    STATE_UNCHECKED,
    BlobMap,
    MapDamaged,
    StripeMap,
    boot_id,
)
from headstart.store.geometry import EXTENT_SIZE, MIB, UNIT_SIZE, Geometry
from tests.store.stored_objects import create_maps, geometries, map_paths, open_descriptors

THREE_STRIPES = Geometry(5 * MIB + 100, MIB, 3)


@contextmanager
def maps_of(geometry: Geometry) -> Iterator[tuple[BlobMap, BlobMap]]:
    """The filler's mapping of an object and a reader's."""
    with tempfile.TemporaryDirectory() as directory:
        writer = create_maps(Path(directory), geometry)
        reader = BlobMap.open(map_paths(Path(directory), geometry.stripes))
        try:
            yield writer, reader
        finally:
            writer.close()
            reader.close()


class Model:
    """Which bytes are here, said with one flag a byte border: slow, plain and separate."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.watermarks = [0] * geometry.extents
        self.units: list[set[int]] = [set() for _ in range(geometry.extents)]
        self.unchecked: set[int] = set()

    def here(self, offset: int) -> bool:
        extent, within = divmod(offset, self.geometry.extent_size)
        if extent in self.unchecked:
            return False
        return within < self.watermarks[extent] or within // UNIT_SIZE in self.units[extent]

    def borders(self) -> list[int]:
        """All offsets at which presence can change."""
        found = {0, self.geometry.size}
        for extent in range(self.geometry.extents):
            base = extent * self.geometry.extent_size
            found.add(base + self.watermarks[extent])
            found.update(
                min(self.geometry.size, base + unit * UNIT_SIZE)
                for unit in range(self.geometry.extent_units(extent) + 1)
            )
        return sorted(found)

    def available(self, offset: int) -> int:
        position = offset
        while position < self.geometry.size and self.here(position):
            position = min(border for border in self.borders() if border > position)
        return max(0, position - offset)

    def present(self) -> int:
        return sum(
            after - before
            for before, after in itertools.pairwise(self.borders())
            if self.here(before)
        )


@st.composite
def states(draw: st.DrawFn) -> Model:
    """An object some of whose bytes have come."""
    geometry = draw(geometries(most_extents=4).filter(lambda drawn: drawn.extent_size < 4 * MIB))
    model = Model(geometry)
    for extent in range(geometry.extents):
        length, units = geometry.extent_length(extent), geometry.extent_units(extent)
        model.units[extent] = set(draw(st.lists(st.integers(0, units - 1), max_size=units)))
        edge = draw(st.integers(0, units)) * UNIT_SIZE + draw(st.integers(-1, 1))
        watermark = min(max(edge, 0), length)
        while watermark < length and watermark // UNIT_SIZE in model.units[extent]:
            watermark = min(length, (watermark // UNIT_SIZE + 1) * UNIT_SIZE)
        model.watermarks[extent] = watermark
        if draw(st.integers(0, 5)) == 0:
            model.unchecked.add(extent)
    return model


def write(model: Model, maps: BlobMap) -> None:
    """Bring the maps into the model's state."""
    for extent in range(model.geometry.extents):
        stripe, record = maps.locate(extent)
        bits = sum(1 << unit for unit in model.units[extent])
        stripe.set_progress(record, model.watermarks[extent], bits)
        stripe.set_state(record, STATE_UNCHECKED if extent in model.unchecked else 0)


@settings(max_examples=60)
@given(states(), st.data())
def test_a_reader_sees_exactly_the_bytes_that_were_published(
    model: Model, data: st.DataObject
) -> None:
    size = model.geometry.size
    with maps_of(model.geometry) as (writer, reader):
        write(model, writer)
        for border in model.borders():
            for offset in (border - 1, border, border + 1):
                if 0 <= offset <= size:
                    assert reader.available(offset) == model.available(offset)
        offset, limit = data.draw(st.integers(0, size)), data.draw(st.integers(0, size))
        assert reader.available(offset, limit) == min(limit, model.available(offset))
        assert reader.present() == model.present()
        for extent in range(model.geometry.extents):
            length = model.geometry.extent_length(extent)
            whole = extent not in model.unchecked and model.watermarks[extent] == length
            assert reader.whole(extent) == whole
        assert reader.complete() == all(map(reader.whole, range(model.geometry.extents)))


def test_nothing_is_available_beyond_the_end() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):
        for extent in range(THREE_STRIPES.extents):
            stripe, record = writer.locate(extent)
            stripe.set_progress(record, THREE_STRIPES.extent_length(extent), (1 << 128) - 1)
        assert reader.available(0) == THREE_STRIPES.size
        assert reader.available(THREE_STRIPES.size - 1) == 1
        assert reader.available(THREE_STRIPES.size) == 0
        assert reader.available(THREE_STRIPES.size + 5 * MIB) == 0
        assert reader.available(10, 0) == 0
        assert reader.complete()


def test_progress_is_seen_at_once_through_another_mapping() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):
        stripe, record = writer.locate(4)
        assert reader.available(4 * MIB) == 0
        stripe.set_progress(record, 1000, 0)
        assert reader.available(4 * MIB) == 1000
        stripe.set_progress(record, 1000, 0b10)
        assert reader.available(4 * MIB) == 1000
        assert reader.available(4 * MIB + UNIT_SIZE) == UNIT_SIZE
        stripe.clear(record)
        assert reader.available(4 * MIB) == 0


def test_between_the_two_stores_of_a_publication_a_reader_sees_what_is_there() -> None:
    """The bits are stored before the watermark that jumps over them."""
    with maps_of(THREE_STRIPES) as (writer, reader):
        stripe, record = writer.locate(0)
        stripe.set_progress(record, 1000, 0b1)
        assert reader.available(0) == UNIT_SIZE
        assert reader.available(2000) == UNIT_SIZE - 2000
        assert reader.present() <= UNIT_SIZE


def test_all_128_unit_bits_of_an_extent_are_kept_apart() -> None:
    geometry = Geometry(2 * EXTENT_SIZE, EXTENT_SIZE, 1)
    with maps_of(geometry) as (writer, reader):
        stripe, record = writer.locate(1)
        for unit in range(128):
            stripe.set_progress(record, 0, 1 << unit)
            offset = EXTENT_SIZE + unit * UNIT_SIZE
            assert reader.available(offset) == UNIT_SIZE
            assert reader.present() == UNIT_SIZE
            assert reader.available(EXTENT_SIZE - UNIT_SIZE) == 0


def test_an_unchecked_extent_is_not_believed_until_it_is_checked() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):
        stripe, record = writer.locate(0)
        stripe.set_progress(record, MIB, 0)
        stripe.set_blake3(record, b"\x07" * 32)
        stripe.set_state(record, STATE_HASHED | STATE_UNCHECKED)
        assert (reader.available(0), reader.whole(0), reader.present()) == (0, False, 0)
        stripe.set_state(record, STATE_HASHED)
        assert (reader.available(0), reader.whole(0), reader.present()) == (MIB, True, MIB)
        assert reader.stripes[0].blake3(record) == b"\x07" * 32


def test_an_object_is_verified_when_all_its_stripes_say_so() -> None:
    with maps_of(THREE_STRIPES) as (writer, reader):
        writer.set_verified(True)
        said = [reader.verified]
        writer.stripes[1].set_flags(0)
        said.append(reader.verified)
        writer.set_verified(True)
        writer.set_verified(False)
        said.append(reader.verified)
        assert said == [True, False, False]


def test_what_is_recorded_outlives_the_mapping(tmp_path: Path) -> None:
    writer = create_maps(tmp_path, THREE_STRIPES)
    for number, stripe in enumerate(writer.stripes):
        assert stripe.boot == boot_id()
        assert stripe.recorded == (0, 0)
        stripe.record(1000 + number, 1 << 62)
        stripe.set_boot(bytes(range(16)))
        stripe.sync()
    writer.close()
    reader = BlobMap.open(map_paths(tmp_path, 3))
    assert [stripe.recorded for stripe in reader.stripes] == [
        (1000 + number, 1 << 62) for number in range(3)
    ]
    assert {stripe.boot for stripe in reader.stripes} == {bytes(range(16))}
    assert reader.geometry == THREE_STRIPES
    reader.close()
    reader.close()  # closing twice is allowed


def test_the_format_on_disk_is_the_documented_one(tmp_path: Path) -> None:
    """Read without the module, every byte of it: a changed layout needs another version."""
    writer = create_maps(tmp_path, THREE_STRIPES)
    stripe, record = writer.locate(4)
    stripe.set_progress(record, 12345, 1 << 127 | 1)
    stripe.set_blake3(record, bytes(range(32)))
    stripe.record(77, 88)
    stripe.set_boot(bytes(range(16)))
    writer.set_verified(True)
    writer.close()
    size, extent_size = THREE_STRIPES.size, THREE_STRIPES.extent_size
    header = (b"HSBLBMAP", 1, 1, size, extent_size, 3, 1, 77, 88, bytes(range(16)))
    expected = struct.pack("<8s8Q16s40x", *header)
    expected += bytes(64)  # extent 1
    expected += struct.pack("<QQQQ32s", 12345, 1, 1 << 63, STATE_HASHED, bytes(range(32)))
    assert map_paths(tmp_path, 3)[1].read_bytes() == expected


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    reader = BlobMap.open(map_paths(tmp_path, 3))
    with pytest.raises(TypeError):
        reader.set_verified(True)
    reader.close()


# --- damage ---

FIELDS = {"version": 8, "size": 24, "extent_size": 32, "stripes": 40, "stripe": 48}


def damage(path: Path, offset: int, payload: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, payload, offset)
    os.close(descriptor)


def assert_refused(paths: list[Path]) -> None:
    before = open_descriptors()
    for writable in (False, True):
        with pytest.raises((MapDamaged, OSError)) as raised:
            BlobMap.open(paths, writable=writable)
        # Counted while the error is alive, and with it whatever its frames still hold.
        assert (open_descriptors(), bool(raised.tb)) == (before, True)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("number", [0, 1, 7, MIB + 1, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("stripe", [0, 2])
def test_a_changed_header_is_refused(tmp_path: Path, field: str, number: int, stripe: int) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    paths = map_paths(tmp_path, 3)
    before = paths[stripe].read_bytes()
    damage(paths[stripe], FIELDS[field], struct.pack("<Q", number))
    if paths[stripe].read_bytes() != before:
        assert_refused(paths)


@pytest.mark.parametrize("length", [0, 1, 64, 127, 128, 129, 128 + 63, 128 + 64, 128 + 192, 4096])
def test_a_truncated_or_extended_map_is_refused(tmp_path: Path, length: int) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    paths = map_paths(tmp_path, 3)
    os.truncate(paths[1], length)
    assert_refused(paths)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    paths = map_paths(tmp_path, 3)
    for content in (b"\0" * 256, os.urandom(256), b"HSBLBMAP" + b"\xff" * 248):
        paths[2].write_bytes(content)
        assert_refused(paths)
    paths[2].unlink()
    assert_refused(paths)
    paths[2].mkdir()
    assert_refused(paths)


def test_maps_of_different_objects_are_not_joined(tmp_path: Path) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    other = tmp_path / "other"
    other.mkdir()
    create_maps(other, Geometry(THREE_STRIPES.size + 1, MIB, 3)).close()
    paths = map_paths(tmp_path, 3)
    assert_refused([paths[0], map_paths(other, 3)[1], paths[2]])


def test_stripes_are_neither_swapped_nor_left_out(tmp_path: Path) -> None:
    create_maps(tmp_path, THREE_STRIPES).close()
    first, second, third = map_paths(tmp_path, 3)
    assert_refused([second, first, third])
    assert_refused([first, second])
    assert_refused([first, second, third, third])
    assert_refused([])


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_bit_in_a_map_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever is read afterwards stays inside the object; nothing but MapDamaged is raised."""
    geometry = Geometry(2 * MIB + 5, MIB, 1)
    with tempfile.TemporaryDirectory() as directory:
        create_maps(Path(directory), geometry).close()
        paths = map_paths(Path(directory), 1)
        content = bytearray(paths[0].read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        paths[0].write_bytes(content)
        try:
            opened = BlobMap.open(paths)
        except MapDamaged:
            return
        try:
            for offset in range(0, geometry.size, UNIT_SIZE):
                assert 0 <= opened.available(offset) <= opened.geometry.size - offset
        finally:
            opened.close()


def test_a_map_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match="No such file"):
        StripeMap.create(tmp_path / "missing" / "x.map", THREE_STRIPES, 0)
    path = tmp_path / "x.map"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        StripeMap.create(path, THREE_STRIPES, 0)
    path.rmdir()
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before
