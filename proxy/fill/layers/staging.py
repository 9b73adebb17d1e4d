"""A blob held in memory for as long as its layer image needs the bytes; it never lies on disk.

It is filled by the same ranges, connections and deadlines as a blob of the store: only its files
are anonymous memory, of which what has been used is given back.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.extent_map import BlobMap, StripeMap
from headstart.store.geometry import Geometry
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fill import Fill
from proxy.fill.parties import BlobSource
from proxy.fill.system_calls import give_back

PAGE = 4096


class StagedFiles(BlobFiles):
    """The files of a blob in memory (memfd_create(2))."""

    @classmethod
    def in_memory(cls, digest: Digest, size: int, extent_size: int) -> "StagedFiles":
        """Nothing here yet; memory is taken as bytes come. Raises OSError."""
        geometry = Geometry(size, extent_size, 1)
        descriptor = os.memfd_create(f"headstart-{digest.hex[:12]}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            map_descriptor = os.memfd_create("headstart-map", os.MFD_CLOEXEC)
            try:
                StripeMap.lay_out(map_descriptor, geometry, 0)
                stripe_map = StripeMap(_path(map_descriptor), writable=True)
            finally:
                os.close(map_descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return cls([_path(descriptor)], [descriptor], BlobMap([stripe_map]), frozenset())

    def reserve(self, extent: int) -> None:
        """Nothing: memory is taken by writing."""

    def set_blake3(self, extent: int, digest: bytes) -> None:
        """Nothing: nobody reads an extent again after another boot."""

    def blake3_of(self, extent: int) -> bytes:
        """Nothing: a part of it may have been given back."""
        return b""

    def give_back(self, start: int, stop: int) -> None:
        """Free the memory of whole pages within these bytes; nobody reads them again."""
        first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if stop >= self.geometry.size:
            last = -(-stop // PAGE) * PAGE
        if last > first:
            give_back(self.descriptor(0), first, last - first)

    def intact(self) -> bool:
        """Nobody else has it."""
        return True

    def sync(self) -> None:
        """Nothing to make last."""

    def allocated(self) -> int:
        """No disk is taken."""
        return 0

    def unlink(self) -> None:
        """It has no name."""


def _path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


class Staff(Protocol):
    """What a staged fill needs of the filler."""

    def in_thread(
        self,
        work: Callable[[], object],
        done: Callable[[object], None],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Run ``work`` in a thread; ``done`` gets its result or its exception, on the loop."""

    def pump(self) -> None:
        """Something may be startable now."""

    def delivered(self, fill: Fill, source: BlobSource) -> None:
        """The upstream of this source has sent bytes of the blob."""


class StagingSurroundings:
    """What is around a fill whose blob is held in memory: no quota, no records, no pacing."""

    def __init__(self, staff: Staff, extent_size: int) -> None:
        """``extent_size`` in bytes."""
        self._staff = staff
        self._extent_size = extent_size

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        """Memory for the blob."""
        return StagedFiles.in_memory(digest, size, self._extent_size)

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        """Nothing to reserve."""

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        """Nothing to pace."""

    def in_thread(self, work: Callable[[], object], done: Callable[[object], None]) -> None:
        """Run ``work`` in a thread of the filler."""
        self._staff.in_thread(work, done)

    def pump(self) -> None:
        """Something may be startable now."""
        self._staff.pump()

    def occupied(self, fill: Fill, change: int) -> None:
        """No quota has an account of it."""

    def vouched(self, fill: Fill, source: BlobSource) -> None:
        """The upstream has the blob."""
        self._staff.delivered(fill, source)

    def verified(self, fill: Fill) -> None:
        """Never asked for: who reads the bytes checks them."""

    def suspect(self, fill: Fill) -> None:
        """Memory cannot be misread; end whoever waits."""
        fill.withdraw(FillFailed("protocol", f"{fill.digest}: cannot be read back from memory"))

    def quarantine(self, fill: Fill, failure: FillFailed) -> None:
        """End the fill."""
        fill.withdraw(failure)

    def restart(self, fill: Fill, failure: FillFailed) -> None:
        """The content changed between two ranges: the layer image starts afresh."""
        fill.withdraw(failure)
