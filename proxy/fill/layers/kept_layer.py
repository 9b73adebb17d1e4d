"""The files of one layer image as they lie on disk: read back, believed or checked, removed."""

import contextlib
import os

from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.geometry import Geometry
from headstart.store.layer_map import (
    FLAG_COMPLETE,
    FLAG_DOUBTED,
    FLAG_VERIFIED,
    LayerMap,
    MetaRecord,
)
from headstart.store.layout import Layout
from headstart.store.map_file import MapDamaged, boot_id
from proxy.fill.extent_files import ExtentFiles
from proxy.fill.layers.stored_layers import remove_layer
from proxy.fill.stripe_files import map_path


class KeptLayer(ExtentFiles):
    """All stripes of one layer image, open."""

    def __init__(
        self,
        layout: Layout,
        digest: Digest,
        geometry: Geometry,
        descriptors: list[int],
        layer_map: LayerMap | None,
    ) -> None:
        """``layer_map`` is None while the size of the data device is not known."""
        super().__init__(geometry, descriptors)
        self.layout = layout
        self.digest = digest
        self.paths = layout.layer_paths(digest, geometry.stripes)
        self.maps = [map_path(path) for path in self.paths]
        self.meta_path = layout.layer_meta_path(digest)
        self.frame_path = layout.layer_frame_path(digest)
        self.map = layer_map

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

    # --- reading back ---

    def available(self, offset: int, limit: int) -> int:
        """How many bytes can be read from ``offset`` on, at most ``limit``."""
        return self.published().available(offset, limit)

    @property
    def has_meta(self) -> bool:
        """Whether the metadata is written."""
        return self.map is not None and self.map.stripes[0].meta.size > 0

    def check_extent(self, extent: int) -> bool:
        """Hold an unchecked extent against its BLAKE3; False: the layer image is to be dropped.

        When the last one of a complete image is right, the image is as it was before.
        """
        layer_map = self.published()
        if not super().check_extent(extent):
            return False
        if layer_map.doubted and not any(map(self.unchecked, range(self.geometry.extents))):
            self._record_times()
            layer_map.set_flag(FLAG_DOUBTED, False)
        return True

    def check(self) -> bool:
        """Check every extent that is unchecked; False at the first one that is wrong."""
        unchecked = filter(self.unchecked, range(self.geometry.extents))
        return all(map(self.check_extent, unchecked))

    def trust(self) -> None:
        """Believe no more of what was opened than can be believed. Raises MapDamaged, OSError."""
        layer_map = self.published()
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
        first = self.published().stripes[0]
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
        layer_map = self.published()
        layer_map.set_flag(FLAG_DOUBTED, layer_map.complete or layer_map.doubted)
        for extent in range(self.geometry.extents):
            stripe, record = layer_map.locate(extent)
            if not stripe.distrust(record):
                layer_map.set_flag(FLAG_COMPLETE | FLAG_VERIFIED | FLAG_DOUBTED, False)
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
        self.published().set_flag(FLAG_COMPLETE, True)

    def mark_verified(self) -> None:
        """The tar of the complete image has the layer's diff ID; readers see it at once.

        :meth:`sync` makes it last. A power cut before that leaves a map that is doubted.
        """
        self.mark_complete()
        self.published().set_flag(FLAG_VERIFIED, True)
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
        for stripe_map in self.published().stripes:
            stripe_map.sync()

    def allocated(self) -> int:
        """Bytes that all files take on disk."""
        total = 0
        for path in (*self.paths, *self.maps, self.meta_path, self.frame_path):
            with contextlib.suppress(OSError):
                total += os.stat(path).st_blocks * 512
        return total

    def unlink(self) -> None:
        """Remove all files; open readers finish."""
        remove_layer(self.layout, self.digest)

    def close(self) -> None:
        """Close files and maps."""
        super().close()
        if self.map is not None:
            self.map.close()

    def published(self) -> LayerMap:
        """The map. Raises ValueError while the size is not known."""
        if self.map is None:
            raise ValueError(f"{self.digest}: its size is not known yet")
        return self.map
