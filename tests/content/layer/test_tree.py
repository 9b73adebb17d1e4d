"""What the entries of a layer become, rule by rule; test_unpacked.py asks containerd the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.layer.archives import CAPABILITY, shared, walk
from tests.content.layer.archives import said as said_of
from tests.content.layer.growing import at, file, made, names

DIRECTORY = EntryKind.DIRECTORY
REGULAR = EntryKind.REGULAR
SYMLINK = EntryKind.SYMLINK
HARD_LINK = EntryKind.HARD_LINK
CHARACTER = EntryKind.CHARACTER


@pytest.mark.parametrize(
    "name", [b"a/b", b"/a/b", b"./a/b", b"a//b", b"a/./b/", b"a/x/../b", b"//a/b//", b".//a/b//"]
)
def test_a_name_is_cleaned(name: bytes) -> None:
    assert names(made(file(name))) == {b"a", b"a/b"}


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"..", b".", b"", b"b", b"..."]), max_size=8),
    st.booleans(),
)
def test_a_name_means_the_path_that_its_parts_walk(parts: list[bytes], slash: bool) -> None:
    name = (b"/" if slash else b"") + b"/".join(parts)
    walked: list[bytes] = []
    leaves = False
    for part in parts:
        leaves = leaves or (part == b".." and not walked)
        if part == b"..":
            del walked[-1:]
        elif part not in (b"", b"."):
            walked.append(part)
    if leaves:
        with pytest.raises(LayerRefused, match="leaves the layer"):
            made(Entry(name, DIRECTORY))
    else:
        expected = {b"/".join(walked[: count + 1]) for count in range(len(walked))}
        assert names(made(Entry(name, DIRECTORY))) == expected


@pytest.mark.parametrize("name", [b"..", b"../a", b"/../a", b"a/../../b", b"./../a"])
def test_a_name_that_leaves_the_layer_is_refused(name: bytes) -> None:
    with pytest.raises(LayerRefused, match="leaves the layer"):
        made(file(name))


def test_the_roots_own_entry_says_nothing() -> None:
    tree = made(Entry(b"./", DIRECTORY, 0o700, 5, 6, 7, xattrs={b"user.a": b"1"}), file(b"a"))
    root = tree.root
    assert (root.mode, root.uid, root.gid, root.mtime_ns, root.xattrs) == (0o755, 0, 0, 0, {})
    assert root.links == 2
    assert not root.implied


def test_nothing_but_a_directory_is_the_root() -> None:
    with pytest.raises(LayerRefused, match="root"):
        made(Entry(b"./", SYMLINK, target=b"a"))


def test_an_implied_directory_is_plain_and_marked() -> None:
    tree = made(file(b"a/b/c"), Entry(b"a", DIRECTORY, 0o700, 1, 2, 3))
    implied = at(tree, b"a/b")
    assert implied.implied
    assert (implied.mode, implied.uid, implied.gid, implied.mtime_ns) == (0o755, 0, 0, 0)
    told = at(tree, b"a")
    assert not told.implied
    assert (told.mode, told.uid, told.gid, told.mtime_ns) == (0o700, 1, 2, 3)


@pytest.mark.parametrize(
    "parent",
    [
        file(b"a"),
        Entry(b"a", SYMLINK, target=b"b"),
        Entry(b"a", EntryKind.FIFO),
        file(b".wh.a"),
    ],
)
def test_only_a_directory_has_files(parent: Entry) -> None:
    with pytest.raises(LayerRefused, match="is no directory"):
        made(Entry(b"b", DIRECTORY), parent, file(b"a/x"))


def test_a_regular_file_lies_where_it_was_placed() -> None:
    tree = made(file(b"first", 1), file(b"full", 10), file(b"empty"))
    assert (at(tree, b"empty").offset, at(tree, b"empty").size) == (0, 0)
    assert (at(tree, b"full").offset, at(tree, b"full").size) == (4096, 10)


def test_modes_keep_setuid_and_lose_the_kind() -> None:
    tree = made(file(b"a", mode=0o104755), Entry(b"l", SYMLINK, 0o600, target=b"x"))
    assert at(tree, b"a").mode == 0o4755
    assert at(tree, b"l").mode == 0o777


@pytest.mark.parametrize(
    ("mtime_ns", "shown"),
    [(-1, 0), (0, 0), (1, 1), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, 0)],
)
def test_times_out_of_range_are_the_epoch(mtime_ns: int, shown: int) -> None:
    assert at(made(file(b"a", mtime_ns=mtime_ns)), b"a").mtime_ns == shown


def test_links_are_counted() -> None:
    tree = made(
        file(b"d/e/f"),
        Entry(b"d/g", DIRECTORY),
        file(b"a"),
        Entry(b"d/b", HARD_LINK, target=b"a"),
        Entry(b"c", HARD_LINK, target=b"./d/b"),
    )
    links = {path: inode.links for path, inode in walk(tree.root)}
    assert links == {b"d": 4, b"d/e": 2, b"d/e/f": 1, b"d/g": 2, b"a": 3, b"d/b": 3, b"c": 3}
    assert tree.root.links == 3
    assert shared(said_of(tree)) == {frozenset((b"a", b"d/b", b"c"))}


def test_a_hard_link_says_what_the_shared_file_is() -> None:
    tree = made(
        file(
            b"a",
            3,
            mode=0o755,
            mtime_ns=1,
            xattrs={b"user.a": b"1", b"security.capability": CAPABILITY},
        ),
        Entry(b"b", HARD_LINK, 0o4711, 7, 8, 9, target=b"/a", xattrs={b"user.b": b"2"}),
    )
    inode = at(tree, b"a")
    assert inode is at(tree, b"b")
    assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (0o4711, 7, 8, 9)
    assert inode.xattrs == {b"user.a": b"1", b"user.b": b"2"}
    assert (inode.size, inode.kind) == (3, REGULAR)


def test_a_capability_that_a_hard_link_repeats_stays() -> None:
    capability = {b"security.capability": CAPABILITY}
    tree = made(
        file(b"a", xattrs=capability), Entry(b"b", HARD_LINK, target=b"a", xattrs=capability)
    )
    assert at(tree, b"a").xattrs == capability


def test_a_hard_link_may_share_a_symlink() -> None:
    tree = made(Entry(b"a", SYMLINK, target=b"x"), Entry(b"b", HARD_LINK, 0o600, 1, target=b"a"))
    inode = at(tree, b"b")
    assert (inode.kind, inode.mode, inode.uid, inode.links) == (SYMLINK, 0o777, 1, 2)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Entry(b"b", HARD_LINK, target=b"a"), file(b"a")], "no earlier entry"),
        ([Entry(b"a", HARD_LINK, target=b"a")], "no earlier entry"),
        ([file(b"a"), Entry(b"a", HARD_LINK, target=b"a")], "no earlier entry"),
        (
            [Entry(b"a", HARD_LINK, target=b"b"), Entry(b"b", HARD_LINK, target=b"a")],
            "no earlier entry",
        ),
        ([file(b"a"), Entry(b"b", HARD_LINK, target=b"a/x")], "no earlier entry"),
        ([file(b"d/x"), Entry(b"d", HARD_LINK, target=b"d/x")], "no earlier entry"),
        ([file(b".wh.a"), Entry(b"b", HARD_LINK, target=b"a")], "no earlier entry"),
        ([file(b"a"), Entry(b"b", HARD_LINK, target=b"../a")], "leaves the layer"),
        ([file(b"a"), Entry(b"b", HARD_LINK, target=b"../../etc/shadow")], "leaves the layer"),
        ([Entry(b"a", DIRECTORY), Entry(b"b", HARD_LINK, target=b"a")], "names a directory"),
        ([Entry(b"b", HARD_LINK, target=b"")], "names a directory"),
    ],
)
def test_a_hard_link_to_no_file_of_the_layer_is_refused(entries: list[Entry], reason: str) -> None:
    with pytest.raises(LayerRefused, match=reason):
        made(*entries)


def test_a_name_given_twice_is_what_the_second_entry_says() -> None:
    tree = made(
        file(b"a", 1),
        Entry(b"b", HARD_LINK, target=b"a"),
        file(b"a", 2),
        file(b"d/x/y"),
        file(b"d"),
        file(b"e"),
        file(b"e/"),
        Entry(b"e", DIRECTORY),
        file(b"e/x"),
    )
    sizes = {path: (inode.size, inode.links) for path, inode in walk(tree.root)}
    assert sizes == {b"a": (2, 1), b"b": (1, 1), b"d": (0, 1), b"e": (0, 2), b"e/x": (0, 1)}


def test_two_entries_of_a_directory_are_one() -> None:
    tree = made(
        Entry(b"d", DIRECTORY, 0o700, 1, 1, 1, xattrs={b"user.a": b"1", b"user.c": b"1"}),
        file(b"d/x"),
        Entry(b"d/", DIRECTORY, 0o711, 2, 3, 4, xattrs={b"user.b": b"2", b"user.c": b"2"}),
    )
    directory = at(tree, b"d")
    assert (directory.mode, directory.uid, directory.gid, directory.mtime_ns) == (0o711, 2, 3, 4)
    assert directory.xattrs == {b"user.a": b"1", b"user.b": b"2", b"user.c": b"2"}
    assert set(directory.children) == {b"x"}


def test_a_replaced_directory_is_gone_where_files_went_into_it() -> None:
    tree = made(file(b"d/e/x"), file(b"d"), Entry(b"d", DIRECTORY), file(b"d/e/y"))
    assert names(tree) == {b"d", b"d/e", b"d/e/y"}


def test_a_whiteout_is_a_device_that_overlayfs_knows() -> None:
    tree = made(file(b"d/.wh.gone", uid=3), file(b".wh..wh.plnk"))
    for path in (b"d/gone", b".wh.plnk"):
        inode = at(tree, path)
        assert (inode.kind, inode.device, inode.links) == (CHARACTER, (0, 0), 1)
    assert names(tree) == {b"d", b"d/gone", b".wh.plnk"}


def test_an_opaque_whiteout_marks_its_directory() -> None:
    tree = made(
        file(b"d/.wh..wh..opq"),
        file(b"d/x"),
        Entry(b"d", DIRECTORY, xattrs={b"user.a": b"1"}),
        file(b"e/x"),
        file(b"e/.wh..wh..opq"),
    )
    assert at(tree, b"d").xattrs == {b"trusted.overlay.opaque": b"y", b"user.a": b"1"}
    assert not at(tree, b"d").implied
    assert at(tree, b"e").xattrs == {b"trusted.overlay.opaque": b"y"}
    assert names(tree) == {b"d", b"d/x", b"e", b"e/x"}
    root = made(file(b".wh..wh..opq")).root
    assert root.xattrs == {b"trusted.overlay.opaque": b"y"}


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"a"), file(b".wh.a")],
        [file(b".wh.a"), file(b"a")],
        [file(b".wh.a"), Entry(b"a", DIRECTORY)],
        [file(b"a/x"), file(b".wh.a")],
        [file(b".wh.a"), file(b".wh.a")],
        [file(b"a"), Entry(b"a", CHARACTER, device=(0, 0))],
        [Entry(b"a", CHARACTER, device=(0, 0)), file(b"a")],
    ],
)
def test_a_whiteout_of_what_the_layer_has_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(LayerRefused, match=r"hides a name|hidden by"):
        made(*entries)


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh.."])
def test_a_whiteout_of_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(LayerRefused, match="hides nothing"):
        made(file(name))


@pytest.mark.parametrize("name", [b".wh.a/x", b"d/.wh.a/x/y", b".wh..wh.plnk/1.2"])
def test_a_file_below_a_whiteout_is_refused(name: bytes) -> None:
    with pytest.raises(LayerRefused, match="below a whiteout"):
        made(file(name))


def test_names_that_only_look_like_whiteouts_are_names() -> None:
    assert names(made(file(b"a.wh.b"), file(b".who"))) == {b"a.wh.b", b".who"}


def test_devices_keep_their_numbers() -> None:
    tree = made(
        Entry(b"null", CHARACTER, 0o666, device=(1, 3)),
        Entry(b"sda", EntryKind.BLOCK, device=(4095, 1048575)),
        Entry(b"zero", EntryKind.BLOCK, device=(0, 0)),
    )
    assert at(tree, b"null").device == (1, 3)
    assert at(tree, b"sda").device == (4095, 1048575)
    assert at(tree, b"zero").kind is EntryKind.BLOCK


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (
            DIRECTORY,
            {b"user.a", b"security.x", b"system.posix_acl_access", b"system.posix_acl_default"},
        ),
        (REGULAR, {b"user.a", b"security.x", b"system.posix_acl_access"}),
        (EntryKind.FIFO, {b"security.x", b"system.posix_acl_access"}),
        (SYMLINK, {b"security.x"}),
    ],
)
def test_extended_attributes_are_those_that_linux_shows(kind: EntryKind, kept: set[bytes]) -> None:
    offered = (
        b"user.a",
        b"user.overlay.opaque",
        b"user.",
        b"security.x",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
        b"system.nfs4_acl",
        b"trusted.a",
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"other.a",
        b"name",
    )
    entry = Entry(b"a", kind, target=b"x", xattrs=dict.fromkeys(offered, b""))
    assert at(made(entry), b"a").xattrs == dict.fromkeys(kept, b"")
