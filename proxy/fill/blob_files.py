"""The files of one blob, opened for writing: reserve, write, publish in the map, verify, remove."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.extent_map import (
    STATE_HASHED,
    STATE_UNCHECKED,
    BlobMap,
    MapDamaged,
    StripeMap,
    boot_id,
)
from headstart.store.geometry import MIB, UNIT_SIZE, Geometry
from headstart.store.layout import Layout
from proxy.fill.system_calls import reserve_space

READ_BACK_SIZE = MIB


def map_path(path: Path) -> Path:
    """The map beside a stripe's file."""
    return path.with_name(path.name + ".map")


class BlobFiles:
    """All stripes of one blob. Writes of different ranges may come from different threads."""

    def __init__(self, paths: list[Path], descriptors: list[int], blob_map: BlobMap) -> None:
        """Made by :meth:`create` and :meth:`open`."""
        self.paths = paths
        self.maps = [map_path(path) for path in paths]
        self.map = blob_map
        self.geometry = blob_map.geometry
        self._descriptors = descriptors
        self._lock = threading.Lock()
        self._reserved: set[int] = set()
        self._closed = False

    @classmethod
    def create(cls, layout: Layout, digest: Digest, size: int, extent_size: int) -> "BlobFiles":
        """Make empty sparse files over all stripes. Raises OSError and leaves nothing behind."""
        geometry = Geometry(size, extent_size, len(layout.stripes))
        paths = layout.blob_paths(digest, geometry.stripes)
        descriptors: list[int] = []
        maps: list[StripeMap] = []
        try:
            for number, path in enumerate(paths):
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                descriptors.append(_create_file(path, geometry.stripe_length(number)))
                maps.append(StripeMap.create(map_path(path), geometry, number))
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            for stripe_map in maps:
                stripe_map.close()
            _unlink([*paths, *map(map_path, paths)])
            raise
        return cls(paths, descriptors, BlobMap(maps))

    @classmethod
    def open(cls, layout: Layout, digest: Digest) -> "BlobFiles | None":
        """Open what is here, or None. What cannot be believed is unchecked or a miss afterwards.

        A stripe whose file or map is lost or damaged starts empty: its extents are misses.
        """
        geometry = _stored_geometry(layout, digest)
        if geometry is None:
            return None
        paths = layout.blob_paths(digest, geometry.stripes)
        descriptors: list[int] = []
        maps: list[StripeMap] = []
        try:
            for number, path in enumerate(paths):
                stripe_map = _open_map(path, geometry, number)
                maps.append(stripe_map)
                descriptors.append(_open_file(path, geometry.stripe_length(number), stripe_map))
            return cls(paths, descriptors, BlobMap(maps))
        except (OSError, MapDamaged):
            for descriptor in descriptors:
                os.close(descriptor)
            for stripe_map in maps:
                stripe_map.close()
            return None

    # --- writing ---

    def reserve(self, extent: int) -> None:
        """Reserve the disk space of an extent. Raises OSError (ENOSPC) before a byte is written."""
        with self._lock:
            if extent in self._reserved:
                return
            self._reserved.add(extent)
        stripe, offset = self.geometry.place(extent * self.geometry.extent_size)
        length = self.geometry.extent_length(extent)
        try:
            reserve_space(self._descriptors[stripe], offset, length)
        except OSError:
            with self._lock:
                self._reserved.discard(extent)
            raise

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

    def set_blake3(self, extent: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        stripe, record = self.map.locate(extent)
        stripe.set_blake3(record, digest)

    # --- reading back ---

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read into ``target``; how many bytes, fewer only at the end of a file run."""
        stripe, file_offset = self.geometry.place(offset)
        within = self.geometry.extent_size - offset % self.geometry.extent_size
        return os.preadv(self._descriptors[stripe], [target[:within]], file_offset)

    def blake3_of(self, extent: int) -> bytes:
        """The digest of an extent's bytes as they are on disk now."""
        hasher = blake3()
        buffer = memoryview(bytearray(READ_BACK_SIZE))
        position = extent * self.geometry.extent_size
        stop = position + self.geometry.extent_length(extent)
        while position < stop:
            count = self.read_into(position, buffer[: min(READ_BACK_SIZE, stop - position)])
            if count == 0:
                break
            hasher.update(buffer[:count])
            position += count
        return hasher.digest()

    def unchecked(self, extent: int) -> bool:
        """Whether the extent must match its BLAKE3 before it is believed."""
        stripe, record = self.map.locate(extent)
        return bool(stripe.state(record) & STATE_UNCHECKED)

    def check(self, extent: int) -> bool:
        """Hold an unchecked extent against its BLAKE3; a mismatch makes it a miss."""
        stripe, record = self.map.locate(extent)
        try:
            right = self.blake3_of(extent) == stripe.blake3(record)
        except OSError:
            right = False
        if right:
            stripe.set_state(record, STATE_HASHED)
        else:
            stripe.clear(record)
        return right

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

    def _record_times(self) -> None:
        for descriptor, stripe_map in zip(self._descriptors, self.map.stripes, strict=True):
            status = os.fstat(descriptor)
            stripe_map.record(status.st_size, status.st_ctime_ns)

    def allocated(self) -> int:
        """Bytes that the files take on disk."""
        return sum(os.fstat(descriptor).st_blocks * 512 for descriptor in self._descriptors)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files, by stripe."""
        return tuple(self._descriptors)

    def descriptor(self, stripe: int) -> int:
        """The open file of one stripe, for pacing its writes."""
        return self._descriptors[stripe]

    def unlink(self) -> None:
        """Remove the files; open readers finish."""
        _unlink([*self.maps, *self.paths])

    def close(self) -> None:
        """Close files and maps."""
        if not self._closed:
            self._closed = True
            for descriptor in self._descriptors:
                os.close(descriptor)
            self.map.close()


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


def _create_file(path: Path, length: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        os.ftruncate(descriptor, length)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _stored_geometry(layout: Layout, digest: Digest) -> Geometry | None:
    """What the first readable map says; None when no stripe has one."""
    for path in layout.blob_paths(digest, len(layout.stripes)):
        try:
            stripe_map = StripeMap(map_path(path), writable=False)
        except (OSError, MapDamaged):
            continue
        geometry = Geometry(stripe_map.size, stripe_map.extent_size, stripe_map.stripes)
        stripe_map.close()
        if 0 < geometry.stripes <= len(layout.stripes) and geometry.extent_size % UNIT_SIZE == 0:
            return geometry
    return None


def _open_map(path: Path, geometry: Geometry, number: int) -> StripeMap:
    """The stripe's map if it fits, else a new, empty one."""
    try:
        stripe_map = StripeMap(map_path(path), writable=True)
    except (OSError, MapDamaged):
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return StripeMap.create(map_path(path), geometry, number)
    found = (stripe_map.size, stripe_map.extent_size, stripe_map.stripes, stripe_map.stripe)
    if found == (geometry.size, geometry.extent_size, geometry.stripes, number):
        return stripe_map
    stripe_map.close()
    return StripeMap.create(map_path(path), geometry, number)


def _open_file(path: Path, length: int, stripe_map: StripeMap) -> int:
    """Open a stripe's file and make its map say no more than can be believed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        status = os.fstat(descriptor)
        boot = boot_id()
        rebooted = stripe_map.boot != boot
        recorded = stripe_map.recorded
        touched = recorded != (0, 0) and recorded != (status.st_size, status.st_ctime_ns)
        if rebooted or touched or status.st_size != length:
            _distrust(stripe_map)
            stripe_map.record(0, 0)
        if status.st_size != length:
            os.ftruncate(descriptor, length)
        stripe_map.set_boot(boot)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _distrust(stripe_map: StripeMap) -> None:
    """Make every extent unchecked, or a miss when it has no BLAKE3 to be checked against."""
    stripe_map.set_flags(0)
    for record in range(stripe_map.records):
        if stripe_map.state(record) & STATE_HASHED:
            stripe_map.set_state(record, STATE_HASHED | STATE_UNCHECKED)
        else:
            stripe_map.clear(record)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
