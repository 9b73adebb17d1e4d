"""Reads a blob's bytes in threads while a fill brings them; the wants are somebody else's."""

import threading
from collections.abc import Iterator

from headstart.store.errors import FillFailed
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fill import Fill
from proxy.fill.layers.source import SourceFailed
from proxy.fill.layers.staging import StagedFiles

LOOK_SECONDS = 5.0
"""A thread looks for itself so often, should nobody wake it."""


class BlobReading:
    """A listener of one fill, and :class:`proxy.fill.layers.source.CompressedBytes` for threads."""

    def __init__(self, fill: Fill, size: int) -> None:
        """``size`` is what the manifest says of the blob."""
        self.fill = fill
        self.size = size
        self.failure: FillFailed | None = None
        self.patient = False
        """Whether what may pass is waited out: once somebody may have it mounted."""
        self._before: Fill | None = None
        self._closed = False
        self._changed = threading.Condition()

    # --- on the filler's loop ---

    def go_on_with(self, fill: Fill) -> None:
        """Have another fill bring what is still to come; what is here is read from where it is."""
        if self._closed:
            return
        self._leave(self.fill)
        self._before, self.fill = self.fill, fill
        fill.listeners.add(self)
        if fill.files is not None:
            self.notify_files(fill)
        self._join()
        self.notify_arrived(fill)

    def _leave(self, fill: Fill) -> None:
        """Want nothing of it any more."""
        fill.listeners.discard(self)

    def _join(self) -> None:
        """Want of the fill what is still to come."""

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
            self.failure = self.failure or of_the_bearer(failure)
            self._changed.notify_all()

    # --- in the threads that read ---

    def _places(self) -> Iterator[BlobFiles]:
        """Where bytes may lie."""
        for fill in (self._before, self.fill):
            if fill is not None and fill.files is not None:
                yield fill.files

    def available(self, offset: int, length: int) -> bool:
        """Whether all these bytes are here, in one place."""
        return any(files.map.available(offset, length) >= length for files in self._places())

    def reached(self, offset: int, limit: int) -> int:
        """How many bytes from ``offset`` on are here in one place, at most ``limit``."""
        return max((files.map.available(offset, limit) for files in self._places()), default=0)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Wait for the byte at ``offset``; how many bytes were put into ``target``.

        Raises SourceFailed.
        """
        with self._changed:
            while not (found := self._find(offset, len(target))) and self.failure is None:
                self._changed.wait(LOOK_SECONDS)
        if found is None:
            raise SourceFailed(str(self.failure)) from self.failure
        files, count = found
        try:
            read = files.read_into(offset, target[:count])
        except OSError as error:
            raise SourceFailed(f"{self.fill.digest}: cannot be read back: {error}") from error
        if not read:
            raise SourceFailed(f"{self.fill.digest}: ends before byte {offset}")
        return read

    def _find(self, offset: int, limit: int) -> tuple[BlobFiles, int] | None:
        """Where bytes from ``offset`` on are, and how many."""
        for files in self._places():
            count = files.map.available(offset, limit)
            if count:
                return files, count
        return None

    def _give_back(self, start: int, stop: int) -> None:
        """Free the memory of these bytes, where they are in memory; nobody reads them again."""
        for files in self._places():
            if isinstance(files, StagedFiles):
                files.give_back(start, stop)

    def release(self, stop: int) -> None:
        """Bytes before ``stop`` are not read again."""

    def stop(self) -> None:
        """Whoever reads fails: the layer cannot be made for another reason."""
        self.fail(FillFailed("upstream", f"{self.fill.digest}: nobody reads it any more"))


def of_the_bearer(failure: FillFailed) -> FillFailed:
    """Wrong bytes of a blob say nothing of the layer: another time the right ones may come."""
    return FillFailed("upstream", failure.text) if failure.code == "digest" else failure
