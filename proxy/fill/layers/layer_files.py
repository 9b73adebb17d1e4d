"""The files of one layer image, opened for writing: reserve, write, publish in the map, remove."""

import contextlib
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.extent_map import STATE_HASHED, STATE_UNCHECKED, boot_id
from headstart.store.geometry import MIB, Geometry
from headstart.store.layer_map import (
    BLOCK_SIZE,
    FLAG_COMPLETE,
    FLAG_DOUBTED,
    FLAG_VERIFIED,
    LayerMap,
    LayerStripeMap,
    MapDamaged,
    MetaRecord,
)
from headstart.store.layout import Layout
from proxy.fill.layers.stored_layers import remove_layer, usable_stripes
from proxy.fill.stripe_files import map_path
from proxy.fill.system_calls import reserve_space

RESERVE_STEP = 4 * MIB
"""Disk space is taken in steps of this many bytes: a layer of which little is read takes little."""
READ_BACK_SIZE = MIB
LARGEST_WRITE = MIB
MOST_PIECES = 1024
"""IOV_MAX of Linux (uio(7)): the pieces of one pwritev(2)."""


class Room(Protocol):
    """What the files need of the filler: room on the disks, and their pace; from any thread."""

    def reserve(self, length: int, work: Callable[[], None], /) -> None:
        """Count ``length`` bytes and do the ``work`` that takes them from the disk.

        A full disk may be given room and ``work`` done again; what it does not give in the end is
        not counted. Raises OSError (ENOSPC).
        """

    def wrote(self, descriptor: int, stripe: int, offset: int, length: int, /) -> None:
        """Count bytes written to a stripe's file; may wait for its disk. Raises OSError."""


class _NoAccount:
    """For files that are complete: nothing is written to them."""

    def reserve(self, length: int, work: Callable[[], None], /) -> None:
        work()

    def wrote(self, descriptor: int, stripe: int, offset: int, length: int, /) -> None:
        pass


NO_ACCOUNT: Room = _NoAccount()


class LayerFiles:
    """All stripes of one layer image. Writes to different places may come from different threads.

    Of an image whose size is not known yet nothing is published before :meth:`finish`; without a
    map it is not there for readers, nor after a crash.
    """

    def __init__(
        self,
        layout: Layout,
        digest: Digest,
        geometry: Geometry,
        descriptors: list[int],
        layer_map: LayerMap | None,
        room: Room,
    ) -> None:
        """Made by :meth:`create` and :meth:`open`."""
        self.layout = layout
        self.digest = digest
        self.geometry = geometry
        self.paths = layout.layer_paths(digest, geometry.stripes)
        self.maps = [map_path(path) for path in self.paths]
        self.meta_path = layout.layer_meta_path(digest)
        self.frame_path = layout.layer_frame_path(digest)
        self.map = layer_map
        self._descriptors = descriptors
        self._room = room
        self._lock = threading.Lock()
        self._step = math.gcd(geometry.extent_size, RESERVE_STEP)
        self._reserved: set[int] = set()
        self._reserving = threading.Lock()
        self._closed = False

    @classmethod
    def create(
        cls, layout: Layout, digest: Digest, size: int | None, extent_size: int, room: Room
    ) -> "LayerFiles":
        """Make empty files in place of what there was. Raises OSError and leaves nothing behind.

        ``size`` of the data device: a multiple of 4096, None while it is not known. Stripes from
        the first one that cannot be used on take nothing.
        """
        geometry = Geometry(size or 0, extent_size, usable_stripes(layout))
        remove_layer(layout, digest)
        descriptors: list[int] = []
        layer_map: LayerMap | None = None
        try:
            for number, path in enumerate(layout.layer_paths(digest, geometry.stripes)):
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                # A new inode always: of an older one readers may still have the map.
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptors.append(os.open(path, flags, 0o640))
                os.ftruncate(descriptors[-1], geometry.stripe_length(number))
            if size is not None:
                layer_map = _create_map(layout, digest, geometry)
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            remove_layer(layout, digest)
            raise
        return cls(layout, digest, geometry, descriptors, layer_map, room)

    @classmethod
    def open(cls, layout: Layout, digest: Digest, room: Room = NO_ACCOUNT) -> "LayerFiles | None":
        """Open what is here; None, and the files removed, when it cannot be believed.

        After another boot, or when a file has changed, extents are unchecked (see :meth:`check`),
        those without a BLAKE3 are misses. None too, with nothing removed, when a directory that has
        part of it cannot be read.
        """
        first = map_path(layout.layer_paths(digest, 1)[0])
        try:
            first_map = LayerStripeMap(first, writable=False)
            stripes = first_map.stripes
            first_map.close()
        except FileNotFoundError:
            return None
        except OSError:
            return None
        except MapDamaged:
            remove_layer(layout, digest)
            return None
        if stripes > usable_stripes(layout):
            return None
        descriptors: list[int] = []
        layer_map: LayerMap | None = None
        try:
            paths = layout.layer_paths(digest, stripes)
            layer_map = LayerMap.open([map_path(path) for path in paths], writable=True)
            for path in paths:
                descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            files = cls(layout, digest, layer_map.geometry, descriptors, layer_map, room)
            files._trust()
        except (OSError, MapDamaged) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if layer_map is not None:
                layer_map.close()
            if isinstance(error, MapDamaged | FileNotFoundError):
                remove_layer(layout, digest)
            return None
        return files

    # --- writing ---

    @property
    def size(self) -> int:
        """Bytes of the data device; 0 while that is not known."""
        return self.geometry.size

    @property
    def stripes(self) -> int:
        """How many directories the data device is spread over."""
        return self.geometry.stripes

    @property
    def extent_size(self) -> int:
        """Bytes of an extent."""
        return self.geometry.extent_size

    def write(self, offset: int, pieces: Sequence[memoryview | bytes]) -> None:
        """Write pieces one after the other from ``offset`` on; the map is not touched.

        Reserves space first. Raises OSError.
        """
        length = sum(map(len, pieces))
        self.reserve(offset, offset + length)
        waiting = [memoryview(piece) for piece in reversed(pieces)]
        for stripe, file_offset, count in self.geometry.runs(offset, offset + length):
            while count:
                batch, size = _take(waiting, min(count, LARGEST_WRITE))
                self._write_batch(stripe, file_offset, batch, size)
                file_offset += size
                count -= size

    def _write_batch(self, stripe: int, offset: int, batch: list[memoryview], length: int) -> None:
        descriptor = self._descriptors[stripe]
        done = os.pwritev(descriptor, batch, offset)
        if done < length:
            # A signal, or the last bytes of a disk: the next call says which.
            rest = memoryview(b"".join(batch))
            while done < length:
                done += os.pwrite(descriptor, rest[done:], offset + done)
        self._room.wrote(descriptor, stripe, offset, length)

    def reserve(self, start: int, stop: int) -> None:
        """Take the disk space of device bytes. Raises OSError (ENOSPC) before a byte is written."""
        for step in range(start // self._step, -(-stop // self._step)):
            if step not in self._reserved:
                self._reserve_step(step)

    def _reserve_step(self, step: int) -> None:
        offset = step * self._step
        length = self._step
        if self.map is not None:
            length = min(length, self.geometry.size - offset)
        stripe, file_offset = self.geometry.place(offset)
        descriptor = self._descriptors[stripe]
        with self._reserving:
            if step not in self._reserved:
                self._room.reserve(length, lambda: reserve_space(descriptor, file_offset, length))
                self._reserved.add(step)

    def count(self, length: int) -> None:
        """Count bytes of a file beside the data device. Raises OSError (ENOSPC)."""
        self._room.reserve(length, lambda: None)

    def finish(self, size: int, digests: Mapping[int, bytes]) -> None:
        """The size of a data device that was written in order: ``size``, a multiple of 4096.

        ``digests`` are the BLAKE3 of its extents, as far as they are known. All of it is published;
        space that was reserved beyond it is free again. Raises OSError.
        """
        self.geometry = geometry = Geometry(size, self.geometry.extent_size, self.geometry.stripes)
        for stripe, descriptor in enumerate(self._descriptors):
            length = geometry.stripe_length(stripe)
            # Only what is within the file's size is freed by cutting it.
            os.ftruncate(descriptor, length + self._step)
            os.ftruncate(descriptor, length)
        layer_map = _create_map(self.layout, self.digest, geometry)
        self.map = layer_map
        for extent in range(geometry.extents):
            stripe_map, record = layer_map.locate(extent)
            digest = digests.get(extent) or self.blake3_of(extent)
            stripe_map.set_blocks(record, 0, layer_map.blocks(extent))
            stripe_map.set_blake3(record, digest)

    def publish(self, start: int, stop: int) -> list[int]:
        """Show readers the blocks that lie whole within ``start`` to ``stop``.

        Returns the extents that are whole by this; their BLAKE3 is to be recorded.
        """
        layer_map = self._published()
        whole: list[int] = []
        first, last = -(-start // BLOCK_SIZE), stop // BLOCK_SIZE
        blocks_per_extent = self.geometry.extent_size // BLOCK_SIZE
        while first < last:
            extent, within = divmod(first, blocks_per_extent)
            until = min(last - extent * blocks_per_extent, blocks_per_extent)
            stripe, record = layer_map.locate(extent)
            blocks = layer_map.blocks(extent)
            with self._lock:
                if stripe.run(record, within, until) < until - within:
                    stripe.set_blocks(record, within, until)
                    if stripe.run(record, 0, blocks) == blocks:
                        whole.append(extent)
            first = extent * blocks_per_extent + until
        return whole

    def set_blake3(self, extent: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        stripe, record = self._published().locate(extent)
        stripe.set_blake3(record, digest)

    def available(self, offset: int, limit: int) -> int:
        """How many bytes can be read from ``offset`` on, at most ``limit``."""
        return self._published().available(offset, limit)

    def write_meta(self, meta: bytes) -> None:
        """Write the metadata whole, under its name at once; only after this can it be mounted.

        Not forced to disk: the map has its BLAKE3, and after another boot it is held against that.
        Raises OSError.
        """
        layer_map = self._published()
        temporary = self.meta_path.with_name(self.meta_path.name + ".new")
        self.count(len(meta))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            written = 0
            view = memoryview(meta)
            while written < len(meta):
                written += os.pwrite(descriptor, view[written:], written)
            os.rename(temporary, self.meta_path)
            # rename(2) changes the ctime.
            status = os.fstat(descriptor)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        digest = blake3(meta).digest()
        layer_map.stripes[0].record_meta(MetaRecord(status.st_size, status.st_ctime_ns, digest))

    @property
    def has_meta(self) -> bool:
        """Whether the metadata is written."""
        return self.map is not None and self.map.stripes[0].meta.size > 0

    # --- reading back ---

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read into ``target``; how many bytes, fewer only at an extent's end. Raises OSError."""
        stripe, file_offset = self.geometry.place(offset)
        within = self.geometry.extent_size - offset % self.geometry.extent_size
        return os.preadv(self._descriptors[stripe], [target[:within]], file_offset)

    def blake3_of(self, extent: int) -> bytes:
        """The digest of an extent's bytes as they are on disk now. Raises OSError."""
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
        return self._published().unchecked(extent)

    def check_extent(self, extent: int) -> bool:
        """Hold an unchecked extent against its BLAKE3; False: the layer image is to be dropped.

        When the last one of a complete image is right, the image is as it was before.
        """
        layer_map = self._published()
        stripe, record = layer_map.locate(extent)
        try:
            right = self.blake3_of(extent) == stripe.blake3(record)
        except OSError:
            right = False
        if not right:
            stripe.clear(record)
            return False
        stripe.set_state(record, STATE_HASHED)
        if layer_map.doubted and not any(map(self.unchecked, range(self.geometry.extents))):
            self._record_times()
            layer_map.set_flag(FLAG_DOUBTED, False)
        return True

    def check(self) -> bool:
        """Check every extent that is unchecked; False at the first one that is wrong."""
        unchecked = filter(self.unchecked, range(self.geometry.extents))
        return all(map(self.check_extent, unchecked))

    def _trust(self) -> None:
        """Believe no more of what was opened than can be believed. Raises MapDamaged, OSError."""
        layer_map = self._published()
        boot = boot_id()
        doubtful = any(stripe.boot != boot for stripe in layer_map.stripes)
        for stripe, descriptor in enumerate(self._descriptors):
            status = os.fstat(descriptor)
            if status.st_size != self.geometry.stripe_length(stripe):
                raise MapDamaged(f"{self.paths[stripe]} has {status.st_size} bytes")
            recorded = layer_map.stripes[stripe].recorded
            if recorded not in ((0, 0), (status.st_size, status.st_ctime_ns)):
                doubtful = True
        self._check_meta(rebooted=doubtful)
        if doubtful:
            self._distrust()
        for stripe_map in layer_map.stripes:
            stripe_map.set_boot(boot)

    def _check_meta(self, *, rebooted: bool) -> None:
        """The metadata must be what was written: nothing can be told from it block by block."""
        first = self._published().stripes[0]
        known = first.meta
        if known.size == 0:
            raise MapDamaged(f"{self.meta_path} was not written")
        status = os.stat(self.meta_path)
        if not rebooted and (status.st_size, status.st_ctime_ns) == known[:2]:
            return
        meta = self.meta_path.read_bytes()
        if blake3(meta).digest() != known.blake3:
            raise MapDamaged(f"{self.meta_path} is not what was written")
        first.record_meta(MetaRecord(status.st_size, status.st_ctime_ns, known.blake3))

    def _distrust(self) -> None:
        """Every extent is unchecked, or a miss when it has no BLAKE3 to be checked against."""
        layer_map = self._published()
        layer_map.set_flag(FLAG_DOUBTED, layer_map.complete or layer_map.doubted)
        for extent in range(self.geometry.extents):
            stripe, record = layer_map.locate(extent)
            if stripe.state(record) & STATE_HASHED:
                stripe.set_state(record, STATE_HASHED | STATE_UNCHECKED)
            else:
                layer_map.set_flag(FLAG_COMPLETE | FLAG_VERIFIED | FLAG_DOUBTED, False)
                stripe.clear(record)
        if not self.geometry.extents:
            layer_map.set_flag(FLAG_DOUBTED, False)

    # --- the whole image ---

    @property
    def complete(self) -> bool:
        """Whether every block is here and believed."""
        return self.map is not None and self.map.complete

    @property
    def verified(self) -> bool:
        """Whether it is complete and verified by its diff ID."""
        return self.map is not None and self.map.verified

    @property
    def doubted(self) -> bool:
        """Whether a complete image has extents that are unchecked."""
        return self.map is not None and self.map.doubted

    def mark_complete(self) -> None:
        """Every block has been published, and the metadata written."""
        self._record_times()
        self._published().set_flag(FLAG_COMPLETE, True)

    def mark_verified(self) -> None:
        """The tar of the complete image has the layer's diff ID; readers see it at once.

        :meth:`sync` makes it last. A power cut before that leaves a map that is doubted.
        """
        self.mark_complete()
        self._published().set_flag(FLAG_VERIFIED, True)
        self.frame_path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Force bytes and metadata, then maps, to disk. Raises OSError: it must not be kept."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        for path in (self.meta_path, *{path.parent for path in (self.meta_path, *self.paths)}):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for stripe_map in self._published().stripes:
            stripe_map.sync()

    def _record_times(self) -> None:
        for descriptor, stripe_map in zip(
            self._descriptors, self._published().stripes, strict=True
        ):
            status = os.fstat(descriptor)
            stripe_map.record(status.st_size, status.st_ctime_ns)

    def allocated(self) -> int:
        """Bytes that all files take on disk."""
        total = 0
        for path in (*self.paths, *self.maps, self.meta_path, self.frame_path):
            with contextlib.suppress(OSError):
                total += os.stat(path).st_blocks * 512
        return total

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files of the data device, by stripe."""
        return tuple(self._descriptors)

    def unlink(self) -> None:
        """Remove all files; open readers finish."""
        remove_layer(self.layout, self.digest)

    def close(self) -> None:
        """Close files and maps."""
        if not self._closed:
            self._closed = True
            for descriptor in self._descriptors:
                os.close(descriptor)
            if self.map is not None:
                self.map.close()

    def _published(self) -> LayerMap:
        if self.map is None:
            raise ValueError(f"{self.digest}: its size is not known yet")
        return self.map


def _create_map(layout: Layout, digest: Digest, geometry: Geometry) -> LayerMap:
    """Empty maps on all stripes. Raises OSError and leaves none open."""
    made: list[LayerStripeMap] = []
    paths: list[Path] = layout.layer_paths(digest, geometry.stripes)
    try:
        for number, path in enumerate(paths):
            made.append(LayerStripeMap.create(map_path(path), geometry, number))
    except OSError:
        for stripe_map in made:
            stripe_map.close()
        raise
    return LayerMap(made)


def _take(waiting: list[memoryview], length: int) -> tuple[list[memoryview], int]:
    """Take up to ``length`` bytes off the end of a reversed list, in its pieces."""
    batch: list[memoryview] = []
    size = 0
    while waiting and size < length and len(batch) < MOST_PIECES:
        piece = waiting.pop()
        if size + len(piece) > length:
            waiting.append(piece[length - size :])
            piece = piece[: length - size]
        batch.append(piece)
        size += len(piece)
    return batch, size
