"""One layer image while anybody has it open: its state, and who waits for what of it.

Runs on the filler's loop. How the bytes come is the business of the maker that works on it
(:mod:`proxy.fill.layers.whole`, :mod:`proxy.fill.layers.lazy`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from headstart.store.wire import PRIORITIES, Message
from proxy.fill.layers.layer_files import LayerFiles

LEAST_URGENT = len(PRIORITIES)
PREFETCH = PRIORITIES.index("prefetch")
BACKGROUND = PRIORITIES.index("background")


@dataclass(slots=True, eq=False)
class LayerWant:
    """Bytes ``offset`` to ``stop`` of the data device that a client waits for.

    ``stop`` None: all of the layer image. ``settle`` is called once, with None or the reason.
    """

    offset: int
    stop: int | None
    priority: int
    settle: Callable[[FillFailed | None], None]
    hint: bool = False
    """Whether nobody waits: ``prefetch.policy`` says what of it comes."""
    asked: int = 0
    """Up to which of its bytes the maker has asked."""


class LayerListener(Protocol):
    """A client of fill.sock that has the layer image open."""

    def notify_layer(self, layer: "Layer") -> None:
        """Its state has changed."""

    def notify_evicted(self) -> None:
        """It was evicted: what is open can be read on, who comes later opens it again."""


class Maker(Protocol):
    """What brings the bytes of a layer image."""

    def wanted(self) -> None:
        """The wants have changed: one was added, or one was dropped."""

    def close(self) -> None:
        """Stop; nothing of the layer is told any more."""


class Layer:
    """The state of one layer image."""

    def __init__(self, known: KnownLayer) -> None:
        """Nothing is here yet and nobody works on it."""
        self.known = known
        self.state = "planning"
        self.failure: FillFailed | None = None
        self.files: LayerFiles | None = None
        self.wants: list[LayerWant] = []
        self.listeners: set[LayerListener] = set()
        self.maker: Maker | None = None
        self.evicted = False
        self.on_refused: Callable[[Layer, FillFailed], None] = lambda layer, failure: None
        """Called before anybody is told."""
        self.closing = False
        """Whether its maker has been told to stop."""
        self.ended = asyncio.Event()
        """Set when no maker works on it any more: its files may be made anew."""
        self.opening: asyncio.Task[None] | None = None
        """Looks at what is on disk; the state is not known before it ends."""
        self.vouched: set[str] = set()
        """The upstreams that have delivered, or owned to, the blob."""
        self.found = False
        """Whether some of it was on disk when it was opened."""
        self.noted_at = 0.0
        self.used = 0
        """Bytes of the blob that an ordinary layer's image has been made of, as last told."""
        self.implied = False
        """Whether it has directories whose attributes only the layers below it know."""

    @property
    def priority(self) -> int:
        """The most urgent want; :data:`LEAST_URGENT` without one."""
        return min((want.priority for want in self.wants), default=LEAST_URGENT)

    @property
    def stream_priority(self) -> int:
        """How urgently it streams: as its most urgent want, or ahead of a mount that may come."""
        return min((want.priority for want in self.wants), default=PREFETCH)

    @property
    def rest_priority(self) -> int:
        """How urgently what is not wanted first streams: somebody may wait for all of it."""
        whole = (want.priority for want in self.wants if want.stop is None and not want.hint)
        return min(whole, default=BACKGROUND)

    @property
    def settled(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("complete", "refused")

    def described(self) -> Message:
        """State and files, for ``opened`` and ``state``."""
        if self.failure is not None:
            return {"state": "refused", **self.failure.as_message()}
        message: Message = {"state": self.state}
        if self.state == "streaming":
            message["used"] = self.used
        if self.files is not None and self.state in ("mountable", "complete"):
            message["meta"] = str(self.files.meta_path)
            message["paths"] = [str(path) for path in self.files.paths]
            message["map"] = [str(path) for path in self.files.maps]
            message["device_size"] = self.files.size
        return message

    def add_want(self, want: LayerWant) -> None:
        """Somebody waits."""
        if self.failure is not None:
            want.settle(self.failure)
        elif self._fulfilled(want):
            want.settle(None)
        else:
            self.wants.append(want)
            if self.maker is not None:
                self.maker.wanted()

    def drop_want(self, want: LayerWant) -> None:
        """Somebody waits no more."""
        if want in self.wants:
            self.wants.remove(want)
            if self.maker is not None:
                self.maker.wanted()

    def tell_used(self, used: int) -> None:
        """Tell everybody how far the making of an ordinary layer's image is."""
        if used != self.used and self.state == "streaming":
            self.used = used
            for listener in list(self.listeners):
                listener.notify_layer(self)

    def progressed(self) -> None:
        """Bytes have come: settle the wants that are fulfilled."""
        for want in [want for want in self.wants if self._fulfilled(want)]:
            self.wants.remove(want)
            want.settle(None)

    def _fulfilled(self, want: LayerWant) -> bool:
        if self.state == "complete":
            return True
        files = self.files
        if want.stop is None or files is None or self.state != "mountable":
            return False
        stop = min(want.stop, files.size)
        return files.available(want.offset, stop - want.offset) >= stop - want.offset

    def enter(self, state: str) -> None:
        """Go to another state and tell everybody."""
        self.state = state
        for listener in list(self.listeners):
            listener.notify_layer(self)
        self.progressed()

    def refuse(self, failure: FillFailed) -> None:
        """No more will come: everybody who has it open must know."""
        if self.failure is not None:
            return
        self.failure = failure
        self.on_refused(self, failure)
        wants, self.wants = self.wants, []
        for want in wants:
            want.settle(failure)
        self.enter("refused")
