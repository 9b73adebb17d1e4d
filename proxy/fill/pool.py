"""The connections to one upstream: which range goes next, which one gives way, which is late.

One pool serves all blobs and layers of its upstream, so that a giant layer uses every connection
that small ones leave idle. Decisions only; :mod:`proxy.fill.carriage` carries them out.
"""

import collections
import itertools
import random
import statistics
import time
from collections.abc import Callable

from headstart.registry.upstream import Upstream
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.wire import PRIORITIES
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.parties import Want

START_CONNECTIONS = 8
MOST_CONNECTIONS = 32
SMALLEST_RANGE = 8 * MIB
"""To which bulk ranges shrink at the end: at 60 MB/s 0.14 s, well above a round trip."""
SMALLEST_SPLIT = MIB
LOST_BY_A_CUT = 4 * MIB
"""What two sockets may hold of a connection that is cut: the upstream has sent it in vain."""
RATES_REMEMBERED = 16
LATE_SHARE = 0.25
LATE_SAVES_SECONDS = 1.0
SPLIT_SAVES_SECONDS = 0.3
WITHOUT_RANGES_SECONDS = 600.0
"""How long an upstream that ignored a range is asked for whole blobs, before ranges are tried."""
GROW_SECONDS = 1.0
SETTLED_SECONDS = 60.0
"""How long the number of connections stays after more brought nothing, or were not welcome."""
GROWTH_WORTH = 1.08


class Pool:
    """Decides for one upstream; all methods run on the filler's loop."""

    def __init__(
        self,
        upstream: Upstream,
        request_size: int,
        *,
        reissue: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``request_size`` is the grid of bulk work in bytes."""
        self.upstream = upstream
        self.request_size = request_size
        self.reissue = reissue
        self.fills: set[Fill] = set()
        self.active: set[Fetch] = set()
        self.ranges = True
        self.paused_until = 0.0
        self.limit = upstream.max_connections or START_CONNECTIONS
        self.received = 0
        self.typical_rate: float | None = None
        self._least = self.limit
        self._fixed = upstream.max_connections is not None
        self._orders = itertools.count()
        self._clock = clock
        self._grown_at = clock()
        self._grown_from: float | None = None
        self._measured = (clock(), 0)
        self._settled_until = 0.0
        self._rates: collections.deque[float] = collections.deque(maxlen=RATES_REMEMBERED)
        self._ranges_again = 0.0

    @property
    def holding(self) -> list[Fetch]:
        """The fetches that hold a connection and have not been told to let go."""
        return [fetch for fetch in self.active if fetch.cut_reason is None]

    def next_order(self) -> int:
        """A number for whatever comes next."""
        return next(self._orders)

    def queued(self) -> int:
        """How many blobs have wants for bytes that no connection has taken yet."""
        return sum(self.lacks(fill) for fill in self.fills)

    def lacks(self, fill: Fill) -> bool:
        """Whether somebody wants bytes of the blob that no connection has taken yet."""
        return any(fill.next_range(want, self.request_size) is not None for want in fill.wants)

    # --- what goes next ---

    def next_fetch(self) -> Fetch | None:
        """The range that the next connection should take, claimed; None when there is none."""
        now = self._clock()
        if now < self.paused_until:
            return None
        holding = self.holding
        idle = self.limit - len(holding)
        range_size = 0
        for want, fill in self._waiting(now):
            if not self.ranges and fill.fetches:
                continue
            victim = None
            if idle <= 0:
                victim = self._victim(want, fill, holding)
                if victim is None:
                    # Those that follow are no more urgent, but a read among them may cut what
                    # this one may not.
                    continue
            # Looks at all blobs: once a call, and only when somebody may be given a range.
            range_size = range_size or self._range_size()
            fill.free_for(want)
            bounds = fill.next_range(want, range_size)
            if bounds is None:
                continue
            if victim is not None:
                victim.cut(Outcome(Ending.CUT, "gave way to a read that somebody waits on"))
            return self._fetch(fill, *bounds, bulk=want.bulk, priority=want.priority)
        if idle > 0 and self.reissue:
            return self._endgame(holding, now)
        return None

    def _range_size(self) -> int:
        """Bytes of the next bulk range: smaller when less is left than one for each connection.

        Then all connections end together, medium layers use all of them, and the digest, which
        follows in order, has little left to do behind the last byte.
        """
        size = self.request_size
        if not self.reissue:
            return size
        left = sum(
            fill.table.unclaimed_bytes()
            for fill in self.fills
            if fill.wants and fill.table is not None
        )
        while left < size * self.limit and size >= 2 * SMALLEST_RANGE and size % 2 == 0:
            size //= 2
        return size

    def _fetch(self, fill: Fill, start: int, stop: int, *, bulk: bool, priority: int) -> Fetch:
        fetch = Fetch(fill, start, stop, bulk=bulk, priority=priority, order=self.next_order())
        fill.begin(fetch)
        self.active.add(fetch)
        return fetch

    def _waiting(self, now: float) -> list[tuple[Want, Fill]]:
        """All wants, the most urgent first; among equals those with fewest connections."""
        serving: dict[Fill, int] = {}
        for fetch in self.active:
            serving[fetch.fill] = serving.get(fetch.fill, 0) + 1
        waiting = [
            (want, fill)
            for fill in self.fills
            if fill.failure is None and now >= fill.not_before
            for want in fill.wants
        ]
        waiting.sort(
            key=lambda entry: (
                entry[0].priority,
                entry[0].bulk,
                serving.get(entry[1], 0),
                entry[0].order,
            )
        )
        return waiting

    @staticmethod
    def _victim(want: Want, fill: Fill, holding: list[Fetch]) -> Fetch | None:
        """The bulk range that gives way to a read that somebody waits on; None if none may.

        Never one that brings bytes of that read.
        """
        if want.bulk and any(fetch.fill is fill for fetch in holding):
            return None
        victims: list[tuple[int, int, Fetch]] = []
        for fetch in holding:
            if not fetch.bulk or fetch.stream:
                continue
            if fetch.fill is fill and fetch.brings(want.offset, want.stop):
                continue
            priority = fetch.fill.priority_of(fetch)
            urgency = priority if priority is not None else len(PRIORITIES)
            if urgency > want.priority or (urgency == want.priority and not want.bulk):
                victims.append((urgency, fetch.remaining, fetch))
        return max(victims, key=lambda entry: entry[:2])[2] if victims else None

    def _endgame(self, holding: list[Fetch], now: float) -> Fetch | None:
        """Nothing is queued: take the upper half of the range that has most left."""
        largest = max(
            (fetch for fetch in holding if fetch.bulk and not fetch.stream and fetch.first_byte),
            key=lambda fetch: fetch.remaining,
            default=None,
        )
        if largest is None:
            return None
        rate = largest.rate() or self.typical_rate
        if rate is None or largest.remaining / max(rate, 1.0) < SPLIT_SAVES_SECONDS:
            return None
        if largest.remaining < 2 * (SMALLEST_SPLIT + UNIT_SIZE):
            return None
        saves = largest.remaining / max(rate, 1.0) / 2
        least = 2 if saves > LATE_SAVES_SECONDS else 0
        if not largest.fill.may_waste(LOST_BY_A_CUT, least):
            return None
        taken = largest.split(SMALLEST_SPLIT)
        if taken is None:
            return None
        return self._fetch(largest.fill, *taken, bulk=True, priority=largest.priority)

    # --- what is late ---

    def tick(self, now: float) -> None:
        """Look at every fetch: deadlines, stragglers, how many connections are worth having."""
        if not self.ranges and now >= self._ranges_again:
            self.ranges = True
        rates: list[float] = []
        for fetch in self.holding:
            fetch.sample(now)
            self._hold_to_deadlines(fetch, now)
            rate = fetch.rate()
            if rate is not None and fetch.bulk:
                rates.append(rate)
        rates.extend(self._rates)
        if len(rates) >= 3:
            self.typical_rate = statistics.median(rates)
        if self.reissue:
            self._reissue_late(now)
        self._grow(now)

    def _hold_to_deadlines(self, fetch: Fetch, now: float) -> None:
        deadlines = self.upstream.deadlines
        host = self.upstream.host
        if fetch.first_byte is None:
            if fetch.request_sent is not None and now - fetch.request_sent > deadlines.first_byte:
                self._expire(
                    fetch,
                    "first_byte",
                    f"{deadlines.first_byte:g}s",
                    f"{host} sent no byte within {now - fetch.request_sent:.1f} s "
                    f"of the request for byte {fetch.start}",
                )
            return
        slow = fetch.slow_since(now, deadlines.stall, deadlines.stall_rate)
        if slow is not None:
            self._expire(
                fetch,
                "stall",
                f"{deadlines.stall:g}s",
                f"{host} sent {slow} bytes in {deadlines.stall:g} s up to byte {fetch.committed}, "
                f"less than stall_rate {deadlines.stall_rate} bytes/s",
            )

    @staticmethod
    def _expire(fetch: Fetch, key: str, value: str, text: str) -> None:
        fetch.cut(Outcome(Ending.DEADLINE, text, key=key, value=value))

    def _reissue_late(self, now: float) -> None:
        """Cut the ranges that are far behind their peers; the rest is asked for afresh."""
        typical = self.typical_rate
        if not typical:
            return
        for fetch in self.holding:
            rate = fetch.rate()
            if rate is None or fetch.stream or rate > typical * LATE_SHARE:
                continue
            saves = fetch.remaining / max(rate, 1.0) - fetch.remaining / typical
            if saves > LATE_SAVES_SECONDS and fetch.fill.may_waste(LOST_BY_A_CUT, least=4):
                fetch.cut(Outcome(Ending.CUT, "far behind its peers"))

    def _grow(self, now: float) -> None:
        """While every connection is busy, try two more; keep them if the throughput grows."""
        since, before = self._measured
        if now - since < GROW_SECONDS:
            return
        received = self.received + sum(fetch.received for fetch in self.active)
        rate = (received - before) / (now - since)
        self._measured = (now, received)
        if now >= self._settled_until and self.limit < self._least:
            # Fewer than at the start because the upstream asked for a pause: come back slowly.
            self.limit = min(self._least, self.limit + 2)
            return
        if self._fixed or now < self._settled_until or len(self.holding) < self.limit:
            self._grown_from = None
            return
        if self._grown_from is None or rate >= self._grown_from * GROWTH_WORTH:
            self._grown_from = rate
            self.limit = min(MOST_CONNECTIONS, self.limit + 2)
        else:
            self.limit = max(self._least, self.limit - 2)
            self._settled_until = now + SETTLED_SECONDS

    # --- what the upstream says ---

    def without_ranges(self) -> None:
        """The upstream sends whole blobs only: one stream a blob, for a while."""
        self.ranges = False
        self._ranges_again = self._clock() + WITHOUT_RANGES_SECONDS

    def ended(self, fetch: Fetch) -> None:
        """A connection is free again."""
        self.active.discard(fetch)
        if fetch.bulk and fetch.first_byte is not None and fetch.received >= MIB:
            # Fast ranges end before a tick has seen two samples of them.
            seconds = self._clock() - fetch.first_byte
            self._rates.append(fetch.received / max(seconds, 0.001))
        self.received += fetch.received

    def throttled(self, seconds: float) -> None:
        """The upstream asked for a pause: all wait, and come back with fewer connections."""
        now = self._clock()
        if now >= self.paused_until:
            # Ranges that are refused together are one refusal.
            self.limit = max(1, self.limit // 2)
        self.paused_until = max(self.paused_until, now + seconds)
        self._settled_until = self.paused_until + SETTLED_SECONDS

    def back_off(self, attempts: int) -> float:
        """Seconds before the next try of a blob, with jitter."""
        return float(min(5.0, 0.1 * 2 ** min(attempts, 16)) * random.uniform(0.5, 1.5))
