"""Which layer images lie in the directories of a cache; their remains are removed."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.layout import STAMP, Layout

logger = logging.getLogger(__name__)

_SUFFIXES = (".map", "", ".meta", ".frame", ".toc", ".map.new", ".meta.new", ".toc.new")
"""Of all files of a layer image; the map first, without which the others count for nothing."""


def usable_stripes(layout: Layout) -> int:
    """How many directories can be used, from the first one on; at least one.

    Without its stamp a directory is not the stripe but, say, the one below its mount.
    """
    count = 0
    for stripe in layout.stripes:
        try:
            (stripe / STAMP).stat()
        except OSError:
            break
        count += 1
    return max(count, 1)


def remove_layer(layout: Layout, digest: Digest) -> None:
    """Remove all that there is of a layer image, as far as it can be removed."""
    paths = layout.layer_paths(digest, len(layout.stripes))
    for suffix in _SUFFIXES:
        for path in paths:
            # On a disk that has failed the name may stay.
            with contextlib.suppress(OSError):
                path.with_name(path.name + suffix).unlink(missing_ok=True)


def stored_bytes(layout: Layout, digest: Digest) -> int:
    """Bytes that all files of a layer image take on disk."""
    total = 0
    for suffix in _SUFFIXES:
        for path in layout.layer_paths(digest, len(layout.stripes)):
            with contextlib.suppress(OSError):
                total += path.with_name(path.name + suffix).stat().st_blocks * 512
    return total


def stored_layers(layout: Layout) -> Iterator[Digest]:
    """The layer images that have a map on the first stripe; blocks on the disk."""
    for digest, names in sorted(_files(layout.stripes[0]).items()):
        if ".map" in names:
            yield digest


def sweep(layout: Layout) -> list[Digest]:
    """Remove what a crash has left of layer images without a map; whose remains those were.

    Only before any is being made; blocks on the disk.
    """
    whole = set(stored_layers(layout))
    found = {digest for stripe in layout.stripes for digest in _files(stripe)}
    remains = sorted(found - whole)
    for digest in remains:
        remove_layer(layout, digest)
    return remains


def _files(stripe: Path) -> dict[Digest, set[str]]:
    """The suffixes of the files of each layer image in one directory."""
    found: dict[Digest, set[str]] = {}
    try:
        paths = list((stripe / "layers").glob("*/*/*"))
    except OSError as error:
        logger.warning("cache: %s cannot be read: %s", stripe, error.strerror)
        return found
    for path in paths:
        name, dot, suffix = path.name.partition(".")
        try:
            digest = Digest.parse(f"{path.parts[-3]}:{name}")
        except InvalidInput:
            logger.warning("cache: %s does not belong here; left alone", path)
            continue
        found.setdefault(digest, set()).add(dot + suffix)
    return found
