"""Where the files that a prefetch list names lie on a layer's data device."""

from collections.abc import Iterable, Sequence

from headstart.content.landmarks.plan import plan
from headstart.content.landmarks.prefetch_list import ListedFile
from headstart.content.landmarks.range_set import Range
from headstart.content.layer.inode import Inode
from headstart.store.geometry import MIB

LARGEST_JOINED = 32 * MIB
"""Bytes of the device up to which files that lie together are one range."""


def listed_ranges(files: Sequence[ListedFile], root: Inode) -> list[Range]:
    """The ranges of the data device of the layer whose tree ``root`` is, in the list's order."""
    return plan(files, _places(files, root), LARGEST_JOINED)


def _places(files: Iterable[ListedFile], root: Inode) -> dict[bytes, tuple[Range, ...]]:
    places: dict[bytes, tuple[Range, ...]] = {}
    for path in {file.path for file in files}:
        inode = _find(root, path)
        if inode is not None and inode.size:
            places[path] = (Range(inode.offset, inode.size),)
    return places


def _find(root: Inode, path: bytes) -> Inode | None:
    found: Inode | None = root
    for name in path.split(b"/"):
        found = found.children.get(name) if found is not None else None
    return found
