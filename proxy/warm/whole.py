"""One object that a job has open at the filler, from its opening until all of it is here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from headstart.store.cached_blob import CachedBlob
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownLayer
from headstart.store.open_blob import OpenBlob
from headstart.store.open_layer import OpenLayer
from headstart.store.open_object import OpenObject, Want
from proxy.warm.job import DONE, FAILED, FILLING, WAITING, WarmBlob, WarmJob

H = TypeVar("H", OpenBlob, OpenLayer)


@asynccontextmanager
async def whole_blob(job: WarmJob, blob: WarmBlob, filler: FillClient) -> AsyncIterator[CachedBlob]:
    """The blob, all of it here and verified; open until the context ends.

    Raises FillFailed or FillerUnreachable.
    """
    async with _filling(blob, _open_blob(blob, filler), filler) as handle:
        if not handle.blob.verified:
            await _wanted(job, handle, handle.blob.size, handle.wait_verified)
        yield handle.blob


async def make_layer(job: WarmJob, blob: WarmBlob, layer: KnownLayer, filler: FillClient) -> None:
    """Return when a layer image of the blob is here and verified.

    Raises FillFailed or FillerUnreachable.
    """
    async with _filling(blob, filler.open_layer(layer), filler) as handle:
        if handle.state != "complete":
            await _wanted(job, handle, None, lambda want: handle.wait_complete())


async def _open_blob(blob: WarmBlob, filler: FillClient) -> OpenBlob:
    descriptor = blob.descriptor
    handle = await filler.open(
        upstream=blob.upstream,
        repository=blob.repository,
        digest=descriptor.digest,
        size=descriptor.size,
    )
    size = handle.blob.size
    if size != descriptor.size:
        filler.close(handle)
        raise FillFailed(
            "digest",
            f"{descriptor.digest} has {size} bytes at {blob.upstream}; "
            f"the manifest says {descriptor.size}",
        )
    return handle


@asynccontextmanager
async def _filling(blob: WarmBlob, opening: Awaitable[H], filler: FillClient) -> AsyncIterator[H]:
    """What is open of the blob until the context ends; it is done when that ends well."""
    handle = None
    try:
        handle = blob.handle = await opening
        blob.state = FILLING
        blob.look()
        yield handle
        blob.done, blob.state = blob.descriptor.size, DONE
    except (FillFailed, FillerUnreachable):
        blob.look()
        blob.state = FAILED
        raise
    finally:
        blob.look()
        if blob.state == FILLING:
            blob.state = WAITING
        blob.handle = None
        if handle is not None:
            filler.close(handle)


async def _wanted(
    job: WarmJob,
    handle: OpenObject,
    length: int | None,
    whole: Callable[[Want], Awaitable[None]],
) -> None:
    """Want all of it until it is ``whole``, and once more when the job has become more urgent.

    A want is kept beside the next: dropped first, it would end fetches that only it wanted.
    """
    async with AsyncExitStack() as wants:
        while True:
            raised = job.raised
            want = await wants.enter_async_context(
                # Of a layer image that would be a hint only.
                handle.wanting(0, length, job.priority, bulk=length is not None)
            )
            is_whole = asyncio.ensure_future(whole(want))
            more_urgent = asyncio.ensure_future(raised.wait())
            try:
                await asyncio.wait((is_whole, more_urgent), return_when=asyncio.FIRST_COMPLETED)
                if is_whole.done():
                    is_whole.result()
                    return
            finally:
                is_whole.cancel()
                more_urgent.cancel()
