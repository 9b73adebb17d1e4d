"""Trees and device files as FUSE sees them: a directory ``trees`` beside the device files.

Nothing in a tree ever changes, so the kernel keeps names, attributes, missing names and pages for
ever. File handles are inode numbers: a new daemon knows those of a dead one.
"""

import errno
from collections.abc import Sequence

import pyfuse3

from headstart.content.erofs.reader import ImageDamaged
from mount.device.device_files import DeviceFiles
from mount.device.naming import ROOT_INODE
from mount.device.operations import (
    ERROR_NUMBERS,
    FOREVER_SECONDS,
    DeviceOperations,
    answering,
    directory_attributes,
)
from mount.device.served_pages import ServedPages
from mount.tree.errors import NoSuchTree, TreeUnusable
from mount.tree.naming import TREES_INODE, TREES_NAME, is_tree, parse_name
from mount.tree.tree import TreeFile
from mount.tree.trees import Trees

TREE_ERROR_NUMBERS: dict[type[Exception], int] = {
    NoSuchTree: errno.ENOENT,
    TreeUnusable: errno.EIO,
    ImageDamaged: errno.EIO,
    **ERROR_NUMBERS,
}

_answering = answering(TREE_ERROR_NUMBERS)
_SECTOR = 512
_NO_XATTR = pyfuse3.FUSEError(errno.ENODATA)


class TreeOperations(DeviceOperations):
    """Request handlers of trees; what is none of theirs goes to the device files."""

    def __init__(self, files: DeviceFiles, served: ServedPages, trees: Trees) -> None:
        """``trees`` answers for the files in ``trees``."""
        super().__init__(files, served)
        self._trees = trees

    @_answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a file; in a tree the kernel remembers, too, that there is none."""
        if is_tree(parent_inode):
            tree = await self._trees.of(parent_inode)
            found = tree.find(parent_inode, name)
            return _missing() if found is None else _attributes(found)
        if parent_inode == TREES_INODE:
            return await self._tree_named(name)
        if parent_inode == ROOT_INODE and name == TREES_NAME:
            return directory_attributes(TREES_INODE)
        return await super().lookup(parent_inode, name, ctx)

    async def _tree_named(self, name: bytes) -> pyfuse3.EntryAttributes:
        if name == b".":
            return directory_attributes(TREES_INODE)
        if name == b"..":
            return directory_attributes(ROOT_INODE)
        number = parse_name(name)
        if number is None:
            raise NoSuchTree(f"{name!r:.60} is no tree")
        tree = await self._trees.numbered(number)
        return _attributes(tree.root)

    @_answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes, which never change."""
        if is_tree(inode):
            return _attributes((await self._trees.of(inode)).file(inode))
        if inode == TREES_INODE:
            return directory_attributes(TREES_INODE)
        return await super().getattr(inode, ctx)

    @_answering
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Where a symlink leads."""
        if is_tree(inode):
            return (await self._trees.of(inode)).target(inode)
        raise pyfuse3.FUSEError(errno.EINVAL)

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """An extended attribute."""
        # Never ENOSYS: the kernel would ask for none any more, in no tree.
        if not is_tree(inode):
            raise _NO_XATTR
        value = (await self._trees.of(inode)).xattrs(inode).get(name)
        if value is None:
            raise _NO_XATTR
        return value

    @_answering
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """The names of all extended attributes; the kernel hides what the caller may not see."""
        return list((await self._trees.of(inode)).xattrs(inode)) if is_tree(inode) else []

    @_answering
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a directory."""
        if is_tree(inode) or inode == TREES_INODE:
            return inode
        return await super().opendir(inode, ctx)

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory, with the attributes of everything in it."""
        if is_tree(fh):
            tree = await self._trees.of(fh)
            for entry, file in tree.listed(fh, start_id):
                if not pyfuse3.readdir_reply(token, entry.name, _attributes(file), entry.position):
                    return
        elif fh == TREES_INODE:
            for number in self._trees.listed():
                if number > start_id:
                    tree = await self._trees.numbered(number)
                    name = str(number).encode()
                    if not pyfuse3.readdir_reply(token, name, _attributes(tree.root), number):
                        return
        elif start_id >= TREES_INODE or pyfuse3.readdir_reply(
            token, TREES_NAME, directory_attributes(TREES_INODE), TREES_INODE
        ):
            await super().readdir(fh, max(start_id, TREES_INODE), token)

    @_answering
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file; pages that the kernel has stay valid."""
        if is_tree(inode):
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)
        if inode == TREES_INODE:
            raise pyfuse3.FUSEError(errno.EISDIR)
        return await super().open(inode, flags, ctx)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Answer exactly what was asked for, or an error."""
        if is_tree(fh):
            return await self._trees.read(fh, off, size)
        return await super().read(fh, off, size)

    @_answering
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept for an open directory."""


def _attributes(file: TreeFile) -> pyfuse3.EntryAttributes:
    record = file.record
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = file.inode
    entry.st_mode = record.mode
    entry.st_size = record.size
    entry.st_blocks = -(-record.size // _SECTOR)
    entry.st_nlink = record.links
    entry.st_uid = record.uid
    entry.st_gid = record.gid
    # In the encoding that the kernel wants, and the C library has for numbers of this size.
    entry.st_rdev = record.device
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = record.mtime_ns
    entry.entry_timeout = entry.attr_timeout = FOREVER_SECONDS
    return entry


def _missing() -> pyfuse3.EntryAttributes:
    """What makes the kernel remember that a name is not there."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER_SECONDS
    return entry
