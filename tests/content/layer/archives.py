"""Tar archives written by Python's tarfile, and what the parser makes of any."""

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.placement import Placement
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}

TYPES = {
    EntryKind.DIRECTORY: tarfile.DIRTYPE,
    EntryKind.REGULAR: tarfile.REGTYPE,
    EntryKind.SYMLINK: tarfile.SYMTYPE,
    EntryKind.HARD_LINK: tarfile.LNKTYPE,
    EntryKind.CHARACTER: tarfile.CHRTYPE,
    EntryKind.BLOCK: tarfile.BLKTYPE,
    EntryKind.FIFO: tarfile.FIFOTYPE,
}

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""The value of security.capability for cap_net_raw, permitted and effective."""


class Member(NamedTuple):
    """A file to be written, as bytes have it."""

    header: tarfile.TarInfo
    contents: bytes = b""


def text(name: bytes) -> str:
    """A name as tarfile takes it and gives it back."""
    return name.decode("utf-8", "surrogateescape")


def member(
    name: bytes,
    kind: EntryKind = EntryKind.REGULAR,
    contents: bytes = b"",
    *,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] | None = None,
    records: Mapping[str, str] | None = None,
) -> Member:
    """A file; ``xattrs`` and ``records`` are written in the PAX format only."""
    header = tarfile.TarInfo(text(name))
    header.type = TYPES[kind]
    header.mode = mode
    header.uid, header.gid = owner
    header.mtime = mtime
    header.linkname = text(target)
    header.devmajor, header.devminor = device
    header.size = len(contents)
    header.pax_headers = dict(records or {}) | {
        f"SCHILY.xattr.{text(name)}": text(value) for name, value in (xattrs or {}).items()
    }
    return Member(header, contents)


def write(
    members: Iterable[Member],
    form: int = tarfile.PAX_FORMAT,
    global_records: Mapping[str, str] | None = None,
) -> bytes:
    """An archive. Raises ValueError for what the format has no room for."""
    output = io.BytesIO()
    with tarfile.open(
        fileobj=output,
        mode="w",
        format=form,
        encoding="utf-8",
        errors="surrogateescape",
        pax_headers=global_records,
    ) as archive:
        for header, contents in members:
            archive.addfile(header, io.BytesIO(contents))
    return output.getvalue()


def pieces(content: bytes, sizes: Sequence[int]) -> Iterator[memoryview]:
    """``content`` in pieces of these sizes, again and again."""
    view = memoryview(content)
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(view):
            return
        yield view[position : position + size]
        position += size


def parse(
    archive: bytes, sizes: Sequence[int] = (1 << 20,), caps: LayerCaps = DEFAULT_CAPS
) -> list[tuple[Entry, bytes]]:
    """Every entry and its contents. Raises LayerRefused."""
    parser = TarParser(caps)
    found: list[tuple[Entry, bytearray]] = []
    for piece in pieces(archive, sizes):
        for given in parser.feed(piece):
            if isinstance(given, Entry):
                found.append((given, bytearray()))
            else:
                assert given.obj is archive, "a payload piece was copied"
                assert given, "a payload piece is empty"
                assert found[-1][0].kind is EntryKind.REGULAR
                found[-1][1].extend(given)
    parser.close()
    return [(entry, bytes(contents)) for entry, contents in found]


def tree_of(
    parsed: Iterable[tuple[Entry, bytes]], caps: LayerCaps = DEFAULT_CAPS
) -> tuple[LayerTree, bytearray]:
    """The finished tree and the data device. Raises LayerRefused."""
    tree = LayerTree(caps)
    placement = Placement(32 << 20, 1)
    device = bytearray()
    for entry, contents in parsed:
        offset = placement.place(entry.size) if entry.kind is EntryKind.REGULAR else 0
        tree.add(entry, offset)
        if contents:
            device.extend(bytes(offset - len(device)))
            device.extend(contents)
    tree.finish()
    return tree, device


def walk(directory: Inode, path: bytes = b"") -> Iterator[tuple[bytes, Inode]]:
    """Every name below a directory, with its path."""
    for name, inode in directory.children.items():
        below = path + b"/" + name if path else name
        yield below, inode
        yield from walk(inode, below)


def said(tree: LayerTree, device: bytes | bytearray = b"") -> dict[bytes, dict[str, object]]:
    """What a tree says of each name, in the terms of :func:`unpacked.look`."""
    return {path: _said(inode, device) for path, inode in walk(tree.root)}


def _said(inode: Inode, device: bytes | bytearray) -> dict[str, object]:
    found: dict[str, object] = {
        "kind": inode.kind.value,
        "mode": inode.mode,
        "owner": (inode.uid, inode.gid),
        "mtime_ns": inode.mtime_ns,
        "links": inode.links,
        "inode": id(inode),
        "xattrs": inode.xattrs,
    }
    if inode.kind is EntryKind.SYMLINK:
        found["target"] = inode.target
    elif inode.kind is EntryKind.REGULAR:
        found["contents"] = bytes(device[inode.offset : inode.offset + inode.size])
    elif inode.kind in (EntryKind.CHARACTER, EntryKind.BLOCK):
        found["device"] = inode.device
    return found


def shared(files: Mapping[bytes, Mapping[str, object]]) -> set[frozenset[bytes]]:
    """Which names share a file."""
    names: dict[object, set[bytes]] = {}
    for name, file in files.items():
        names.setdefault(file["inode"], set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}
