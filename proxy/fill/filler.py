"""The filler: which blobs are open, from whom they come, and how each of them ends.

Runs on one event loop; :class:`proxy.fill.fill.Surroundings` says which of its methods the
connections' threads call.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.errors import RegistryError
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from headstart.store.layout import Layout
from proxy.fill.access import Access
from proxy.fill.blob_files import BlobFiles
from proxy.fill.bookkeeping import Bookkeeping
from proxy.fill.carriage import Carriage
from proxy.fill.disk_room import DiskRoom
from proxy.fill.fill import Fill
from proxy.fill.judgement import failure_of
from proxy.fill.parties import BlobSource
from proxy.fill.plain_source import PlainSource
from proxy.fill.pool import Pool
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecord, BlobRecords
from proxy.fill.source import CurlSource
from proxy.fill.suspects import Suspects
from proxy.fill.threads import Threads
from proxy.fill.trace import Trace

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 1.0
CLOSE_IDLE_SECONDS = 3.0
MOST_SOURCES = 16


@dataclass(frozen=True, slots=True)
class FillSettings:
    """Of the configuration: sizes in bytes."""

    request_size: int
    on_demand_size: int
    extent_size: int
    reissue: bool


class Filler:
    """Everything about blobs on this node; the only writer of objects."""

    def __init__(
        self,
        layout: Layout,
        records: BlobRecords,
        quota: Quota,
        upstreams: Mapping[str, Upstream],
        clients: Mapping[str, RegistryClient],
        settings: FillSettings,
    ) -> None:
        """Make it on the loop that it will run on; ``upstreams`` and ``clients`` by host."""
        self.layout = layout
        self.quota = quota
        self.upstreams = upstreams
        self.settings = settings
        self.access = Access(clients)
        self.room = DiskRoom(layout, quota, settings.extent_size)
        self.books = Bookkeeping(records, quota)
        self.hashed = 0
        self.started = time.monotonic()
        self.fills: dict[Digest, Fill] = {}
        self._opening: dict[Digest, asyncio.Task[Fill]] = {}
        self._suspects = Suspects()
        self._changed: set[Digest] = set()
        self._retired: set[Fill] = set()
        self._syncing: set[Fill] = set()
        self._loop = asyncio.get_running_loop()
        self._trace = Trace()
        self._threads = Threads(self._loop)
        self._pumping = False
        self._stirred = asyncio.Event()
        self.carriages = {
            host: Carriage(
                Pool(upstream, settings.request_size, reissue=settings.reissue),
                clients[host],
                PlainSource(CurlSource()),
                self._threads.carriers,
                self,
                self._trace,
            )
            for host, upstream in upstreams.items()
        }

    # --- life ---

    async def run(self) -> None:
        """Tick until cancelled."""
        self.books.fill_account()
        while True:
            # Those of the pools, since what is held in memory is none of ours but wants its ticks.
            pools = [carriage.pool.fills for carriage in self.carriages.values()]
            active = any(fill.wants or fill.fetches for fills in pools for fill in fills)
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                # A fetch that begins is sampled from then on, not from the next idle tick.
                async with asyncio.timeout(IDLE_TICK_SECONDS):
                    await (asyncio.sleep(TICK_SECONDS) if active else self._stirred.wait())
            try:
                self._tick(time.monotonic())
            except Exception:
                # Without ticks no deadline would pass and nothing be tried again.
                logger.exception("fill: an error of the filler itself")

    def _tick(self, now: float) -> None:
        for carriage in self.carriages.values():
            carriage.pool.tick(now)
            carriage.close_idle()
        self._close_idle(now)
        self._pump()

    async def close(self) -> None:
        """Cut what is under way, write what is known, close everything."""
        self._threads.hush()
        for carriage in self.carriages.values():
            await carriage.close()
        self._threads.stop()
        for fill in [*self.fills.values(), *self._retired]:
            # What a thread may still write to is left to the end of the process.
            if fill.files is not None and not fill.fetches:
                self.books.note(fill)
                fill.files.close()
        self.books.close()
        self._threads.stop_carriers()
        self._trace.close()

    # --- opening ---

    async def open(self, digest: Digest, source: BlobSource, size_hint: int | None) -> Fill:
        """The fill of a blob, with ``source`` among those who are asked for it.

        One that fails while its source is asked is opened anew, once. Raises FillFailed when this
        source may not have it.
        """
        upstream = self.upstreams.get(source.upstream)
        if upstream is None:
            raise FillFailed("refused", f"{source.upstream} is not among the upstreams")
        failed = False
        while True:
            if self._suspects.refused(digest):
                text = f"{digest}: {source.upstream} keeps sending other bytes"
                raise FillFailed("digest", text)
            fill, fresh = await self._fill_of(digest, size_hint)
            # Of a blob of which nothing is here the first answer is the proof, for all who wait
            # for it at the same upstream.
            fresh = fresh or (fill.table is None and fill.source_at(source.upstream) is not None)
            proven_by_fetching = fresh and upstream.access != "passthrough"
            if not proven_by_fetching and not self.access.granted(upstream, source, fill):
                fill.openings += 1
                try:
                    await self.prove(fill, source)
                except FillFailed as failure:
                    if failure is not fill.failure or failed:
                        raise
                    failed = True
                finally:
                    fill.openings -= 1
            if self.fills.get(digest) is fill:
                break
        if source not in fill.sources:
            fill.refusal = None
            fill.add_source(source, MOST_SOURCES)
        self.quota.touch(digest, time.time())
        self.carriages[source.upstream].pool.fills.add(fill)
        return fill

    def proven(self, fill: Fill, source: BlobSource) -> bool:
        """Whether this source is known to have the blob."""
        return self.access.granted(self.upstreams[source.upstream], source, fill)

    async def prove(self, fill: Fill, source: BlobSource) -> int:
        """The size, from the source, which thereby owns to the blob.

        Raises FillFailed when it has not got it, or when the fill has failed meanwhile.
        """
        try:
            size = await self.access.ask(source, fill.digest)
        except RegistryError as error:
            raise failure_of(error) from None
        if fill.failure is not None:
            raise fill.failure
        if fill.size not in (None, size):
            text = f"{source.upstream} has a blob of {size} bytes for it, not of {fill.size}"
            raise FillFailed("protocol", f"{fill.digest}: {text}")
        self.vouched(fill, source)
        return size

    async def _fill_of(self, digest: Digest, size_hint: int | None) -> tuple[Fill, bool]:
        """The fill, and whether nobody has asked for any of its bytes before."""
        fill = self.fills.get(digest)
        if fill is not None and fill.files is not None and not fill.files.intact():
            self._reopen(fill, f"{digest}: somebody else changed its files; what fits is kept")
            fill = None
        if fill is not None:
            return fill, False
        task = self._opening.get(digest)
        first = task is None
        if task is None:
            task = self._opening[digest] = asyncio.create_task(self._open_files(digest, size_hint))
        fill = await asyncio.shield(task)
        return fill, first and fill.files is None

    async def learn_size(self, fill: Fill, size: int) -> None:
        """Make the files for a size learned otherwise than from an answer with bytes.

        Raises OSError.
        """
        fill.openings += 1
        try:
            await self._loop.run_in_executor(self._threads.openers, fill.make_files, size)
        finally:
            fill.openings -= 1
        fill.files_made()

    def suspect(self, fill: Fill) -> None:
        """A reader could not read what should be here: the next open checks every byte of it."""
        if fill.files is not None and fill.failure is None and not fill.evicted:
            fill.files.distrust()
            self._reopen(fill, f"{fill.digest}: cannot be read; what can is kept")

    def _reopen(self, fill: Fill, text: str) -> None:
        """Let the next open take the files as they are; who waits now gets bytes past the store."""
        logger.error("cache: %s", text)
        fill.withdraw(FillFailed("space", text))
        self._forget(fill)
        self.books.forget(fill.digest)

    async def _open_files(self, digest: Digest, size_hint: int | None) -> Fill:
        try:
            record, files = await self._loop.run_in_executor(
                self._threads.openers, self._look_up, digest
            )
            if files is not None and not files.intact():
                files.close()  # evicted in this instant
                files = None
            fill = Fill(digest, files, size_hint, self, self._loop)
            fill.etag_ignored = digest in self._changed
            self.fills[digest] = fill
            if files is not None:
                record = record or BlobRecord()
                fill.vouched.update(record.vouched)
                self.books.opened(digest, files, record)
            return fill
        finally:
            self._opening.pop(digest, None)

    def _look_up(self, digest: Digest) -> tuple[BlobRecord | None, BlobFiles | None]:
        return self.books.stored(digest), BlobFiles.open(self.layout, digest)

    # --- Surroundings, in the connections' threads ---

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        """Make the files of a blob. Raises OSError."""
        return self.room.create_files(digest, size)

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        """Count and reserve an extent's space. Raises OSError."""
        self.room.reserve(digest, files, extent)

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        """Count and pace a write. Raises OSError."""
        self.room.wrote(files, stripe, offset, length)

    # --- Surroundings, on the loop ---

    def in_thread(
        self,
        work: Callable[[], object],
        done: Callable[[object], None],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Run ``work`` in a thread; ``done`` gets its result or its exception, on the loop."""
        self._threads.run(threads or self._threads.workers, work, done)

    def occupied(self, fill: Fill, change: int) -> None:
        """A fill has become busy (+1) or idle (-1)."""
        if not fill.evicted and fill.failure is None:
            self.quota.busy(fill.digest, change)

    def pump(self) -> None:
        """Something may be startable now; looked at once a turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)
            self._stirred.set()

    def _pump(self) -> None:
        self._pumping = False
        for carriage in self.carriages.values():
            carriage.pump()

    def delivered(self, fill: Fill, source: BlobSource) -> None:
        """The upstream of this source has sent bytes of a blob that is held in memory."""
        self.access.vouch(self.upstreams[source.upstream], source, fill)

    def vouched(self, fill: Fill, source: BlobSource) -> None:
        """The upstream of this source has, or has sent, the blob."""
        if self.access.vouch(self.upstreams[source.upstream], source, fill):
            self.books.note(fill)

    def verified(self, fill: Fill) -> None:
        """The digest has passed: make it last, in a thread."""
        files = fill.files
        if files is None:
            return
        self.hashed += files.geometry.size
        self._suspects.passed(fill.digest)
        self._changed.discard(fill.digest)
        self.books.note(fill)
        self._syncing.add(fill)
        self.in_thread(files.sync, lambda result: self._synced(fill, result), self._threads.syncers)

    def _synced(self, fill: Fill, result: object) -> None:
        self._syncing.discard(fill)
        if isinstance(result, OSError):
            # The kernel has dropped the pages: what fsync did not write must not be trusted.
            text = f"{fill.digest}: cannot be written to disk: {result.strerror}"
            logger.error("fill: %s; it is dropped", text)
            self._drop(fill, FillFailed("space", text))

    def quarantine(self, fill: Fill, failure: FillFailed) -> None:
        """The bytes are wrong: drop them, and remember that they were."""
        logger.error("fill: %s", failure.text)
        self._suspects.failed(fill.digest)
        self._drop(fill, failure)

    def restart(self, fill: Fill, failure: FillFailed) -> None:
        """The content changed between two ranges: the next open starts afresh, believing digests.

        The entity tag of that next try is ignored, since replicas of one registry differ in it.
        """
        logger.warning("fill: %s: %s; starting it afresh", fill.digest, failure.text)
        if fill.failure is None:
            self._changed.add(fill.digest)
            self._drop(fill, failure)

    def _drop(self, fill: Fill, failure: FillFailed) -> None:
        fill.withdraw(failure)
        if self.fills.get(fill.digest) is not fill:
            return  # evicted: what lies under its name by now is another's
        self._forget(fill)
        if fill.files is not None:
            fill.files.unlink()
        self.books.forget(fill.digest)
        self.books.delete(fill.digest)

    # --- eviction, the end of a fill ---

    def evicted(self, digest: Digest) -> None:
        """Called by the quota, from any thread, before it forgets an object: remove its files."""
        self.room.remove(digest)
        self.books.delete(digest)
        self._loop.call_soon_threadsafe(self._after_eviction, digest)

    def _after_eviction(self, digest: Digest) -> None:
        self.books.closed(digest)
        fill = self.fills.get(digest)
        if fill is not None:
            fill.evicted = True
            # Somebody may have used it between its removal and this.
            self.books.forget(digest)
            self.books.delete(digest)
            self._forget(fill)
            # The quota spares what is busy; this is for a want that came in the same instant.
            fill.fail(FillFailed("upstream", f"{digest} was evicted; ask again"))
            for listener in list(fill.listeners):
                listener.notify_evicted(fill)

    def _close_idle(self, now: float) -> None:
        for fill in [*self.fills.values(), *self._retired]:
            if fill.busy or fill.listeners or fill.openings or fill in self._syncing:
                fill.idle_since = now
            elif now - fill.idle_since >= CLOSE_IDLE_SECONDS or fill in self._retired:
                self._close(fill)

    def _close(self, fill: Fill) -> None:
        self.books.note(fill)
        if self.fills.get(fill.digest) is fill:
            del self.fills[fill.digest]
            self.books.closed(fill.digest)
        self._retired.discard(fill)
        for carriage in self.carriages.values():
            carriage.pool.fills.discard(fill)
        if fill.files is not None:
            self.room.close_files(fill.files)

    def _forget(self, fill: Fill) -> None:
        """Let the next open start afresh; the files stay open for whoever reads them."""
        if self.fills.get(fill.digest) is fill:
            del self.fills[fill.digest]
        for carriage in self.carriages.values():
            carriage.pool.fills.discard(fill)
        self._retired.add(fill)
