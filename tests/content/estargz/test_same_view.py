"""Whether two trees show the same."""

from collections.abc import Callable

import pytest

from headstart.content.estargz.same_view import same_view
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.tree import LayerTree
from tests.content.layer.growing import at, file, made

SECOND = 1_000_000_000


def tree() -> LayerTree:
    return made(
        Entry(b"etc", EntryKind.DIRECTORY, mtime_ns=5 * SECOND),
        file(b"etc/a", 5, xattrs={b"user.a": b"1"}),
        Entry(b"etc/b", EntryKind.HARD_LINK, target=b"etc/a"),
        file(b"etc/c", 5),
        Entry(b"etc/link", EntryKind.SYMLINK, target=b"a"),
        Entry(b"null", EntryKind.CHARACTER, device=(1, 3)),
        file(b"implied/x"),
        file(b".wh.gone"),
    )


def test_a_tree_is_like_itself_made_again() -> None:
    assert same_view(tree().root, tree().root) is None
    one = tree().root
    assert same_view(one, one) is None


def set_mode(inode: Inode) -> None:
    inode.mode ^= 1


def set_uid(inode: Inode) -> None:
    inode.uid = 7


def set_gid(inode: Inode) -> None:
    inode.gid = 7


def set_size(inode: Inode) -> None:
    inode.size += 1


def set_time(inode: Inode) -> None:
    inode.mtime_ns += SECOND


def set_xattrs(inode: Inode) -> None:
    inode.xattrs[b"user.b"] = b""


def set_offset(inode: Inode) -> None:
    inode.offset += 4096


def set_links(inode: Inode) -> None:
    inode.links += 1


def set_target(inode: Inode) -> None:
    inode.target += b"x"


def set_device(inode: Inode) -> None:
    inode.device = (1, 5)


def set_kind(inode: Inode) -> None:
    inode.kind = EntryKind.FIFO


def set_implied(inode: Inode) -> None:
    inode.implied = not inode.implied


def add_child(inode: Inode) -> None:
    inode.children[b"new"] = Inode(EntryKind.FIFO, 0)


def remove_children(inode: Inode) -> None:
    inode.children.clear()


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (b"etc/a", set_mode, "mode"),
        (b"etc/c", set_uid, "owner"),
        (b"etc", set_gid, "owner"),
        (b"etc/c", set_size, "size"),
        (b"etc", set_time, "mtime"),
        (b"etc/c", set_xattrs, "extended attributes"),
        (b"etc/c", set_offset, "place on the data device"),
        (b"etc/c", set_links, "links"),
        (b"etc/link", set_target, "target"),
        (b"null", set_device, "device number"),
        (b"gone", set_device, "device number"),
        (b"null", set_kind, "kind"),
        (b"implied", set_implied, "implied"),
        (b"etc", add_child, "'etc/new' is in one of them only"),
        (b"implied", remove_children, "'implied/x' is in one of them only"),
    ],
)
def test_each_difference_is_named(path: bytes, change: Callable[[Inode], None], words: str) -> None:
    changed = tree()
    change(at(changed, path))
    for difference in (
        same_view(tree().root, changed.root),
        same_view(changed.root, tree().root),
    ):
        assert difference is not None
        assert words in difference and "\n" not in difference
        # Of two names of a file either may come first.
        assert path.decode().replace("etc/a", "etc/") in difference


def test_names_share_files_in_both_or_in_none() -> None:
    def linked(target: bytes) -> LayerTree:
        return made(
            file(b"a", xattrs={}),
            file(b"b"),
            Entry(b"c", EntryKind.HARD_LINK, target=target),
            Entry(b"d", EntryKind.HARD_LINK, target=b"b" if target == b"a" else b"a"),
        )

    one, other = linked(b"a"), linked(b"b")
    difference = same_view(one.root, other.root)
    assert difference is not None and "hard link" in difference
    assert same_view(one.root, linked(b"a").root) is None


def test_times_may_differ_by_less_than_a_second() -> None:
    for apart in (1, SECOND // 2, SECOND - 1):
        other = tree()
        at(other, b"etc").mtime_ns += apart
        assert same_view(tree().root, other.root) is None
        assert same_view(other.root, tree().root) is None


def test_a_deep_tree_needs_no_deep_stack() -> None:
    def deep() -> Inode:
        root = inode = Inode(EntryKind.DIRECTORY, 0o755)
        for _ in range(20_000):
            inode.children[b"d"] = Inode(EntryKind.DIRECTORY, 0o755)
            inode = inode.children[b"d"]
        return root

    assert same_view(deep(), deep()) is None
