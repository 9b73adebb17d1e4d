"""Reads a blob's bytes in threads while a fill brings them; the wants are somebody else's."""

import threading

from headstart.store.errors import FillFailed
from proxy.fill.fill import Fill
from proxy.fill.layers.source import SourceFailed

LOOK_SECONDS = 5.0
"""A thread looks for itself so often, should nobody wake it."""


class BlobReading:
    """A listener of one fill, and :class:`proxy.fill.layers.source.CompressedBytes` for threads."""

    def __init__(self, fill: Fill, size: int) -> None:
        """``size`` is what the manifest says of the blob."""
        self.fill = fill
        self.size = size
        self.failure: FillFailed | None = None
        self._changed = threading.Condition()

    # --- what the fill tells, on its loop ---

    def notify_files(self, fill: Fill) -> None:
        """The size is known by an answer: it must be what the manifest says."""
        if fill.size != self.size:
            text = f"{fill.digest}: has {fill.size} bytes, its manifest says {self.size}"
            self.fail(FillFailed("protocol", text))

    def notify_arrived(self, fill: Fill) -> None:
        """Wake the threads."""
        with self._changed:
            self._changed.notify_all()

    def notify_refused(self, fill: Fill, failure: FillFailed) -> None:
        """No more will come."""
        self.fail(failure)

    def notify_evicted(self, fill: Fill) -> None:
        """No more will come; what waits has been told why."""
        self.fail(FillFailed("upstream", f"{fill.digest}: was evicted while it was read"))

    def fail(self, failure: FillFailed) -> None:
        """Whoever reads gets this; from any thread."""
        with self._changed:
            self.failure = self.failure or failure
            self._changed.notify_all()

    # --- in the threads that read ---

    def available(self, offset: int, length: int) -> bool:
        """Whether all these bytes are here."""
        files = self.fill.files
        return files is not None and files.map.available(offset, length) >= length

    def read_into(self, offset: int, target: memoryview) -> int:
        """Wait for the byte at ``offset``; how many bytes were put into ``target``.

        Raises SourceFailed.
        """
        with self._changed:
            while True:
                files = self.fill.files
                count = files.map.available(offset, len(target)) if files is not None else 0
                if count or self.failure is not None:
                    break
                self._changed.wait(LOOK_SECONDS)
        if files is None or not count:
            raise SourceFailed(str(self.failure)) from self.failure
        try:
            read = files.read_into(offset, target[:count])
        except OSError as error:
            raise SourceFailed(f"{self.fill.digest}: cannot be read back: {error}") from error
        if not read:
            raise SourceFailed(f"{self.fill.digest}: ends before byte {offset}")
        return read

    def release(self, stop: int) -> None:
        """Bytes before ``stop`` are not read again."""

    def stop(self) -> None:
        """Whoever reads fails: the layer cannot be made for another reason."""
        self.fail(FillFailed("upstream", f"{self.fill.digest}: nobody reads it any more"))
