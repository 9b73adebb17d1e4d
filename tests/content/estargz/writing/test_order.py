"""What a start reads comes first, after what it needs."""

import pytest

from headstart.content.estargz.writing.options import WritingOptions
from headstart.content.estargz.writing.order import written_order
from headstart.content.estargz.writing.scan import scan_tar
from headstart.content.layer.entry import EntryKind
from tests.content.estargz.reading import opened
from tests.content.estargz.writing.converting import convert, names
from tests.content.layer.archives import Member, member, write

DIRECTORY = EntryKind.DIRECTORY
HARD_LINK = EntryKind.HARD_LINK

MEMBERS = [
    member(b"./", DIRECTORY),
    member(b"./etc", DIRECTORY),
    member(b"./etc/passwd", contents=b"root"),
    member(b"./usr", DIRECTORY),
    member(b"./usr/bin/sh", contents=b"#!"),
    member(b"./usr/lib", DIRECTORY),
    member(b"./usr/lib/libc.so", contents=b"ELF"),
    member(b"./usr/bin", DIRECTORY),
    member(b"./empty"),
]


def first(members: list[Member], *order: bytes) -> tuple[list[str], list[str]]:
    """The names before and behind the landmark."""
    found = written_order(scan_tar([write(members)]).entries, order)
    return (
        [scanned.path.decode() for scanned in found.first],
        [scanned.path.decode() for scanned in found.rest],
    )


def test_wanted_files_come_first_each_after_its_directories() -> None:
    assert first(MEMBERS, b"/usr/lib/libc.so", b"etc/passwd", b"./usr/bin/sh") == (
        ["", "usr", "usr/lib", "usr/lib/libc.so", "etc", "etc/passwd", "usr/bin", "usr/bin/sh"],
        ["empty"],
    )


def test_what_is_not_wanted_keeps_its_order() -> None:
    assert first(MEMBERS, b"empty")[1] == [
        "etc", "etc/passwd", "usr", "usr/bin/sh", "usr/lib", "usr/lib/libc.so", "usr/bin",
    ]  # fmt: skip


@pytest.mark.parametrize("spelling", [b"usr/x", b"/usr/x", b"./usr/x", b"//usr/./lib/../x/"])
def test_any_spelling_is_the_same_name(spelling: bytes) -> None:
    members = [member(b"a"), member(b"usr/x")]
    assert first(members, spelling) == (["usr/x"], ["a"])


@pytest.mark.parametrize("order", [(), (b"no/such",), (b"../out", b"n" * 300, b"usr/bin/no")])
def test_nothing_wanted_leaves_the_tar_as_it_is(order: tuple[bytes, ...]) -> None:
    tar = write(MEMBERS)
    layer = convert(tar, order).layer
    assert names(layer.tar) == [".no.prefetch.landmark", *names(tar), "stargz.index.json"]
    toc = opened(layer).toc
    assert (toc.no_prefetch, toc.landmark_offset) == (True, None)


def test_a_name_wanted_twice_is_moved_once() -> None:
    assert first(MEMBERS, b"empty", b"./empty", b"/")[0] == ["", "empty"]


def test_a_wanted_directory_comes_alone() -> None:
    members = [member(b"d", DIRECTORY), member(b"d/x"), member(b"d/y"), member(b"e")]
    assert first(members, b"d") == (["d"], ["d/x", "d/y", "e"])
    assert first(members, b"d", b"d/y") == (["d", "d/y"], ["d/x", "e"])


def test_a_hard_link_comes_after_all_earlier_names_of_its_file() -> None:
    members = [
        member(b"other"),
        member(b"t", DIRECTORY),
        member(b"t/file", contents=b"shared", mode=0o644),
        member(b"one", HARD_LINK, target=b"t/file", mode=0o600),
        member(b"two", HARD_LINK, target=b"one", mode=0o640),
        member(b"three", HARD_LINK, target=b"t/file", mode=0o604),
    ]
    assert first(members, b"two") == (["t", "t/file", "one", "two"], ["other", "three"])
    assert first(members, b"t/file") == (["t", "t/file"], ["other", "one", "two", "three"])
    assert first(members, b"one", b"three", b"two")[0] == ["t", "t/file", "one", "two", "three"]


def test_an_opaque_mark_comes_before_what_is_beside_it() -> None:
    members = [
        member(b"d/x"),
        member(b"d/y"),
        member(b"d", DIRECTORY),
        member(b"d/.wh..wh..opq"),
        member(b".wh..wh..opq"),
        member(b"d/.wh.gone"),
    ]
    assert first(members, b"d/y") == (
        [".wh..wh..opq", "d", "d/.wh..wh..opq", "d/y"],
        ["d/x", "d/.wh.gone"],
    )


@pytest.mark.parametrize("pack", [False, True])
def test_the_landmark_ends_what_is_prefetched(pack: bool) -> None:
    converted = convert(write(MEMBERS), [b"usr/bin/sh", b"etc/passwd"], WritingOptions(pack=pack))
    toc = opened(converted.layer).toc
    assert toc.landmark_offset is not None
    # Nothing else is in the landmark's member before it.
    assert converted.result.prefetch_size == toc.landmark_offset
    before = [toc.chunks.chunk(number) for number in toc.chunks.chunks_before(toc.landmark_offset)]
    root = toc.tree.root.children
    assert [chunk.device_offset for chunk in before] == [
        root[b"usr"].children[b"bin"].children[b"sh"].offset,
        root[b"etc"].children[b"passwd"].offset,
    ]
    listed = names(converted.layer.tar)
    assert listed.index(".prefetch.landmark") == 6
    assert listed[-1] == "stargz.index.json"
