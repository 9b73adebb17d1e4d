"""Where the bytes of a layer's blob come from, as the threads that make its layer image see it."""

import threading
from typing import Protocol


class SourceFailed(Exception):
    """The blob's bytes do not come, or are not those of its digest; says nothing of the layer."""


class WrongBytes(SourceFailed):
    """All of the blob came, and it does not have its digest."""


class LayerCancelled(Exception):
    """Nobody wants the layer image any more."""


class CompressedBytes(Protocol):
    """A blob while it arrives; read by one thread in order, or by several at any offset."""

    size: int
    """Bytes of the whole blob."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Put bytes from ``offset`` on into ``target``; how many.

        Blocks until at least one is here. Raises :class:`SourceFailed`.
        """

    def release(self, stop: int) -> None:
        """Bytes before ``stop`` are not read again."""

    def stop(self) -> None:
        """Whoever waits in :meth:`read_into`, and whoever calls it later, gets SourceFailed.

        Called from any thread when the layer has failed for another reason.
        """


def check_cancelled(cancelled: threading.Event) -> None:
    """Raises :class:`LayerCancelled` once the event is set."""
    if cancelled.is_set():
        raise LayerCancelled("nobody wants it any more")
