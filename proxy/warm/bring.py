"""Brings the blobs of a job: wants at the filler, which fetches, verifies and schedules them."""

import asyncio
from contextlib import AsyncExitStack
from typing import Protocol

from headstart.content.digest import Digest
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.open_blob import OpenBlob
from proxy.warm.job import DONE, FAILED, FILLING, SKIPPED, WAITING, WarmBlob, WarmJob
from proxy.warm.together import each

MOST_WANTS = 64
"""Blobs that one job has open: many enough for every connection, and a bound on descriptors."""

SAMPLE_SECONDS = 1.0
FOLLOWED_SAMPLE_SECONDS = 0.25


class OpensBlobs(Protocol):
    """The filler: :class:`headstart.store.fill_client.FillClient`."""

    async def open(
        self,
        *,
        upstream: str,
        repository: str,
        digest: Digest,
        size: int | None = None,
        first: tuple[int, int | None] | None = None,
        authorization: str | None = None,
        timeout_seconds: float = 60.0,
    ) -> OpenBlob:
        """Open a blob."""

    def close(self, handle: OpenBlob) -> None:
        """Close a handle."""


async def bring(job: WarmJob, filler: OpensBlobs) -> None:
    """Return when every blob of the job is here and verified.

    Raises FillFailed or FillerUnreachable, the first that any blob gave; the wants of the others
    are dropped then, their bytes stay.
    """
    wanted = [blob for blob in job.blobs if blob.state != SKIPPED]
    watching = asyncio.create_task(_watch(job))
    try:
        await each(lambda blob: _bring_blob(job, blob, filler), wanted, MOST_WANTS)
    finally:
        watching.cancel()
        job.sample()


async def _watch(job: WarmJob) -> None:
    """Look at the progress, more often while somebody follows it."""
    while True:
        job.sample()
        await asyncio.sleep(FOLLOWED_SAMPLE_SECONDS if job.followers else SAMPLE_SECONDS)


async def _bring_blob(job: WarmJob, blob: WarmBlob, filler: OpensBlobs) -> None:
    descriptor = blob.descriptor
    try:
        handle = await filler.open(
            upstream=blob.upstream,
            repository=blob.repository,
            digest=descriptor.digest,
            size=descriptor.size,
        )
    except (FillFailed, FillerUnreachable):
        blob.state = FAILED
        raise
    try:
        if handle.blob.size != descriptor.size:
            raise FillFailed(
                "digest",
                f"{descriptor.digest} has {handle.blob.size} bytes at {blob.upstream}; "
                f"the manifest says {descriptor.size}",
            )
        blob.handle, blob.state = handle, FILLING
        blob.look()
        await _until_verified(job, handle)
        blob.done, blob.state = descriptor.size, DONE
    except (FillFailed, FillerUnreachable):
        blob.look()
        blob.state = FAILED
        raise
    finally:
        blob.look()
        if blob.state == FILLING:
            blob.state = WAITING
        blob.handle = None
        filler.close(handle)


async def _until_verified(job: WarmJob, handle: OpenBlob) -> None:
    """Want the whole blob, and once more whenever the job has become more urgent.

    A want is kept beside the next: dropped first, it would end fetches that only it wanted.
    """
    async with AsyncExitStack() as wants:
        while not handle.blob.verified:
            raised = job.raised
            want = await wants.enter_async_context(
                handle.wanting(0, handle.blob.size, job.priority, bulk=True)
            )
            verified = asyncio.ensure_future(handle.wait_verified(want))
            more_urgent = asyncio.ensure_future(raised.wait())
            try:
                await asyncio.wait((verified, more_urgent), return_when=asyncio.FIRST_COMPLETED)
                if verified.done():
                    verified.result()
                    return
            finally:
                verified.cancel()
                more_urgent.cancel()
