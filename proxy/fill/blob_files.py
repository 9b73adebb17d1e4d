"""The files of one blob, opened for writing: reserve, write, publish in the map, verify, remove."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.extent_map import BlobMap
from headstart.store.geometry import UNIT_SIZE, Geometry
from headstart.store.layout import Layout
from headstart.store.map_file import MapDamaged
from proxy.fill.extent_files import ExtentFiles
from proxy.fill.stripe_files import (
    StripeRow,
    create_stripe,
    distrust,
    map_path,
    open_stripe,
    raise_shortage,
    stored_geometry,
    unlink,
)
from proxy.fill.system_calls import reserve_space


class BlobFiles(ExtentFiles):
    """All stripes of one blob. Writes of different ranges may come from different threads."""

    def __init__(
        self, paths: list[Path], descriptors: list[int], blob_map: BlobMap, lost: frozenset[int]
    ) -> None:
        """Made by :meth:`create` and :meth:`open`; ``lost`` are stripes that take no bytes."""
        self.paths = paths
        self.maps = [map_path(path) for path in paths]
        self.map = blob_map
        super().__init__(blob_map.geometry, descriptors)
        self._lock = threading.Lock()
        self._lost = lost
        self._reserved = set(self._begun())

    @classmethod
    def create(
        cls,
        layout: Layout,
        digest: Digest,
        size: int,
        extent_size: int,
        *,
        stand_in: bool = False,
    ) -> "BlobFiles":
        """Make empty sparse files over all stripes. Raises OSError and leaves nothing behind.

        With ``stand_in`` a stripe on which they cannot be made is left out, unless it is the last.
        """
        geometry = Geometry(size, extent_size, len(layout.stripes))
        row = StripeRow(layout, geometry, stand_in=stand_in)
        try:
            for number, path in enumerate(layout.blob_paths(digest, geometry.stripes)):
                row.add(number, path, create_stripe)
            return cls(row.paths, row.descriptors, BlobMap(row.maps), frozenset(row.lost))
        except OSError:
            row.close()
            unlink([*row.paths, *map(map_path, row.paths)])
            raise

    @classmethod
    def open(cls, layout: Layout, digest: Digest) -> "BlobFiles | None":
        """Open what is here, or None. What cannot be believed is unchecked or a miss afterwards.

        A stripe whose file or map is lost or damaged starts empty: its extents are misses. One on
        which nothing can be opened is left out, and its extents stay misses. Raises OSError for
        want of memory or descriptors, which says nothing about the blob.
        """
        geometry = stored_geometry(layout, digest)
        if geometry is None:
            return None
        row = StripeRow(layout, geometry, stand_in=True)
        try:
            for number, path in enumerate(layout.blob_paths(digest, geometry.stripes)):
                row.add(number, path, open_stripe)
            return cls(row.paths, row.descriptors, BlobMap(row.maps), frozenset(row.lost))
        except (OSError, MapDamaged) as error:
            row.close()
            raise_shortage(error)
            return None

    def published(self) -> BlobMap:
        """The map."""
        return self.map

    # --- writing ---

    def reserve(self, extent: int) -> None:
        """Reserve the disk space of an extent. Raises OSError (ENOSPC) before a byte is written."""
        stripe, offset = self.geometry.place(extent * self.geometry.extent_size)
        if stripe in self._lost:
            raise OSError(errno.EIO, f"stripe {stripe} cannot be used")
        with self._lock:
            if extent in self._reserved:
                return
            self._reserved.add(extent)
        length = self.geometry.extent_length(extent)
        try:
            reserve_space(self._descriptors[stripe], offset, length)
        except OSError:
            with self._lock:
                self._reserved.discard(extent)
            raise

    def reserved(self, extent: int) -> bool:
        """Whether the extent has its disk space, from this opening or an earlier one."""
        with self._lock:
            return extent in self._reserved

    def _begun(self) -> Iterable[int]:
        """The extents of which something is here: they were reserved whole."""
        for extent in range(self.geometry.extents):
            stripe, record = self.map.locate(extent)
            if stripe.watermark(record) or stripe.bits(record):
                yield extent

    def write(self, offset: int, payload: memoryview) -> None:
        """Write bytes at their place; the map is not touched."""
        done = 0
        for stripe, file_offset, length in self.geometry.runs(offset, offset + len(payload)):
            end = done + length
            while done < end:
                count = os.pwrite(self._descriptors[stripe], payload[done:end], file_offset)
                done += count
                file_offset += count

    def publish(self, origin: int, stop: int, start: int) -> list[int]:
        """Show readers the bytes ``start`` to ``stop``; the extents that are whole by this.

        ``origin`` is the unit border from which on all bytes up to ``stop`` are written.
        """
        whole: list[int] = []
        geometry = self.geometry
        extent_size = geometry.extent_size
        for extent in range(start // extent_size, -(-stop // extent_size)):
            base = extent * extent_size
            length = geometry.extent_length(extent)
            first = max(origin - base, 0)
            reached = min(stop - base, length)
            stripe, record = self.map.locate(extent)
            with self._lock:
                watermark = stripe.watermark(record)
                if watermark >= length:
                    continue
                bits = stripe.bits(record) | _unit_mask(first, reached, length)
                if first <= watermark < reached:
                    watermark = reached
                watermark = _jump(watermark, bits, length)
                stripe.set_progress(record, watermark, bits)
            if watermark >= length:
                whole.append(extent)
        return whole

    # --- belief ---

    def check_extent(self, extent: int) -> bool:
        """Hold an unchecked extent against its BLAKE3; a mismatch makes it a miss."""
        right = super().check_extent(extent)
        if not right:
            with self._lock:
                self._reserved.discard(extent)
        return right

    def distrust(self) -> None:
        """Make every extent unchecked, or a miss without a BLAKE3 to be checked against."""
        with self._lock:  # a watermark that a thread moves meanwhile must not come back
            for stripe_map in self.map.stripes:
                distrust(stripe_map)

    # --- the whole blob ---

    def mark_verified(self) -> None:
        """Record that the digest of the whole blob has passed; readers see it at once."""
        self._record_times()
        self.map.set_verified(True)

    def sync(self) -> None:
        """Force bytes, then maps, to disk. Raises OSError: the blob must then not be kept."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        for stripe_map in self.map.stripes:
            stripe_map.sync()

    def intact(self) -> bool:
        """Whether the files look as this process left them: size, links, ctime of a whole blob."""
        for number, descriptor in enumerate(self._descriptors):
            if number in self._lost:
                continue
            status = os.fstat(descriptor)
            recorded = self.map.stripes[number].recorded
            if status.st_nlink == 0 or status.st_size != self.geometry.stripe_length(number):
                return False
            if recorded != (0, 0) and recorded != (status.st_size, status.st_ctime_ns):
                return False
        return True

    def allocated(self) -> int:
        """Bytes that the files take on disk."""
        total = 0
        for descriptor in self._descriptors:
            # A stripe that has failed takes none that could be told.
            with contextlib.suppress(OSError):
                total += os.fstat(descriptor).st_blocks * 512
        return total

    def descriptor(self, stripe: int) -> int:
        """The open file of one stripe, for pacing its writes."""
        return self._descriptors[stripe]

    def unlink(self) -> None:
        """Remove the files; open readers finish."""
        unlink([*self.maps, *self.paths])

    def close(self) -> None:
        """Close files and maps; what stood in for a lost stripe is removed."""
        super().close()
        self.map.close()
        for stripe in self._lost:
            unlink([self.paths[stripe], self.maps[stripe]])


def _unit_mask(first: int, reached: int, length: int) -> int:
    """Bits of the units that lie whole within ``first`` to ``reached`` of an extent."""
    low = -(-first // UNIT_SIZE)
    high = -(-length // UNIT_SIZE) if reached >= length else reached // UNIT_SIZE
    return ((1 << high) - 1) & ~((1 << low) - 1) if high > low else 0


def _jump(watermark: int, bits: int, length: int) -> int:
    """Move a watermark over the units that are whole."""
    while watermark < length and bits >> (watermark // UNIT_SIZE) & 1:
        watermark = min(length, (watermark // UNIT_SIZE + 1) * UNIT_SIZE)
    return watermark
