"""The forms of tar headers, one by one."""

import struct
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.pax import parse_records, pax_nanoseconds, pax_number
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tar_header import number
from tests.content.layer.archives import FORMATS, member, parse, pieces, write

REGULAR = EntryKind.REGULAR
END = bytes(1024)
CHECKSUM = slice(148, 156)


def block(
    name: bytes = b"a",
    typeflag: bytes = b"0",
    size: bytes = b"0",
    *,
    mtime: bytes = b"0",
    owner: bytes = b"0",
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: bytes = b"",
    prefix: bytes = b"",
    trailer: bytes = b"",
) -> bytearray:
    """A header with any bytes in its fields, and a right checksum."""
    header = bytearray(
        struct.pack(
            "100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 64x 8s 8s 155s 8x 4s",
            name, b"644", owner, owner, size, mtime, b" " * 8, typeflag, target, magic,
            device, device, prefix, trailer,
        )
    )  # fmt: skip
    return signed(header)


def signed(header: bytearray, total: Callable[[bytearray], int] = sum) -> bytearray:
    """Give a header its checksum."""
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = b"%06o\0 " % total(header)
    return header


def extended(typeflag: bytes, payload: bytes) -> bytes:
    """An extension header and its payload."""
    head = block(b"././@LongLink", typeflag, b"%o" % len(payload))
    return bytes(head) + payload + bytes(-len(payload) % 512)


def record(keyword: bytes, value: bytes) -> bytes:
    """A PAX record, which counts its own length."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def one(archive: bytes | bytearray) -> Entry:
    """The only entry of an archive."""
    ((entry, _),) = parse(bytes(archive) + END)
    return entry


@pytest.mark.parametrize(
    ("typeflag", "kind"),
    [
        (b"\0", REGULAR),
        (b"0", REGULAR),
        (b"1", EntryKind.HARD_LINK),
        (b"2", EntryKind.SYMLINK),
        (b"3", EntryKind.CHARACTER),
        (b"4", EntryKind.BLOCK),
        (b"5", EntryKind.DIRECTORY),
        (b"6", EntryKind.FIFO),
        (b"7", REGULAR),
    ],
)
def test_a_type_is_read(typeflag: bytes, kind: EntryKind) -> None:
    entry = one(block(typeflag=typeflag, target=b"t", device=b"7"))
    assert entry.kind is kind
    assert entry.target == (b"t" if kind in (EntryKind.SYMLINK, EntryKind.HARD_LINK) else b"")
    devices = (EntryKind.CHARACTER, EntryKind.BLOCK)
    assert entry.device == ((7, 7) if kind in devices else (0, 0))


@pytest.mark.parametrize("typeflag", [b"V", b"M", b"D", b"N", b"A", b"I", b"X", b"8", b"\xff"])
def test_an_unknown_type_is_refused(typeflag: bytes) -> None:
    with pytest.raises(LayerRefused, match="'a' has the unknown type"):
        one(block(typeflag=typeflag))


def test_an_old_archive_says_a_directory_with_a_slash() -> None:
    old = block(b"d/", b"\0", b"0", magic=b"", device=b"x", prefix=b"junk")
    assert one(old) == Entry(b"d/", EntryKind.DIRECTORY, 0o644)
    assert one(block(b"d/", b"0")).kind is REGULAR


def test_only_regular_files_have_contents() -> None:
    for typeflag in b"123456":
        entry = one(block(typeflag=bytes([typeflag]), size=b"1000", target=b"t"))
        assert entry.size == 0


def test_names_are_joined_with_their_prefix() -> None:
    assert one(block(b"n" * 100, prefix=b"p" * 155)).name == b"p" * 155 + b"/" + b"n" * 100
    star = block(b"n", prefix=b"p" * 131 + b"00000000000 00000000000 ", trailer=b"tar\0")
    assert one(star).name == b"p" * 131 + b"/n"


def test_a_gnu_header_has_times_where_others_have_a_prefix() -> None:
    gnu = b"ustar  \0"
    assert one(block(b"n", magic=gnu, prefix=b"14525177712\x0014525177712")).name == b"n"
    # As Go before 1.8 wrote it.
    assert one(block(b"n", magic=gnu, prefix=b"usr/lib")).name == b"usr/lib/n"
    assert one(block(b"n", magic=gnu, prefix=b"usr/\xff")).name == b"n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (bytes(2) + b"644" + bytes(2) + b" ", 0o644),
        (b"12345670", 0o12345670),
        (bytes(8), 0),
        (b" " * 12, 0),
        (b"7\0garbage", 7),
        (b"\x80\0\0\0\0\0\x01\0", 256),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), 1 << 40),
        (b"\xff" * 12, -1),
        (b"\xff" * 10 + b"\xfe\0", -512),
        (b"\x80\0\0\0\x7f" + b"\xff" * 7, (1 << 63) - 1),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, value: int) -> None:
    assert number(field) == value


@pytest.mark.parametrize(
    "field",
    [b"8", b"-1", b"+7", b"0o17", b"1_0", b"0x1", b"1 2", b"abc", b"\x80\0\0\0\x80" + bytes(7)],
)
def test_what_is_no_number_is_refused(field: bytes) -> None:
    with pytest.raises(LayerRefused, match="number"):
        number(field)
    with pytest.raises(LayerRefused):
        one(block(mtime=field))


@settings(deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_base_256_reads_back_as_tarfile_writes_it(value: int) -> None:
    assert number(tarfile.itn(value, 12, tarfile.GNU_FORMAT)) == value  # type: ignore[attr-defined]


def test_checksums_are_of_unsigned_or_signed_bytes() -> None:
    header = block(b"\xe4\xf6\xfc")
    assert one(header).name == b"\xe4\xf6\xfc"
    old = signed(header, lambda content: sum(memoryview(content).cast("b")))
    assert one(old).name == b"\xe4\xf6\xfc"


@settings(deadline=None)
@given(at=st.integers(0, 511), byte=st.integers(0, 255))
def test_a_changed_byte_of_a_header_is_noticed(at: int, byte: int) -> None:
    header = block(b"name", size=b"0")
    if header[at] != byte and at not in range(148, 156):
        header[at] = byte
        with pytest.raises(LayerRefused, match="checksum"):
            one(header)


@pytest.mark.parametrize("typeflag", [b"0", b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7])
def test_negative_and_huge_sizes_are_refused(typeflag: bytes, size: bytes) -> None:
    with pytest.raises(LayerRefused, match="bytes, over"):
        one(block(typeflag=typeflag, size=size))


def test_negative_owners_are_refused() -> None:
    with pytest.raises(LayerRefused, match="negative owner"):
        one(block(owner=b"\xff" * 8))


def test_gnu_long_names_are_read() -> None:
    name, target = b"n" * 300, b"t" * 400
    archive = extended(b"K", target + b"\0") + extended(b"L", name + b"\0junk")
    entries = parse(archive + bytes(block(b"short", b"2", target=b"t")) + bytes(block()) + END)
    assert [(entry.name, entry.target) for entry, _ in entries] == [(name, target), (b"a", b"")]


def test_a_pax_header_is_of_the_next_file_only() -> None:
    payload = (
        record(b"path", b"p" * 300)
        + record(b"linkpath", b"l" * 300)
        + record(b"uid", b"3000000")
        + record(b"gid", b"4000000")
        + record(b"mtime", b"-1.5")
        + record(b"SCHILY.xattr.user.a", b"\0=\n\xff")
        + record(b"SCHILY.xattr.user.empty", b"")
        + record(b"LIBARCHIVE.xattr.user.b", b"QQ==")
        + record(b"comment", b"\xe4")
    )
    archive = extended(b"x", payload) + bytes(block(b"s", b"2")) + bytes(block(b"b"))
    (first, _), (second, _) = parse(archive + END)
    assert first == Entry(
        b"p" * 300,
        EntryKind.SYMLINK,
        0o644,
        3_000_000,
        4_000_000,
        -1_500_000_000,
        target=b"l" * 300,
        xattrs={b"user.a": b"\0=\n\xff", b"user.empty": b""},
    )
    assert second == Entry(b"b", REGULAR, 0o644)


def test_a_pax_size_is_the_size() -> None:
    archive = extended(b"x", record(b"size", b"3")) + bytes(block()) + b"abc" + bytes(509)
    ((entry, contents),) = parse(archive + END)
    assert (entry.size, contents) == (3, b"abc")


def test_an_empty_pax_value_leaves_the_header_as_it_is() -> None:
    keywords = (b"path", b"linkpath", b"uid", b"gid", b"size", b"mtime")
    payload = b"".join(record(keyword, b"") for keyword in keywords)
    entry = one(extended(b"x", payload) + bytes(block(b"s", b"2", owner=b"5", mtime=b"6")))
    assert (entry.name, entry.uid, entry.mtime_ns) == (b"s", 5, 6 * 10**9)


def test_a_global_pax_header_changes_nothing() -> None:
    records = {"path": "q", "uid": "9", "mtime": "7", "size": "100", "comment": "c"}
    assert one(write([member(b"a", mtime=1)], global_records=records)) == Entry(
        b"a", REGULAR, 0o644, mtime_ns=10**9
    )
    with pytest.raises(LayerRefused, match="damaged"):
        one(extended(b"g", b"junk") + block())


@pytest.mark.parametrize(
    "payload",
    [
        b"junk",
        b"7 a=b\n",
        b"6 a=bX",
        b"0 a=b\n",
        b"99 a=b\n",
        b"6 abc\n",
        b"5 =b\n",
        b"-6 a=b\n",
        b"06 a=b\n\0",
        b"2 a=b\n",
        b"9999999999 a=b\n",
        record(b"a\0b", b"c"),
        record(b"path", b"a\0b"),
        record(b"linkpath", b"\0"),
        record(b"a", b"b") + b"\0\0",
    ],
)
def test_damaged_pax_records_are_refused(payload: bytes) -> None:
    with pytest.raises(LayerRefused, match="PAX header is damaged"):
        parse_records(payload)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(lambda word: not {0, 0x3D} & set(word)),
        st.binary(max_size=120).filter(lambda value: 0 not in value),
        max_size=8,
    )
)
def test_pax_records_read_back_as_they_are_written(records: dict[bytes, bytes]) -> None:
    assert parse_records(b"".join(record(*item) for item in records.items())) == records


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (b"0", 0),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1700000000.1234567899", 1_700_000_000_123_456_789),
        (b"9007199254740993.000000001", 9_007_199_254_740_993_000_000_001),
        (b"1.", 1_000_000_000),
        (b"-0.5", -500_000_000),
        (b"-1.000000001", -1_000_000_001),
        (b"+2.25", 2_250_000_000),
    ],
)
def test_pax_times_are_exact(value: bytes, nanoseconds: int) -> None:
    assert pax_nanoseconds(value) == nanoseconds


@pytest.mark.parametrize(
    "value", [b"", b".5", b"1e3", b"1.5.5", b"1,5", b"0x1", b" 1", b"1\n", b"nan"]
)
def test_what_is_no_pax_number_is_refused(value: bytes) -> None:
    with pytest.raises(LayerRefused, match="time"):
        pax_nanoseconds(value)
    with pytest.raises(LayerRefused, match="number"):
        pax_number(value)
    with pytest.raises(LayerRefused, match="number"):
        pax_number(b"9223372036854775808")


@pytest.mark.parametrize("keyword", [b"GNU.sparse.major", b"GNU.sparse.size", b"GNU.sparse.map"])
def test_sparse_files_are_refused_by_name(keyword: bytes) -> None:
    with pytest.raises(LayerRefused, match="sparse"):
        one(extended(b"x", record(keyword, b"1")) + block())
    with pytest.raises(LayerRefused, match="sparse"):
        one(block(typeflag=b"S"))


def test_an_archive_ends_with_two_zero_blocks_and_anything_after() -> None:
    header = bytes(block())
    for rest in (END, END + b"garbage" * 1000, bytes(512), b"", END + header):
        assert len(parse(header + rest, [100])) == 1
    assert parse(b"") == []
    with pytest.raises(LayerRefused, match="follows a zero block"):
        parse(header + bytes(512) + header)


def test_the_last_padding_may_be_missing() -> None:
    archive = bytes(block(size=b"3")) + b"abc"
    assert [contents for _, contents in parse(archive)] == [b"abc"]
    assert [contents for _, contents in parse(archive + b"\0")] == [b"abc"]


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_an_archive_that_ends_in_the_middle_is_refused(form: str) -> None:
    whole = write([member(b"n" * 99, contents=b"c" * 700, mtime=5)] * 2, FORMATS[form])
    (entry, contents), _ = parse(whole)
    file_stop = whole.index(contents) + len(contents)
    padded = -(-file_stop // 512) * 512
    for stop in (1, 511, 513, file_stop - 1, padded + 1, padded + 511, padded + 600):
        with pytest.raises(LayerRefused, match="ends in the middle"):
            parse(whole[:stop], [333])
    assert parse(whole[:padded]) == [(entry, contents)]


def test_an_archive_that_ends_before_what_a_header_extends_is_refused() -> None:
    for typeflag, payload in ((b"x", record(b"path", b"p")), (b"L", b"name\0"), (b"K", b"t\0")):
        for rest in (b"", END):
            with pytest.raises(LayerRefused, match="ends in the middle"):
                parse(extended(typeflag, payload) + rest)


def test_entries_and_extension_headers_are_bounded() -> None:
    caps = LayerCaps(entries=2, extension_bytes=1000)
    assert len(parse(bytes(block()) * 2 + END, caps=caps)) == 2
    with pytest.raises(LayerRefused, match="more than 2 files"):
        parse(bytes(block()) * 3, caps=caps)
    with pytest.raises(LayerRefused, match="1001 bytes, over 1000"):
        parse(extended(b"L", b"n" * 1001), caps=caps)


def test_endless_extension_headers_are_not_kept() -> None:
    parser = TarParser()
    header = memoryview(extended(b"x", record(b"comment", b"c" * 100_000)))
    for _ in range(200):
        assert not list(parser.feed(header))
    (entry,) = parser.feed(memoryview(bytes(block())))
    assert isinstance(entry, Entry)
    parser.close()


def test_pieces_of_contents_are_views_of_what_was_given() -> None:
    archive = write([member(b"a", contents=b"x" * 5000)])
    found = []
    parser = TarParser()
    for piece in pieces(archive, [700]):
        for given_piece in parser.feed(piece):
            if isinstance(given_piece, memoryview):
                assert given_piece.obj is archive
                found.append(len(given_piece))
    parser.close()
    assert sum(found) == 5000
    assert max(found) == 700
