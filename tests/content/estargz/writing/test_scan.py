"""Where things are in a tar, which entries count, and what is left as it is."""

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.scan import scan_tar
from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.memory import at_most
from tests.content.estargz.writing.converting import bare
from tests.content.estargz.writing.tars import Tar, tars
from tests.content.layer.archives import FORMATS, Member, member, parse, pieces, write
from tests.content.layer.test_tar import block, extended, record

DIRECTORY = EntryKind.DIRECTORY
HARD_LINK = EntryKind.HARD_LINK
LONG = b"/".join([b"p" * 120] * 3)


@settings(max_examples=200, deadline=None)
@given(tars(), st.integers(1, 2000))
def test_headers_and_contents_are_where_the_scan_says(given_tar: Tar, piece_size: int) -> None:
    tar = given_tar.content
    try:
        entries = scan_tar(pieces(tar, [piece_size])).entries
    except (LayerRefused, NotConvertible):
        return
    expected = parse(tar)
    for scanned in entries:
        start, stop = scanned.headers_offset, scanned.content_offset + scanned.entry.size
        alone = tar[start:stop] + bytes(-stop % 512)
        assert parse(alone) == [(scanned.entry, tar[scanned.content_offset : stop])]
        assert (scanned.entry, tar[scanned.content_offset : stop]) in expected


@pytest.mark.parametrize("form", FORMATS)
def test_extension_headers_belong_to_their_entry(form: str) -> None:
    name = b"short" if form == "ustar" else LONG
    first = bare(member(b"first", contents=b"1"), FORMATS[form])
    second = bare(member(name, contents=b"2"), FORMATS[form])
    scan = scan_tar([first + second + bytes(1024)])
    sizes = [(scanned.headers_offset, scanned.headers_size) for scanned in scan.entries]
    assert sizes == [(0, len(first) - 512), (len(first), len(second) - 512)]
    assert (len(second) > 1024) == (form != "ustar")


def test_a_global_header_belongs_to_no_entry() -> None:
    comment = extended(b"g", record(b"comment", b"c"))
    first, second = bare(member(b"first", contents=b"1")), bare(member(LONG))
    scan = scan_tar([comment + first + comment + comment + second])
    places = [(scanned.headers_offset, scanned.headers_size) for scanned in scan.entries]
    assert places == [
        (len(comment), 512),
        (3 * len(comment) + len(first), len(second)),
    ]


def test_a_global_header_inside_of_an_entrys_headers_is_refused() -> None:
    comment = extended(b"g", record(b"comment", b"c"))
    with pytest.raises(LayerRefused, match="global PAX header lies between"):
        scan_tar([extended(b"L", b"name\0") + comment + bytes(block())])


def kept(*members: Member) -> list[tuple[bytes, int]]:
    """Names of the entries that count, and the number of each among all."""
    tar = write(members)
    numbers = {id(made): number for number, made in enumerate(members)}
    starts, position = {}, 0
    for made in members:
        starts[position] = numbers[id(made)]
        position += len(bare(made))
    return [(found.path, starts[found.headers_offset]) for found in scan_tar([tar]).entries]


def test_of_a_name_given_twice_the_last_entry_counts() -> None:
    assert kept(member(b"./a", contents=b"1"), member(b"b"), member(b"/a", contents=b"22")) == [
        (b"b", 1),
        (b"a", 2),
    ]
    assert kept(member(b"d", DIRECTORY, mode=0o700), member(b"d/x"), member(b"d/", DIRECTORY)) == [
        (b"d/x", 1),
        (b"d", 2),
    ]
    assert kept(member(b"d", contents=b"1"), member(b"d", DIRECTORY), member(b"d/x")) == [
        (b"d", 1),
        (b"d/x", 2),
    ]
    assert kept(member(b"./", DIRECTORY), member(b"./", DIRECTORY)) == [(b"", 1)]


def test_what_was_below_a_replaced_directory_does_not_count() -> None:
    assert kept(
        member(b"d", DIRECTORY), member(b"d/x"), member(b"e"), member(b"d", contents=b"file")
    ) == [(b"e", 2), (b"d", 3)]
    # Also when only the name below it said that there is a directory.
    assert kept(member(b"d/x/y"), member(b"d/.wh..wh..opq"), member(b"d")) == [(b"d", 2)]
    assert kept(
        member(b"d/x"), member(b"d/.wh.w"), member(b"d"), member(b"d", DIRECTORY), member(b"d/y")
    ) == [(b"d", 3), (b"d/y", 4)]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            [member(b"a", contents=b"1"), member(b"b", HARD_LINK, target=b"a"), member(b"a")],
            "names 'a', which no earlier entry made",
        ),
        (
            [
                member(b"d/a", contents=b"1"),
                member(b"b", HARD_LINK, target=b"d/a"),
                member(b"d", contents=b"file"),
            ],
            "names 'd/a', which no earlier entry made",
        ),
        (
            [
                member(b"d", DIRECTORY, xattrs={b"user.a": b"1"}),
                member(b"d", DIRECTORY, xattrs={b"user.b": b"1"}),
            ],
            "'d': extended attributes",
        ),
        (
            [
                member(b"a", mode=0o644),
                member(b"b", HARD_LINK, target=b"a", mode=0o600),
                member(b"b", contents=b"own"),
            ],
            "'a': mode '0o600', and '0o644'",
        ),
        ([member(b"d", DIRECTORY), member(b"d"), member(b"d/x/y"), member(b"d")], ""),
    ],
    ids=["replaced target", "lost target", "attributes of both", "mode of a link", "refused"],
)
def test_what_one_entry_a_name_would_change_is_not_converted(
    members: list[Member], reason: str
) -> None:
    if not reason:
        with pytest.raises(LayerRefused, match="is no directory"):
            scan_tar([write(members)])
        return
    with pytest.raises(NotConvertible, match="it gives names twice") as refusal:
        scan_tar([write(members)])
    assert reason in str(refusal.value)


def test_what_estargz_adds_itself_is_left_out() -> None:
    assert kept(
        member(b"./.prefetch.landmark", contents=b"\x0f"),
        member(b"/.no.prefetch.landmark", contents=b"\x0f"),
        member(b"a"),
        member(b".wh.stargz.index.json"),
        member(b"a.d/stargz.index.json"),
        member(b"stargz.index.json", contents=b"{}"),
    ) == [(b"a", 2), (b"a.d/stargz.index.json", 4)]


@pytest.mark.parametrize(
    "made", [member(b"stargz.index.json", DIRECTORY), member(b".prefetch.landmark/x")]
)
def test_a_directory_where_estargz_has_a_file_is_not_converted(made: Member) -> None:
    with pytest.raises(NotConvertible, match="a directory where eStargz has a file of its own"):
        scan_tar([write([made])])


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (member(b"a\xff"), r"the name 'a\\\\xff' is not UTF-8"),
        (member(b"a", EntryKind.SYMLINK, target=b"\xfe"), "not UTF-8"),
        (member("a\ufffd".encode()), "U.FFFD"),
        (member(b"a", records={"mtime": "253402300800"}), "a year that a TOC cannot hold"),
    ],
)
def test_what_a_toc_cannot_hold_is_not_converted(made: Member, reason: str) -> None:
    with pytest.raises(NotConvertible, match=reason):
        scan_tar([write([made])])


def test_an_attribute_that_a_toc_cannot_name_is_not_converted() -> None:
    with pytest.raises(NotConvertible, match="not UTF-8"):
        scan_tar([extended(b"x", record(b"SCHILY.xattr.user.\xff", b"1")) + bytes(block())])


@pytest.mark.parametrize(
    ("tar", "reason"),
    [
        (bytes(block(b"a")).replace(b"a", b"b", 1), "checksum is wrong"),
        (write([member(b"a", contents=bytes(5000))])[:3000], "ends in the middle"),
        (write([member(b"a")])[:300], "ends in the middle"),
        (write([member(b"../a")]), "leaves the layer"),
        (write([member(b"a", HARD_LINK, target=b"b")]), "no earlier entry made"),
        (write([member(b"a"), member(b"a/x")]), "is no directory"),
        (write([member(b"a"), member(b".wh.a")]), "hides a name"),
        (bytes(block(typeflag=b"S")), "sparse file .GNU"),
        (
            extended(b"x", record(b"GNU.sparse.major", b"1")) + bytes(block()),
            "sparse file .PAX",
        ),
        (bytes(block(size=b"777777777777")) + bytes(512), "ends in the middle"),
    ],
)
def test_a_hostile_or_damaged_tar_is_refused(tar: bytes, reason: str) -> None:
    with pytest.raises(LayerRefused, match=reason):
        scan_tar([tar])


def test_caps_hold() -> None:
    with pytest.raises(LayerRefused, match="more than 2 files"):
        scan_tar([write([member(b"%d" % number) for number in range(3)])], LayerCaps(entries=2))


def test_an_empty_tar_has_no_entries() -> None:
    assert scan_tar([]).entries == []
    assert scan_tar([bytes(10240)]).entries == []


def test_memory_grows_with_entries_not_with_contents() -> None:
    piece = bytes(1 << 20)
    large = bare(member(b"large", contents=b"x"), tarfile.GNU_FORMAT)
    header = bytearray(large[:512])
    header[124:136] = b"%011o\0" % (64 << 20)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    def stream() -> "list[bytes]":
        return [bytes(header), *[piece] * 64]

    with at_most(3 << 20):
        (found,) = scan_tar(stream()).entries
    assert found.entry.size == 64 << 20
    count = 5000
    many = b"".join(
        bare(member(b"directory/%d" % number), tarfile.GNU_FORMAT) for number in range(count)
    )
    with at_most(2200 * count):
        assert len(scan_tar([many]).entries) == count
