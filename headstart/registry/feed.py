"""The bytes of a blob that is pushed, from whichever offset the registry wants them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

OpenAt = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Gives a blob's bytes from an offset to its end."""


class Feed:
    """Reads a blob by one stream while the offsets follow one another. Close it at the end."""

    def __init__(self, open_at: OpenAt) -> None:
        """Opens nothing yet."""
        self._open_at = open_at
        self._stack = AsyncExitStack()
        self._pieces: AsyncIterator[bytes] | None = None
        self._position = 0
        self._left = memoryview(b"")

    async def seek(self, offset: int) -> None:
        """Have :meth:`read` go on at ``offset``; opens the blob anew where it stands elsewhere."""
        if self._pieces is not None and offset == self._position:
            return
        await self.aclose()
        self._pieces = await self._stack.enter_async_context(self._open_at(offset))
        self._position = offset

    async def read(self, most: int) -> bytes:
        """The next bytes, at least one and at most ``most``. Raises EOFError at the end."""
        if self._pieces is None:
            raise ValueError("seek comes first")
        while not self._left:
            piece = await anext(self._pieces, None)
            if piece is None:
                raise EOFError(f"the blob ends after {self._position} bytes")
            self._left = memoryview(piece)
        piece, self._left = bytes(self._left[:most]), self._left[most:]
        self._position += len(piece)
        return piece

    async def aclose(self) -> None:
        """Close the stream; :meth:`seek` opens it again."""
        self._pieces, self._left = None, memoryview(b"")
        await self._stack.aclose()


class FedRange:
    """``length`` bytes of a feed from ``start`` on, as the content of a request."""

    def __init__(self, feed: Feed, start: int, length: int) -> None:
        self._feed = feed
        self._start = start
        self._length = length
        self._left = length

    @property
    def length(self) -> int:
        """Bytes in all."""
        return self._length

    async def begin(self) -> None:
        """See :class:`headstart.registry.outgoing.Content`."""
        self._left = self._length
        if self._length:
            await self._feed.seek(self._start)

    async def read(self) -> bytes:
        """See :class:`headstart.registry.outgoing.Content`."""
        piece = await self._feed.read(self._left)
        self._left -= len(piece)
        return piece
