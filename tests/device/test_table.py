"""The device table: durable, and a number never means a second layer."""

import json
from pathlib import Path

import pytest

from headstart.store.geometry import EXTENT_SIZE, Geometry
from mount.device.table import DeviceTable, TableDamaged
from tests.device.layers import known_layer

SIZE = 5 * EXTENT_SIZE + 4096


@pytest.fixture
def table(tmp_path: Path) -> DeviceTable:
    return DeviceTable(tmp_path)


def test_what_was_added_is_there_after_a_restart(table: DeviceTable, tmp_path: Path) -> None:
    number = table.add(known_layer("a"), SIZE, EXTENT_SIZE, 3)
    again = DeviceTable(tmp_path)
    device = again.get(number)
    assert device is not None
    assert device.layer == known_layer("a")
    assert device.geometry == Geometry(SIZE, EXTENT_SIZE, 3)
    assert again.numbers() == [number]


def test_the_same_layer_has_the_same_number(table: DeviceTable) -> None:
    first = table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1)
    other = table.add(known_layer("b"), SIZE, EXTENT_SIZE, 1)
    assert table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1) == first
    assert other != first
    assert table.numbers() == [first, other]


def test_a_device_never_changes_its_size(table: DeviceTable) -> None:
    table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1)
    with pytest.raises(ValueError, match="cannot become"):
        table.add(known_layer("a"), SIZE + 4096, EXTENT_SIZE, 1)


def test_a_number_is_not_given_out_twice(table: DeviceTable, tmp_path: Path) -> None:
    number = table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1)
    table.remove(number)
    table.remove(number)
    assert table.get(number) is None
    assert table.numbers() == []
    assert DeviceTable(tmp_path).add(known_layer("b"), SIZE, EXTENT_SIZE, 1) > number


def test_files_of_a_device_are_whole_pages_long(table: DeviceTable) -> None:
    number = table.add(known_layer("a"), 3 * EXTENT_SIZE + 4096, EXTENT_SIZE, 2)
    device = table.get(number)
    assert device is not None
    assert [device.file_size(stripe) for stripe in range(2)] == [
        2 * EXTENT_SIZE,
        EXTENT_SIZE + 4096,
    ]


def test_paths_are_below_the_mount(table: DeviceTable, tmp_path: Path) -> None:
    assert table.device_paths(7, 2) == [tmp_path / "devices-fs/7.0", tmp_path / "devices-fs/7.1"]


@pytest.mark.parametrize(
    ("size", "extent_size", "stripes"),
    [
        (-4096, EXTENT_SIZE, 1),
        (4095, EXTENT_SIZE, 1),
        (4096, 1000, 1),
        (4096, 0, 1),
        (4096, EXTENT_SIZE, 0),
        (4096, EXTENT_SIZE, 65),
    ],
)
def test_a_geometry_that_cannot_be_shown_is_refused(
    table: DeviceTable, size: int, extent_size: int, stripes: int
) -> None:
    with pytest.raises(ValueError, match="data device"):
        table.add(known_layer("a"), size, extent_size, stripes)
    assert table.numbers() == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "layer": {}}', "\0\xff"]
)
def test_a_damaged_record_is_named(table: DeviceTable, tmp_path: Path, content: str) -> None:
    number = table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1)
    (tmp_path / f"devices/{number}.json").write_text(content, encoding="latin-1")
    with pytest.raises(TableDamaged, match=f"devices/{number}.json"):
        table.get(number)


def test_a_record_half_written_is_no_record(table: DeviceTable, tmp_path: Path) -> None:
    (tmp_path / "devices/.3.new").write_text('{"version":', encoding="ascii")
    assert table.numbers() == []
    assert table.add(known_layer("a"), SIZE, EXTENT_SIZE, 1) == 1
    assert json.loads((tmp_path / "devices/1.json").read_text())["size"] == SIZE
