"""The tree that the entries of a layer make, as containerd and overlayfs would show it.

The rules are those of the OCI image specification (layer.md: whiteouts, opaque whiteouts) in the
way in which containerd 1.6 applies them to an overlayfs snapshot, so that a mounted layer and an
unpacked one are the same. Where containerd itself fails, and where it follows the archive to
another place than the archive says (a symlink as parent, ``..`` above the root), the layer is
refused, and the ordinary pull gives containerd's answer.

What may surprise:

- The root's own entry says nothing: a snapshot's root is 0755 root:root whatever the archive has.
- A directory that no entry names, only implies, is 0755 root:root with time 0, and marked
  ``implied``: containerd gives it the attributes that it has in the layers below (but the time).
- A name that is given twice is what the second entry says; two directories become one, with the
  attributes of the second and the extended attributes of both.
- A hard link may only name an earlier file. Its mode, owner, time and extended attributes become
  the shared file's, and a capability that the link does not repeat is lost, since containerd
  changes the owner through it.
- A whiteout for a name that the same layer has is refused in either order: in one containerd fails,
  in the other it shows a new directory merged with what was to be hidden.
- Other marks of AUFS (``.wh..wh.plnk``) are whiteouts like any, of names that nobody has.
- A character device 0:0 in the archive is a whiteout by another spelling: overlayfs knows no
  difference.
- Times before the epoch and beyond 64 bits become the epoch.
"""

from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from headstart.content.layer.names import clean, shown
from headstart.content.layer.xattrs import CAPABILITY, OPAQUE, kept_xattrs, xattr_bytes

_WHITEOUT = b".wh."
_OPAQUE_MARKER = b".wh..wh..opq"

_LARGEST_TIME = (1 << 63) - 1
_LARGEST_ID = (1 << 32) - 2
"""One less than what chown(2) takes for "unchanged"."""

_LARGEST_MAJOR = (1 << 12) - 1
_LARGEST_MINOR = (1 << 20) - 1
"""Linux's device numbers (linux/kdev_t.h)."""

_DEVICES = (EntryKind.CHARACTER, EntryKind.BLOCK)
_WHITEOUT_DEVICE = (0, 0)


class LayerTree:
    """Takes entries in the archive's order; :attr:`root` is right once :meth:`finish` was called.

    After a LayerRefused the tree is of no use.
    """

    def __init__(self, caps: LayerCaps = DEFAULT_CAPS) -> None:
        self.root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
        self.implied: bytes | None = None
        """After :meth:`finish`: the name of a directory that is only implied; None without one."""
        self._caps = caps
        self._entries = 0
        self._metadata_bytes = 0
        self._total_bytes = 0
        # Most entries share the parent of the one before. Only a name in this very directory is
        # ever replaced, so the directory itself never is.
        self._parent_path = b""
        self._parent = self.root

    def add(self, entry: Entry, offset: int = 0) -> None:
        """Apply the next entry; ``offset``: where a regular file's contents lie on the data device.

        Raises LayerRefused.
        """
        path = clean(entry.name, self._caps)
        if not path:
            if entry.kind is not EntryKind.DIRECTORY:
                raise LayerRefused(f"{shown(entry.name)} would replace the layer's root")
            self._count(0)
            return
        if _WHITEOUT in path and self._is_marker(path):
            return
        parent_path, _, name = path.rpartition(b"/")
        if parent_path != self._parent_path:
            self._parent = self._directory(parent_path)
            self._parent_path = parent_path
        if entry.kind is EntryKind.CHARACTER and entry.device == _WHITEOUT_DEVICE:
            self._white_out(self._parent, name, path)
            return
        self._put(self._parent.children, name, path, entry, offset)

    def finish(self) -> None:
        """Count the links of every file, after the last entry."""
        self.implied = None
        waiting = [self.root]
        seen: set[Inode] = set()
        while waiting:
            directory = waiting.pop()
            directory.links = 2
            for name, inode in directory.children.items():
                if inode.kind is EntryKind.DIRECTORY:
                    directory.links += 1
                    waiting.append(inode)
                    if inode.implied and self.implied is None:
                        self.implied = name
                elif inode in seen:
                    inode.links += 1
                else:
                    inode.links = 1
                    seen.add(inode)

    def _is_marker(self, path: bytes) -> bool:
        """Apply a name that is not a file's: a whiteout or an opaque one."""
        parent_path, _, name = path.rpartition(b"/")
        if parent_path.startswith(_WHITEOUT) or b"/" + _WHITEOUT in parent_path:
            raise LayerRefused(f"{shown(path)} is below a whiteout")
        if not name.startswith(_WHITEOUT):
            return False
        parent = self._directory(parent_path)
        hidden = name[len(_WHITEOUT) :]
        if name == _OPAQUE_MARKER:
            self._count(len(OPAQUE))
            parent.xattrs[OPAQUE] = b"y"
        elif hidden in (b"", b".", b".."):
            raise LayerRefused(f"the whiteout {shown(path)} hides nothing")
        else:
            self._white_out(parent, hidden, path)
        return True

    def _white_out(self, parent: Inode, name: bytes, path: bytes) -> None:
        self._count(len(name))
        if name in parent.children:
            raise LayerRefused(f"{shown(path)} hides a name that this layer has itself")
        parent.children[name] = Inode(EntryKind.CHARACTER, 0, device=_WHITEOUT_DEVICE)

    def _directory(self, path: bytes) -> Inode:
        """The directory at a clean path; it and those above it are made where they are missing."""
        directory = self.root
        if not path:
            return directory
        for name in path.split(b"/"):
            child = directory.children.get(name)
            if child is None:
                self._count(len(name))
                child = Inode(EntryKind.DIRECTORY, 0o755, implied=True)
                directory.children[name] = child
            elif child.kind is not EntryKind.DIRECTORY:
                raise LayerRefused(
                    f"{shown(name)} in {shown(path)} is no directory, but {_what(child)}"
                )
            directory = child
        return directory

    def _put(
        self, siblings: dict[bytes, Inode], name: bytes, path: bytes, entry: Entry, offset: int
    ) -> None:
        self._count(len(name) + len(entry.target))
        _check_numbers(entry, path)
        existing = siblings.get(name)
        if existing is not None:
            if _is_whiteout(existing):
                raise LayerRefused(f"{shown(path)} is hidden by this layer itself")
            if existing.kind is entry.kind is EntryKind.DIRECTORY:
                self._give(existing, entry)
                existing.implied = False
                return
            del siblings[name]
        if entry.kind is EntryKind.HARD_LINK:
            siblings[name] = self._shared(entry, path)
            return
        inode = Inode(entry.kind, 0)
        if entry.kind is EntryKind.REGULAR:
            inode.size = entry.size
            inode.offset = offset if entry.size else 0
            self._total_bytes += entry.size
            if self._total_bytes > self._caps.total_bytes:
                raise LayerRefused(f"its files have more than {self._caps.total_bytes} bytes")
        elif entry.kind is EntryKind.SYMLINK:
            inode.target = self._checked_target(entry, path)
        elif entry.kind in _DEVICES:
            inode.device = entry.device
        self._give(inode, entry)
        siblings[name] = inode

    def _shared(self, entry: Entry, path: bytes) -> Inode:
        """The file that a hard link names, with the attributes that the link says."""
        target = clean(entry.target, self._caps)
        inode: Inode | None = self.root
        for name in target.split(b"/") if target else ():
            inode = inode.children.get(name) if inode is not None else None
        if inode is None or _is_whiteout(inode):
            raise LayerRefused(
                f"the hard link {shown(path)} names {shown(target)}, which no earlier entry made"
            )
        if inode.kind is EntryKind.DIRECTORY:
            raise LayerRefused(f"the hard link {shown(path)} names a directory, {shown(target)}")
        inode.xattrs.pop(CAPABILITY, None)
        self._give(inode, entry)
        return inode

    def _give(self, inode: Inode, entry: Entry) -> None:
        """Give a file the attributes that an entry says."""
        inode.mode = 0o777 if inode.kind is EntryKind.SYMLINK else entry.mode & 0o7777
        inode.uid = entry.uid
        inode.gid = entry.gid
        inode.mtime_ns = entry.mtime_ns if 0 <= entry.mtime_ns <= _LARGEST_TIME else 0
        if entry.xattrs:
            inode.xattrs.update(kept_xattrs(entry.xattrs, inode.kind, self._caps))
            size = xattr_bytes(inode.xattrs)
            if size > self._caps.xattr_bytes:
                raise LayerRefused(
                    f"the extended attributes of {shown(entry.name)} have {size} bytes,"
                    f" over {self._caps.xattr_bytes}"
                )
            self._metadata_bytes += size

    def _checked_target(self, entry: Entry, path: bytes) -> bytes:
        if not 0 < len(entry.target) <= self._caps.target_bytes or b"\0" in entry.target:
            raise LayerRefused(
                f"the target of the symlink {shown(path)} is empty, has a NUL"
                f" or is longer than {self._caps.target_bytes} bytes"
            )
        return entry.target

    def _count(self, metadata_bytes: int) -> None:
        self._entries += 1
        self._metadata_bytes += metadata_bytes
        if self._entries > self._caps.entries:
            raise LayerRefused(f"it has more than {self._caps.entries} files")
        if self._metadata_bytes > self._caps.metadata_bytes:
            raise LayerRefused(
                f"its names and attributes have more than {self._caps.metadata_bytes} bytes"
            )


def _is_whiteout(inode: Inode) -> bool:
    return inode.kind is EntryKind.CHARACTER and inode.device == _WHITEOUT_DEVICE


def _what(inode: Inode) -> str:
    return "a whiteout" if _is_whiteout(inode) else f"a {inode.kind.name.lower()}"


def _check_numbers(entry: Entry, path: bytes) -> None:
    if not (0 <= entry.uid <= _LARGEST_ID and 0 <= entry.gid <= _LARGEST_ID):
        raise LayerRefused(f"the owner of {shown(path)}, {entry.uid}:{entry.gid}, is out of range")
    if entry.size < 0:
        raise LayerRefused(f"the size of {shown(path)} is negative")
    if entry.kind in _DEVICES:
        major, minor = entry.device
        if not (0 <= major <= _LARGEST_MAJOR and 0 <= minor <= _LARGEST_MINOR):
            raise LayerRefused(f"the device {shown(path)}, {major}:{minor}, is out of range")
