"""The members that the stream of a layer brings before everything else."""

from collections.abc import Iterable

from headstart.store.geometry import UNIT_SIZE
from proxy.fill.layers.members import MemberWriter

MOST_RUNS = 64
"""Of one request: what is wanted first may be small and lie far apart."""


class Preferred:
    """Gives out members in the order wanted, as many at a time as make one large request."""

    def __init__(self, writer: MemberWriter, members: Iterable[range], request_size: int) -> None:
        """``members`` in the order wanted; ``request_size`` in bytes of the blob."""
        self._writer = writer
        self._members = iter(members)
        self._request_size = request_size
        self._left = range(0)

    def next_runs(self) -> list[range] | None:
        """Members of the next ``request_size`` bytes; None: there are no more.

        Ascending, those with less than a unit between them as one: that would come along anyway.
        Within a request the blob's order is as good as the one that was given.
        """
        runs: list[range] = []
        size = 0
        while size < self._request_size and len(runs) < MOST_RUNS:
            if not self._left:
                following = next(self._members, None)
                if following is None:
                    break
                self._left = following
                continue
            run = self._take(self._request_size - size)
            runs.append(run)
            size += self._stop(run) - self._start(run)
        return self._joined(runs) if runs else None

    def _take(self, size: int) -> range:
        """Members that are left, of at most ``size`` bytes, but one at least."""
        first, stop = self._left.start, self._left.stop
        start = self._start(self._left)
        until = min(stop, max(first + 1, self._writer.members_within(start, start + size).stop))
        self._left = range(until, stop)
        return range(first, until)

    def _joined(self, runs: list[range]) -> list[range]:
        joined: list[range] = []
        for run in sorted(runs, key=lambda run: run.start):
            if joined and self._start(run) - self._stop(joined[-1]) < UNIT_SIZE:
                joined[-1] = range(joined[-1].start, max(joined[-1].stop, run.stop))
            else:
                joined.append(run)
        return joined

    def _start(self, run: range) -> int:
        return self._writer.chunks.member(run[0]).start

    def _stop(self, run: range) -> int:
        return self._writer.chunks.member(run[-1]).stop
