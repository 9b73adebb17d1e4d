"""Room on the disks: counted by the quota, taken from the stripes, made by evicting, and paced.

All methods may be called from any thread.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from headstart.content.digest import Digest
from headstart.store.layout import Layout
from headstart.store.object_key import ObjectKey
from proxy.fill.blob_files import BlobFiles
from proxy.fill.pacing import Pacer
from proxy.fill.quota import Quota
from proxy.fill.stripe_files import map_path

logger = logging.getLogger(__name__)

T = TypeVar("T")

RELEASED_SECONDS = 1.0
"""How long a fill waits for the disk space of what was evicted for it."""
HOPELESS_SECONDS = 10.0


class DiskRoom:
    """The disks of one cache as those see them who write objects."""

    def __init__(self, layout: Layout, quota: Quota, extent_size: int) -> None:
        """``extent_size`` in bytes, of blobs that are new."""
        self.pacers = [Pacer(stripe) for stripe in layout.stripes]
        self._layout = layout
        self._quota = quota
        self._extent_size = extent_size
        self._lock = threading.Lock()
        self._hopeless_until = 0.0

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        """Make the files of a blob; a full disk gets room by evicting once.

        A stripe that still cannot take them is left out: its extents stay misses. Raises OSError.
        """
        if size > self._quota.high_water:
            # It would drive everything else out and still not fit.
            raise OSError(errno.ENOSPC, f"cache.max_size: {self._quota.high_water} bytes in all")
        create = partial(BlobFiles.create, self._layout, digest, size, self._extent_size)
        try:
            return self._evicting_once(create, digest, self._extent_size)
        except OSError:
            return create(stand_in=True)

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        """Count and reserve an extent's space; a full disk gets room by evicting once.

        Raises OSError.
        """
        if files.reserved(extent):
            return
        length = files.geometry.extent_length(extent)
        self.take(digest, length, lambda: files.reserve(extent))

    def take(self, key: ObjectKey, length: int, work: Callable[[], None]) -> None:
        """Count bytes of an object and do what takes them; a full disk gets room by evicting once.

        Raises OSError.
        """
        self._quota.reserve(key, length)
        try:
            self._evicting_once(work, key, length)
        except OSError:
            self._quota.unreserve(key, length)
            raise

    def _evicting_once(self, work: Callable[[], T], key: ObjectKey, length: int) -> T:
        """Do what takes ``length`` bytes of disk; a full one gets room by evicting once.

        Where that has not helped somebody else takes the room, and evicting the rest would not
        either: it is left alone for :data:`HOPELESS_SECONDS`. Raises OSError.
        """
        try:
            return work()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        with self._lock:
            try:
                return work()  # somebody may have made room while this thread waited
            except OSError:
                if time.monotonic() < self._hopeless_until:
                    raise
                # An object's bytes go round the stripes, and the full one may have few of them.
                if not self._quota.make_room(key, length * len(self._layout.stripes)):
                    raise
            deadline = time.monotonic() + RELEASED_SECONDS
            while True:
                try:
                    return work()
                except OSError:
                    # Until its last reader has closed it, what was evicted keeps its room.
                    if time.monotonic() > deadline:
                        self._hopeless_until = time.monotonic() + HOPELESS_SECONDS
                        raise
                time.sleep(0.05)

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        """Count and pace a write; may wait for the disk. Raises OSError."""
        self.pacers[stripe].wrote(files.descriptor(stripe), offset, length)

    def remove(self, digest: Digest) -> None:
        """Unlink the files of a blob that is evicted."""
        for path in self._layout.blob_paths(digest, len(self._layout.stripes)):
            for name in (map_path(path), path):
                try:
                    os.unlink(name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    logger.warning("evict: %s: %s", name, error.strerror)

    def close_files(self, files: BlobFiles) -> None:
        """Close files that nobody writes to any more."""
        for pacer, descriptor in zip(self.pacers, files.descriptors, strict=False):
            pacer.forget({descriptor})
        files.close()
