"""A layer image of the store, opened for reading: metadata, data device, and what is here of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from headstart.store.geometry import Geometry
from headstart.store.layer_map import LayerMap
from headstart.store.map_file import MapDamaged


class CachedLayer:
    """Files of one layer image; usable from any thread, and still after it has been evicted."""

    def __init__(self, meta: Path | None, devices: Sequence[Path], maps: Sequence[Path]) -> None:
        """Open what is named, one device file and one map a stripe, in order.

        ``meta`` None: only the data device is read. Raises OSError or ``MapDamaged``.
        """
        if len(devices) != len(maps):
            raise MapDamaged(f"{len(devices)} device files cannot have {len(maps)} maps")
        self._meta: int | None = None
        self._devices: list[int] = []
        self.map = LayerMap.open(maps)
        try:
            if meta is not None:
                self._meta = os.open(meta, os.O_RDONLY | os.O_CLOEXEC)
            for path in devices:
                self._devices.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    @property
    def geometry(self) -> Geometry:
        """Size, extents and stripes of the data device."""
        return self.map.geometry

    @property
    def size(self) -> int:
        """Bytes of the data device."""
        return self.map.geometry.size

    @property
    def complete(self) -> bool:
        """Whether every byte of the data device is here."""
        return self.map.complete

    @property
    def verified(self) -> bool:
        """Whether it is whole and verified by diff ID: it may be mounted without FUSE."""
        return self.map.verified

    def intact(self) -> bool:
        """Whether the files are still as the filler left them: sizes, and ctimes of a whole one."""
        for number, descriptor in enumerate(self._devices):
            status = os.fstat(descriptor)
            recorded = self.map.stripes[number].recorded
            if status.st_size != self.geometry.stripe_length(number):
                return False
            if recorded not in ((0, 0), (status.st_size, status.st_ctime_ns)):
                return False
        if self._meta is not None:
            status = os.fstat(self._meta)
            meta = self.map.stripes[0].meta
            return (status.st_size, status.st_ctime_ns) == (meta.size, meta.ctime_ns)
        return True

    def available(self, offset: int, limit: int) -> int:
        """How many bytes can be read from ``offset`` on, at most ``limit``; whole blocks count."""
        return self.map.available(offset, limit)

    def present(self) -> int:
        """How many bytes of the data device are here, wherever they lie."""
        return self.map.present()

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes that are available; blocks on the disk. Raises OSError, never reads short."""
        pieces: list[bytes] = []
        for stripe, file_offset, count in self.geometry.runs(offset, offset + length):
            while count:
                piece = os.pread(self._devices[stripe], count, file_offset)
                if not piece:
                    raise OSError(f"stripe {stripe} of a data device ends at {file_offset}")
                pieces.append(piece)
                file_offset += len(piece)
                count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_at_once(self, offset: int, into: memoryview) -> bool:
        """Fill ``into`` with available bytes from ``offset`` on, without waiting for a disk.

        False, and anything in ``into``, where they are not all in the page cache.
        """
        position = 0
        for stripe, file_offset, count in self.geometry.runs(offset, offset + len(into)):
            piece = into[position : position + count]
            try:
                got = os.preadv(self._devices[stripe], [piece], file_offset, os.RWF_NOWAIT)
            except OSError:  # not in the page cache, or a file system that cannot say so
                return False
            if got != count:
                return False
            position += count
        return True

    def close(self) -> None:
        """Close the files and unmap; a second time does nothing."""
        if self._meta is not None:
            os.close(self._meta)
            self._meta = None
        for descriptor in self._devices:
            os.close(descriptor)
        self._devices.clear()
        self.map.close()
