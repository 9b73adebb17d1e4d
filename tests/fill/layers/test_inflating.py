"""What is inflated is the same in any pieces, never too much at once, and damage is told."""

import gzip
import random
import struct
import zlib
from collections.abc import Iterator, Sequence

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.layer.errors import LayerRefused
from headstart.store.geometry import MIB
from proxy.fill.layers.inflating import compression_of, gzip_header_size, inflate
from proxy.fill.layers.members import inflate_member
from tests.fill.layers.making import GZIP, PLAIN, ZSTD

CONTENT = random.Random(1).randbytes(3000) + b"the same again, " * 2000


def cut(stored: bytes, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Pieces of these sizes, again and again."""
    view, position, turn = memoryview(stored), 0, 0
    while position < len(view):
        size = sizes[turn % len(sizes)]
        yield view[position : position + size]
        position += size
        turn += 1


def whole(compression: str, stored: bytes, *sizes: int) -> bytes:
    return b"".join(inflate(compression, cut(stored, sizes or (MIB,))))


def member(content: bytes, *, flags: int = 0, level: int = 6) -> bytes:
    """A gzip member with these optional fields in its header."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    if flags & 4:
        header += struct.pack("<H", 6) + b"SG\2\0ab"
    if flags & 8:
        header += b"name\0"
    if flags & 16:
        header += b"comment\0"
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    return header + gzip.compress(content, level, mtime=0)[10:]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 40_000), st.sampled_from([0, 2, 4, 8, 16, 12, 30])), max_size=6
    ),
    st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    st.sampled_from([0, 1, 513]),
)
def test_any_members_in_any_pieces(
    members: list[tuple[int, int]], sizes: list[int], padding: int
) -> None:
    contents = [CONTENT[start:] for start, _ in members]
    stored = b"".join(
        member(content, flags=flags) for content, (_, flags) in zip(contents, members, strict=True)
    )
    if members:
        stored += bytes(padding)
    assert whole("gzip", stored, *sizes) == b"".join(contents)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 40_000), max_size=5),
    st.lists(st.integers(1, 5000), min_size=1, max_size=4),
)
def test_any_frames_in_any_pieces(starts: list[int], sizes: list[int]) -> None:
    skippable = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    stored = b"".join(zstandard.compress(CONTENT[start:]) + skippable for start in starts)
    expected = b"".join(CONTENT[start:] for start in starts)
    assert whole("zstd", stored, *sizes) == expected


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_no_piece_is_large_whatever_it_came_from(compression: str) -> None:
    zeros = bytes(64 * MIB)
    stored = gzip.compress(zeros, 9) if compression == "gzip" else zstandard.compress(zeros)
    sizes = [len(piece) for piece in inflate(compression, cut(stored, [MIB]))]
    assert sum(sizes) == len(zeros)
    assert max(sizes) <= MIB


def test_many_small_members_are_handed_over_in_few_pieces() -> None:
    stored = b"".join(gzip.compress(b"%06d" % number, 1) for number in range(20_000))
    pieces = list(inflate("gzip", cut(stored, [MIB])))
    assert b"".join(pieces) == b"".join(b"%06d" % number for number in range(20_000))
    assert len(pieces) <= 2


def test_a_plain_layer_is_handed_through_uncopied() -> None:
    pieces = list(inflate("plain", cut(CONTENT, [1000])))
    assert all(isinstance(piece, memoryview) and piece.obj is CONTENT for piece in pieces)


@pytest.mark.parametrize("size", [1, 7, 100, MIB])
@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (member(CONTENT)[:-1], "middle"),
        (member(CONTENT) + member(CONTENT)[:5], "middle"),
        (member(CONTENT) + b"\x1f", "middle"),
        (member(CONTENT) + b"garbage", "no gzip member"),
        (member(CONTENT) + bytes(9) + b"x", "garbage follows"),
        (member(CONTENT) + bytes(9) + member(CONTENT), "garbage follows"),
        (member(CONTENT)[:-6] + b"abcdef", "damaged"),
        (b"\x1f\x8b\x08\xe0" + bytes(20), "unknown flags"),
    ],
)
def test_damage_of_a_gzip_stream_is_told(stored: bytes, said: str, size: int) -> None:
    with pytest.raises(LayerRefused, match=said):
        whole("gzip", stored, size)


def test_a_gzip_header_without_end_is_refused() -> None:
    for size in (1000, MIB):
        with pytest.raises(LayerRefused, match="no end"):
            whole("gzip", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 10_000_000, size)


def test_a_zstd_frame_that_wants_too_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    stored = compressor.compress(CONTENT) + compressor.flush()
    with pytest.raises(LayerRefused, match="zstd"):
        whole("zstd", stored)


@given(st.binary(max_size=200))
def test_any_bytes_inflate_or_are_refused(stored: bytes) -> None:
    for compression, start in (("gzip", b"\x1f\x8b\x08"), ("zstd", b"\x28\xb5\x2f\xfd")):
        for given_bytes in (stored, start + stored):
            try:
                whole(compression, given_bytes, 7)
            except LayerRefused as refusal:
                assert compression in str(refusal)


@given(st.binary(max_size=60))
def test_a_header_is_whole_or_not_whatever_follows(rest: bytes) -> None:
    for flags in range(32):
        header = member(b"", flags=flags)[:-10]
        for length in range(len(header)):
            assert gzip_header_size(header[:length]) is None
        assert gzip_header_size(header + rest) == len(header)


def test_a_single_member_is_inflated_at_once_and_others_are_not() -> None:
    stored = member(CONTENT, flags=4)
    assert bytes(inflate_member(stored, len(CONTENT)) or b"") == CONTENT
    assert inflate_member(stored, len(CONTENT) + 1) is None
    assert inflate_member(stored[:-1]) is None
    assert inflate_member(stored[:100] + b"\0" + stored[101:]) is None
    assert inflate_member(stored + stored) is None
    assert inflate_member(b"") is None
    assert inflate_member(member(bytes(9 * MIB)), 9 * MIB) is None


@pytest.mark.parametrize(
    ("media_type", "head", "compression"),
    [
        (GZIP, b"\x1f\x8b\x08\x00", "gzip"),
        (ZSTD, b"\x28\xb5\x2f\xfd", "zstd"),
        (ZSTD, b"\x50\x2a\x4d\x18", "zstd"),
        (GZIP, b"usr/", "plain"),
        (GZIP, b"", "plain"),
        (PLAIN, b"\x1f\x8b\x08\x00", "plain"),
    ],
)
def test_compression_is_what_the_first_bytes_say(
    media_type: str, head: bytes, compression: str
) -> None:
    assert compression_of(media_type, head) == compression
