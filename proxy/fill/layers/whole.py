"""Makes the layer image of an ordinary layer: all of its blob, in stream order.

It can be mounted once it is whole and its diff ID has passed; until then a want only says how
urgent it is.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import shown
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from proxy.fill.layers.arriving import ArrivingBlob
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.ordinary import make_ordinary
from proxy.fill.layers.source import LayerCancelled, SourceFailed

logger = logging.getLogger(__name__)


class Workshop(Protocol):
    """What a maker needs of the filler around it."""

    def in_thread(
        self,
        work: Callable[[], object],
        done: Callable[[object], None],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Run ``work`` in a thread; ``done`` gets its result or its exception, on the loop."""


class WholeMaker:
    """Works on one ordinary layer from its first byte to its last."""

    def __init__(
        self,
        layer: Layer,
        blob: ArrivingBlob,
        files: LayerFiles,
        workshop: Workshop,
        threads: ThreadPoolExecutor,
        done: Callable[[Layer], None],
    ) -> None:
        """``done`` is called once, when the layer is complete or refused."""
        self._layer = layer
        self._blob = blob
        self._files = files
        self._workshop = workshop
        self._threads = threads
        self._done = done
        self._cancelled = threading.Event()

    def start(self) -> None:
        """Begin; from now on bytes stream."""
        self._blob.start()
        self._workshop.in_thread(self._make, self._made, self._threads)
        self._layer.enter("streaming")

    def wanted(self) -> None:
        """Somebody more urgent may wait."""
        self._blob.raise_priority(self._layer.stream_priority)

    def tell_used(self) -> None:
        """Tell those who have the layer open how far it is."""
        self._layer.tell_used(self._blob.used)

    def close(self) -> None:
        """Stop; the layer is told why it has no bytes."""
        self._cancelled.set()
        self._blob.close()

    def _make(self) -> object:
        known = self._layer.known
        try:
            implied = make_ordinary(
                self._blob,
                known.media_type,
                known.digest,
                known.diff_id,
                self._files,
                cancelled=self._cancelled,
            )
        except (LayerCancelled, LayerRefused, SourceFailed) as error:
            # What the filler's own threads log as errors of its own these are not.
            return error
        self._layer.implied = implied is not None
        return refusal_of(known, implied)

    def _made(self, result: object) -> None:
        self._blob.close()
        layer = self._layer
        if result is None:
            layer.files = self._files
            layer.enter("complete")
        else:
            # Nobody else has made files of these names: an open waits for this end.
            self._files.unlink()
            self._files.close()
            layer.refuse(failure_of(layer, result))
        self._done(layer)


def refusal_of(known: KnownLayer, implied: bytes | None) -> LayerRefused | None:
    """Above other layers, directories that are only implied have the attributes they have there.

    That is how containerd unpacks them; a layer image, which is the same below any image, has not.
    """
    if implied is None or known.position == 0:
        return None
    return LayerRefused(f"it has no entry for its directory {shown(implied)}")


def failure_of(layer: Layer, error: object) -> FillFailed:
    """What those who wait are told when a layer image cannot be made."""
    digest = layer.known.digest
    if isinstance(error, LayerRefused):
        logger.error("layer: %s is refused: %s", digest, error)
        return FillFailed("digest", f"{digest}: {error}")
    if isinstance(error, SourceFailed):
        cause = error.__cause__
        return cause if isinstance(cause, FillFailed) else FillFailed("upstream", str(error))
    if isinstance(error, OSError):
        return FillFailed("space", f"the cache cannot take the layer image of {digest}: {error}")
    return FillFailed("upstream", f"{digest}: its layer image cannot be made: {error}")
