"""What a blob and a layer image that are open at the filler have in common.

Made and kept up by :class:`headstart.store.fill_client.FillClient`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Protocol

import anyio

from headstart.store.errors import FillFailed
from headstart.store.wire import Message


class Wanting(Protocol):
    """What an open object needs of its connection to the filler."""

    def post_want(self, handle: "OpenObject", want: "Want") -> int:
        """Send a want; its answer settles ``want``."""

    def drop_want(self, handle: "OpenObject", number: int) -> None:
        """Forget a want and tell the filler, unless it has been answered."""


class Want:
    """Bytes that somebody waits for; made by :meth:`OpenObject.wanting`."""

    def __init__(self, message: Message) -> None:
        """``message`` is the request, without its handle."""
        self.message = message
        self.done = False
        self.failure: FillFailed | None = None
        self.position: int | None = None
        self.event = anyio.Event()


class OpenObject(ABC):
    """An object opened at the filler; it outlives the connection."""

    follows: ClassVar[bool]
    """Whether who wants bytes hears of each of them, or only of the last."""

    def __init__(self, client: Wanting, message: Message) -> None:
        """``message`` is the ``open`` that is sent again on every connection."""
        self._client = client
        self.message = message
        self.remote: int | None = None
        self.opening: int | None = None
        self.failure: FillFailed | None = None
        self.wants: dict[int, Want] = {}
        self.followers = 0
        self.stale = False
        """Whether the filler has dropped the object: new readers must open it again."""

    @abstractmethod
    def take(self, received: Message) -> None:
        """Take over what ``opened`` or ``state`` says, other than a refusal. Raises WireError."""

    @abstractmethod
    def arrived(self) -> None:
        """Bytes have come, or their digest has passed."""

    @abstractmethod
    def tell_stale(self) -> None:
        """The filler has dropped the object."""

    @abstractmethod
    def close_files(self) -> None:
        """Close all files."""

    def fail(self, failure: FillFailed) -> None:
        """Tell everybody who waits that no bytes will come through this handle."""
        self.failure = failure
        self.stale = True
        for want in self.wants.values():
            want.failure = failure
            want.event.set()

    @asynccontextmanager
    async def wanting(
        self,
        offset: int,
        length: int | None,
        priority: str,
        *,
        bulk: bool,
        deadline_seconds: float | None = None,
    ) -> AsyncIterator[Want]:
        """Want bytes for as long as the context lasts; what nobody else wants then stops.

        ``length`` None is to the end of an object whose size is not known yet.
        """
        message: Message = {
            "type": "want",
            "offset": offset,
            "length": length,
            "priority": priority,
            "bulk": bulk,
        }
        if deadline_seconds is not None:
            message["deadline_ms"] = round(deadline_seconds * 1000)
        want = Want(message)
        number = self._client.post_want(self, want)
        try:
            yield want
        finally:
            self._client.drop_want(self, number)

    async def wait_done(self, want: Want) -> None:
        """Wait until the filler has answered the want. Raises :class:`FillFailed`."""
        while not want.done:
            if want.failure is not None:
                raise want.failure
            want.event = anyio.Event()
            await want.event.wait()
