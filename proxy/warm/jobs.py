"""All warm jobs of this mirror: the queue, the running ones, the lately ended, kept in the index.

A job that had not ended when the process ended is queued again by the next one; what it had
fetched is in the cache. Clients go before jobs by the priority of the jobs' wants.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

from headstart.content.errors import InvalidInput
from headstart.content.sizes import show_size
from headstart.registry.errors import RegistryError
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from proxy.serve.records import Record
from proxy.warm.bring import bring
from proxy.warm.deadline import JobDeadline
from proxy.warm.failure import failure_of
from proxy.warm.job import (
    CANCELLED,
    DONE,
    FAILED,
    RESOLVING,
    RESTORE_ERRORS,
    RUNNING,
    WarmJob,
)
from proxy.warm.request import WarmRequest
from proxy.warm.resolve import FindsManifests, Resolver
from proxy.warm.together import each

logger = logging.getLogger(__name__)

KIND = "job"
MOST_UNFINISHED = 100
MOST_ENDED = 100
ENDED_SECONDS = 24 * 3600.0
RUN_AT_ONCE = 4
RESOLVE_AT_ONCE = 8
FOLLOW_SECONDS = 0.25
"""Least seconds between two events of one follower."""

SILENCE_SECONDS = 10.0
"""A follower hears something at least this often, so that a dead connection is noticed."""

RESTORE_SECONDS = 10.0
"""How long calls wait for the jobs of the last process, which lie in the cache."""

_RESTORE_PAUSE_SECONDS = 1.0


class KeepsRecords(Protocol):
    """The index: :class:`proxy.serve.records.AsyncIndex`."""

    async def put(self, kind: str, name: str, record: Record) -> None:
        """Store a record."""

    async def delete(self, kind: str, name: str) -> None:
        """Drop a record."""

    async def items(self, kind: str) -> list[tuple[str, Record]]:
        """All records of a kind, oldest first."""


class JobUnknown(Exception):
    """There is no job of this id, or it ended long ago."""


class JobsFull(Exception):
    """As many jobs as are allowed have not ended."""


class WarmJobs:
    """Use as an async context manager: entering goes on with the jobs of the last process."""

    def __init__(
        self,
        *,
        upstreams: Mapping[str, Upstream],
        manifests: FindsManifests,
        filler: FillClient,
        index: KeepsRecords,
        capacity: Callable[[], Awaitable[int | None]],
    ) -> None:
        """``capacity`` gives the bytes that the cache may hold, None when it is not known."""
        self._upstreams = upstreams
        self._manifests = manifests
        self._filler = filler
        self._index = index
        self._capacity = capacity
        self._jobs: dict[str, WarmJob] = {}
        self._slots = asyncio.Semaphore(RUN_AT_ONCE)
        self._closing = asyncio.Event()
        self._restored = asyncio.Event()
        self._forgotten: set[asyncio.Task[None]] = set()
        self._restoring: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "WarmJobs":
        """Begin to read the jobs of the last process; this waits for the filler by itself."""
        self._restoring = asyncio.create_task(self._restore(), name="warm jobs of the last process")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; what has not ended goes on in the next process."""
        self.stop_following()
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        if self._restoring is not None:
            tasks.append(self._restoring)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop_following(self) -> None:
        """End the streams of all followers: the process is about to end."""
        self._closing.set()
        for job in self._jobs.values():
            job.announce()

    # --- what the API asks ---

    async def submit(self, request: WarmRequest) -> WarmJob:
        """The job of this work: a running one, made more urgent if need be, or a new one.

        Raises :class:`JobsFull`; FillerUnreachable while the index cannot be opened.
        """
        await self._wait_restored()
        for job in self._jobs.values():
            if not job.ended and not job.cancelled and job.request.work == request.work:
                job.raise_priority(request.priority)
                await self._keep(job)
                return job
        if sum(not job.ended for job in self._jobs.values()) >= MOST_UNFINISHED:
            raise JobsFull(f"{MOST_UNFINISHED} jobs have not ended; wait for one, or cancel one")
        job = WarmJob(secrets.token_hex(6), request, request.priority)
        self._jobs[job.id] = job
        try:
            await self._keep(job)
        except BaseException:
            del self._jobs[job.id]
            raise
        if not job.ended:
            self._start(job)
        return job

    async def get(self, id: str) -> WarmJob:
        """The job of this id. Raises :class:`JobUnknown`, FillerUnreachable."""
        await self._wait_restored()
        self._forget_old()
        try:
            return self._jobs[id]
        except KeyError:
            raise JobUnknown(f"there is no job {id[:40]!r}") from None

    async def all(self) -> list[WarmJob]:
        """All jobs that are known, the latest first. Raises FillerUnreachable."""
        await self._wait_restored()
        self._forget_old()
        return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)

    async def cancel(self, id: str) -> WarmJob:
        """Drop the job's wants; fills that others want go on. An ended job stays as it is."""
        job = await self.get(id)
        if job.ended:
            return job
        job.cancelled = True
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait((job.task,))
        if not job.ended:  # its task had not begun
            job.enter(CANCELLED)
            await self._keep(job)
        return job

    def by_state(self) -> Counter[str]:
        """How many of the known jobs are in which state."""
        return Counter(job.state for job in self._jobs.values())

    async def follow(self, job: WarmJob) -> AsyncIterator[dict[str, object] | None]:
        """The job as JSON, now and after every change, at most four times a second.

        None when nothing has changed for a while. Ends with the job, or when the process ends.
        """
        job.followers += 1
        try:
            while True:
                changed = job.changed
                yield job.describe()
                if job.ended or self._closing.is_set():
                    return
                if not job.cancelled:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), FOLLOW_SECONDS)
                while not changed.is_set():
                    try:
                        await asyncio.wait_for(changed.wait(), SILENCE_SECONDS)
                    except TimeoutError:
                        yield None
        finally:
            job.followers -= 1

    # --- running ---

    def _start(self, job: WarmJob) -> None:
        job.task = asyncio.create_task(self._run(job), name=f"warm job {job.id}")

    async def _run(self, job: WarmJob) -> None:
        deadline = JobDeadline(job, self._upstreams)
        try:
            try:
                async with deadline.from_call(), self._slots, deadline.from_start():
                    job.enter(RESOLVING)
                    await self._resolve(job)
                    job.enter(RUNNING)
                    await self._check_capacity(job)
                    await self._keep(job)
                    await bring(job, self._filler)
            except TimeoutError:
                failure = deadline.failure()
                if failure is None:
                    raise
                raise failure from None
        except asyncio.CancelledError:
            if not job.cancelled:
                raise
            job.enter(CANCELLED)
        except (FillFailed, FillerUnreachable, RegistryError, InvalidInput) as error:
            self._fail(job, failure_of(error))
        except Exception as error:
            logger.exception("warm job %s ended unexpectedly", job.id)
            self._fail(job, FillFailed("protocol", f"unexpected {type(error).__name__}"))
        else:
            job.enter(DONE)
        logger.info(
            "warm job=%s state=%s bytes=%d seconds=%.1f%s",
            job.id,
            job.state,
            job.bytes_done,
            time.time() - job.created_at,
            f" reason={job.failure.code}" if job.failure else "",
        )
        with suppress(FillerUnreachable):
            await self._keep(job)
        self._forget_old()

    @staticmethod
    def _fail(job: WarmJob, failure: FillFailed) -> None:
        job.failure = failure
        job.enter(FAILED)

    async def _resolve(self, job: WarmJob) -> None:
        resolver = Resolver(job, self._manifests, self._upstreams)
        resolved = await each(resolver.resolve, job.request.images, RESOLVE_AT_ONCE)
        job.images = [image for images in resolved for image in images]

    async def _check_capacity(self, job: WarmJob) -> None:
        capacity, wanted = await self._capacity(), job.space_wanted
        if capacity is not None and wanted > capacity:
            raise FillFailed(
                "space",
                f"the images have {show_size(wanted)}, the cache holds at most "
                f"{show_size(capacity)}; raise cache.max_size or warm fewer",
            )

    # --- keeping ---

    async def _keep(self, job: WarmJob) -> None:
        await self._index.put(KIND, job.id, job.record())

    async def _wait_restored(self) -> None:
        """Jobs are known only when those of the last process are. Raises FillerUnreachable."""
        try:
            await asyncio.wait_for(self._restored.wait(), RESTORE_SECONDS)
        except TimeoutError:
            raise FillerUnreachable(
                f"the jobs of the last process could not be read within {RESTORE_SECONDS:g} s, "
                "since the filler has not opened the cache"
            ) from None

    async def _restore(self) -> None:
        try:
            await self._read_last_process()
        except Exception:
            logger.exception("warm jobs of the last process are lost")
        self._restored.set()

    async def _read_last_process(self) -> None:
        while True:
            try:
                records = await self._index.items(KIND)
                break
            except FillerUnreachable:
                await asyncio.sleep(_RESTORE_PAUSE_SECONDS)
        for id, record in records:
            if id in self._jobs:
                continue
            try:
                request = WarmRequest.read(record.get("request"), self._upstreams)
                job = WarmJob.restore(id, record, request)
            except RESTORE_ERRORS as error:
                logger.warning("warm job %s cannot go on: %s", id, error)
                await self._index.delete(KIND, id)
                continue
            self._jobs[id] = job
            if not job.ended:
                logger.info("warm job %s goes on", id)
                self._start(job)
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop the jobs that ended long ago, and the oldest of too many."""
        ended = sorted(
            (job for job in self._jobs.values() if job.ended),
            key=lambda job: job.finished_at or 0.0,
            reverse=True,
        )
        now = time.time()
        for position, job in enumerate(ended):
            if position >= MOST_ENDED or now - (job.finished_at or 0.0) > ENDED_SECONDS:
                del self._jobs[job.id]
                self._forgetting(job.id)

    def _forgetting(self, id: str) -> None:
        async def forget() -> None:
            with suppress(FillerUnreachable):
                await self._index.delete(KIND, id)

        task = asyncio.create_task(forget())
        self._forgotten.add(task)
        task.add_done_callback(self._forgotten.discard)
