"""Sets of bytes, against sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from headstart.content.landmarks.range_set import Range, RangeSet

SMALL = st.builds(Range, st.integers(0, 40), st.integers(0, 12))


def members(*ranges: Range) -> list[int]:
    """Every byte of some ranges."""
    return [at for one in ranges for at in range(one.offset, one.stop)]


@given(st.lists(SMALL, max_size=20), SMALL)
def test_new_bytes_are_said_once_and_known_ones_are_found(added: list[Range], asked: Range) -> None:
    ranges = RangeSet()
    known: set[int] = set()
    for one in added:
        fresh = members(*ranges.add(one))
        assert fresh == sorted(set(members(one)) - known)
        known.update(fresh)
    assert ranges.has_any(asked) == bool(known & set(members(asked)))


def test_bytes_after_ranges_that_touch_are_new() -> None:
    ranges = RangeSet()
    for offset in (20, 0, 10):
        assert ranges.add(Range(offset, 10)) == [Range(offset, 10)]
    assert ranges.add(Range(5, 40)) == [Range(30, 15)]
    assert ranges.add(Range(0, 45)) == []
