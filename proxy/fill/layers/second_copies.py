"""Members that are not what their digests say: each is fetched once more, from the upstream.

The first copy may have been damaged on its way; only a second one that is wrong too says that the
layer is not what its TOC says. One at a time: what is wrong once is rare.
"""

from collections import deque
from collections.abc import Callable

from headstart.content.estargz.chunks import ChunkTable
from headstart.store.errors import FillFailed
from headstart.store.wire import PRIORITIES
from proxy.fill.layers.scattered import ScatteredBlob

MOUNT = PRIORITIES.index("mount")


class SecondCopies:
    """The members in doubt; runs on the filler's loop."""

    def __init__(
        self,
        chunks: ChunkTable,
        afresh: Callable[[], ScatteredBlob],
        on_arrival: Callable[[], None],
    ) -> None:
        """``afresh`` makes a reading of the blob of which nothing is here yet."""
        self._chunks = chunks
        self._afresh = afresh
        self._on_arrival = on_arrival
        self._waiting: deque[int] = deque()
        self._number: int | None = None
        self._blob: ScatteredBlob | None = None
        self._taken = False

    def doubt(self, number: int) -> None:
        """Have a member fetched once more."""
        if number != self._number and number not in self._waiting:
            self._waiting.append(number)
            self._next()

    def _next(self) -> None:
        if self._number is None and self._waiting:
            self._number, self._taken = self._waiting.popleft(), False
            self._blob = self._afresh()
            self._blob.patient = True
            self._blob.on_arrival = self._on_arrival
            start, stop, _ = self._chunks.member(self._number)
            self._blob.ask(start, stop, MOUNT, bulk=False)

    @property
    def failure(self) -> FillFailed | None:
        """Why a second copy cannot be had."""
        return None if self._blob is None else self._blob.failure

    def take(self) -> tuple[int, ScatteredBlob] | None:
        """The member whose second copy has come, for one thread."""
        number, blob = self._number, self._blob
        if number is None or blob is None or self._taken:
            return None
        start, stop, _ = self._chunks.member(number)
        if not blob.available(start, stop - start):
            return None
        self._taken = True
        return number, blob

    def again(self) -> None:
        """What was taken has not been written; its bytes are here."""
        self._taken = False

    def over(self) -> None:
        """What was taken has been written."""
        self.close()
        self._next()

    def stop(self) -> None:
        """Threads that read fail."""
        if self._blob is not None:
            self._blob.stop()

    def close(self) -> None:
        """No thread reads what was taken any more."""
        if self._blob is not None:
            self._blob.close()
        self._number = self._blob = None
