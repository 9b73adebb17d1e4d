"""Chunks against the store's own arithmetic of extents and stripes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.erofs import DeviceGeometry
from headstart.store.geometry import UNIT_SIZE, Geometry
from tests.content.erofs.planting import BLOCK

EXTENT_SIZES = st.integers(1, 6).map(lambda units: units * UNIT_SIZE)
STRIPES = st.integers(1, 5)


@st.composite
def files(draw: st.DrawFn) -> tuple[DeviceGeometry, int, int]:
    """A device, and offset and size of a file on it."""
    extent_size, stripes = draw(EXTENT_SIZES), draw(STRIPES)
    offset = draw(st.integers(0, 3 * extent_size * stripes // BLOCK)) * BLOCK
    size = draw(st.integers(1, 4 * extent_size))
    return DeviceGeometry(offset + size, extent_size, stripes), offset, size


@given(st.integers(0, 20 * UNIT_SIZE), EXTENT_SIZES, STRIPES)
def test_stripes_are_as_long_as_the_store_makes_them(
    size: int, extent_size: int, stripes: int
) -> None:
    ours, store = DeviceGeometry(size, extent_size, stripes), Geometry(size, extent_size, stripes)
    for stripe in range(stripes):
        assert ours.stripe_length(stripe) == store.stripe_length(stripe)


@given(files())
def test_every_block_of_a_file_lies_where_the_store_has_it(
    drawn: tuple[DeviceGeometry, int, int],
) -> None:
    geometry, offset, size = drawn
    store = Geometry(geometry.size, geometry.extent_size, geometry.stripes)
    bits = geometry.chunk_bits(offset, size)
    chunks = list(geometry.chunks(offset, size, bits))
    assert len(chunks) == -(-size // (BLOCK << bits))
    for block in range(-(-size // BLOCK)):
        stripe, first = chunks[block >> bits]
        found = stripe, (first + block % (1 << bits)) * BLOCK
        assert found == store.place(offset + block * BLOCK)


@given(files())
def test_chunks_are_as_large_as_they_can_be(drawn: tuple[DeviceGeometry, int, int]) -> None:
    geometry, offset, size = drawn
    chunk = BLOCK << geometry.chunk_bits(offset, size)
    if geometry.stripes == 1 or offset // geometry.extent_size == (
        (offset + size - 1) // geometry.extent_size
    ):
        assert size <= chunk and (chunk == BLOCK or chunk // 2 < size)
    else:
        borders = range(0, offset + size, geometry.extent_size)
        inside = [border - offset for border in borders if border > offset]
        assert any(border % (chunk * 2) for border in inside)


@pytest.mark.parametrize(
    ("size", "extent_size", "stripes"),
    [(-1, BLOCK, 1), (0, 0, 1), (0, BLOCK + 1, 1), (0, BLOCK, 0)],
)
def test_a_device_of_impossible_numbers_cannot_be_said(
    size: int, extent_size: int, stripes: int
) -> None:
    with pytest.raises(ValueError, match=r"no data device|not whole blocks"):
        DeviceGeometry(size, extent_size, stripes)
