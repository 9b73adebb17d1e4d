"""How far layers may fetch ahead of what they have used."""

from hypothesis import given
from hypothesis import strategies as st

from headstart.store.geometry import MIB
from proxy.fill.layers.arriving import SMALLEST_RANGE, Window


class Holding:
    """Somebody who holds bytes."""

    def __init__(self) -> None:
        self.slid = 0

    def slide(self) -> None:
        self.slid += 1


@given(st.integers(1, 512), st.integers(1, 32), st.integers(1, 40), st.integers(0, 1 << 40))
def test_there_is_always_more_to_come_than_a_piece_and_never_more_than_ones_share(
    mebibytes: int, connections: int, holders: int, released: int
) -> None:
    window = Window(mebibytes * MIB, connections)
    for _ in range(holders):
        window.join(Holding())
    ahead = window.stop(released) - released
    share = max(mebibytes * MIB // holders, 2 * SMALLEST_RANGE)
    # Pieces of a MiB are used whole: with less than two nobody would ever go on.
    assert 2 * MIB <= ahead <= max(share, 2 * MIB)


def test_who_stays_may_hold_more_when_somebody_leaves() -> None:
    window = Window(64 * MIB, 4)
    one, other = Holding(), Holding()
    window.join(one)
    window.join(other)
    before = window.stop(0)
    window.leave(other)
    assert one.slid == 1
    assert window.stop(0) > before


class Leaving(Holding):
    """Somebody whose upstream fails while it slides."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window

    def slide(self) -> None:
        super().slide()
        self._window.leave(self)


def test_who_stays_may_leave_by_that() -> None:
    window = Window(64 * MIB, 4)
    first, others = Holding(), [Leaving(window) for _ in range(3)]
    for holder in (first, *others):
        window.join(holder)
    window.leave(first)
    assert all(holder.slid for holder in others)
