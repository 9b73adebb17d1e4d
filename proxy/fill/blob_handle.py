"""A blob that a client of fill.sock has open, and what the client is told of it."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from headstart.store.errors import FillFailed
from headstart.store.wire import Message
from proxy.fill.fill import Fill
from proxy.fill.filler import Filler
from proxy.fill.parties import BlobSource, Want
from proxy.fill.reach import Reach

Settle = Callable[[FillFailed | None], None]


class Talk(Protocol):
    """What a handle needs of the conversation that it belongs to."""

    filler: Filler

    def send(self, message: Message) -> None:
        """Queue a message."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends with this conversation at the latest."""

    def note_arrived(self, handle: "BlobHandle") -> None:
        """Tell a follower soon that bytes have come."""

    def expect_want(self, handle: "BlobHandle") -> None:
        """The client can say what it wants from now on."""

    async def prove(self, handle: "BlobHandle") -> None:
        """Ask the handle's own upstream whether it has the blob, then tell about the files."""


class BlobHandle:
    """A blob that this client has open."""

    def __init__(
        self, talk: Talk, number: int, fill: Fill, source: BlobSource, proven: bool
    ) -> None:
        self.number = number
        self.fill = fill
        self.source = source
        self.proven = proven
        self.following = False
        self.first: Want | None = None
        self.wants: dict[int, Want] = {}
        self.hints: list[Want] = []
        self._talk = talk
        self._told_verified = fill.verified
        settings = talk.filler.settings
        self._reach = Reach(settings.on_demand_size, settings.request_size)

    # --- what the fill tells its listeners ---

    def notify_files(self, fill: Fill) -> None:
        """The size is known and the files are there: say so to whom they are not denied."""
        if self.proven or self._talk.filler.proven(fill, self.source):
            self.proven = True
            self._talk.send({"type": "state", "handle": self.number, **described(fill)})
            self._talk.expect_want(self)
        else:
            # Another upstream was faster; whether ours has the blob is not known yet.
            self._talk.start(self._talk.prove(self))

    def notify_arrived(self, fill: Fill) -> None:
        """Bytes have come, or the digest has passed."""
        if fill.verified and not self._told_verified and self.proven:
            self._told_verified = True
            self._talk.send({"type": "state", "handle": self.number, "state": "complete"})
        elif self.following:
            self._talk.note_arrived(self)

    def notify_refused(self, fill: Fill, failure: FillFailed) -> None:
        """Readers must not finish cleanly."""
        self.drop_first()
        refused = {"type": "state", "handle": self.number, "state": "refused"}
        self._talk.send({**refused, **failure.as_message()})

    def notify_evicted(self, fill: Fill) -> None:
        """New readers open it again."""
        self._talk.send({"type": "state", "handle": self.number, "state": "evicted"})

    # --- wants ---

    def add_want(
        self,
        number: int,
        offset: int,
        length: int,
        priority: int,
        bulk: bool | None,
        order: int,
        settle: Settle,
    ) -> None:
        """The client waits for bytes; ``bulk`` None leaves it to their number."""
        if bulk is None:
            bulk = length >= self._talk.filler.settings.request_size
        want = Want(offset, offset + length, priority, bulk, order, settle)
        if not bulk:
            want.reach = max(0, self._reach.of(offset, offset + length) - length)
        self.wants[number] = want
        self.fill.add_want(want)
        self.drop_first()

    def settled(self, number: int) -> None:
        """The want has been answered."""
        self.wants.pop(number, None)

    def drop_want(self, number: int) -> None:
        """Nobody waits for it any more."""
        want = self.wants.pop(number, None)
        if want is not None:
            self.fill.drop_want(want)

    def missing(self, number: int) -> str:
        """In words, which bytes of a want have not come."""
        return f"{self.fill.digest}: bytes from {self.wants[number].reached} on"

    def drop_first(self) -> None:
        """The client says itself what it wants by now."""
        first, self.first = self.first, None
        if first is not None:
            self.fill.drop_want(first)

    def close(self) -> None:
        """Drop everything."""
        self.fill.listeners.discard(self)
        self.drop_first()
        for want in [*self.wants.values(), *self.hints]:
            self.fill.drop_want(want)
        self.wants.clear()
        self.hints.clear()


def described(fill: Fill) -> Message:
    """State, files and size of a fill, for ``opened`` and ``state``."""
    message: Message = {"state": fill.state}
    if fill.files is not None and fill.size is not None:
        message["paths"] = [str(path) for path in fill.files.paths]
        message["map"] = [str(path) for path in fill.files.maps]
        message["size"] = fill.size
    return message
