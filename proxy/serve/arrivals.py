"""Waiting for a blob's bytes: as long as the filler works on them, and the client is still there.

How long an upstream may take is the filler's business, which fails the want by a named deadline.
Here only its own absence is bounded: it may restart, but not stay away.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

from headstart.store.cached_blob import CachedBlob
from headstart.store.errors import FillerUnreachable
from headstart.store.fill_client import FillClient
from headstart.store.open_blob import OpenBlob
from headstart.store.open_object import Want
from proxy.serve.outlet import ClientDisconnected
from proxy.serve.request import Receive

ABSENCE_SECONDS = 20.0
"""How long an answer waits for a filler that has gone."""

_CHECK_SECONDS = 1.0

T = TypeVar("T")


class Arrivals:
    """Waits for bytes of one open blob; ``waited`` is told the seconds of each wait."""

    def __init__(
        self,
        filler: FillClient,
        handle: OpenBlob,
        waited: Callable[[float], None],
    ) -> None:
        """For one answer."""
        self._filler = filler
        self._handle = handle
        self._waited = waited

    async def bytes_at(self, want: Want, position: int, limit: int) -> int:
        """How many bytes from ``position`` on are here, at least 1 and at most ``limit``.

        Raises FillFailed or FillerUnreachable.
        """
        count = self._handle.blob.available(position, limit)
        if count:
            return count
        return await self._patiently(lambda: self._handle.wait(want, position, limit))

    async def verified(self, want: Want) -> None:
        """Return when the blob's digest has passed. Raises FillFailed or FillerUnreachable."""
        if not self._handle.blob.verified:
            await self._patiently(lambda: self._handle.wait_verified(want))

    async def done(self, want: Want) -> None:
        """Return when all of the want is here. Raises FillFailed or FillerUnreachable."""
        if not want.done:
            await self._patiently(lambda: self._handle.wait_done(want))

    async def _patiently(self, wait: Callable[[], Awaitable[T]]) -> T:
        now = asyncio.get_running_loop().time
        began = seen = now()
        try:
            while True:
                try:
                    async with asyncio.timeout(_CHECK_SECONDS):
                        return await wait()
                except TimeoutError:
                    if self._filler.connected:
                        seen = now()
                    elif now() - seen > ABSENCE_SECONDS:
                        raise FillerUnreachable(
                            f"the filler has been away for {ABSENCE_SECONDS:g} s"
                        ) from None
        finally:
            self._waited(now() - began)


class Departure:
    """Ends a task that waits when its client goes away: ``with Departure(receive): ...``.

    Without it nobody would notice before the next bytes are sent, and what only this client wanted
    would go on being fetched. Raises ClientDisconnected in the task.
    """

    def __init__(self, receive: Receive) -> None:
        """``receive`` is the ASGI application's."""
        self._receive = receive
        self._waiting: asyncio.Task[None] | None = None
        self._left = False

    def __enter__(self) -> "Departure":
        answering = asyncio.current_task()

        async def wait() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._left = True
            if answering is not None:
                answering.cancel()

        self._waiting = asyncio.ensure_future(wait())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._left and isinstance(error, asyncio.CancelledError):
            answering = asyncio.current_task()
            if answering is not None:
                answering.uncancel()
            raise ClientDisconnected("the client has gone") from None


def same_file(blob: CachedBlob, other: CachedBlob) -> bool:
    """Whether two openings of a blob, not an empty one, are of the same files: of one fill."""
    return blob is other or _identity(blob) == _identity(other)


def _identity(blob: CachedBlob) -> tuple[int, int]:
    status = os.fstat(next(blob.runs(0, 1)).descriptor)
    return status.st_dev, status.st_ino
