"""One blob while anybody has it open: who wants which bytes, what is on its way, what has come.

Everything here runs on the filler's event loop; connections' threads come in by
:mod:`proxy.fill.intake`.
"""

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.geometry import UNIT_SIZE
from proxy.fill.blob_files import BlobFiles
from proxy.fill.digesting import FollowingDigest
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.parties import BlobSource, Listener, Surroundings, Want
from proxy.fill.unit_table import UnitTable

logger = logging.getLogger(__name__)

MAX_REDIRECTIONS_REFRESHED = 3
WASTE_SHARE = 0.01
NEAR_BYTES = 2 * UNIT_SIZE
"""A read that waits for bytes no further ahead of a range on its way waits for that range."""
LOOK_SECONDS = 0.002
"""At most so often the loop looks at what connections have brought of a blob."""


class Fill:
    """The state of one blob."""

    def __init__(
        self,
        digest: Digest,
        files: BlobFiles | None,
        size_hint: int | None,
        around: Surroundings,
        loop: asyncio.AbstractEventLoop,
        *,
        digested: bool = True,
        largest_range: int | None = None,
    ) -> None:
        """``files`` are what the store has already; ``size_hint`` is what a manifest says.

        Who checks the bytes itself as it reads them wants them not ``digested`` here; who holds
        them in memory wants ranges of at most ``largest_range`` bytes, and no whole answer that
        is longer.
        """
        self.digest = digest
        self.files = files
        self.size_hint = size_hint
        self.digested = digested
        self.largest_range = largest_range
        self.around = around
        self.etag: str | None = None
        self.stream: Fetch | None = None
        self.reserved: set[int] = set()
        self.intake_lock = threading.Lock()
        self.reserve_lock = threading.Lock()
        self.sources: list[BlobSource] = []
        self.locations: dict[BlobSource, str] = {}
        self.refreshed = 0
        self.wants: list[Want] = []
        self.fetches: set[Fetch] = set()
        self.listeners: set[Listener] = set()
        self.table: UnitTable | None = None
        self.failure: FillFailed | None = None
        self.refusal: FillFailed | None = None
        """Why the last source was dropped; until somebody opens the blob again."""
        self.attempts = 0
        self.failed_at = 0.0
        self.silent_since: float | None = None
        """Since when the upstream has given no answer at all; monotonic seconds."""
        self.not_before = 0.0
        self.no_length = False
        self.etag_ignored = False
        self.evicted = False
        self.outgrown: Callable[[], None] = lambda: None
        """Called, on the loop, when more has to come at once than ``largest_range`` bytes."""
        self.openings = 0
        """Opens that wait for an answer about this fill, which must not be closed meanwhile."""
        self.vouched: set[str] = set()
        self.idle_since = time.monotonic()
        self.received = 0
        self.started: float | None = None
        self._loop = loop
        self._progress_noted = False
        self._looked_at = 0.0
        self._checking = 0
        self._occupied = False
        self._wasting = 0
        self._digest: FollowingDigest | None = None
        self._digesting = False
        self._announced = False
        if files is not None:
            self._take_files()

    def on_loop(self, call: Callable[[], None]) -> None:
        """Run a call on the filler's loop; from any thread."""
        self._loop.call_soon_threadsafe(call)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run a call on the filler's loop after a while; from the loop."""
        self._loop.call_later(seconds, call)

    # --- size and files ---

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        return self.table.geometry.size if self.table is not None else None

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.table is not None and self.table.complete()

    @property
    def verified(self) -> bool:
        """Whether the digest has passed."""
        return self.files is not None and self.files.map.verified

    @property
    def state(self) -> str:
        """The word for this state in ``opened`` and ``state`` messages."""
        if self.failure is not None:
            return "refused"
        if self.table is None:
            return "planning"
        return "complete" if self.verified else "streaming"

    def make_files(self, size: int) -> None:
        """Make the files for a size learned otherwise than from an answer with bytes.

        Blocks: call it from a thread, and :meth:`files_made` afterwards. Raises OSError.
        """
        with self.intake_lock:
            if self.files is None:
                self.files = self.around.create_files(self.digest, size)

    def files_made(self) -> None:
        """Take over the files that :meth:`make_files` has made."""
        self._take_files()

    def _take_files(self) -> None:
        files = self.files
        if files is None or self.table is not None:
            return
        self.table = UnitTable(files.geometry)
        for extent in self.table.load(files.map):
            self._check(files, extent)
        for fetch in self.fetches:
            self.table.claim(fetch.start, min(fetch.stop, files.geometry.size))
        for want in self.wants:
            want.stop = min(want.stop or files.geometry.size, files.geometry.size)
        for listener in list(self.listeners):
            listener.notify_files(self)
        self._follow_digest()

    def _check(self, files: BlobFiles, extent: int) -> None:
        """Hold an extent that cannot be believed against its BLAKE3, in a thread."""

        def checked(_: object) -> None:
            self._checking -= 1
            if self.table is not None and self.files is files:
                self.table.load_extent(files.map, extent)
                self.after_progress()
                self.around.pump()

        self._checking += 1
        self.around.in_thread(lambda: files.check_extent(extent), checked)

    # --- wants ---

    def add_want(self, want: Want) -> None:
        """Somebody waits for bytes."""
        if self.failure is not None:
            want.settle(self.failure)
            return
        if self.evicted and not self.complete:
            want.settle(FillFailed("upstream", "the blob was evicted; open it again"))
            return
        want.reached = want.offset
        if self.table is not None:
            size = self.table.geometry.size
            want.stop = min(want.stop if want.stop is not None else size, size)
        self.wants.append(want)
        self._settle_wants()
        if self.refusal is not None and want in self.wants:
            self.wants.remove(want)
            want.settle(self.refusal)
        self._note_busy()
        self.around.pump()

    def drop_want(self, want: Want) -> None:
        """Nobody waits for these bytes any more: stop what nobody else wants."""
        if want in self.wants:
            self.wants.remove(want)
        self.cut_unwanted()
        self._note_busy()

    def cut_unwanted(self) -> None:
        """End the fetches whose remaining bytes nobody wants."""
        for fetch in self.fetches:
            if not fetch.stream and self.priority_of(fetch) is None:
                fetch.cut(Outcome(Ending.CUT, "nobody wants it any more"))
        if not self.wants and self.stream is not None:
            self.stream.cut(Outcome(Ending.CUT, "nobody wants it any more"))

    def priority_of(self, fetch: Fetch) -> int | None:
        """The most urgent want that a fetch serves; None when it serves none."""
        priorities = [
            want.priority
            for want in self.wants
            if (want.stop is None or want.stop + want.reach > fetch.committed)
            and want.offset < fetch.stop
        ]
        return min(priorities, default=None)

    def _settle_wants(self) -> None:
        if self.table is None:
            return
        for want in list(self.wants):
            stop = want.stop if want.stop is not None else self.table.geometry.size
            want.reached = self.table.reached(want.reached, stop)
            if want.reached >= stop:
                # A want of everything waits for the digest too: its reader may not finish before.
                whole = want.offset == 0 and stop == self.table.geometry.size
                if whole and self.digested and not self.verified:
                    continue
                self.wants.remove(want)
                want.settle(None)

    def next_range(self, want: Want, request_size: int) -> tuple[int, int] | None:
        """The next bytes to ask an upstream for on behalf of a want."""
        if self.stream is not None:
            return None
        if self.largest_range is not None:
            request_size = min(request_size, self.largest_range)
        if self.table is None:
            if self.fetches or self.no_length:
                return None
            start = want.offset // UNIT_SIZE * UNIT_SIZE
            stop = (start // request_size + 1) * request_size
            if not want.bulk and want.stop is not None:
                stop = -(-max(want.stop, start + 1) // UNIT_SIZE) * UNIT_SIZE
            if self.size_hint is not None and start < self.size_hint:
                stop = min(stop, self.size_hint)
            return start, stop
        stop = want.stop if want.stop is not None else self.table.geometry.size
        if want.bulk:
            return self.table.next_missing(want.offset, stop, request_size)
        reach = min(stop + want.reach, self.table.geometry.size)
        bounds = self.table.next_missing(want.offset, reach, max(request_size, 1 << 62))
        # What lies only in its reach nobody waits for: the stream brings that.
        return bounds if bounds is not None and bounds[0] < stop else None

    def free_for(self, want: Want) -> None:
        """Take what a read waits for from the bulk range that would come to it late only."""
        if want.bulk or self.table is None:
            return
        border = want.reached // UNIT_SIZE * UNIT_SIZE
        for fetch in self.fetches:
            if fetch.bulk and fetch.start < border < fetch.stop:
                taken = fetch.give_up_from(border, NEAR_BYTES)
                if taken is not None:
                    self.table.release(*taken)

    # --- fetches ---

    def may_waste(self, count: int, least: int = 0) -> bool:
        """Whether a connection may be cut, which loses about ``count`` bytes on their way.

        All cuts of a blob together lose at most :data:`WASTE_SHARE` of it; ``least`` are allowed
        to the smallest blob. Each permission counts.
        """
        size = self.size or 0
        allowed = max(int(size * WASTE_SHARE) // count, least)
        if self._wasting >= allowed:
            return False
        self._wasting += 1
        return True

    def begin(self, fetch: Fetch) -> None:
        """A connection has taken a range."""
        self.fetches.add(fetch)
        self.started = self.started or time.monotonic()
        if self.table is not None:
            self.table.claim(fetch.start, fetch.stop)

    def answered(self, source: BlobSource) -> None:
        """An answer with bytes from a source was admitted."""
        self.around.vouched(self, source)
        self._take_files()

    def became_stream(self, fetch: Fetch, source: BlobSource) -> None:
        """An upstream without ranges sends the whole blob on this connection."""
        self.answered(source)
        fetch.seen = 0
        if self.table is not None:
            self.table.claim(0, self.table.geometry.size)

    def note_progress(self) -> None:
        """From a connection's thread: look at what has come."""
        if not self._progress_noted:
            self._progress_noted = True
            self._loop.call_soon_threadsafe(self._progressed)

    def _progressed(self) -> None:
        now = self._loop.time()
        if now - self._looked_at < LOOK_SECONDS:
            self._loop.call_later(LOOK_SECONDS, self._look)
        else:
            self._look()

    def _look(self) -> None:
        self._progress_noted = False
        self._looked_at = self._loop.time()
        self._take_files()
        if self.table is None:
            return
        for fetch in self.fetches:
            self._count(fetch)
        self.after_progress()

    def _count(self, fetch: Fetch) -> None:
        committed = fetch.committed
        if self.table is not None and committed > fetch.seen:
            origin = max(fetch.start, fetch.seen // UNIT_SIZE * UNIT_SIZE)
            self.table.arrived(origin, committed)
            fetch.seen = committed

    def after_progress(self) -> None:
        """Tell everybody that bytes have come."""
        self._settle_wants()
        for listener in list(self.listeners):
            listener.notify_arrived(self)
        self._follow_digest()
        self._note_busy()

    def end(self, fetch: Fetch) -> None:
        """A connection has let go of a range; what it did not bring is free again."""
        self.fetches.discard(fetch)
        self.received += fetch.received
        if self.stream is fetch:
            self.stream = None
        self._look()
        if self.table is not None:
            self._count(fetch)
            with fetch.lock:
                committed, stop = fetch.committed, fetch.stop
            self.table.release(committed, stop)
            self.after_progress()

    # --- the digest of the whole ---

    def _follow_digest(self) -> None:
        files = self.files
        if self._digesting or files is None or self.verified or self.failure is not None:
            return
        if not self.digested:
            return
        if self._digest is None:
            self._digest = FollowingDigest(self.digest, files)
        position = self._digest.position
        reachable = files.map.available(position, 1 << 20)
        if reachable < min(1 << 20, files.geometry.size - position):
            return
        self._digesting = True
        self.around.in_thread(self._digest.advance, self._digested)

    def _digested(self, result: object) -> None:
        self._digesting = False
        if self.failure is not None or self.files is None:
            return
        if isinstance(result, Exception):
            # Whoever waits for the digest must hear of it, though all bytes seem to be here.
            self.around.suspect(self)
        elif result is True:
            self.files.mark_verified()
            self.around.verified(self)
            self.after_progress()
        elif result is False:
            text = f"{self.digest}: the upstream's bytes have another digest; they were dropped"
            self.around.quarantine(self, FillFailed("digest", text))
        else:
            self._follow_digest()
            self._note_busy()

    # --- the end ---

    @property
    def busy(self) -> bool:
        """Whether bytes are wanted or on their way, or threads read the files."""
        return bool(self.wants or self.fetches or self._digesting or self._checking)

    def _note_busy(self) -> None:
        """Tell the quota when that has changed."""
        if self.busy != self._occupied:
            self._occupied = self.busy
            self.around.occupied(self, 1 if self._occupied else -1)

    def fail(self, failure: FillFailed) -> None:
        """Settle every want with a reason; the bytes that are here stay."""
        wants, self.wants = self.wants, []
        for want in wants:
            want.settle(failure)
        if self.table is None:
            for listener in list(self.listeners):
                listener.notify_refused(self, failure)
        self.cut_unwanted()
        self._note_busy()

    def add_source(self, source: BlobSource, most: int) -> None:
        """Ask this one first; of each upstream at most ``most`` are remembered."""
        self.sources.insert(0, source)
        same = [known for known in self.sources if known.upstream == source.upstream]
        for surplus in same[most:]:
            self.sources.remove(surplus)

    def source_at(self, upstream: str) -> BlobSource | None:
        """The repository of this upstream that is asked for the blob."""
        return next((source for source in self.sources if source.upstream == upstream), None)

    def drop_sources(self, dropped: Iterable[BlobSource], failure: FillFailed) -> None:
        """These cannot give it: others may; after the last one every want fails by ``failure``."""
        for source in dropped:
            self.sources.remove(source)
            self.locations.pop(source, None)
        if not self.sources:
            self.refusal = failure
            self.fail(failure)
            for listener in list(self.listeners):
                # Who comes later opens it again, and thereby asks the sources again.
                listener.notify_evicted(self)

    def withdraw(self, failure: FillFailed) -> None:
        """The object is no more: everybody who has it open must know."""
        self.failure = failure
        for fetch in list(self.fetches):
            fetch.cut(Outcome(Ending.CUT, failure.text))
        # First that the object is gone: who hears only that its own want has failed asks anew at
        # once, and must not be lent the handle of the object that is no more.
        for listener in list(self.listeners):
            listener.notify_refused(self, failure)
        wants, self.wants = self.wants, []
        for want in wants:
            want.settle(failure)

    def disk_failure(self, error: OSError | None) -> FillFailed:
        """What to say when the cache's disk does not take bytes."""
        if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FillFailed("space", f"the cache has no room: {error.strerror}")
        return FillFailed("space", f"the cache cannot be written: {error}")
