"""Fills without a filler around them, and a clock that stands still until it is told."""

import asyncio
from collections.abc import Callable

from headstart.content.digest import Digest
from headstart.registry.upstream import Deadlines, Upstream
from headstart.store.errors import FillFailed
from headstart.store.geometry import EXTENT_SIZE, MIB, Geometry
from headstart.store.wire import PRIORITIES
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fetch import Fetch
from proxy.fill.fill import Fill
from proxy.fill.parties import BlobSource, Want
from proxy.fill.pool import Pool
from proxy.fill.unit_table import UnitTable

REQUEST_SIZE = 32 * MIB


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class NoSurroundings:
    """The filler around a fill of which nothing is written."""

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        raise AssertionError("no files are wanted here")

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        raise AssertionError("nothing is written here")

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        raise AssertionError("nothing is written here")

    def in_thread(self, work: Callable[[], object], done: Callable[[object], None]) -> None:
        done(work())

    def pump(self) -> None:
        return

    def occupied(self, fill: Fill, change: int) -> None:
        return

    def vouched(self, fill: Fill, source: BlobSource) -> None:
        return

    def verified(self, fill: Fill) -> None:
        return

    def suspect(self, fill: Fill) -> None:
        return

    def quarantine(self, fill: Fill, failure: FillFailed) -> None:
        return

    def restart(self, fill: Fill, failure: FillFailed) -> None:
        return


class Upstreams:
    """A pool with a clock, and fills whose bytes come as a test says."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_connections: int | None = None,
        reissue: bool = True,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.clock = Clock()
        upstream = Upstream(
            host="ghcr.io",
            url="https://ghcr.io",
            max_connections=max_connections,
            deadlines=deadlines or Deadlines(),
        )
        self.pool = Pool(upstream, REQUEST_SIZE, reissue=reissue, clock=self.clock)
        self._loop = loop
        self._fills = 0

    def fill(self, size: int = 512 * MIB, extent_size: int = EXTENT_SIZE) -> Fill:
        """A blob whose size is known and of which nothing is here."""
        self._fills += 1
        digest = Digest.of(str(self._fills).encode())
        fill = Fill(digest, None, size, NoSurroundings(), self._loop)
        fill.table = UnitTable(Geometry(size, extent_size, 1))
        self.pool.fills.add(fill)
        return fill

    def want(
        self,
        fill: Fill,
        offset: int = 0,
        stop: int | None = None,
        *,
        priority: str = "client",
        bulk: bool = True,
        reach: int = 0,
    ) -> Want:
        """Somebody waits for bytes."""
        order = self.pool.next_order()
        number = PRIORITIES.index(priority)
        want = Want(offset, stop, number, bulk, order, lambda _: None, reach)
        fill.add_want(want)
        return want

    def take_all(self) -> list[Fetch]:
        """Every range that the pool hands out now; their requests are answered at once."""
        taken: list[Fetch] = []
        while (fetch := self.pool.next_fetch()) is not None:
            self.answer(fetch)
            taken.append(fetch)
            assert len(taken) < 1000
        return taken

    def answer(self, fetch: Fetch) -> None:
        """The head of its answer has come."""
        fetch.request_sent = fetch.first_byte = self.clock.now

    def bring(self, fetch: Fetch, count: int) -> None:
        """So many bytes of its body have come and are written."""
        count = min(count, fetch.stop - fetch.committed)
        fetch.received += count
        fetch.reserved = fetch.committed = fetch.committed + count

    def finish(self, fetch: Fetch) -> None:
        """The connection lets go of it, with what has come so far."""
        self.pool.ended(fetch)
        fetch.fill.end(fetch)

    def pass_seconds(
        self, seconds: float, rates: dict[Fetch, float] | None = None, step: float = 0.25
    ) -> None:
        """Time passes, with bytes at the given rates and the pool's ticks."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            for fetch, rate in (rates or {}).items():
                if fetch.cut_reason is None:
                    self.bring(fetch, int(rate * step))
            self.pool.tick(self.clock.now)
