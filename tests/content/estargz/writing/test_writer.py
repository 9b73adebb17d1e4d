"""What a layer's TOC says, field by field; members that are shared; the result."""

import base64
import gzip
import json
import random
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.file_class import FileClass, file_class
from headstart.content.estargz.writing.member_plan import FRAMING_SIZE
from headstart.content.estargz.writing.options import DEFAULT_OPTIONS, WritingOptions
from headstart.content.estargz.writing.scan import scan_tar
from headstart.content.estargz.writing.writer import EStargzWriter
from headstart.content.estargz.writing.written import ContentRow
from headstart.content.layer.entry import EntryKind
from tests.content.estargz.memory import at_most
from tests.content.estargz.reading import opened
from tests.content.estargz.writing.converting import bare, convert, reader
from tests.content.layer.archives import CAPABILITY, Member, member, write

NOISE = random.Random(3).randbytes(300_000)
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def owned(made: Member, user: str, group: str = "") -> Member:
    made.header.uname, made.header.gname = user, group
    return made


def toc_of(*members: Member, options: WritingOptions = DEFAULT_OPTIONS) -> list[dict[str, Any]]:
    """The entries of the TOC, without the landmark's."""
    document = json.loads(convert(write(members), options=options).layer.toc)
    assert document.keys() == {"version", "entries"}
    assert document["version"] == 1
    mark, *entries = document["entries"]
    assert mark["name"] == ".no.prefetch.landmark"
    return list(entries)


def without_places(entry: Mapping[str, Any]) -> dict[str, Any]:
    places = ("offset", "digest", "chunkDigest")
    return {key: value for key, value in entry.items() if key not in places}


def test_every_field_of_the_specification() -> None:
    found = toc_of(
        owned(member(b"d/", EntryKind.DIRECTORY, mode=0o1755, owner=(5, 6)), "user", "group"),
        member(b"./d/f", contents=b"abc", mode=0o4644, mtime=1_700_000_000),
        member(b"d/link", EntryKind.HARD_LINK, target=b"./d/f"),
        member(b"s", EntryKind.SYMLINK, target="\u00fc <&>".encode(), mode=0o777),
        member(b"c", EntryKind.CHARACTER, device=(1, 0), mode=0),
        member(b"b", EntryKind.BLOCK, device=(0, 9)),
        member(b"p", EntryKind.FIFO),
        member(b"x", xattrs={b"user.a": b"\xff\0", b"security.capability": CAPABILITY}),
    )
    owner = {"mode": 0o644, "uid": 0, "gid": 0}
    expected: list[dict[str, Any]] = [
        {"name": "d/", "type": "dir", "mode": 0o1755, "uid": 5, "gid": 6}
        | {"userName": "user", "groupName": "group"},
        {"name": "./d/f", "type": "reg", "size": 3, "modtime": "2023-11-14T22:13:20Z"}
        | (owner | {"mode": 0o4644}),
        {"name": "d/link", "type": "hardlink", "linkName": "./d/f"} | owner,
        {"name": "s", "type": "symlink", "linkName": "\u00fc <&>"} | (owner | {"mode": 0o777}),
        {"name": "c", "type": "char", "devMajor": 1, "devMinor": 0} | (owner | {"mode": 0}),
        {"name": "b", "type": "block", "devMajor": 0, "devMinor": 9} | owner,
        {"name": "p", "type": "fifo"} | owner,
        {"name": "x", "type": "reg"} | owner,
    ]
    expected[-1]["xattrs"] = {
        "user.a": base64.b64encode(b"\xff\0").decode(),
        "security.capability": base64.b64encode(CAPABILITY).decode(),
    }
    assert [without_places(entry) for entry in found] == expected
    assert found[1]["digest"] == found[1]["chunkDigest"]
    assert found[1]["offset"] > 0
    assert found[7]["digest"] == EMPTY
    assert "offset" not in found[7]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ("0", None),
        ("0.25", "1970-01-01T00:00:00.25Z"),
        ("-5.5", "1969-12-31T23:59:54.5Z"),
        ("1700000000.123456789", "2023-11-14T22:13:20.123456789Z"),
        ("-62135596800", "0001-01-01T00:00:00Z"),
        ("253402300799", "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_exact(seconds: str, text: str | None) -> None:
    (entry,) = toc_of(member(b"a", records={"mtime": seconds}))
    assert entry.get("modtime") == text


def test_the_name_of_an_owner_is_with_its_first_entry() -> None:
    long = "n" * 40
    found = toc_of(
        owned(member(b"a"), "root", "wheel"),
        owned(member(b"b"), "root", "other"),
        owned(member(b"c", owner=(7, 0)), long, "other"),
        owned(member(b"d", owner=(7, 0)), "", ""),
        owned(member(b"e", owner=(8, 0)), "\udcff", ""),
        owned(member(b"f"), "toor", ""),
    )
    assert [(entry.get("userName"), entry.get("groupName")) for entry in found] == [
        ("root", "wheel"),
        (None, "other"),
        (long, None),
        (None, None),
        (None, None),
        ("toor", None),
    ]


def test_chunks_of_a_file() -> None:
    found = toc_of(
        member(b"a", contents=NOISE[:2500]),
        member(b"b", contents=NOISE[:1000]),
        options=WritingOptions(chunk_size=1000),
    )
    fields = ("name", "type", "size", "chunkOffset", "chunkSize")
    assert [tuple(entry.get(field) for field in fields) for entry in found] == [
        ("a", "reg", 2500, None, 1000),
        ("a", "chunk", None, 1000, 1000),
        ("a", "chunk", None, 2000, None),
        ("b", "reg", 1000, None, None),
    ]
    assert found[0]["digest"] != found[0]["chunkDigest"]
    assert "digest" not in found[1]


def test_small_files_share_a_member_up_to_a_size() -> None:
    members = [member(b"f%02d" % number, contents=b"%d" % number * 20_000) for number in range(20)]
    members.insert(10, member(b"large", contents=NOISE))
    plain = convert(write(members))
    packed = convert(write(members), options=WritingOptions(pack=True))
    table = opened(packed.layer).toc.chunks
    sizes, counts = [], []
    for number in range(1, table.members - 1):
        start, stop, chunks = table.member(number)
        sizes.append(len(gzip.decompress(packed.layer.blob[start:stop])))
        counts.append(len(chunks))
    # The landmark and ten of 20,000 bytes; the large one alone; then such of 40,000 bytes.
    assert counts == [11, 1, 6, 4]
    assert max(sizes[0], *sizes[2:]) <= (256 << 10) + 1024
    assert "innerOffset" not in plain.layer.toc.decode()
    assert packed.layer.toc.count(b"innerOffset") == 10 + 5 + 3
    assert packed.result.size < plain.result.size


def test_a_long_row_of_entries_without_contents_is_cut() -> None:
    def row(name: bytes) -> bytes:
        return b"".join(
            bare(member(b"%04d" % number + name * 200, EntryKind.FIFO), tarfile.GNU_FORMAT)
            for number in range(3 * FRAMING_SIZE // 1536)
        )

    tar = row(b"n") + bare(member(b"file", contents=b"1"), tarfile.GNU_FORMAT) + row(b"m")
    layer = convert(tar).layer
    sizes = []
    rest = layer.blob
    while rest:
        inflating = zlib.decompressobj(31)
        sizes.append(len(inflating.decompress(rest)))
        rest = inflating.unused_data
    assert max(sizes[:-2]) <= FRAMING_SIZE + 512
    assert sum(sizes) == len(layer.tar)
    # Only members with a chunk, the landmark's and the file's, are larger than the half.
    assert [size > FRAMING_SIZE // 2 for size in sizes[:-2]].count(True) == 2
    opened(layer).verify()


def test_a_toc_over_a_cap_is_not_written() -> None:
    tar = write([member(b"%d" % number, contents=b"x" * 100) for number in range(20)])
    scan = scan_tar([tar])

    def written(caps: TocCaps, chunk_size: int = 1 << 20) -> EStargzWriter:
        writer = EStargzWriter(scan, (), WritingOptions(chunk_size=chunk_size), caps)
        for _ in writer.write(reader(tar)):
            pass
        return writer

    size = len(convert(tar).layer.toc)
    assert written(TocCaps(json_bytes=size)).result.size
    for caps, reason in [
        (TocCaps(json_bytes=size - 1), "its TOC would have more than"),
        (TocCaps(entry_bytes=100), "an entry of its TOC would have"),
        (TocCaps(chunks=20), "more than 20 chunks: write larger ones"),
        (TocCaps(compressed_bytes=300), "over 300"),
    ]:
        with pytest.raises(NotConvertible, match=reason):
            written(caps)
    with pytest.raises(NotConvertible, match="more than 21 chunks"):
        written(TocCaps(chunks=21), chunk_size=90)


def test_there_is_no_result_before_the_end() -> None:
    tar = write([member(b"a", contents=b"1")])
    writer = EStargzWriter(scan_tar([tar]))
    pieces = writer.write(reader(tar))
    next(pieces)
    with pytest.raises(ValueError, match="not written yet"):
        _ = writer.result
    for _ in pieces:
        pass
    assert writer.result.uncompressed_size == len(convert(tar).layer.tar)


def test_a_tar_that_is_not_the_scanned_one_is_told() -> None:
    tar = write([member(b"a", contents=b"1" * 2000)])
    writer = EStargzWriter(scan_tar([tar]))
    with pytest.raises(ValueError, match="give the tar that was scanned"):
        list(writer.write(reader(tar[:1000])))


def test_the_result_counts_files_by_class() -> None:
    result = convert(
        write(
            [
                member(b"model.safetensors", contents=NOISE),
                member(b"lib/libc.so.6", contents=bytes(5000)),
                member(b"a.py", contents=b"import a\n" * 100),
                member(b"b.py", contents=b"import b\n" * 200),
                member(b"empty.py"),
                member(b"noise.py", contents=NOISE[:2000]),
            ]
        ),
        options=WritingOptions(chunk_size=100_000),
    ).result
    rows = [(row.file_class, row.is_stored, row.files, row.size) for row in result.contents]
    assert rows == [
        (FileClass.WEIGHTS, True, 1, 300_000),
        (FileClass.LIBRARY, False, 1, 5000),
        (FileClass.TEXT, True, 1, 2000),
        (FileClass.TEXT, False, 2, 2700),
        # The landmark.
        (FileClass.OTHER, True, 1, 1),
    ]
    assert 300_000 < result.contents[0].written_size < 300_600
    assert result.annotations == {
        "containerd.io/snapshot/stargz/toc.digest": str(result.toc_digest),
        "io.containers.estargz.uncompressed-size": str(result.uncompressed_size),
    }


def test_shared_members_are_counted_once() -> None:
    tar = write([member(b"%d.md" % number, contents=b"text" * 99) for number in range(9)])
    packed = convert(tar, options=WritingOptions(pack=True))
    table = opened(packed.layer).toc.chunks
    files = table.member(table.members - 1).start - table.member(1).start
    assert sum(row.written_size for row in packed.result.contents) == files
    assert isinstance(packed.result.contents[0], ContentRow)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"m/model.safetensors", FileClass.WEIGHTS),
        (b"m/Q4.GGUF", FileClass.WEIGHTS),
        (b"usr/lib/libc.so.6", FileClass.LIBRARY),
        (b"x.so", FileClass.LIBRARY),
        (b"libx.so.1.2.30", FileClass.LIBRARY),
        (b"a.py", FileClass.TEXT),
        (b"a.tar.gz", FileClass.PACKED),
        (b"a.d/README", FileClass.OTHER),
        (b"py", FileClass.OTHER),
        (b"a.sonata", FileClass.OTHER),
        (b".json", FileClass.TEXT),
    ],
)
def test_a_files_class_is_in_its_name(path: bytes, expected: FileClass) -> None:
    assert file_class(path) is expected


def test_memory_does_not_grow_with_a_files_size() -> None:
    size = 48 << 20
    header = bytearray(bare(member(b"large", contents=b"x"), tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    def read(offset: int, length: int) -> bytes:
        return bytes(header) if offset == 0 else bytes(length)

    scan = scan_tar([bytes(header), *[bytes(1 << 20)] * 48])
    writer = EStargzWriter(scan, options=WritingOptions(chunk_size=1 << 20))
    with at_most(6 << 20):
        for _ in writer.write(read):
            pass
    assert writer.result.uncompressed_size > size
