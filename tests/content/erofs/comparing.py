"""What a mounted tree shows, against the inodes that it was made from."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode

FORMATS = {
    EntryKind.DIRECTORY: stat.S_IFDIR,
    EntryKind.REGULAR: stat.S_IFREG,
    EntryKind.SYMLINK: stat.S_IFLNK,
    EntryKind.CHARACTER: stat.S_IFCHR,
    EntryKind.BLOCK: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
}


def assert_shows(mount: Path, root: Inode, contents: Mapping[Inode, bytes]) -> int:
    """Compare every file below ``mount`` in everything that an inode says; how many there are."""
    numbers: dict[Inode, int] = {}
    pending = [(os.fsencode(mount), root)]
    compared = 0
    while pending:
        path, inode = pending.pop()
        assert_file(path, inode, contents)
        number = os.lstat(path).st_ino
        assert numbers.setdefault(inode, number) == number, path
        compared += 1
        if inode.kind is EntryKind.DIRECTORY:
            assert sorted(os.listdir(path)) == sorted(inode.children), path
            parent, up = os.path.dirname(path), os.path.join(path, b"..")
            if inode is not root:
                assert os.lstat(up).st_ino == os.lstat(parent).st_ino, path
            pending.extend((os.path.join(path, name), of) for name, of in inode.children.items())
    assert len(set(numbers.values())) == len(numbers)
    return compared


def assert_file(path: bytes, inode: Inode, contents: Mapping[Inode, bytes]) -> None:
    """Compare one file."""
    found = os.lstat(path)
    assert found.st_mode == FORMATS[inode.kind] | inode.mode, path
    assert (found.st_uid, found.st_gid) == (inode.uid, inode.gid), path
    assert found.st_mtime_ns == inode.mtime_ns, path
    assert found.st_nlink == inode.links, path
    names = {os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)}
    assert names == set(inode.xattrs), path
    for name, value in inode.xattrs.items():
        assert os.getxattr(path, os.fsdecode(name), follow_symlinks=False) == value, (path, name)
    if inode.kind in (EntryKind.CHARACTER, EntryKind.BLOCK):
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == inode.device, path
    elif inode.kind is EntryKind.SYMLINK:
        assert os.readlink(path) == inode.target, path
        assert found.st_size == len(inode.target), path
    elif inode.kind is EntryKind.REGULAR:
        assert found.st_size == inode.size, path
        with open(path, "rb") as file:
            assert file.read() == contents[inode], path
