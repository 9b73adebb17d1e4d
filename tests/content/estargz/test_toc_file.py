"""The TOC's JSON out of what lies in the blob."""

import tarfile

import pytest

from headstart.content.digest import Digest
from headstart.content.estargz.announced import AnnouncedToc
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.footer import Compression, TocLocation
from headstart.content.estargz.toc_file import TocFile, read_toc
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.memory import at_most
from tests.content.estargz.writer import compressed
from tests.content.layer.archives import Member, member, write

JSON = b'{"version": 1, "entries": []}' + b" " * 1000
NOTHING = AnnouncedToc(None, None, None)
INDEX = b"stargz.index.json"


def tar(*members: Member) -> bytes:
    return write(members or [member(INDEX, contents=JSON)], tarfile.USTAR_FORMAT)


def read(
    content: bytes,
    compression: Compression = "gzip",
    announced: AnnouncedToc = NOTHING,
    json_size: int | None = None,
    caps: TocCaps = DEFAULT_TOC_CAPS,
) -> TocFile:
    location = TocLocation(compression, 100, len(content), 1000 + len(content), json_size)
    return read_toc(content, location, announced, caps)


def test_the_json_is_found_in_its_tar() -> None:
    file = read(compressed(tar(), "gzip"))
    assert file.json == JSON
    assert file.head == tar()[:512]


@pytest.mark.parametrize("json_size", [None, len(JSON)])
def test_the_json_of_a_zstd_frame_is_all_of_it(json_size: int | None) -> None:
    file = read(compressed(JSON, "zstd"), "zstd", json_size=json_size)
    assert (bytes(file.json), file.head) == (JSON, b"")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_the_digest_of_the_compressed_bytes_comes_first(compression: Compression) -> None:
    content = compressed(tar() if compression == "gzip" else JSON, compression)
    right = AnnouncedToc(None, Digest.of(content), None)
    assert read(content, compression, right).json == JSON
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(LayerRefused, match="has not the digest"):
        read(damaged, compression, right)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_is_cut_or_damaged_is_refused(compression: Compression) -> None:
    content = compressed(tar() if compression == "gzip" else JSON, compression)
    for stop in range(len(content)):
        with pytest.raises(LayerRefused):
            read(content[:stop], compression, json_size=len(JSON))
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        try:
            assert read(bytes(damaged), compression, json_size=len(JSON)).json == JSON
        except LayerRefused:
            continue
        # Flags of gzip's header that say nothing: time, compression, system.
        assert compression == "gzip" and 4 <= position < 10


@pytest.mark.parametrize("json_size", [0, 1, len(JSON) - 1, len(JSON) + 1])
def test_a_zstd_toc_of_another_size_is_refused(json_size: int) -> None:
    with pytest.raises(LayerRefused, match="its TOC has"):
        read(compressed(JSON, "zstd"), "zstd", json_size=json_size)


@pytest.mark.parametrize(
    "content",
    [
        tar(member(b"other", contents=JSON)),
        tar(member(b"./" + INDEX, contents=JSON)),
        tar(member(INDEX, EntryKind.DIRECTORY)),
        tar(member(INDEX, EntryKind.SYMLINK, target=b"etc")),
        tar(member(INDEX, contents=JSON), member(b"hidden")),
        tar(member(INDEX, contents=JSON), member(INDEX, contents=JSON)),
        tar(member(b"first"), member(INDEX, contents=JSON)),
        tar()[: 512 + len(JSON) - 1],
        tar()[:511],
        tar() + bytes(1 << 20),
        JSON,
        b"",
    ],
    ids=[
        "name",
        "path",
        "directory",
        "symlink",
        "second file",
        "twice",
        "first file",
        "cut",
        "header cut",
        "zeros",
        "no tar",
        "nothing",
    ],
)
def test_another_tar_is_refused(content: bytes) -> None:
    with pytest.raises(LayerRefused):
        read(compressed(content, "gzip"), caps=TocCaps(json_bytes=1 << 16))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_follows_the_member_is_refused(compression: Compression) -> None:
    content = compressed(tar() if compression == "gzip" else JSON, compression)
    for trailer in (b"\0", compressed(b"", compression), content, bytes(1000)):
        with pytest.raises(LayerRefused, match="between its TOC and its footer"):
            read(content + trailer, compression)


def test_a_size_that_differs_from_what_came_is_refused() -> None:
    content = compressed(tar(), "gzip")
    location = TocLocation("gzip", 0, len(content) + 1, 10_000)
    with pytest.raises(LayerRefused, match="bytes came"):
        read_toc(content, location, NOTHING)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_cap(compression: Compression) -> None:
    head = tar(member(INDEX, contents=b"x"))[:512]
    bomb = compressed(head + bytes(256 << 20), compression)
    caps = TocCaps(json_bytes=1 << 20)
    with at_most(12 << 20), pytest.raises(LayerRefused):
        read(bomb, compression, caps=caps)


def test_a_window_beyond_all_reason_is_refused() -> None:
    # A frame header that asks for 2 GiB: window descriptor 0xa8 (RFC 8878, 3.1.1.1.2).
    frame = bytes.fromhex("28b52ffd 00 a8 010000")
    with pytest.raises(LayerRefused, match="damaged"):
        read(frame, "zstd")
