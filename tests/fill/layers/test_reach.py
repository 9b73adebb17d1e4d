"""How far beyond a read is fetched."""

from headstart.store.geometry import MIB, UNIT_SIZE
from proxy.fill.reach import Reach


def test_reads_that_follow_each_other_reach_twice_as_far_each_time() -> None:
    reach = Reach(UNIT_SIZE, MIB)
    offsets = [0, 4096, 8192 + UNIT_SIZE, 12288 + UNIT_SIZE, 16384 + UNIT_SIZE]
    assert [reach.of(offset, offset + 4096) for offset in offsets] == [
        UNIT_SIZE,
        2 * UNIT_SIZE,
        UNIT_SIZE,  # a unit further on is no longer the same reading
        2 * UNIT_SIZE,
        MIB,
    ]


def test_a_read_backwards_begins_anew() -> None:
    reach = Reach(UNIT_SIZE, MIB)
    for offset in (0, 4096, 8192):
        reach.of(offset, offset + 4096)
    assert reach.of(4096, 8192) == UNIT_SIZE
