"""What a tar holds and where, from one pass over it.

Kept is what an unpack shows at the end: of a name that is given twice the last entry, and nothing
of what was below a directory that another file has replaced. Where what is kept would not unpack
to the same tree, the layer is not converted: a hard link to a file whose name is given to another
one later; a directory given twice, of whose extended attributes the second entry repeats not all.

The files that eStargz adds itself are left out, so that a layer can be converted again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headstart.content.estargz.same_view import same_view
from headstart.content.estargz.toc import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from headstart.content.estargz.toc_file import INDEX_NAME
from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.toc_fields import entry_fields
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from headstart.content.layer.names import clean, shown
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree
from headstart.content.layer.xattrs import OPAQUE

WHITEOUT = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"

_OWN_FILES = (PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK, INDEX_NAME)
# What hides one of them in a layer below would hide the one that is written.
_LEFT_OUT = frozenset((*_OWN_FILES, *(WHITEOUT + name for name in _OWN_FILES)))


class ScannedEntry(NamedTuple):
    """An entry and its place in the tar: its headers, extension headers included, then contents.

    ``path`` is its clean name; offsets and sizes are in bytes.
    """

    entry: Entry
    path: bytes
    headers_offset: int
    headers_size: int

    @property
    def content_offset(self) -> int:
        """Where its contents begin; they are ``entry.size`` bytes."""
        return self.headers_offset + self.headers_size


@dataclass(frozen=True, slots=True)
class TarScan:
    """The entries that count, in the tar's order; some 430 bytes each, whatever their contents."""

    entries: Sequence[ScannedEntry]


def scan_tar(pieces: Iterable[bytes | memoryview], caps: LayerCaps = DEFAULT_CAPS) -> TarScan:
    """Read a whole uncompressed tar, in pieces of any size (1 MiB is a good one).

    Meanwhile an entry takes some 1,000 bytes of memory.

    Raises LayerRefused for what is hostile, damaged or a sparse file; NotConvertible.
    """
    parser = TarParser(caps)
    tree = LayerTree(caps)
    entries: list[ScannedEntry] = []
    last: dict[bytes, int] = {}
    for piece in pieces:
        for given in parser.feed(memoryview(piece)):
            if isinstance(given, memoryview):
                continue
            path = clean(given.name, caps)
            if _is_left_out(path, given):
                continue
            # What a TOC cannot hold is to be known before anything is written.
            entry_fields(given)
            tree.add(given, parser.position)
            last[path] = len(entries)
            size = parser.headers_size
            entries.append(ScannedEntry(given, path, parser.position - size, size))
    parser.close()
    tree.finish()
    kept = [
        scanned
        for number, scanned in enumerate(entries)
        if last[scanned.path] == number and _shows(tree.root, scanned.path)
    ]
    if len(kept) < len(entries):
        _check_same(kept, tree, caps)
    return TarScan(kept)


def _is_left_out(path: bytes, entry: Entry) -> bool:
    name, slash, _ = path.partition(b"/")
    if name not in _LEFT_OUT:
        return False
    if slash or entry.kind is EntryKind.DIRECTORY:
        raise NotConvertible(
            f"it has a directory where eStargz has a file of its own: {shown(name)}"
        )
    return True


def _shows(root: Inode, path: bytes) -> bool:
    """Whether something that an entry has made is in the tree at the end."""
    if not path:
        return True
    *parents, name = path.split(b"/")
    directory = root
    for parent in parents:
        below = directory.children.get(parent)
        if below is None:
            return False
        directory = below
    if name == OPAQUE_MARKER:
        return OPAQUE in directory.xattrs
    return name.removeprefix(WHITEOUT) in directory.children


def _check_same(kept: Sequence[ScannedEntry], tree: LayerTree, caps: LayerCaps) -> None:
    again = LayerTree(caps)
    try:
        for scanned in kept:
            again.add(scanned.entry, scanned.content_offset)
    except LayerRefused as error:
        raise NotConvertible(f"it gives names twice, and then {error}") from error
    again.finish()
    difference = same_view(tree.root, again.root)
    if difference is not None:
        raise NotConvertible(f"it gives names twice, and one entry for each differs: {difference}")
