"""Carries out what a pool decides: asks, follows redirects, answers challenges, draws conclusions.

One carriage an upstream. Decisions on the filler's loop, transfers in threads.
"""

import asyncio
import logging
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from headstart.registry.address import AddressPolicy
from headstart.registry.client import RegistryClient
from headstart.registry.errors import RegistryError
from headstart.registry.proxies import ProxySettings
from headstart.registry.redirect import MAX_REDIRECTS, check_redirect, origin, same_origin
from headstart.store.errors import FillFailed
from headstart.store.geometry import UNIT_SIZE
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import MAX_REDIRECTIONS_REFRESHED, Fill
from proxy.fill.intake import Intake
from proxy.fill.judgement import Judgement, Step, failure_of, judge, outcome_of
from proxy.fill.parties import BlobSource
from proxy.fill.pool import Pool
from proxy.fill.receiver import RangeReceiver
from proxy.fill.source import BlobRequest, Source
from proxy.fill.trace import Trace

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 5
"""Failures in a row, none of which brought a unit, after which a blob's waiters hear the reason."""

AFRESH_SECONDS = 60.0
"""A failure so long after the one before is not counted with it."""

MOST_CHALLENGES = 3

LONGEST_WAIT = 20.0
"""Seconds that a read waits for an upstream that asks for a pause; clients have gone by 30."""


class Restarter(Protocol):
    """What a carriage asks of the filler beyond the fill itself."""

    def pump(self) -> None:
        """Something may be startable now."""

    async def learn_size(self, fill: Fill, size: int) -> None:
        """Make the files of a blob whose size no answer with bytes has told. Raises OSError."""


@dataclass(slots=True)
class CarriageFigures:
    """Counters since the start: bytes, requests, seconds."""

    received: int = 0
    refetched: int = 0
    requests: int = 0
    failed: int = 0
    paused_seconds: float = 0.0


class Carriage:
    """The transfers of one upstream."""

    def __init__(
        self,
        pool: Pool,
        client: RegistryClient,
        source: Source,
        threads: Executor,
        around: Restarter,
        trace: Trace,
    ) -> None:
        """Nothing runs yet; :meth:`pump` starts what the pool decides."""
        self.pool = pool
        self.client = client
        self.source = source
        self.figures = CarriageFigures()
        self._threads = threads
        self._around = around
        self._trace = trace
        self._proxies = ProxySettings()
        self._tasks: set[asyncio.Task[None]] = set()
        self._free: list[int] = []
        self._slots = 0
        self._closed = False

    @property
    def upstream_host(self) -> str:
        """The registry as in image names."""
        return self.pool.upstream.host

    def pump(self) -> None:
        """Start every range that the pool hands out."""
        self._refuse_long_wait()
        while not self._closed:
            fetch = self.pool.next_fetch()
            if fetch is None:
                return
            task = asyncio.create_task(self._carry(fetch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refuse_long_wait(self) -> None:
        """Answer those at once who would have to wait out a long pause of the upstream."""
        left = self.pool.paused_until - time.monotonic()
        if left <= LONGEST_WAIT:
            return
        text = f"{self.upstream_host} asked for a pause, {left:.0f} s of which are left"
        busy = {fetch.fill for fetch in self.pool.active}
        for fill in self.pool.fills - busy:
            if self.pool.lacks(fill):
                self._drop_upstream(fill, FillFailed("upstream", text, retry_after=left))

    def close_idle(self) -> None:
        """Close connections that nobody has used for a while."""
        self.source.close_idle()

    async def close(self) -> None:
        """Cut every transfer and wait for its thread."""
        self._closed = True
        for fetch in list(self.pool.active):
            fetch.cut(Outcome(Ending.CUT, "the filler stops"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        self.source.close()

    # --- one range ---

    async def _carry(self, fetch: Fetch) -> None:
        slot = self._take_slot()
        source = fetch.fill.source_at(self.upstream_host)
        at_origin = True
        outcome = Outcome(Ending.CUT, "nobody is left who may ask for it")
        try:
            self._trace_event("start", fetch, slot, "")
            if source is not None:
                outcome, at_origin = await self._ask(fetch, source)
        except RegistryError as error:
            outcome = outcome_of(error)
        except Exception:
            logger.exception("fill: %s: a range could not be carried", fetch.fill.digest)
            outcome = Outcome(Ending.PROTOCOL, "an error of the filler itself; its log says more")
        finally:
            self._free.append(slot)
            self.pool.ended(fetch)
            self._count(fetch, outcome)
            self._trace_event("end", fetch, slot, outcome.ending.value)
        fetch.fill.end(fetch)
        verdict = judge(outcome, self.upstream_host, at_origin=at_origin)
        if source is not None:
            await self._conclude(fetch, source, outcome, verdict)
        else:
            self._drop_upstream(fetch.fill, FillFailed("upstream", outcome.text))
        self._around.pump()

    async def _ask(self, fetch: Fetch, source: BlobSource) -> tuple[Outcome, bool]:
        """Request the range, through redirects and challenges; whether the registry answered."""
        fill, client = fetch.fill, self.client
        origin_url = client.blob_url(source.repository, fill.digest)
        url = fill.locations.get(source, origin_url)
        at_origin = url == origin_url
        used = await self._authorization(source) if at_origin else None
        hops = challenges = 0
        while True:
            fetch.begin_request()
            outcome = await self._perform(fetch, source, url, used if at_origin else None)
            if outcome.ending is Ending.REDIRECT:
                hops += 1
                if hops > MAX_REDIRECTS:
                    text = f"{self.upstream_host}: more than {MAX_REDIRECTS} redirects"
                    return Outcome(Ending.REFUSED, text), at_origin
                url = check_redirect(url, outcome.location)
                at_origin = at_origin and same_origin(origin_url, url)
                if not at_origin:
                    fill.locations[source] = url
                continue
            if outcome.ending is Ending.CHALLENGE and at_origin:
                challenges += 1
                if challenges > MOST_CHALLENGES:
                    return Outcome(Ending.STATUS, status=401), at_origin
                used = await client.blob_challenged(
                    source.repository, outcome.challenges, used, source.authorization
                )
                continue
            if used is not None and at_origin and fetch.first_byte is not None:
                client.blob_accepted(source.repository, used, source.authorization)
            verdict = judge(outcome, self.upstream_host, at_origin=at_origin)
            if verdict.step is not Step.RENEW or not self._renewable(fill, source, url):
                return outcome, at_origin
            url = fill.locations.get(source, origin_url)
            at_origin = url == origin_url
            used = await self._authorization(source) if at_origin else None

    async def _authorization(self, source: BlobSource) -> str | None:
        return await self.client.blob_authorization(source.repository, source.authorization)

    @staticmethod
    def _renewable(fill: Fill, source: BlobSource, refused_url: str) -> bool:
        """Whether to ask once more after a signed URL was refused; all ranges share the count."""
        if fill.locations.get(source) not in (None, refused_url):
            return True
        fill.locations.pop(source, None)
        fill.refreshed += 1
        return fill.refreshed <= MAX_REDIRECTIONS_REFRESHED

    async def _perform(
        self, fetch: Fetch, source: BlobSource, url: str, authorization: str | None
    ) -> Outcome:
        upstream = self.pool.upstream
        # A name is checked once it is resolved; behind a proxy that is not ours to do.
        AddressPolicy(upstream.allow_private).check_host(origin(url)[1])
        intake = Intake(fetch.fill, source)
        # A read may have taken the end of the range since; from here on it is what is asked for.
        fetch.asked = (fetch.start, fetch.stop)
        request = BlobRequest(
            url=url,
            authorization=authorization,
            start=fetch.start,
            stop=fetch.asked[1] if self.pool.ranges else None,
            connect_seconds=upstream.deadlines.connect,
            ca_file=upstream.ca_file,
            allow_private=upstream.allow_private,
            bytes_per_second=upstream.connection_rate,
            proxy=self._proxies.proxy_for(url),
        )
        self.figures.requests += 1

        def receiver(buffer: bytearray) -> RangeReceiver:
            return RangeReceiver(fetch, intake, buffer)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self.source.perform, fetch, request, receiver
        )

    # --- what follows ---

    async def _conclude(
        self, fetch: Fetch, source: BlobSource, outcome: Outcome, verdict: Judgement
    ) -> None:
        fill = fetch.fill
        if verdict.step is not Step.DONE:
            logger.info("fill: %s: %s", fill.digest, verdict.failure.text)
        if fetch.stream and (fetch.asked[0] > 0 or fetch.asked[1] < fetch.stop):
            # Where all of a blob was asked for, 200 is as good an answer as 206.
            self.pool.without_ranges()
        match verdict.step:
            case Step.DONE:
                if outcome.ending is Ending.COMPLETE:
                    fill.attempts = fill.refreshed = 0
                    fill.silent_since = None
            case Step.AGAIN | Step.RENEW:
                if not self._again(fetch):
                    self._drop_upstream(fill, verdict.failure)
            case Step.DISPUTE:
                if not self._again(fetch):
                    await self._settle_size(fill, source, verdict.failure)
            case Step.PAUSE:
                self._pause(fetch, verdict)
            case Step.SIZE:
                await self._find_size(fetch, source, outcome, verdict)
            case Step.RESTART:
                fill.around.restart(fill, verdict.failure)
            case Step.GIVE_UP:
                if outcome.ending is Ending.DISK:
                    fill.fail(fill.disk_failure(outcome.error))
                else:
                    self._drop_source(fill, source, verdict.failure)

    def _again(self, fetch: Fetch) -> bool:
        """Plan another try, unless there have been enough: False, and the counts begin anew."""
        fill, now = fetch.fill, time.monotonic()
        if fetch.started - fill.failed_at > AFRESH_SECONDS:
            fill.attempts, fill.silent_since = 0, None
        if fetch.committed - fetch.start >= UNIT_SIZE and not fetch.stream:
            fill.attempts = 0
        elif fetch.started > fill.failed_at:
            # Ranges that were under way together fail together: that counts once.
            fill.attempts += 1
        fill.failed_at = now
        if fetch.first_byte is not None:
            fill.silent_since = None
        elif fill.silent_since is None:
            fill.silent_since = fetch.started
        silence = 0.0 if fill.silent_since is None else now - fill.silent_since
        if fill.attempts >= MOST_ATTEMPTS or silence >= self.pool.upstream.deadlines.first_byte:
            fill.attempts, fill.silent_since = 0, None
            return False
        fill.not_before = now + self.pool.back_off(fill.attempts)
        return True

    async def _settle_size(self, fill: Fill, source: BlobSource, failure: FillFailed) -> None:
        """Answers keep giving another size than the first did: the registry's HEAD decides."""
        size = fill.size  # what nobody contradicts
        try:
            size = await self.client.head_blob(source.repository, fill.digest, source.authorization)
        except RegistryError as error:
            logger.info("fill: %s: %s", fill.digest, error)
        if size == fill.size:
            self._drop_upstream(fill, failure)
        else:
            fill.around.restart(fill, failure)

    def _pause(self, fetch: Fetch, verdict: Judgement) -> None:
        self.figures.paused_seconds += verdict.seconds
        self.pool.throttled(verdict.seconds)
        if verdict.seconds > LONGEST_WAIT or not self._again(fetch):
            self._drop_upstream(fetch.fill, verdict.failure)

    async def _find_size(
        self, fetch: Fetch, source: BlobSource, outcome: Outcome, verdict: Judgement
    ) -> None:
        fill = fetch.fill
        if fill.size is not None:
            if fetch.start < fill.size and not self._again(fetch):
                await self._settle_size(fill, source, verdict.failure)
            return
        fill.no_length = outcome.ending is Ending.NO_LENGTH
        try:
            size = outcome.size
            if size is None:
                size = await self.client.head_blob(
                    source.repository, fill.digest, source.authorization
                )
            await self._around.learn_size(fill, size)
        except RegistryError as error:
            fill.no_length = False
            self._drop_source(fill, source, failure_of(error))
        except OSError as error:
            fill.fail(fill.disk_failure(error))

    def _drop_source(self, fill: Fill, source: BlobSource, failure: FillFailed) -> None:
        """This repository cannot give it: others of the same upstream may, and other upstreams."""
        self._drop(fill, [one for one in fill.sources if one == source], failure)

    def _drop_upstream(self, fill: Fill, failure: FillFailed) -> None:
        """This upstream cannot give it: others may."""
        ours = [one for one in fill.sources if one.upstream == self.upstream_host]
        self._drop(fill, ours, failure)

    def _drop(self, fill: Fill, sources: list[BlobSource], failure: FillFailed) -> None:
        fill.drop_sources(sources, failure)
        if fill.source_at(self.upstream_host) is None:
            # The next open puts it back.
            self.pool.fills.discard(fill)

    # --- the record ---

    def _take_slot(self) -> int:
        if self._free:
            self._free.sort(reverse=True)
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def _count(self, fetch: Fetch, outcome: Outcome) -> None:
        self.figures.received += fetch.received
        self.figures.refetched += max(0, fetch.received - (fetch.committed - fetch.start))
        if outcome.ending not in (Ending.COMPLETE, Ending.CUT):
            self.figures.failed += 1

    def _trace_event(self, event: str, fetch: Fetch, slot: int, ending: str) -> None:
        if not self._trace.enabled:
            return
        self._trace.write(
            event,
            connection=slot,
            upstream=self.upstream_host,
            digest=str(fetch.fill.digest),
            start=fetch.start,
            stop=fetch.stop,
            received=fetch.received,
            ending=ending,
            queued=self.pool.queued(),
            limit=self.pool.limit,
        )
