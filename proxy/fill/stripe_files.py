"""File and map of each stripe of a blob: made, opened, distrusted, removed.

A stripe on which that is not possible is left out: empty files elsewhere stand in for it.
"""

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from headstart.content.digest import Digest
from headstart.store.extent_map import StripeMap
from headstart.store.geometry import UNIT_SIZE, Geometry
from headstart.store.layout import STAMP, STAND_INS, Layout
from headstart.store.map_file import MapDamaged, boot_id

logger = logging.getLogger(__name__)


def map_path(path: Path) -> Path:
    """The map beside a stripe's file."""
    return path.with_name(path.name + ".map")


class StripeRow:
    """The stripes of a blob while they are opened one after the other."""

    def __init__(self, layout: Layout, geometry: Geometry, *, stand_in: bool) -> None:
        self.paths: list[Path] = []
        self.descriptors: list[int] = []
        self.maps: list[StripeMap] = []
        self.lost: list[int] = []
        self._layout = layout
        self._geometry = geometry
        self._stand_in = stand_in

    def add(self, number: int, path: Path, opener: "Opener") -> None:
        """Open the next stripe, or what stands in for it. Raises OSError."""
        try:
            # Without its stamp this is not the stripe but, say, the directory below its mount.
            (self._layout.stripes[number] / STAMP).stat()
            descriptor, stripe_map = opener(path, self._geometry, number)
        except OSError as error:
            raise_shortage(error)
            if not self._stand_in or len(self.lost) == self._geometry.stripes - 1:
                raise
            path, descriptor, stripe_map = self._stand_in_for(path, number)
            self.lost.append(number)
        self.paths.append(path)
        self.descriptors.append(descriptor)
        self.maps.append(stripe_map)

    def _stand_in_for(self, path: Path, number: int) -> tuple[Path, int, StripeMap]:
        """Empty files elsewhere, so that readers have something to open; never written to."""
        logger.error("cache: %s cannot be used; its extents are misses", path)
        name = f"{path.name}-{number}-{secrets.token_hex(4)}"
        raised: OSError | None = None
        for stripe in self._layout.stripes:
            elsewhere = stripe / STAND_INS / name
            try:
                (stripe / STAMP).stat()
                return elsewhere, *create_stripe(elsewhere, self._geometry, number)
            except OSError as error:
                raised = error
        raise raised or OSError(errno.EIO, "a cache without stripes")

    def close(self) -> None:
        """Close everything; what stood in is removed."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        for stripe_map in self.maps:
            stripe_map.close()
        for number in self.lost:
            unlink([self.paths[number], map_path(self.paths[number])])


class Opener(Protocol):
    """Opens or makes the file and the map of one stripe."""

    def __call__(self, path: Path, geometry: Geometry, number: int) -> tuple[int, StripeMap]:
        """Descriptor and map. Raises OSError and leaves nothing open."""


def create_stripe(path: Path, geometry: Geometry, number: int) -> tuple[int, StripeMap]:
    """Make an empty file and its map. Raises OSError and leaves nothing behind."""
    # First the map: one of an older file must never be read for the new one.
    map_path(path).unlink(missing_ok=True)
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    descriptor = _create_file(path, geometry.stripe_length(number))
    try:
        return descriptor, StripeMap.create(map_path(path), geometry, number)
    except OSError:
        os.close(descriptor)
        unlink([path])
        raise


def open_stripe(path: Path, geometry: Geometry, number: int) -> tuple[int, StripeMap]:
    """Open a file and a map that says no more than can be believed. Raises OSError."""
    stripe_map = _open_map(path, geometry, number)
    try:
        return _open_file(path, geometry.stripe_length(number), stripe_map), stripe_map
    except OSError:
        stripe_map.close()
        raise


def _create_file(path: Path, length: int) -> int:
    # A new inode: of one that is there already, readers may still have the old map.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.ftruncate(descriptor, length)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def stored_geometry(layout: Layout, digest: Digest) -> Geometry | None:
    """What the first readable map says; None when no stripe has one."""
    for path in layout.blob_paths(digest, len(layout.stripes)):
        try:
            stripe_map = StripeMap(map_path(path), writable=False)
        except (OSError, MapDamaged) as error:
            raise_shortage(error)
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
    except (OSError, MapDamaged) as error:
        raise_shortage(error)
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
            distrust(stripe_map)
            stripe_map.record(0, 0)
        if status.st_size != length:
            os.ftruncate(descriptor, length)
        stripe_map.set_boot(boot)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def distrust(stripe_map: StripeMap) -> None:
    """Make every extent unchecked, or a miss when it has no BLAKE3 to be checked against."""
    stripe_map.set_flags(0)
    for record in range(stripe_map.records):
        stripe_map.distrust(record)


def unlink(paths: Iterable[Path]) -> None:
    """Remove what is there of these files, as far as it can be removed."""
    for path in paths:
        # On a disk that has failed the name may stay; its map says nothing is there, or is gone.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def raise_shortage(error: Exception) -> None:
    """Raise what says nothing about the file: a whole blob must not be taken for an absent one."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
