"""A layer in chunks is what its diff ID says, and its TOC says what its tar says."""

import dataclasses
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from headstart.content.layer.tree import LayerTree
from headstart.store.geometry import MIB
from headstart.store.layout import Layout
from tests.content.layer.archives import member as entry
from tests.content.layer.archives import write
from tests.fill.layers.chunked import Compression, brought, check_of, chunked, run
from tests.fill.layers.contents import some_members
from tests.fill.writing import layout_in

TAR = write(some_members(big=MIB + 12_345))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 1)


def test_the_check_waits_for_what_is_missing(layout: Layout) -> None:
    layer = chunked(TAR)
    files = layer.create(layout)
    writer = layer.writer(files)
    check = check_of(layer, writer)
    assert check.waits() and not check.advance()
    members = list(writer.missing())
    for member in (*members[:4], *members[5:]):
        writer.write(member)
    while not check.waits():
        assert not check.advance(10_000)
    assert check.member == 4
    assert not check.advance()
    writer.write(4)
    run(check)
    assert files.verified
    writer.close()
    files.close()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_another_diff_id_is_found(layout: Layout, compression: Compression) -> None:
    layer = chunked(TAR, compression=compression)
    files, writer = brought(layer, layout)
    with pytest.raises(LayerRefused, match="diff ID"):
        run(check_of(layer, writer, Digest.of(b"other")))
    assert not files.verified
    writer.close()
    files.close()


def at(tree: LayerTree, path: str) -> Inode:
    inode = tree.root
    for name in path.split("/"):
        inode = inode.children[name.encode()]
    return inode


def lie(name: str, value: object) -> Callable[[LayerTree], None]:
    """Change one attribute of a file."""
    return lambda tree: setattr(at(tree, "etc/small"), name, value)


def rename(tree: LayerTree) -> None:
    files = at(tree, "etc").children
    files[b"renamed"] = files.pop(b"small")


def split_link(tree: LayerTree) -> None:
    files = at(tree, "etc").children
    files[b"hard"] = dataclasses.replace(files[b"hard"])


def add_setuid_file(tree: LayerTree) -> None:
    at(tree, "etc").children[b"shell"] = Inode(EntryKind.REGULAR, 0o4755)


def swap(tree: LayerTree) -> None:
    one, two = at(tree, "usr/lib/1/1"), at(tree, "usr/lib/2/2")
    one.offset, one.size, two.offset, two.size = two.offset, two.size, one.offset, one.size


LIES: dict[str, Callable[[LayerTree], None]] = {
    "mode": lie("mode", 0o6755),
    "owner": lie("uid", 7),
    "mtime": lie("mtime_ns", 5_000_000_000),
    "attributes": lie("xattrs", {b"security.capability": b"x"}),
    "kind": lie("kind", EntryKind.FIFO),
    "size": lie("size", 3),
    "place": lambda tree: setattr(at(tree, "usr/capable"), "offset", 0),
    "target": lambda tree: setattr(at(tree, "etc/link"), "target", b"/etc/shadow"),
    "device": lambda tree: setattr(at(tree, "dev/console"), "device", (1, 1)),
    "implied": lambda tree: setattr(at(tree, "usr"), "implied", False),
    "in one of them": rename,
    "hard link": split_link,
    "etc/shell": add_setuid_file,
    "size|place": swap,
}


@pytest.mark.parametrize("what", LIES)
def test_a_toc_that_says_something_else_than_the_tar_is_found(layout: Layout, what: str) -> None:
    layer = chunked(TAR)
    files, writer = brought(layer, layout)
    LIES[what](layer.tree)
    with pytest.raises(LayerRefused, match=what):
        run(check_of(layer, writer))
    assert not files.verified
    writer.close()
    files.close()


def test_fractions_of_seconds_may_differ(layout: Layout) -> None:
    layer = chunked(TAR)
    files, writer = brought(layer, layout)
    at(layer.tree, "usr/big").mtime_ns += 999_999_999
    run(check_of(layer, writer))
    assert files.verified
    writer.close()
    files.close()


def test_contents_that_no_chunk_has_are_found(layout: Layout) -> None:
    layer = chunked(TAR)
    del layer.chunks[5]
    files, writer = brought(layer, layout)
    with pytest.raises(LayerRefused, match="no chunk"):
        run(check_of(layer, writer))
    writer.close()
    files.close()


def test_framing_that_a_chunk_takes_for_contents_is_found(layout: Layout) -> None:
    tar = write([entry(b"a", contents=b"a" * 5000), entry(b"b", contents=b"b" * 5000)])
    layer = chunked(tar)
    first = layer.chunks[0]
    # The padding after a, and the header of b.
    longer = tar[512 : 512 + 5632]
    layer.chunks[0] = first._replace(size=len(longer), digest=sha256(longer).digest())
    files, writer = brought(layer, layout)
    with pytest.raises(LayerRefused, match="a header where"):
        run(check_of(layer, writer))
    writer.close()
    files.close()
