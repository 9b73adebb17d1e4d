"""Contents on the data device: in order, on blocks, never over each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.layer.caps import GIB, LayerCaps
from headstart.content.layer.placement import Placement

MIB = 1 << 20
EXTENT = 32 * MIB
SIZES = st.lists(
    st.one_of(
        st.integers(0, 3 * MIB),
        st.sampled_from([0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, EXTENT, 3 * EXTENT + 5]),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(sizes=SIZES, stripes=st.integers(1, 5))
def test_files_lie_in_order_on_blocks_and_apart(sizes: list[int], stripes: int) -> None:
    placement = Placement(EXTENT, stripes)
    stop = 0
    for size in sizes:
        offset = placement.place(size)
        assert offset % 4096 == 0
        assert offset >= stop
        if stripes > 1 and size >= MIB:
            assert offset % MIB == 0
            assert offset - stop < MIB
        else:
            assert offset - stop < 4096
        if size:
            stop = offset + size
        assert placement.device_size == -(-stop // 4096) * 4096


def test_an_empty_file_takes_no_room() -> None:
    placement = Placement(EXTENT, 1)
    assert placement.device_size == 0
    placement.place(0)
    assert placement.device_size == 0
    assert placement.place(10) == 0


def test_large_files_begin_within_small_extents_too() -> None:
    placement = Placement(256 * 1024, 2)
    placement.place(1)
    assert placement.place(MIB) == 256 * 1024


@pytest.mark.parametrize(("extent_size", "stripes"), [(0, 1), (-4096, 1), (5000, 1), (4096, 0)])
def test_a_geometry_that_there_is_not_is_an_error(extent_size: int, stripes: int) -> None:
    with pytest.raises(ValueError, match="no placement"):
        Placement(extent_size, stripes)


def test_a_layer_may_expand_by_its_ratio_from_the_floor_to_the_total() -> None:
    caps = LayerCaps(total_bytes=10 * GIB, expansion_ratio=100, expansion_floor=GIB)
    assert caps.expanded_limit(0) == GIB
    assert caps.expanded_limit(GIB // 100) == GIB
    assert caps.expanded_limit(GIB // 50) == GIB // 50 * 100
    assert caps.expanded_limit(5 * GIB) == 10 * GIB
