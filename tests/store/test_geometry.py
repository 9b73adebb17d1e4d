"""Where bytes lie, against a model that deals extents out to stripes one by one."""

from hypothesis import given
from hypothesis import strategies as st

from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, UNITS_PER_EXTENT, Geometry
from tests.store.stored_objects import geometries


def dealt(geometry: Geometry) -> list[tuple[int, int, int]]:
    """(stripe, offset in its file, length) of every extent, in order."""
    ends = [0] * geometry.stripes
    extents: list[tuple[int, int, int]] = []
    start = 0
    while start < geometry.size:
        stripe = len(extents) % geometry.stripes
        length = min(geometry.extent_size, geometry.size - start)
        extents.append((stripe, ends[stripe], length))
        ends[stripe] += length
        start += length
    return extents


@given(geometries())
def test_extents_are_dealt_out_to_the_stripes_in_turn(geometry: Geometry) -> None:
    model = dealt(geometry)
    assert geometry.extents == len(model)
    for extent, (stripe, file_offset, length) in enumerate(model):
        assert geometry.stripe_of(extent) == stripe
        assert geometry.place(extent * geometry.extent_size) == (stripe, file_offset)
        assert geometry.extent_length(extent) == length
        assert geometry.extent_units(extent) == -(-length // UNIT_SIZE)


@given(geometries())
def test_the_stripes_together_are_the_object(geometry: Geometry) -> None:
    model = dealt(geometry)
    for stripe in range(geometry.stripes):
        mine = [length for owner, _, length in model if owner == stripe]
        assert geometry.stripe_extents(stripe) == len(mine)
        assert geometry.stripe_length(stripe) == sum(mine)
    assert sum(map(geometry.stripe_length, range(geometry.stripes))) == geometry.size


@given(geometries())
def test_the_units_of_the_extents_are_those_of_the_object(geometry: Geometry) -> None:
    assert geometry.units == sum(map(geometry.extent_units, range(geometry.extents)))
    assert geometry.units_per_extent * UNIT_SIZE == geometry.extent_size


@given(geometries().filter(lambda geometry: geometry.size > 0), st.data())
def test_runs_tile_the_bytes_exactly_and_in_order(geometry: Geometry, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, geometry.size))
    stop = data.draw(st.integers(start, geometry.size))
    position = start
    for stripe, file_offset, length in geometry.runs(start, stop):
        assert length > 0
        assert (stripe, file_offset) == geometry.place(position)
        assert geometry.place(position + length - 1) == (stripe, file_offset + length - 1)
        position += length
    assert position == stop


@given(geometries().filter(lambda geometry: geometry.size > 0), st.data())
def test_no_two_bytes_share_a_place(geometry: Geometry, data: st.DataObject) -> None:
    offsets = st.integers(0, geometry.size - 1)
    first, second = data.draw(offsets), data.draw(offsets)
    assert (geometry.place(first) == geometry.place(second)) == (first == second)
    stripe, file_offset = geometry.place(first)
    assert 0 <= file_offset < geometry.stripe_length(stripe)


@given(geometries())
def test_with_one_directory_the_file_is_the_blob(geometry: Geometry) -> None:
    single = Geometry(geometry.size, geometry.extent_size, 1)
    runs = list(single.runs(0, single.size))
    assert runs == ([(0, 0, single.size)] if single.size else [])


def test_sizes_of_the_format() -> None:
    """They are in files on disk: other values need another format version."""
    assert UNIT_SIZE == 256 * 1024
    assert EXTENT_SIZE == 32 * 1024 * 1024
    assert UNITS_PER_EXTENT == 128


def test_an_empty_object_has_no_extent() -> None:
    empty = Geometry(0, EXTENT_SIZE, 3)
    assert (empty.extents, empty.units) == (0, 0)
    assert list(empty.runs(0, 0)) == []
    assert [empty.stripe_length(stripe) for stripe in range(3)] == [0, 0, 0]
