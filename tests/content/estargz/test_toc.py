"""A TOC's tree, places and landmarks, and what of a TOC is refused."""

import json
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.footer import TocLocation
from headstart.content.estargz.toc import Toc, parse_toc
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.placement import Placement
from tests.content.estargz.layers import FORMS, MEMBERS, TAR
from tests.content.estargz.reading import EXTENT, opened, parsed
from tests.content.estargz.writer import (
    LANDMARK,
    NO_PREFETCH,
    Form,
    landmark,
    write_layer,
)
from tests.content.layer.archives import member, parse, said, tree_of, write

DIGEST = "sha256:" + "ab" * 32
BLOB = 100_000
TOC_AT = 50_000
LOCATION = TocLocation("gzip", TOC_AT, 1000, BLOB)

Entries = list[dict[str, Any]]


def file(name: str = "a", size: int = 10, offset: int = 100, **more: object) -> dict[str, Any]:
    return {
        "name": name,
        "type": "reg",
        "size": size,
        "offset": offset,
        "chunkDigest": DIGEST,
        **more,
    }


def chunk(offset: int, position: int, **more: object) -> dict[str, Any]:
    return {
        "name": "a",
        "type": "chunk",
        "offset": offset,
        "chunkOffset": position,
        "chunkDigest": DIGEST,
        **more,
    }


def read(
    entries: Entries,
    location: TocLocation = LOCATION,
    caps: LayerCaps = DEFAULT_CAPS,
    toc_caps: TocCaps = DEFAULT_TOC_CAPS,
    stripes: int = 1,
) -> Toc:
    content = json.dumps({"version": 1, "entries": entries}).encode()
    placement = Placement(EXTENT, stripes)
    return parse_toc(content, Digest.of(content), location, placement, caps, toc_caps)


@pytest.mark.parametrize("form", FORMS)
def test_the_tree_and_the_contents_are_those_of_the_tar(form: str) -> None:
    layer = write_layer(TAR, FORMS[form])
    reader = opened(layer)
    # Rounded in a TOC of eStargz.
    entry = reader.toc.tree.root.children[b"attributes"]
    assert entry.mtime_ns == (
        1_700_000_000_750_000_000 if form.startswith("podman") else 1_700_000_001 * 10**9
    )
    entry.mtime_ns = 1_700_000_000_750_000_000
    expected, device = tree_of(parse(layer.tar))
    found = said(reader.toc.tree, reader.device())
    for files in (found, wanted := said(expected, device)):
        for inode in files.values():
            del inode["inode"]
    assert found == wanted
    shown = b"stargz.index.json" in found
    assert shown == (FORMS[form].style == "build" and layer.compression == "gzip")
    if shown:
        assert found[b"stargz.index.json"]["contents"] == layer.toc


@pytest.mark.parametrize("form", ["ctr-remote", "podman"])
def test_prefetch_ends_where_the_landmark_is(form: str) -> None:
    toc = parsed(write_layer(TAR, FORMS[form]))
    assert toc.landmark_offset is not None
    assert not toc.no_prefetch
    (before,) = toc.chunks.chunks_before(toc.landmark_offset)
    first = toc.tree.root.children[b"etc"].children[b"first"]
    assert toc.chunks.chunk(before).device_offset == first.offset
    assert toc.chunks.chunk(before).stop <= toc.landmark_offset


def test_files_that_share_a_member_with_the_landmark_are_prefetched() -> None:
    landmark_entry = file(".prefetch.landmark", 1, 300, innerOffset=1024)
    toc = read([file("a"), file("b", 10, 300), landmark_entry, file("c", 10, 400)])
    assert toc.landmark_offset is not None
    assert list(toc.chunks.chunks_before(toc.landmark_offset)) == [0, 1, 2]


def test_no_prefetch_is_believed_before_a_landmark() -> None:
    for names in ([NO_PREFETCH], [NO_PREFETCH, LANDMARK], [LANDMARK, b"./" + NO_PREFETCH]):
        members = [member(b"a", contents=b"a"), *map(landmark, names)]
        toc = parsed(write_layer(write(members)))
        assert (toc.no_prefetch, toc.landmark_offset) == (True, None)


def test_only_the_roots_landmarks_are_any() -> None:
    names = [b"d/.prefetch.landmark", b"prefetch.landmark", b"..prefetch.landmark", b"x.landmark"]
    toc = parsed(write_layer(write([landmark(name) for name in names])))
    assert (toc.no_prefetch, toc.landmark_offset) == (False, None)
    toc = parsed(write_layer(write([member(LANDMARK, EntryKind.DIRECTORY)])))
    assert toc.landmark_offset is None


def test_the_digest_is_checked_before_the_json() -> None:
    with pytest.raises(LayerRefused, match="has not the digest"):
        parse_toc(b"[", Digest.of(b"{"), LOCATION, Placement(EXTENT, 1))
    with pytest.raises(LayerRefused, match="is not the JSON"):
        parse_toc(b"[", Digest.of(b"["), LOCATION, Placement(EXTENT, 1))
    with pytest.raises(LayerRefused, match="has not the digest"):
        parse_toc(b"[", Digest.of(b"{", "sha512"), LOCATION, Placement(EXTENT, 1))


def test_files_are_placed_in_the_order_of_the_toc() -> None:
    mib = 1 << 20
    entries = [file("a", 10), file("b", mib, 200), {"name": "c", "type": "reg"}, file("d", 1, 9000)]
    toc = read(entries)
    children = toc.tree.root.children
    assert [children[name].offset for name in (b"a", b"b", b"d")] == [0, 4096, 4096 + mib]
    assert toc.device_size == 2 * 4096 + mib
    striped = read(entries, stripes=2)
    assert striped.tree.root.children[b"b"].offset == mib


def test_go_leaves_out_what_is_zero() -> None:
    toc = read([{"name": "a", "type": "reg", "modtime": None, "xattrs": None}, {"type": "dir"}])
    inode = toc.tree.root.children[b"a"]
    assert (inode.mode, inode.uid, inode.mtime_ns, inode.size) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("2023-11-14T22:13:20.5-00:30", 1_700_001_800_500_000_000),
        ("1970-01-01T00:00:00Z", 0),
        ("", 0),
        # Times before the epoch and beyond 64 bits are the tree's affair.
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", 0),
        ("2262-04-11T23:47:16Z", 9_223_372_036 * 10**9),
    ],
)
def test_times_are_exact(text: str, nanoseconds: int) -> None:
    toc = read([{"name": "a", "type": "dir", "modtime": text}])
    assert toc.tree.root.children[b"a"].mtime_ns == nanoseconds


def test_a_files_digest_is_its_only_chunks() -> None:
    entry = file("a", 10)
    del entry["chunkDigest"]
    toc = read([entry | {"digest": DIGEST}])
    assert toc.chunks.chunk(0).digest == bytes([0xAB]) * 32


def test_chunks_of_one_member_follow_each_other() -> None:
    toc = read(
        [
            file("a", 30, 0, innerOffset=512, chunkSize=10),
            chunk(0, 10, innerOffset=522, chunkSize=10),
            chunk(700, 20, innerOffset=5),
        ]
    )
    places = [toc.chunks.chunk(number)[:5] for number in range(3)]
    assert places == [(0, 10, 0, 700, 512), (10, 10, 0, 700, 522), (20, 10, 700, TOC_AT, 5)]


REFUSED: dict[str, Entries] = {
    "no type": [{"name": "a"}],
    "type unknown": [{"name": "a", "type": "socket"}],
    "type no string": [{"name": "a", "type": ["reg"]}],
    "name no string": [{"name": 1, "type": "dir"}],
    "no name": [{"type": "reg"}],
    "name was not UTF-8": [{"name": "a\ufffd", "type": "dir"}],
    "half a character": [{"name": "a\ud800", "type": "dir"}],
    "target was not UTF-8": [{"name": "a", "type": "symlink", "linkName": "\ufffd"}],
    "symlink without target": [{"name": "a", "type": "symlink"}],
    "outside": [{"name": "../a", "type": "dir"}],
    "hard link to nothing": [{"name": "a", "type": "hardlink", "linkName": "b"}],
    "hard link to itself": [{"name": "a", "type": "hardlink", "linkName": "a"}],
    "hard link outside": [{"name": "a", "type": "hardlink", "linkName": "../b"}],
    "symlinked parent": [
        {"name": "a", "type": "symlink", "linkName": "/etc"},
        {"name": "a/b", "type": "dir"},
    ],
    "whiteout plus file": [{"name": ".wh.a", "type": "reg"}, {"name": "a", "type": "reg"}],
    "file plus whiteout": [{"name": "a", "type": "reg"}, {"name": ".wh.a", "type": "reg"}],
    "mode no number": [{"name": "a", "type": "dir", "mode": "0755"}],
    "mode negative": [{"name": "a", "type": "dir", "mode": -1}],
    "mode fractional": [{"name": "a", "type": "dir", "mode": 1.0}],
    "mode true": [{"name": "a", "type": "dir", "mode": True}],
    "owner too large": [{"name": "a", "type": "dir", "uid": 1 << 32}],
    "owner negative": [{"name": "a", "type": "dir", "gid": -1}],
    "device too large": [{"name": "a", "type": "char", "devMajor": 1 << 12}],
    "time": [{"name": "a", "type": "dir", "modtime": "yesterday"}],
    "time no string": [{"name": "a", "type": "dir", "modtime": 5}],
    "time without zone": [{"name": "a", "type": "dir", "modtime": "2023-11-14T22:13:20"}],
    "no such day": [{"name": "a", "type": "dir", "modtime": "2023-02-30T22:13:20Z"}],
    "no such year": [{"name": "a", "type": "dir", "modtime": "0000-01-01T00:00:00Z"}],
    "year too far": [{"name": "a", "type": "dir", "modtime": "10000-01-01T00:00:00Z"}],
    "xattrs no object": [{"name": "a", "type": "dir", "xattrs": ["user.a"]}],
    "xattr no base64": [{"name": "a", "type": "dir", "xattrs": {"user.a": "#"}}],
    "xattr no string": [{"name": "a", "type": "dir", "xattrs": {"user.a": 1}}],
    "xattr's name": [{"name": "a", "type": "dir", "xattrs": {"user.\ufffd": ""}}],
    "size negative": [file("a", -1)],
    "size beyond 64 bits": [file("a", 1 << 70)],
    "size over the chunk cap": [file("a", 257 << 20)],
    "no digest": [file("a", chunkDigest=None)],
    "digest empty": [file("a", chunkDigest="", digest="")],
    "sha512": [file("a", chunkDigest="sha512:" + "ab" * 64)],
    "digest in capitals": [file("a", chunkDigest=DIGEST.replace("ab", "AB"))],
    "file's digest for one of two chunks": [
        file("a", 20, chunkSize=10, chunkDigest="", digest=DIGEST),
        chunk(200, 10),
    ],
    "no offset": [file("a", offset=0)],
    "offset negative": [file("a", offset=-1)],
    "offset at the TOC": [file("a", offset=TOC_AT)],
    "offset after the TOC": [file("a", offset=TOC_AT + 1)],
    "offset beyond 64 bits": [file("a", offset=1 << 70)],
    "inner offset in the first header": [file("a", offset=0, innerOffset=511)],
    "inner offset negative": [file("a", innerOffset=-1)],
    "inner offset too large": [file("a", innerOffset=1 << 32)],
    "chunk first": [chunk(100, 0)],
    "chunk after a directory": [{"name": "a", "type": "dir"}, chunk(100, 0)],
    "chunk after a whole file": [file("a", 10), chunk(200, 10)],
    "chunk after an empty file": [{"name": "a", "type": "reg"}, chunk(200, 0)],
    "chunk of another file": [file("a", 20, chunkSize=10), chunk(200, 10, name="b")],
    "chunk missing at the end": [file("a", 20, chunkSize=10)],
    "chunk missing before a file": [file("a", 20, chunkSize=10), file("b", 10, 200)],
    "chunk missing before a directory": [
        file("a", 20, chunkSize=10),
        {"name": "b", "type": "dir"},
        chunk(200, 10),
    ],
    "gap": [file("a", 20, chunkSize=10), chunk(200, 11)],
    "overlap": [file("a", 20, chunkSize=10), chunk(200, 9)],
    "chunk offset of the first": [file("a", 20, chunkOffset=1)],
    "chunk over the file": [file("a", 20, chunkSize=10), chunk(200, 10, chunkSize=11)],
    "first chunk over the file": [file("a", 20, chunkSize=21)],
    "chunk size negative": [file("a", 20, chunkSize=-10)],
    "same place twice": [file("a", 10), file("b", 10, 100)],
    "overlap in a member": [file("a", 10), file("b", 10, 100, innerOffset=9)],
    "backwards": [file("a", 10, 200), file("b", 10, 100)],
    "backwards in a member": [file("a", 10, innerOffset=50), file("b", 10, 100, innerOffset=10)],
    "more than deflate can": [file("a", 103_201, 100), file("b", 1, 200)],
    "more than deflate can at the end": [file("a", 1033 * 10, TOC_AT - 10)],
    "end before its start": [file("a", endOffset=100)],
    "end after the next file": [file("a", endOffset=300), file("b", 10, 200)],
    "end after the TOC": [file("a", endOffset=TOC_AT + 1)],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    with pytest.raises(LayerRefused) as refused:
        read(REFUSED[case])
    reason = str(refused.value)
    assert reason and "\n" not in reason and len(reason) < 500


def test_what_is_refused_is_not_refused_for_another_reason() -> None:
    good: Entries = [file("a", 20, 100, chunkSize=10), chunk(200, 10), file("b", 103_200, 1000)]
    assert len(read([*good, file("c", 1, 1100)]).chunks) == 4
    assert len(read([file("a", endOffset=200), file("b", 10, 200)]).chunks) == 2
    assert len(read([file("a", endOffset=TOC_AT)]).chunks) == 1


def test_zstd_may_inflate_more_than_deflate_but_not_anything() -> None:
    location = TocLocation("zstd", TOC_AT, 1000, BLOB)
    start = location.tar_stop - 4
    assert len(read([file("a", 131_072, start)], location).chunks) == 1
    with pytest.raises(LayerRefused, match="cannot be 131073 inflated"):
        read([file("a", 131_073, start)], location)
    with pytest.raises(LayerRefused):
        read([file("a", 1, location.tar_stop)], location)


@pytest.mark.parametrize(
    ("entries", "caps", "toc_caps", "reason"),
    [
        ([file("a", 20, chunkSize=10), chunk(200, 10)], {}, {"chunks": 1}, "more than 1 chunks"),
        ([file("a", 20)], {}, {"chunk_bytes": 19}, "over 19"),
        ([{"name": "a", "type": "dir"}] * 3, {"entries": 2}, {}, "more than 2 files"),
        ([{"name": "a/b/c", "type": "dir"}], {"depth": 2}, {}, "deeper than 2"),
        (
            [file("a", 20_000), file("b", 10_000, 200)],
            {"expansion_floor": 0, "expansion_ratio": 0},
            {},
            "more than 0 bytes",
        ),
        ([file("a", 20), file("b", 20, 200)], {"total_bytes": 39}, {}, "more than 39 bytes"),
    ],
)
def test_a_cap_is_held(
    entries: Entries, caps: dict[str, int], toc_caps: dict[str, int], reason: str
) -> None:
    with pytest.raises(LayerRefused, match=reason):
        read(entries, caps=LayerCaps(**caps), toc_caps=TocCaps(**toc_caps))
    assert read(entries)


def test_the_tail_is_what_follows_the_last_file() -> None:
    layer = write_layer(TAR, Form())
    toc = parsed(layer)
    assert toc.tail is not None
    last = toc.chunks.chunk(len(toc.chunks) - 1)
    assert toc.tail == (last.start, last.stop, 5120)
    assert parsed(write_layer(TAR, FORMS["podman"])).tail is None
    # No file, no member at all: an empty layer.
    toc = read([], TocLocation("gzip", 0, 1000, BLOB))
    assert toc.tail == (0, 0, 0)
    assert (len(toc.chunks), toc.chunks.members) == (0, 1)


def test_names_may_come_twice_and_the_last_one_counts() -> None:
    toc = parsed(write_layer(write([*MEMBERS, member(b"last", contents=b"other")])))
    assert toc.tree.root.children[b"last"].size == 5
