"""The tree against what a real containerd makes of the same layers."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.layer.archives import (
    CAPABILITY,
    Member,
    member,
    parse,
    said,
    shared,
    tree_of,
    walk,
    write,
)
from tests.content.layer.unpacked import look, unpack
from tests.parts.containerd import Containerd
from tests.parts.processes import ProcessFailed

DIRECTORY = EntryKind.DIRECTORY
SYMLINK = EntryKind.SYMLINK
HARD_LINK = EntryKind.HARD_LINK
CHARACTER = EntryKind.CHARACTER
BASE = write([member(b"base"), member(b"low", DIRECTORY, mode=0o1777, owner=(9, 9), mtime=55)])

NAMES = [
    member(b"./", DIRECTORY, mode=0o700, owner=(5, 5), mtime=5),
    member(b"./dot"),
    member(b"/absolute//./slashes/"),
    member(b"in/../out"),
    member(b"low/implied/deeper/x", contents=b"x"),
    member(b"n" * 255),
    member(b"odd \xff\xfe\n\xc3\xa4"),
    member(b"/".join([b"p" * 200] * 3 + [b"long"]), contents=b"long path"),
]
KINDS = [
    member(b"dev", DIRECTORY, mode=0o751, owner=(1, 2), mtime=1_700_000_000),
    member(b"dev/null", CHARACTER, mode=0o666, device=(1, 3), mtime=3),
    member(b"dev/sda", EntryKind.BLOCK, mode=0o660, owner=(0, 6), device=(259, 70_000)),
    member(b"dev/fifo", EntryKind.FIFO, mode=0o622, mtime=4),
    member(b"dev/link", SYMLINK, mode=0o600, owner=(3, 4), target=b"/no/" + b"t" * 300, mtime=5),
    member(b"dev/setuid", contents=b"s" * 5000, mode=0o6755, owner=(7, 8)),
    member(b"dev/sticky", DIRECTORY, mode=0o1777),
    member(b"dev/large ids", owner=(3_000_000, 4_294_967_294)),
]
TIMES = [
    member(b"time/exact", records={"mtime": "1700000000.123456789"}),
    member(b"time/cut", records={"mtime": "1700000000.9999999999"}),
    member(b"time/before", records={"mtime": "-5.5"}),
    member(b"time/far", records={"mtime": "99999999999"}),
    member(b"time", DIRECTORY, mtime=77),
]
XATTRS = [
    member(
        b"xattrs",
        DIRECTORY,
        xattrs={
            b"user.kept": b"1",
            b"user.empty": b"",
            b"security.other": b"\0\xff",
            b"trusted.overlay.opaque": b"y",
            b"trusted.mine": b"1",
            b"unknown.name": b"1",
        },
    ),
    member(b"xattrs/capable", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
    member(b"xattrs/link", SYMLINK, target=b"x", xattrs={b"user.a": b"1"}),
]
LINKS = [
    member(
        b"links/a",
        contents=b"shared",
        mode=0o755,
        xattrs={b"security.capability": CAPABILITY, b"user.a": b"1"},
    ),
    member(
        b"links/b",
        HARD_LINK,
        target=b"/links/a",
        mode=0o4711,
        owner=(7, 7),
        mtime=99,
        xattrs={b"user.b": b"2"},
    ),
    member(b"links/c", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
    member(
        b"links/d",
        HARD_LINK,
        target=b"./links/c",
        mode=0o755,
        xattrs={b"security.capability": CAPABILITY},
    ),
    member(b"links/symlink", SYMLINK, target=b"nowhere"),
    member(b"links/of symlink", HARD_LINK, target=b"links/symlink", owner=(8, 8), mtime=98),
]
TWICE = [
    member(b"twice/file", contents=b"1"),
    member(b"twice/linked", HARD_LINK, target=b"twice/file"),
    member(b"twice/file", contents=b"22"),
    member(b"twice/dir", DIRECTORY, mode=0o700, xattrs={b"user.a": b"1", b"user.c": b"1"}),
    member(b"twice/dir/x"),
    member(
        b"twice/dir/", DIRECTORY, mode=0o711, mtime=5, xattrs={b"user.b": b"1", b"user.c": b"2"}
    ),
    member(b"twice/was dir/x"),
    member(b"twice/was dir", contents=b"file"),
    member(b"twice/was file", contents=b"file"),
    member(b"twice/was file", DIRECTORY),
    member(b"twice/was file/x"),
]
WHITEOUTS = [
    member(b".wh.base"),
    member(b"hidden/.wh.name", owner=(3, 3)),
    member(b".wh..wh.aufs"),
    member(b"opaque/.wh..wh..opq"),
    member(b"opaque/x"),
    member(b"opaque", DIRECTORY, mode=0o700, mtime=6),
    member(b"late", DIRECTORY, mode=0o700, xattrs={b"user.a": b"1"}),
    member(b"late/x"),
    member(b"late/.wh..wh..opq"),
]
UNSHOWN = {b"name", b"base", b".wh.aufs"}
"""Last names of whiteouts, of which overlayfs shows nothing."""


def comparable(
    files: Mapping[bytes, Mapping[str, object]], implied: set[bytes]
) -> dict[bytes, dict[str, object]]:
    """Without what differs by nature: whiteouts' attributes, those of implied directories."""
    found = {}
    for path, file in files.items():
        kept = {key: value for key, value in file.items() if key != "inode"}
        if path in implied:
            kept = {key: kept[key] for key in ("kind", "links")}
        elif kept.get("device") == (0, 0) and path.rpartition(b"/")[2] in UNSHOWN:
            kept = {key: kept[key] for key in ("kind", "links", "device")}
        found[path] = kept
    return found


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_the_tree_is_what_containerd_unpacks(
    containerd: Containerd, tmp_path: Path, form: str
) -> None:
    members = [*NAMES, *KINDS, *TIMES, *XATTRS, *LINKS, *TWICE, *WHITEOUTS]
    layer = write(members, tarfile.PAX_FORMAT if form == "pax" else tarfile.GNU_FORMAT)
    tree, device = tree_of(parse(layer))
    expected = look(unpack(containerd, tmp_path / "image", BASE, layer))
    found = said(tree, device)
    implied = {path for path, inode in walk(tree.root) if inode.implied}
    assert comparable(found, implied) == comparable(expected, implied)
    assert shared(found) == shared(expected)
    assert implied >= {b"absolute", b"low", b"low/implied", b"hidden", b"links", b"twice"}
    for path in implied - {b"low"}:
        assert found[path]["mode"] == expected[path]["mode"] == 0o755
    # What is implied here and named in the layer below has the attributes from there.
    assert (expected[b"low"]["mode"], expected[b"low"]["owner"]) == (0o1777, (9, 9))


@pytest.mark.parametrize(
    "members",
    [
        [member(b"a"), member(b".wh.a")],
        [member(b".wh.a"), member(b".wh.a")],
        [member(b".wh..")],
        [member(b"a"), member(b"a/x")],
        [member(b".wh.a"), member(b"a/x")],
        [member(b"a", HARD_LINK, target=b"a")],
        [member(b"b", HARD_LINK, target=b"a"), member(b"a")],
        [member(b"a", DIRECTORY), member(b"b", HARD_LINK, target=b"a")],
        [member(b"a", SYMLINK)],
    ],
    ids=[
        "whiteout of an own file",
        "whiteout twice",
        "whiteout of the parent",
        "file as parent",
        "whiteout as parent",
        "link to itself",
        "link to a later file",
        "link to a directory",
        "no target",
    ],
)
def test_what_containerd_refuses_is_refused(
    containerd: Containerd, tmp_path: Path, members: list[Member]
) -> None:
    layer = write(members)
    with pytest.raises(LayerRefused):
        tree_of(parse(layer))
    with pytest.raises(ProcessFailed, match="failed to extract layer"):
        unpack(containerd, tmp_path / "image", BASE, layer)
