"""Trees grown from entries, for tests of what becomes of them."""

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.tree import LayerTree
from tests.content.layer.archives import walk


def file(name: bytes, size: int = 0, **fields: object) -> Entry:
    return Entry(name, EntryKind.REGULAR, size=size, **fields)  # type: ignore[arg-type]


def made(*entries: Entry, caps: LayerCaps | None = None) -> LayerTree:
    """The finished tree; the offset of each entry's contents is its place among them."""
    tree = LayerTree(caps or LayerCaps())
    for number, entry in enumerate(entries):
        tree.add(entry, number * 4096)
    tree.finish()
    return tree


def at(tree: LayerTree, path: bytes) -> Inode:
    inode = tree.root
    for name in path.split(b"/"):
        inode = inode.children[name]
    return inode


def names(tree: LayerTree) -> set[bytes]:
    return {path for path, _ in walk(tree.root)}
