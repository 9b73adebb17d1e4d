"""The filler: which blobs are open, from whom they come, where they lie, and what they cost.

Runs on one event loop; :class:`proxy.fill.fill.Surroundings` says which of its methods the
connections' threads call.
"""

import asyncio
import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.errors import RegistryError
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from headstart.store.layout import Layout
from headstart.store.object_key import ObjectKey, parse_key
from proxy.fill.access import Access
from proxy.fill.blob_files import BlobFiles
from proxy.fill.carriage import Carriage
from proxy.fill.fill import Fill
from proxy.fill.judgement import failure_of
from proxy.fill.pacing import Pacer
from proxy.fill.parties import BlobSource
from proxy.fill.plain_source import PlainSource
from proxy.fill.pool import MOST_CONNECTIONS, Pool
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecord, BlobRecords
from proxy.fill.source import CurlSource
from proxy.fill.trace import Trace

logger = logging.getLogger(__name__)

T = TypeVar("T")

TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 1.0
CLOSE_IDLE_SECONDS = 3.0
MOST_SOURCES = 16
TOUCH_SECONDS = 60.0
SUSPECT_SECONDS = 60.0
"""How long a blob whose digest failed is remembered: a second failure is answered at once."""
REFUSE_SECONDS = 10.0
RELEASED_SECONDS = 1.0
"""How long a fill waits for the disk space of what was evicted for it."""
HOPELESS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FillSettings:
    """Of the configuration: sizes in bytes."""

    request_size: int
    on_demand_size: int
    extent_size: int
    reissue: bool


@dataclass(slots=True)
class _Suspect:
    """A blob whose bytes were wrong."""

    failures: int
    until: float
    refused_until: float = 0.0


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
        self.pacers = [Pacer(stripe) for stripe in layout.stripes]
        self.hashed = 0
        self.started = time.monotonic()
        self.fills: dict[Digest, Fill] = {}
        self._records = records
        self._known: dict[Digest, BlobRecord] = {}
        self._opening: dict[Digest, asyncio.Task[Fill]] = {}
        self._suspects: dict[Digest, _Suspect] = {}
        self._changed: set[Digest] = set()
        self._retired: set[Fill] = set()
        self._room_lock = threading.Lock()
        self._hopeless_until = 0.0
        self._syncing: set[Fill] = set()
        self._loop = asyncio.get_running_loop()
        self._trace = Trace()
        self._carriers = ThreadPoolExecutor(8 * MOST_CONNECTIONS, thread_name_prefix="carrier")
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="worker")
        # Hashing after a boot, and a disk that is slow to sync, must not hold up who opens.
        self._openers = ThreadPoolExecutor(2, thread_name_prefix="opener")
        self._syncers = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._closed = False
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._pumping = False
        self._stirred = asyncio.Event()
        self.carriages = {
            host: Carriage(
                Pool(upstream, settings.request_size, reissue=settings.reissue),
                clients[host],
                PlainSource(CurlSource()),
                self._carriers,
                self,
                self._trace,
            )
            for host, upstream in upstreams.items()
        }

    # --- life ---

    async def run(self) -> None:
        """Tick until cancelled."""
        self._clerk.submit(self._records.fill_account, self.quota)
        while True:
            active = any(fill.wants or fill.fetches for fill in self.fills.values())
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
        self._closed = True
        for carriage in self.carriages.values():
            await carriage.close()
        for threads in (self._workers, self._openers, self._syncers):
            threads.shutdown(wait=True, cancel_futures=True)
        for fill in [*self.fills.values(), *self._retired]:
            # What a thread may still write to is left to the end of the process.
            if fill.files is not None and not fill.fetches:
                self._note(fill)
                fill.files.close()
        self._clerk.shutdown(wait=True)
        self._carriers.shutdown(wait=True, cancel_futures=True)
        self._trace.close()

    # --- opening ---

    async def open(self, digest: Digest, source: BlobSource, size_hint: int | None) -> Fill:
        """The fill of a blob, with ``source`` among those who are asked for it.

        Raises FillFailed when this source may not have it.
        """
        upstream = self.upstreams.get(source.upstream)
        if upstream is None:
            raise FillFailed("refused", f"{source.upstream} is not among the upstreams")
        suspect = self._suspects.get(digest)
        if suspect is not None and time.monotonic() < suspect.refused_until:
            raise FillFailed("digest", f"{digest}: {source.upstream} keeps sending other bytes")
        while True:
            fill, fresh = await self._fill_of(digest, size_hint)
            # Of a blob of which nothing is here the first answer is the proof, for all who wait
            # for it at the same upstream.
            fresh = fresh or (fill.table is None and fill.source_at(source.upstream) is not None)
            proven_by_fetching = fresh and upstream.access != "passthrough"
            if not proven_by_fetching and not self.access.granted(upstream, source, fill):
                fill.openings += 1
                try:
                    await self.prove(fill, source)
                finally:
                    fill.openings -= 1
            if fill.failure is not None or self.fills.get(digest) is fill:
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

    async def prove(self, fill: Fill, source: BlobSource) -> None:
        """Ask the source whether it has the blob. Raises FillFailed when it has not."""
        try:
            size = await self.access.ask(source, fill.digest)
        except RegistryError as error:
            raise failure_of(error) from None
        if fill.size not in (None, size):
            text = f"{source.upstream} has a blob of {size} bytes for it, not of {fill.size}"
            raise FillFailed("protocol", f"{fill.digest}: {text}")
        self.vouched(fill, source)

    async def ask_size(self, fill: Fill, source: BlobSource) -> int:
        """The size, from the source, which thereby owns to the blob. Raises FillFailed."""
        try:
            size = await self.access.ask(source, fill.digest)
        except RegistryError as error:
            raise failure_of(error) from None
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
            await self._loop.run_in_executor(self._openers, fill.make_files, size)
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
        self.quota.forget(fill.digest)
        self._known.pop(fill.digest, None)

    async def _open_files(self, digest: Digest, size_hint: int | None) -> Fill:
        try:
            record, files = await self._loop.run_in_executor(self._openers, self._look_up, digest)
            if files is not None and not files.intact():
                files.close()  # evicted in this instant
                files = None
            fill = Fill(digest, files, size_hint, self, self._loop)
            fill.etag_ignored = digest in self._changed
            self.fills[digest] = fill
            if files is not None:
                record = record or BlobRecord()
                fill.vouched.update(record.vouched)
                self.quota.account(
                    digest, files.allocated(), record.used_at or time.time(), pinned=record.pinned
                )
                self._known[digest] = record
            return fill
        finally:
            self._opening.pop(digest, None)

    def _look_up(self, digest: Digest) -> tuple[BlobRecord | None, BlobFiles | None]:
        return self._records.get(digest), BlobFiles.open(self.layout, digest)

    # --- Surroundings, in the connections' threads ---

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        """Make the files of a blob; a full disk gets room by evicting once.

        A stripe that still cannot take them is left out: its extents stay misses.
        """
        if size > self.quota.high_water:
            # It would drive everything else out and still not fit.
            raise OSError(errno.ENOSPC, f"cache.max_size: {self.quota.high_water} bytes in all")
        create = partial(BlobFiles.create, self.layout, digest, size, self.settings.extent_size)
        try:
            return self._evicting_once(create, digest, self.settings.extent_size)
        except OSError:
            return create(stand_in=True)

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        """Count and reserve an extent's space; a full disk gets room by evicting once."""
        if files.reserved(extent):
            return
        length = files.geometry.extent_length(extent)
        self.take_room(digest, length, lambda: files.reserve(extent))

    def take_room(self, key: ObjectKey, length: int, work: Callable[[], None]) -> None:
        """Count bytes of an object and do what takes them; a full disk gets room by evicting once.

        Raises OSError.
        """
        self.quota.reserve(key, length)
        try:
            self._evicting_once(work, key, length)
        except OSError:
            self.quota.unreserve(key, length)
            raise

    def _evicting_once(self, work: Callable[[], T], key: ObjectKey, length: int) -> T:
        """Do what takes ``length`` bytes of disk; a full one gets room by evicting once.

        Where that has not helped somebody else takes the room, and evicting the rest would not
        either: it is left alone for :data:`HOPELESS_SECONDS`. Raises OSError.
        """
        try:
            return work()
        except OSError as error:
            if not _full(error):
                raise
        with self._room_lock:
            try:
                return work()  # somebody may have made room while this thread waited
            except OSError:
                if time.monotonic() < self._hopeless_until:
                    raise
                # An object's bytes go round the stripes, and the full one may have few of them.
                if not self.quota.make_room(key, length * len(self.layout.stripes)):
                    raise
            deadline = time.monotonic() + RELEASED_SECONDS
            while True:
                try:
                    return work()
                except OSError:
                    # Until its last reader has closed it, what was evicted keeps its room.
                    if time.monotonic() > deadline:
                        self._hopeless_until = time.monotonic() + HOPELESS_SECONDS
                        raise
                time.sleep(0.05)

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        """Count and pace a write."""
        self.pacers[stripe].wrote(files.descriptor(stripe), offset, length)

    # --- Surroundings, on the loop ---

    def in_thread(
        self,
        work: Callable[[], object],
        done: Callable[[object], None],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Run ``work`` in a thread; ``done`` gets its result or its exception, on the loop."""

        def run() -> object:
            try:
                return work()
            except Exception as error:
                if not isinstance(error, OSError):
                    logger.exception("fill: an error of the filler itself")
                return error

        def finished(future: asyncio.Future[object]) -> None:
            if not future.cancelled() and not self._closed:
                done(future.result())

        self._loop.run_in_executor(threads or self._workers, run).add_done_callback(finished)

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
            self._note(fill)

    def verified(self, fill: Fill) -> None:
        """The digest has passed: make it last, in a thread."""
        files = fill.files
        if files is None:
            return
        self.hashed += files.geometry.size
        self._suspects.pop(fill.digest, None)
        self._changed.discard(fill.digest)
        self._note(fill)
        self._syncing.add(fill)
        self.in_thread(files.sync, lambda result: self._synced(fill, result), self._syncers)

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
        now = time.monotonic()
        self._suspects = {key: old for key, old in self._suspects.items() if old.until > now}
        suspect = self._suspects.setdefault(fill.digest, _Suspect(0, 0.0))
        suspect.failures += 1
        suspect.until = now + SUSPECT_SECONDS
        if suspect.failures > 1:
            suspect.refused_until = now + REFUSE_SECONDS
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
        self._forget(fill)
        if fill.files is not None:
            fill.files.unlink()
        self.quota.forget(fill.digest)
        self._known.pop(fill.digest, None)
        self._clerk.submit(self._records.delete, fill.digest)

    # --- use, eviction, the end of a fill ---

    def evicted(self, digest: Digest) -> None:
        """Called by the quota, from any thread, before it forgets an object: remove its files."""
        for path in self.layout.blob_paths(digest, len(self.layout.stripes)):
            for name in (path.with_name(path.name + ".map"), path):
                try:
                    os.unlink(name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    logger.warning("evict: %s: %s", name, error.strerror)
        self._clerk.submit(self._records.delete, digest)
        self._loop.call_soon_threadsafe(self._after_eviction, digest)

    def _after_eviction(self, digest: Digest) -> None:
        self._known.pop(digest, None)
        fill = self.fills.get(digest)
        if fill is not None:
            fill.evicted = True
            # Somebody may have used it between its removal and this.
            self.quota.forget(digest)
            self._clerk.submit(self._records.delete, digest)
            self._forget(fill)
            # The quota spares what is busy; this is for a want that came in the same instant.
            fill.fail(FillFailed("upstream", f"{digest} was evicted; ask again"))
            for listener in list(fill.listeners):
                listener.notify_evicted(fill)

    def touch(self, fill: Fill) -> None:
        """The blob is used now."""
        now = time.time()
        self.quota.touch(fill.digest, now)
        record = self._known.get(fill.digest)
        if record is None or now - record.used_at > TOUCH_SECONDS:
            self._note(fill)

    def pin(self, digest: Digest, pinned: bool) -> bool:
        """Pin or unpin; False when it is not here."""
        if not self.quota.pin(digest, pinned):
            return False

        def store() -> None:
            record = self._records.get(digest) or BlobRecord()
            record.pinned = pinned
            self._records.put(digest, record)

        record = self._known.get(digest)
        if record is not None:
            record.pinned = pinned
        self._clerk.submit(store)
        return True

    def leased_by(self, holder: str) -> set[ObjectKey]:
        """What a holder has leased."""
        return self.quota.leased_by(holder)

    def lease(self, holder: str, keys: set[ObjectKey]) -> None:
        """Replace what a holder has leased; it survives a restart."""
        self.quota.lease(holder, keys)
        self._clerk.submit(self._records.put_leases, holder, sorted(map(str, keys)))

    async def restore_leases(self) -> None:
        """Take over the leases of before this start."""
        found = await self._loop.run_in_executor(self._clerk, self._records.leases)
        for holder, keys in found.items():
            self.quota.lease(holder, [parse_key(key) for key in keys])
        if not self._records.fresh:
            self.quota.expect(found)

    async def record(self, digest: Digest) -> BlobRecord | None:
        """What is remembered of a blob."""
        return await self._loop.run_in_executor(self._clerk, self._records.get, digest)

    def _note(self, fill: Fill) -> None:
        """Enter a blob's state into the account and the index."""
        files = fill.files
        if files is None or fill.evicted or fill.failure is not None:
            return
        record = self._known.setdefault(fill.digest, BlobRecord())
        record.size = files.geometry.size
        record.used_at = time.time()
        record.verified = fill.verified
        record.vouched = sorted(fill.vouched)
        record.allocated = files.allocated()
        self.quota.account(fill.digest, record.allocated, record.used_at, pinned=record.pinned)
        self._clerk.submit(self._records.put, fill.digest, record)

    def _close_idle(self, now: float) -> None:
        for fill in [*self.fills.values(), *self._retired]:
            if fill.busy or fill.listeners or fill.openings or fill in self._syncing:
                fill.idle_since = now
            elif now - fill.idle_since >= CLOSE_IDLE_SECONDS or fill in self._retired:
                self._close(fill)

    def _close(self, fill: Fill) -> None:
        self._note(fill)
        if self.fills.get(fill.digest) is fill:
            del self.fills[fill.digest]
            self._known.pop(fill.digest, None)
        self._retired.discard(fill)
        for carriage in self.carriages.values():
            carriage.pool.fills.discard(fill)
        files = fill.files
        if files is not None:
            for pacer, descriptor in zip(self.pacers, files.descriptors, strict=False):
                pacer.forget({descriptor})
            files.close()

    def _forget(self, fill: Fill) -> None:
        """Let the next open start afresh; the files stay open for whoever reads them."""
        if self.fills.get(fill.digest) is fill:
            del self.fills[fill.digest]
        for carriage in self.carriages.values():
            carriage.pool.fills.discard(fill)
        self._retired.add(fill)


def _full(error: OSError) -> bool:
    """Whether a disk or a quota of the system has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
