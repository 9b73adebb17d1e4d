"""Members: what is stored, what is compressed, and that any program inflates them."""

import gzip
import random
import subprocess
import zlib

import deflate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip_lib

from headstart.content.errors import InvalidInput
from headstart.content.estargz.writing.gzip_member import SAMPLE_SIZE, gzip_member
from headstart.content.estargz.writing.options import DEFAULT_OPTIONS, WritingOptions

RANDOM = random.Random(7)
NOISE = RANDOM.randbytes(1 << 20)
TEXT = b"".join(b"line %d of a text\n" % RANDOM.randrange(10**6) for _ in range(20_000))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=3000),
    st.integers(0, 70_000),
    st.integers(0, 70_000),
    st.integers(0, 2),
)
def test_a_member_inflates_to_its_content(
    start: bytes, noise: int, framing: int, stored_from: int
) -> None:
    content = start + NOISE[:noise] + bytes(framing)
    options = WritingOptions(stored_from=stored_from)
    member = gzip_member(content, len(start) + noise, options).content
    assert gzip.decompress(member) == content
    assert igzip_lib.decompress(member, flag=igzip_lib.DECOMP_GZIP) == content
    assert deflate.gzip_decompress(member, len(content)) == content
    # All of it is one member.
    inflating = zlib.decompressobj(31)
    inflating.decompress(member)
    assert (inflating.eof, inflating.unused_data) == (True, b"")


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536, 131_070, 131_071, len(NOISE)])
def test_what_does_not_shrink_is_stored_for_a_thousandth(size: int) -> None:
    content = NOISE[:size]
    member, is_stored = gzip_member(content, size, DEFAULT_OPTIONS)
    assert is_stored
    assert gzip.decompress(member) == content
    assert size < len(member) <= size * 1.001


def test_the_headers_behind_stored_bytes_are_compressed() -> None:
    content = NOISE + bytes(100_000)
    member, is_stored = gzip_member(content, len(NOISE), DEFAULT_OPTIONS)
    assert is_stored
    assert NOISE[:1000] in member
    assert len(member) < len(NOISE) * 1.001 + 200
    assert gzip.decompress(member) == content


def test_what_shrinks_is_compressed() -> None:
    member, is_stored = gzip_member(TEXT, len(TEXT), DEFAULT_OPTIONS)
    assert not is_stored
    assert len(member) < len(gzip.compress(TEXT, 9)) * 1.02
    less = gzip_member(TEXT, len(TEXT), WritingOptions(level=1)).content
    assert len(member) < len(less)


def mixed(size: int, noise: float) -> bytes:
    """Blocks of which so large a part does not shrink, the rest hardly takes room."""
    part = int(1000 * noise)
    return b"".join(
        NOISE[start % 500_000 : start % 500_000 + part] + bytes(1000 - part)
        for start in range(0, size, 1000)
    )


@pytest.mark.parametrize("size", [SAMPLE_SIZE, 100_000, 1 << 20])
def test_less_than_a_tenth_is_not_worth_the_reading(size: int) -> None:
    assert gzip_member(mixed(size, 0.96), size, DEFAULT_OPTIONS).is_stored
    assert not gzip_member(mixed(size, 0.80), size, DEFAULT_OPTIONS).is_stored


@pytest.mark.parametrize("size", [1 << 18, 1 << 20])
def test_both_samples_count_and_neither_end_does(size: int) -> None:
    quarter = size // 4
    ends = bytearray(NOISE[:size])
    ends[:SAMPLE_SIZE] = ends[-SAMPLE_SIZE:] = bytes(SAMPLE_SIZE)
    assert gzip_member(bytes(ends), size, DEFAULT_OPTIONS).is_stored
    for middle in (quarter, 3 * quarter):
        one = bytearray(NOISE[:size])
        one[middle - SAMPLE_SIZE : middle + SAMPLE_SIZE] = bytes(2 * SAMPLE_SIZE)
        assert not gzip_member(bytes(one), size, DEFAULT_OPTIONS).is_stored


@pytest.mark.parametrize("size", [1, 20, 2 * SAMPLE_SIZE, 2 * SAMPLE_SIZE + 1])
def test_a_small_file_is_sampled_whole(size: int) -> None:
    assert gzip_member(NOISE[:size], size, DEFAULT_OPTIONS).is_stored
    if size > 100:
        half = NOISE[: size // 2] + bytes(size - size // 2)
        assert not gzip_member(half, size, DEFAULT_OPTIONS).is_stored


def test_headers_alone_are_compressed() -> None:
    member, is_stored = gzip_member(NOISE[:1000], 0, DEFAULT_OPTIONS)
    assert not is_stored
    assert gzip.decompress(member) == NOISE[:1000]


def test_gzip_itself_takes_members_in_a_row() -> None:
    members = [
        gzip_member(content, size, DEFAULT_OPTIONS).content
        for content, size in [(TEXT, 0), (NOISE + TEXT, len(NOISE)), (TEXT, len(TEXT))]
    ]
    assert all(member.startswith(b"\x1f\x8b\x08\0\0\0\0\0\0\xff") for member in members)
    done = subprocess.run(["gzip", "-dc"], input=b"".join(members), capture_output=True, check=True)
    assert done.stdout == TEXT + NOISE + TEXT + TEXT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chunk_size", 0),
        ("chunk_size", (256 << 20) + 1),
        ("level", 0),
        ("level", 13),
        ("sample_level", 4),
        ("stored_from", -0.1),
    ],
)
def test_options_that_no_layer_can_have_are_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match="write a number from") as refusal:
        WritingOptions(**{field: value})  # type: ignore[arg-type]
    assert (refusal.value.field, refusal.value.value) == (field, str(value))
