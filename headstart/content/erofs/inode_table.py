"""All inodes of an image, each with what must lie beside it."""

import stat
import struct

from headstart.content.erofs.device_geometry import DeviceGeometry
from headstart.content.erofs.directory import SELF, Listing
from headstart.content.erofs.errors import Inexpressible
from headstart.content.erofs.format import (
    BLOCK_SIZE,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    FORMAT_CHUNKS,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    INODE,
    INODE_SLOT,
    INODE_UNION_OFFSET,
    LONGEST_TARGET,
)
from headstart.content.erofs.xattrs import inline_xattrs, xattr_count
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode

MOST_CHUNKS = 1 << 20
"""Chunk indexes of one file (8 MiB): 1 TiB over several stripes, where contents begin at a MiB."""

# File types of directory entries: linux/include/linux/fs_types.h.
_TYPE_REGULAR, _TYPE_DIRECTORY, _TYPE_SYMLINK = 1, 2, 7
_SPECIAL = {
    EntryKind.CHARACTER: (stat.S_IFCHR, 3),
    EntryKind.BLOCK: (stat.S_IFBLK, 4),
    EntryKind.FIFO: (stat.S_IFIFO, 5),
}

# Looked up once: these are asked for every inode of the layer.
_REGULAR, _DIRECTORY, _SYMLINK = EntryKind.REGULAR, EntryKind.DIRECTORY, EntryKind.SYMLINK
_PERMISSIONS = 0o7777
_NANOSECONDS = 1_000_000_000


class _OpenDirectory:
    """A directory whose inode has its place, and whose blocks have theirs but are not written."""

    __slots__ = ("at", "in_blocks", "inode", "listing", "nid", "parent")

    def __init__(
        self, inode: Inode, listing: Listing, nid: int, parent: int, at: int, in_blocks: int
    ) -> None:
        self.inode = inode
        self.listing = listing
        self.nid = nid
        self.parent = parent
        self.at = at
        """Where the last block lies beside the inode; 0 when it is a whole block."""
        self.in_blocks = in_blocks
        """Where its whole blocks begin."""


class InodeTable:
    """The inodes in the order in which a walk meets them, and the blocks that some of them need.

    The children of a directory follow one another. ``inodes`` begins with ``reserved`` zero bytes
    (a multiple of 32) for what comes before; the root is the first inode. ``blocks`` is meant to
    follow ``inodes`` at a block border: :meth:`close` says where that is.
    """

    def __init__(self, geometry: DeviceGeometry, reserved: int) -> None:
        self.inodes = bytearray(reserved)
        self.blocks = bytearray()
        self.count = 0
        self._geometry = geometry
        self._shared: dict[Inode, tuple[int, int]] = {}
        self._unresolved: list[int] = []
        self._open: list[_OpenDirectory] = []

    def add_tree(self, root: Inode) -> int:
        """Write everything below ``root``; its nid. Raises LayerRefused, naming the file."""
        try:
            opened = self._open_directory(root, None)
        except (Inexpressible, struct.error) as error:
            raise LayerRefused(f"the layer's root: {_reason(error, root)}") from error
        self._open.append(opened)
        while self._open:
            self._fill(self._open.pop())
        return opened.nid

    def close(self) -> None:
        """Pad the inodes to a block border, and tell those that need blocks where they begin."""
        self.inodes += bytes(-len(self.inodes) % BLOCK_SIZE)
        first = len(self.inodes) // BLOCK_SIZE
        field = struct.Struct("<I")
        for position in self._unresolved:
            (relative,) = field.unpack_from(self.inodes, position)
            field.pack_into(self.inodes, position, first + relative)
        self._unresolved.clear()

    def _fill(self, directory: _OpenDirectory) -> None:
        """Give each child its inode, then write the directory's blocks."""
        get = directory.inode.children.get
        nids: list[int] = []
        types: list[int] = []
        subdirectories: list[_OpenDirectory] = []
        for name in directory.listing.names:
            child = get(name)
            try:
                if child is None:
                    nid = directory.nid if name == SELF else directory.parent
                    file_type = _TYPE_DIRECTORY
                elif child.kind is _DIRECTORY:
                    opened = self._open_directory(child, directory.nid)
                    subdirectories.append(opened)
                    nid, file_type = opened.nid, _TYPE_DIRECTORY
                elif child.links == 1:
                    nid, file_type = self._add(child)
                else:
                    known = self._shared.get(child)
                    if known is None:
                        known = self._shared[child] = self._add(child)
                    nid, file_type = known
            except (Inexpressible, struct.error) as error:
                assert child is not None
                raise LayerRefused(f"file {name!r}: {_reason(error, child)}") from error
            nids.append(nid)
            types.append(file_type)
        # The last one is taken first, and a walk goes by name.
        self._open.extend(reversed(subdirectories))
        self._write_blocks(directory, directory.listing.encode(nids, types))

    def _write_blocks(self, directory: _OpenDirectory, blocks: list[bytes]) -> None:
        if directory.at:
            last = blocks.pop()
            self.inodes[directory.at : directory.at + len(last)] = last
        start = directory.in_blocks
        for block in blocks:
            self.blocks[start : start + len(block)] = block
            start += BLOCK_SIZE

    def _open_directory(self, inode: Inode, parent: int | None) -> _OpenDirectory:
        """Write a directory's inode, and keep room for its blocks."""
        if inode.kind is not _DIRECTORY or SELF in inode.children or b".." in inode.children:
            raise Inexpressible("it is no directory, or has a name that every directory has")
        listing = Listing(inode.children)
        xattrs = inline_xattrs(inode.xattrs) if inode.xattrs else b""
        last_size = listing.last_size
        whole = listing.blocks
        inline = self._make_room(INODE.size + len(xattrs) + last_size)
        if inline:
            whole -= 1
        in_blocks = len(self.blocks)
        if whole:
            self._point_to_block(in_blocks // BLOCK_SIZE)
            self.blocks += bytes(whole * BLOCK_SIZE)
        nid = self._write(
            inode,
            FORMAT_INLINE if inline else FORMAT_PLAIN,
            stat.S_IFDIR,
            listing.size,
            in_blocks // BLOCK_SIZE if whole else 0,
            xattrs,
            bytes(last_size) if inline else b"",
        )
        at = nid * INODE_SLOT + INODE.size + len(xattrs) if inline else 0
        return _OpenDirectory(inode, listing, nid, nid if parent is None else parent, at, in_blocks)

    def _add(self, inode: Inode) -> tuple[int, int]:
        """Write the inode of anything but a directory; its nid and file type."""
        kind = inode.kind
        if kind is _REGULAR:
            return self._add_regular(inode), _TYPE_REGULAR
        xattrs = inline_xattrs(inode.xattrs) if inode.xattrs else b""
        if kind is _SYMLINK:
            return self._add_symlink(inode, xattrs), _TYPE_SYMLINK
        if kind not in _SPECIAL:
            raise Inexpressible(f"a {kind.value} is no inode")
        mode, file_type = _SPECIAL[kind]
        device = 0 if kind is EntryKind.FIFO else _encode_device(*inode.device)
        return self._write(inode, FORMAT_PLAIN, mode, 0, device, xattrs), file_type

    def _add_regular(self, inode: Inode) -> int:
        xattrs = inline_xattrs(inode.xattrs) if inode.xattrs else b""
        size = inode.size
        if not size:
            return self._write(inode, FORMAT_PLAIN, stat.S_IFREG, 0, 0, xattrs)
        offset = inode.offset
        if size < 0 or offset < 0 or offset + size > self._geometry.size or offset % BLOCK_SIZE:
            raise ValueError(f"{size} bytes at {offset} are not a file of {self._geometry}")
        bits = self._geometry.chunk_bits(offset, size)
        if size > MOST_CHUNKS * (BLOCK_SIZE << bits):
            raise Inexpressible(f"its {size} bytes are too many in chunks of {BLOCK_SIZE << bits}")
        places = self._geometry.chunks(offset, size, bits)
        # The inode begins at a multiple of 32 and has 64 bytes.
        padding = bytes(-len(xattrs) % CHUNK_INDEX.size)
        indexes = [CHUNK_INDEX.pack(0, stripe + 1, block) for stripe, block in places]
        return self._write(
            inode,
            FORMAT_CHUNKS,
            stat.S_IFREG,
            size,
            bits | CHUNK_FORMAT_INDEXES,
            xattrs,
            padding + b"".join(indexes),
        )

    def _add_symlink(self, inode: Inode, xattrs: bytes) -> int:
        target = inode.target
        if not 0 < len(target) <= LONGEST_TARGET or b"\0" in target:
            raise Inexpressible(f"{len(target)} bytes are no symlink's target, or it has a zero")
        if self._make_room(INODE.size + len(xattrs) + len(target)):
            return self._write(inode, FORMAT_INLINE, stat.S_IFLNK, len(target), 0, xattrs, target)
        block = len(self.blocks) // BLOCK_SIZE
        self.blocks += target.ljust(BLOCK_SIZE, b"\0")
        self._point_to_block(block)
        return self._write(inode, FORMAT_PLAIN, stat.S_IFLNK, len(target), block, xattrs)

    def _make_room(self, size: int) -> bool:
        """Move on to where ``size`` bytes lie in one block; False when they fit into none.

        The kernel wants what follows an inode inline within one block, of a symlink together with
        the inode's end (linux/fs/erofs/inode.c).
        """
        if size > BLOCK_SIZE:
            return False
        left = -len(self.inodes) % BLOCK_SIZE
        if size > left:
            self.inodes += bytes(left)
        return True

    def _point_to_block(self, block: int) -> None:
        """The inode that comes next names ``block`` of ours, whose place is known at the end."""
        self._unresolved.append(len(self.inodes) + INODE_UNION_OFFSET)

    def _write(
        self,
        inode: Inode,
        layout: int,
        file_type: int,
        size: int,
        union: int,
        xattrs: bytes,
        tail: bytes = b"",
    ) -> int:
        """Append one inode and what follows it; its nid."""
        seconds, nanoseconds = divmod(inode.mtime_ns, _NANOSECONDS)
        self.count += 1
        nid = len(self.inodes) // INODE_SLOT
        self.inodes += INODE.pack(
            layout,
            xattr_count(xattrs),
            file_type | inode.mode & _PERMISSIONS,
            0,
            size,
            union,
            self.count,
            inode.uid,
            inode.gid,
            seconds,
            nanoseconds,
            inode.links,
        )
        if xattrs or tail:
            self.inodes += xattrs
            self.inodes += tail
            self.inodes += bytes(-len(self.inodes) % INODE_SLOT)
        return nid


def _encode_device(major: int, minor: int) -> int:
    """A device's number in 32 bits: 12 of major, 20 of minor (linux/include/linux/kdev_t.h)."""
    if major >> 12 or minor >> 20:
        raise Inexpressible(f"device {major}:{minor} has numbers that Linux has not")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _reason(error: Exception, inode: Inode) -> str:
    """What the format has no room for; struct does not say which of the numbers it was."""
    if isinstance(error, Inexpressible):
        return str(error)
    for what, number, bits in (
        ("owner", inode.uid, 32),
        ("group", inode.gid, 32),
        ("number of links", inode.links, 32),
    ):
        if number >> bits:
            return f"its {what}, {number}, is not a number of {bits} bits"
    return f"its mtime, {inode.mtime_ns} ns, has seconds beyond 64 bits"
