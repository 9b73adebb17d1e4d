"""Layer images in files as the filler makes them, and the layers that they belong to."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.extent_map import boot_id
from headstart.store.geometry import UNIT_SIZE, Geometry
from headstart.store.known_layer import KnownLayer
from headstart.store.layer_map import (
    BLOCK_SIZE,
    FLAG_COMPLETE,
    FLAG_VERIFIED,
    LayerMap,
    LayerStripeMap,
    MetaRecord,
)

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def known_layer(name: str) -> KnownLayer:
    """A layer of its own for every name."""
    digest = Digest.of(name.encode())
    return KnownLayer("registry.test", "some/image", digest, 1000, digest, MEDIA_TYPE)


class StoredLayer:
    """One layer image in the store; the bytes of its data device come when the test says so."""

    def __init__(
        self,
        directory: Path,
        size: int,
        *,
        extent_size: int = UNIT_SIZE,
        stripes: int = 1,
        content: bytes | None = None,
        meta: bytes = b"metadata",
    ) -> None:
        """``content`` are the bytes of the data device: any, when left out."""
        directory.mkdir(parents=True)
        self.layer = known_layer(directory.name)
        self.geometry = Geometry(size, extent_size, stripes)
        self.content = random.Random(size).randbytes(size) if content is None else content
        self.meta = directory / "meta"
        self.meta.write_bytes(meta)
        self.devices = [directory / f"device.{stripe}" for stripe in range(stripes)]
        self.maps = [directory / f"map.{stripe}" for stripe in range(stripes)]
        created = [
            LayerStripeMap.create(path, self.geometry, stripe)
            for stripe, path in enumerate(self.maps)
        ]
        self.map = LayerMap(created)
        self.map.stripes[0].record_meta(MetaRecord(len(meta), 0, blake3(meta).digest()))
        for stripe, path in enumerate(self.devices):
            path.touch()
            os.truncate(path, self.geometry.stripe_length(stripe))
            self.map.stripes[stripe].set_boot(boot_id())

    def bring(self, offset: int = 0, length: int | None = None) -> None:
        """Write the whole blocks that touch the bytes from ``offset`` on, then show them."""
        stop = self.geometry.size if length is None else offset + length
        start = offset // BLOCK_SIZE * BLOCK_SIZE
        stop = min(-(-stop // BLOCK_SIZE) * BLOCK_SIZE, self.geometry.size)
        position = start
        while position < stop:
            extent, within = divmod(position, self.geometry.extent_size)
            count = min(stop - position, self.geometry.extent_size - within)
            stripe, file_offset = self.geometry.place(position)
            with self.devices[stripe].open("r+b") as file:
                file.seek(file_offset)
                file.write(memoryview(self.content)[position : position + count])
            stripe_map, record = self.map.locate(extent)
            stripe_map.set_blocks(record, within // BLOCK_SIZE, (within + count) // BLOCK_SIZE)
            position += count

    def complete(self) -> None:
        """Bring everything and call it verified."""
        self.bring()
        self.map.set_flag(FLAG_COMPLETE, True)
        self.map.set_flag(FLAG_VERIFIED, True)

    def stripe_content(self, stripe: int) -> bytes:
        """What the device file of one stripe must hold."""
        pieces = []
        for extent in range(stripe, self.geometry.extents, self.geometry.stripes):
            start = extent * self.geometry.extent_size
            pieces.append(self.content[start : start + self.geometry.extent_length(extent)])
        return b"".join(pieces)

    def close(self) -> None:
        """Unmap."""
        self.map.close()


@contextmanager
def stored_layer(
    directory: Path, size: int, *, extent_size: int = UNIT_SIZE, stripes: int = 1
) -> Iterator[StoredLayer]:
    """A stored layer for as long as the context lasts."""
    stored = StoredLayer(directory, size, extent_size=extent_size, stripes=stripes)
    try:
        yield stored
    finally:
        stored.close()
