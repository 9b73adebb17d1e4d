"""Brings what a job wants: by wants at the filler, which fetches, verifies and schedules."""

import asyncio

from headstart.store.fill_client import FillClient
from proxy.warm.job import WAITING, WarmBlob, WarmJob
from proxy.warm.ready import learn_layers, make_layers
from proxy.warm.together import each
from proxy.warm.whole import whole_blob

MOST_WANTS = 64
"""Blobs that one job has open: many enough for every connection, and a bound on descriptors."""

SAMPLE_SECONDS = 1.0
FOLLOWED_SAMPLE_SECONDS = 0.25


async def bring(job: WarmJob, filler: FillClient) -> None:
    """Return when every blob of the job, or its layer image, is here and verified.

    Raises FillFailed or FillerUnreachable, the first that any blob gave; the wants of the others
    are dropped then, their bytes stay.
    """
    watching = asyncio.create_task(_watch(job))
    try:
        if job.request.ready:
            await learn_layers(job, filler)
        wanted = [blob for blob in job.blobs if blob.state == WAITING]
        await each(lambda blob: _bring(job, blob, filler), wanted, MOST_WANTS)
    finally:
        watching.cancel()
        job.sample()


async def _watch(job: WarmJob) -> None:
    """Look at the progress, more often while somebody follows it."""
    while True:
        job.sample()
        await asyncio.sleep(FOLLOWED_SAMPLE_SECONDS if job.followers else SAMPLE_SECONDS)


async def _bring(job: WarmJob, blob: WarmBlob, filler: FillClient) -> None:
    if await make_layers(job, blob, filler):
        return
    async with whole_blob(job, blob, filler):
        pass
