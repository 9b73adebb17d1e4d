"""A layer image that a client of fill.sock has open, and what the client is told of it."""

from collections.abc import Callable

from headstart.store.errors import FillFailed
from headstart.store.wire import Message
from proxy.fill.layers.layer import Layer, LayerWant

Settle = Callable[[FillFailed | None], None]


class LayerHandle:
    """One opening of a layer image; a listener of the layer."""

    def __init__(self, send: Callable[[Message], None], number: int, layer: Layer) -> None:
        """``send`` queues a message to the client."""
        self.number = number
        self.layer = layer
        self.wants: dict[int, LayerWant] = {}
        self._send = send
        layer.listeners.add(self)

    def notify_layer(self, layer: Layer) -> None:
        """Tell the client the new state, and the files that it may open."""
        self._send({"type": "state", "handle": self.number, **layer.described()})

    def notify_evicted(self) -> None:
        """Tell the client to open it again."""
        self._send({"type": "state", "handle": self.number, "state": "evicted"})

    def add_want(
        self,
        number: int,
        offset: int,
        stop: int | None,
        priority: int,
        settle: Settle,
        *,
        hint: bool,
    ) -> None:
        """The client waits for bytes of the data device, or for all of it (``stop`` None).

        With ``hint`` it does not wait, it only has the layer image open.
        """
        want = self.wants[number] = LayerWant(offset, stop, priority, settle, hint)
        self.layer.add_want(want)

    def settled(self, number: int) -> None:
        """The want has been answered."""
        self.wants.pop(number, None)

    def drop_want(self, number: int) -> None:
        """Nobody waits for it any more."""
        want = self.wants.pop(number, None)
        if want is not None:
            self.layer.drop_want(want)

    def missing(self, number: int) -> str:
        """In words, which bytes of a want have not come."""
        return (
            f"layer image of {self.layer.known.digest}: bytes from {self.wants[number].offset} on"
        )

    def close(self) -> None:
        """Drop everything."""
        self.layer.listeners.discard(self)
        for want in self.wants.values():
            self.layer.drop_want(want)
        self.wants.clear()
