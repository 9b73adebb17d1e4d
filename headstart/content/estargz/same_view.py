"""Whether two trees show the same."""

from collections.abc import Iterator
from typing import NamedTuple

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.names import shown

_NANOSECONDS = 1_000_000_000


class _Pair(NamedTuple):
    path: bytes
    one: Inode
    other: Inode


def same_view(one: Inode, other: Inode) -> str | None:
    """The first difference between two trees in words; None when there is none.

    Compared is all that a reader sees, with the place of contents on the data device for the
    contents. Times may differ by less than a second: a TOC has whole seconds, rounded, and 0 for
    the whole first second of 1970.
    """
    partners: dict[Inode, Inode] = {}
    waiting = [_Pair(b"", one, other)]
    while waiting:
        pair = waiting.pop()
        # Names that share a file share it in both trees.
        known = partners.setdefault(pair.one, pair.other)
        if known is not pair.other or partners.setdefault(pair.other, pair.one) is not pair.one:
            return f"{shown(pair.path)} is a hard link to different files"
        for what, first, second in _attributes(pair):
            if first != second:
                return f"{shown(pair.path)}: {what} {first!r:.100}, and {second!r:.100}"
        if abs(pair.one.mtime_ns - pair.other.mtime_ns) >= _NANOSECONDS:
            return f"{shown(pair.path)}: mtime {pair.one.mtime_ns}, and {pair.other.mtime_ns}"
        if pair.one.kind is EntryKind.DIRECTORY:
            missing = pair.one.children.keys() ^ pair.other.children.keys()
            if missing:
                name = min(missing)
                return f"{shown(_below(pair.path, name))} is in one of them only"
            for name in sorted(pair.one.children, reverse=True):
                child, twin = pair.one.children[name], pair.other.children[name]
                waiting.append(_Pair(_below(pair.path, name), child, twin))
    return None


def _attributes(pair: _Pair) -> Iterator[tuple[str, object, object]]:
    _, one, other = pair
    yield "kind", one.kind.value, other.kind.value
    yield "mode", oct(one.mode), oct(other.mode)
    yield "owner", (one.uid, one.gid), (other.uid, other.gid)
    yield "size", one.size, other.size
    yield "target", one.target, other.target
    yield "device number", one.device, other.device
    yield "extended attributes", one.xattrs, other.xattrs
    yield "links", one.links, other.links
    yield "implied", one.implied, other.implied
    yield "place on the data device", one.offset, other.offset


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
