"""Names, inode numbers and the ranges of one stripe's file, both ways."""

from hypothesis import given
from hypothesis import strategies as st

from headstart.store.geometry import Geometry
from mount.device.device_files import object_ranges
from mount.device.naming import (
    MAX_STRIPES,
    ROOT_INODE,
    device_of,
    inode_of,
    name_of,
    parse_name,
)
from tests.store.stored_objects import geometries

NUMBERS = st.integers(1, 10**12)
STRIPES = st.integers(0, MAX_STRIPES - 1)


@given(NUMBERS, STRIPES)
def test_an_inode_says_which_file_it_is(number: int, stripe: int) -> None:
    assert device_of(inode_of(number, stripe)) == (number, stripe)
    assert inode_of(number, stripe) > ROOT_INODE


@given(NUMBERS, STRIPES)
def test_a_name_says_which_file_it_is(number: int, stripe: int) -> None:
    assert parse_name(name_of(number, stripe).encode()) == (number, stripe)


@given(st.binary(max_size=12) | st.from_regex(rb"[0-9. +-]{0,8}", fullmatch=True))
def test_only_names_that_it_makes_are_read(name: bytes) -> None:
    parsed = parse_name(name)
    assert parsed is None or name_of(*parsed).encode() == name


@given(geometries(), st.data())
def test_ranges_of_a_stripe_are_the_inverse_of_place(
    geometry: Geometry, data: st.DataObject
) -> None:
    stripe = data.draw(st.integers(0, geometry.stripes - 1))
    length = geometry.stripe_length(stripe)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    position = start
    for offset, count in object_ranges(geometry, stripe, start, stop):
        assert count > 0
        assert geometry.place(offset) == (stripe, position)
        assert geometry.place(offset + count - 1) == (stripe, position + count - 1)
        assert offset + count <= geometry.size
        position += count
    assert position == stop
