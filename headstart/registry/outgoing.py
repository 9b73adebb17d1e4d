"""The body of a request on its way: pieces, and a deadline that asks for progress."""

import asyncio
import time
from typing import Protocol, Self

import httpx

from headstart.registry.errors import UpstreamDeadline
from headstart.registry.upstream import Deadlines

_LARGEST_PIECE = 256 * 1024
_SMALLEST_PIECE = 64 * 1024


class Content(Protocol):
    """What a request carries. It may be sent again: after a challenge, or to where it redirects."""

    @property
    def length(self) -> int:
        """Bytes in all."""

    async def begin(self) -> None:
        """Go to the first byte, or back to it."""

    async def read(self) -> bytes:
        """The next bytes, at least one until :attr:`length` are read."""


class ContentFailed(Exception):
    """What was to be sent could not be read: ``cause`` says why, and it is no upstream's fault."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class WholeContent:
    """A content that is in memory: a manifest."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._left = body

    @property
    def length(self) -> int:
        """Bytes in all."""
        return len(self._body)

    async def begin(self) -> None:
        """See :class:`Content`."""
        self._left = self._body

    async def read(self) -> bytes:
        """See :class:`Content`."""
        left, self._left = self._left, b""
        return left


class Sending(httpx.AsyncByteStream):
    """Hands a content to the transport, and moves the deadline of the request along with it.

    Only time spent waiting for the upstream counts: neither the wait for the content's own source
    nor that for the answer, for which ``answer_seconds`` are given once all is sent.
    """

    def __init__(
        self,
        content: Content,
        host: str,
        deadlines: Deadlines,
        limit: asyncio.Timeout,
        answer_seconds: float,
    ) -> None:
        """``limit`` is the deadline of the request; it is rescheduled by what happens here."""
        self.failure: Exception | None = None
        """What the content's own source raised."""
        self.complete = False
        self._content = content
        self._host = host
        self._deadlines = deadlines
        self._limit = limit
        self._answer_seconds = answer_seconds
        # At the slowest rate that is allowed a piece takes a quarter of what a stall may take.
        slowest = int(deadlines.stall * deadlines.stall_rate / 4)
        self._piece = max(_SMALLEST_PIECE, min(_LARGEST_PIECE, slowest))
        self._left = memoryview(b"")
        self._unread = content.length
        self._handed_over: float | None = None
        self._waited, self._sent, self._last = 0.0, 0, 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._check_rate()
        if not self._left:
            await self._read()
        if not self._left:
            self.complete = True
            self._allow(self._answer_seconds)
            raise StopAsyncIteration
        piece, self._left = self._left[: self._piece], self._left[self._piece :]
        self._last, self._handed_over = len(piece), time.monotonic()
        self._allow(self._deadlines.stall)
        return bytes(piece)

    async def _read(self) -> None:
        self._limit.reschedule(None)
        try:
            if self._handed_over is None:
                await self._content.begin()
            piece = await self._content.read() if self._unread else b""
        except Exception as error:
            self.failure = error
            raise
        self._unread -= len(piece)
        self._left = memoryview(piece)

    def _allow(self, seconds: float) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    def _check_rate(self) -> None:
        """Raise UpstreamDeadline when the pieces have gone too slowly since the last check."""
        if self._handed_over is None:
            return
        self._waited += time.monotonic() - self._handed_over
        self._sent += self._last
        if self._waited < self._deadlines.stall:
            return
        rate = self._deadlines.stall_rate
        if self._sent < rate * self._waited:
            taken = f"{self._host} took {self._sent / self._waited:.0f} B/s"
            raise UpstreamDeadline("stall_rate", rate, taken)
        self._waited, self._sent = 0.0, 0
