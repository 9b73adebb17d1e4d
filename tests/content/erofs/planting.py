"""Trees with contents, built by hand, and the data device files that belong to them."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.store.geometry import Geometry

KIB = 1024
BLOCK = 4 * KIB
EXTENT = 256 * KIB
NEW_YEAR = 1_700_000_000_123_456_789

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 5, 1000),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 5, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    )
)
"""A POSIX ACL as setxattr takes it: owner, user 1000, group, mask, others."""


class Planting:
    """A tree that grows by calls; ``contents`` says what each regular file holds.

    Offsets on the data device are given out in the order of the calls, each at a multiple of
    ``alignment``.
    """

    def __init__(self, *, extent_size: int = EXTENT, stripes: int = 1) -> None:
        self.root = Inode(EntryKind.DIRECTORY, 0o755, mtime_ns=NEW_YEAR, links=2)
        self.contents: dict[Inode, bytes] = {}
        self._extent_size = extent_size
        self._stripes = stripes
        self._size = 0
        self._named: set[Inode] = set()

    @property
    def geometry(self) -> DeviceGeometry:
        """The data device as it is now."""
        return DeviceGeometry(self._size, self._extent_size, self._stripes)

    def put(self, parent: Inode, name: bytes, inode: Inode) -> Inode:
        """Give ``inode`` a name, which may be a further one."""
        if inode.kind is EntryKind.DIRECTORY:
            inode.links = 2
            parent.links += 1
        elif inode in self._named:
            inode.links += 1
        self._named.add(inode)
        parent.children[name] = inode
        return inode

    def directory(self, parent: Inode, name: bytes) -> Inode:
        """A new empty directory."""
        return self.put(parent, name, Inode(EntryKind.DIRECTORY, 0o755, mtime_ns=NEW_YEAR))

    def regular(
        self, parent: Inode, name: bytes, content: bytes, *, alignment: int = BLOCK
    ) -> Inode:
        """A new file, its contents on the data device."""
        inode = Inode(EntryKind.REGULAR, 0o644, mtime_ns=NEW_YEAR, size=len(content))
        if content:
            inode.offset = -(-self._size // alignment) * alignment
            self._size = inode.offset + -(-len(content) // BLOCK) * BLOCK
        self.contents[inode] = content
        return self.put(parent, name, inode)

    def reserve(self, size: int) -> None:
        """Make the data device at least so long."""
        self._size = max(self._size, size)

    def image(self) -> bytes:
        """The metadata image."""
        return build(self.root, self.geometry)

    def write_devices(self, directory: Path) -> list[Path]:
        """The stripes' files, sparse, laid out by the store's own arithmetic."""
        geometry = Geometry(self._size, self._extent_size, self._stripes)
        paths = [directory / f"stripe-{stripe}" for stripe in range(self._stripes)]
        for stripe, path in enumerate(paths):
            path.touch()
            os.truncate(path, geometry.stripe_length(stripe))
        for inode, content in self.contents.items():
            _write(paths, geometry, inode.offset, content)
        return paths


def _write(paths: Sequence[Path], geometry: Geometry, offset: int, content: bytes) -> None:
    taken = 0
    for run in geometry.runs(offset, offset + len(content)):
        with paths[run.stripe].open("r+b") as file:
            file.seek(run.file_offset)
            file.write(content[taken : taken + run.length])
        taken += run.length
