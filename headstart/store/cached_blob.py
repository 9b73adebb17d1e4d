"""A blob of the store, opened for reading: what is here, and in which files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headstart.store.extent_map import BlobMap
from headstart.store.geometry import Geometry
from headstart.store.map_file import MapDamaged


class DescriptorRun(NamedTuple):
    """Bytes that lie together in one open file."""

    descriptor: int
    file_offset: int
    length: int


class CachedBlob:
    """The files and the map of one blob; keeps serving after the blob has been evicted."""

    def __init__(self, paths: list[Path], maps: list[Path]) -> None:
        """Open the files of all stripes. Raises OSError or ``MapDamaged``."""
        if len(paths) != len(maps):
            raise MapDamaged(f"{len(paths)} files cannot have {len(maps)} maps")
        self._descriptors: list[int] = []
        self.map = BlobMap.open(maps)
        try:
            for path in paths:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise
        self._verified = False

    @property
    def geometry(self) -> Geometry:
        """Size, extents and stripes."""
        return self.map.geometry

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""
        return self.map.geometry.size

    @property
    def verified(self) -> bool:
        """Whether the digest of the whole blob has passed."""
        if not self._verified:
            self._verified = self.map.verified
        return self._verified

    def intact(self) -> bool:
        """Whether the files of a whole blob are still as they were when its digest passed."""
        if not self.verified:
            return True
        for descriptor, stripe_map in zip(self._descriptors, self.map.stripes, strict=True):
            recorded = stripe_map.recorded
            status = os.fstat(descriptor)
            if recorded not in ((0, 0), (status.st_size, status.st_ctime_ns)):
                return False
        return True

    def available(self, offset: int, limit: int | None = None) -> int:
        """How many bytes can be read from ``offset`` on, looking no further than ``limit``."""
        return self.map.available(offset, limit)

    def present(self) -> int:
        """How many of its bytes are here, wherever they lie."""
        return self.map.present()

    def runs(self, start: int, stop: int) -> Iterator[DescriptorRun]:
        """The pieces of open files that hold bytes ``start`` to ``stop``, in order."""
        for stripe, file_offset, length in self.geometry.runs(start, stop):
            yield DescriptorRun(self._descriptors[stripe], file_offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes that are available; blocks on the disk, so call it from a thread."""
        pieces = []
        for descriptor, file_offset, count in self.runs(offset, offset + length):
            while count:
                piece = os.pread(descriptor, count, file_offset)
                if not piece:
                    raise OSError(f"cached file is shorter than its blob at {file_offset}")
                pieces.append(piece)
                file_offset += len(piece)
                count -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the files and unmap."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.map.close()
