"""The files of one layer image, opened for writing: reserve, write, publish in the map, remove."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.geometry import MIB, Geometry
from headstart.store.layer_map import (
    BLOCK_SIZE,
    LayerMap,
    LayerStripeMap,
    MetaRecord,
)
from headstart.store.layout import Layout
from headstart.store.map_file import MapDamaged
from proxy.fill.layers.kept_layer import KeptLayer
from proxy.fill.layers.stored_layers import remove_layer, usable_stripes
from proxy.fill.stripe_files import map_path, raise_shortage
from proxy.fill.system_calls import reserve_space

RESERVE_STEP = 4 * MIB
"""Disk space is taken in steps of this many bytes: a layer of which little is read takes little."""
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


class LayerFiles(KeptLayer):
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
        super().__init__(layout, digest, geometry, descriptors, layer_map)
        self._room = room
        self._lock = threading.Lock()
        self._step = math.gcd(geometry.extent_size, RESERVE_STEP)
        self._reserved = set(self._begun())
        self._reserving = threading.Lock()

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
        part of it cannot be read. Raises OSError for want of memory or descriptors.
        """
        first = map_path(layout.layer_paths(digest, 1)[0])
        try:
            first_map = LayerStripeMap(first, writable=False)
            stripes = first_map.stripes
            first_map.close()
        except OSError as error:
            raise_shortage(error)
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
            files.trust()
        except (OSError, MapDamaged) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if layer_map is not None:
                layer_map.close()
            raise_shortage(error)
            if isinstance(error, MapDamaged | FileNotFoundError):
                remove_layer(layout, digest)
            return None
        return files

    # --- writing ---

    def _begun(self) -> Iterator[int]:
        """The steps of which something is here: they have their space."""
        if self.map is None or self.map.complete or not self.map.present():
            return
        extent_blocks, blocks = self.extent_size // BLOCK_SIZE, self._step // BLOCK_SIZE
        for step in range(-(-self.size // self._step)):
            extent, first = divmod(step * blocks, extent_blocks)
            stripe, record = self.map.locate(extent)
            if stripe.count(record, first, first + blocks):
                yield step

    def write(self, offset: int, pieces: Sequence[memoryview | bytes]) -> None:
        """Write pieces one after the other from ``offset`` on; the map is not touched.

        Reserves space first. Raises OSError.
        """
        length = sum(map(len, pieces))
        self.reserve(offset, offset + length)
        if self.stripes == 1 and length <= LARGEST_WRITE and len(pieces) <= MOST_PIECES:
            self._write_batch(0, offset, pieces, length)
            return
        waiting = [memoryview(piece) for piece in reversed(pieces)]
        for stripe, file_offset, count in self.geometry.runs(offset, offset + length):
            while count:
                batch, size = _take(waiting, min(count, LARGEST_WRITE))
                self._write_batch(stripe, file_offset, batch, size)
                file_offset += size
                count -= size

    def _write_batch(
        self, stripe: int, offset: int, batch: Sequence[memoryview | bytes], length: int
    ) -> None:
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
        layer_map = self.published()
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

    def write_meta(self, meta: bytes) -> None:
        """Write the metadata whole, under its name at once; only after this can it be mounted.

        Not forced to disk: the map has its BLAKE3, and after another boot it is held against that.
        Raises OSError.
        """
        layer_map = self.published()
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
