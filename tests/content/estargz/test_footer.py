"""Footers: those of real blobs are read, any other bytes refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.footer import TAIL_SIZE, TocLocation, parse_footer
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.writer import gzip_footer, zstd_footer

CTR_REMOTE = bytes.fromhex(
    "1f8b08040000000000ff 1a00 5347 1600 30303030303030303030396262393563 53544152475a"
    "010000ffff 0000000000000000"
)
"""Of a blob of 10,206,712 bytes that stargz-snapshotter 0.12 has written."""

SKOPEO = bytes.fromhex(
    "502a4d18 28000000 87b29b0000000000 cf26000000000000 ea86000000000000 0100000000000000"
    "476e556c496e5578"
)
"""Of a blob of 10,213,766 bytes that skopeo 1.9 has written."""

OFFSET, SIZE, JSON_SIZE = 1000, 300, 900
SPLIT = [OFFSET + SIZE + 8, 50, 2]
OLD = zstd_footer([OFFSET, SIZE, JSON_SIZE, 1], b"GnUlInUx")
NEW = zstd_footer([OFFSET, SIZE, JSON_SIZE, 1, *SPLIT], b"GNUlInUx")
FOOTERS = {
    "eStargz": (gzip_footer(OFFSET), OFFSET + SIZE),
    "stargz": (gzip_footer(OFFSET, legacy=True), OFFSET + SIZE),
    "zstd, 40": (OLD, OFFSET + SIZE),
    "zstd, 64": (NEW, OFFSET + SIZE + 8 + 50),
}
SAYS_NOTHING = {"eStargz": range(4, 10), "stargz": range(4, 10), "zstd, 64": range(56, 64)}
"""Bytes that may be any: time, compression and system of gzip; tar-split's uncompressed size."""


def read(footer: bytes, footer_at: int) -> TocLocation:
    return parse_footer(bytes(TAIL_SIZE) + footer, footer_at + len(footer))


def test_a_footer_of_ctr_remote_is_read() -> None:
    location = parse_footer(CTR_REMOTE, 10_206_712)
    assert location == TocLocation("gzip", 0x9BB95C, 10_206_712 - 51 - 0x9BB95C, 10_206_712)
    assert (location.tar_stop, location.stop) == (0x9BB95C, 10_206_712 - 51)


def test_a_footer_of_skopeo_is_read() -> None:
    location = parse_footer(SKOPEO, 10_213_766)
    assert location == TocLocation("zstd", 10_203_783, 9935, 10_213_766, 34538)
    assert location.tar_stop == 10_203_775


@pytest.mark.parametrize("kind", FOOTERS)
def test_every_kind_is_read_where_it_ends_a_longer_tail(kind: str) -> None:
    location = read(*FOOTERS[kind])
    assert (location.offset, location.size) == (OFFSET, SIZE)
    assert location.json_size == (JSON_SIZE if "zstd" in kind else None)
    assert location.compression == ("zstd" if "zstd" in kind else "gzip")


@pytest.mark.parametrize("kind", FOOTERS)
def test_each_bit_that_says_something_counts(kind: str) -> None:
    footer, at = FOOTERS[kind]
    expected = read(footer, at)
    for position in range(len(footer)):
        for bit in range(8):
            damaged = bytearray(footer)
            damaged[position] ^= 1 << bit
            try:
                location = read(bytes(damaged), at)
            except LayerRefused:
                assert position not in SAYS_NOTHING.get(kind, ())
                continue
            if position not in SAYS_NOTHING.get(kind, ()):
                # Another offset in the same number of digits, or another size of the JSON.
                assert location != expected


@pytest.mark.parametrize("kind", FOOTERS)
def test_a_footer_that_is_cut_or_does_not_end_the_blob_is_refused(kind: str) -> None:
    footer, at = FOOTERS[kind]
    for damaged in (footer[1:], footer[:-1], footer + b"\0", b""):
        with pytest.raises(LayerRefused):
            parse_footer(damaged, at + len(footer))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("offset", [OFFSET + SIZE, OFFSET + SIZE + 1, 1 << 62, (1 << 64) - 1])
def test_a_gzip_toc_outside_of_the_blob_is_refused(offset: int, legacy: bool) -> None:
    with pytest.raises(LayerRefused, match="would be at"):
        read(gzip_footer(offset, legacy=legacy), OFFSET + SIZE)


@pytest.mark.parametrize("digits", [b"0000000000000A00", b"+000000000000a00", b" 000000000000a00"])
def test_an_offset_in_other_digits_is_refused(digits: bytes) -> None:
    footer = gzip_footer(OFFSET).replace(b"%016x" % OFFSET, digits)
    with pytest.raises(LayerRefused, match="no footer"):
        read(footer, OFFSET + SIZE)


@pytest.mark.parametrize(
    "numbers",
    [
        [0, OFFSET + SIZE, JSON_SIZE, 1],
        [OFFSET, 0, JSON_SIZE, 1],
        [OFFSET, SIZE + 1, JSON_SIZE, 1],
        [OFFSET, SIZE - 1, JSON_SIZE, 1],
        [(1 << 64) - 1, SIZE, JSON_SIZE, 1],
        [OFFSET, SIZE, JSON_SIZE, 2],
        [OFFSET, SIZE, 1 << 40, 1],
    ],
    ids=["no frame header", "no TOC", "too long", "gap", "offset", "kind", "JSON too large"],
)
def test_a_zstd_toc_that_cannot_be_is_refused(numbers: list[int]) -> None:
    with pytest.raises(LayerRefused):
        read(zstd_footer(numbers, b"GnUlInUx"), OFFSET + SIZE)


@pytest.mark.parametrize("split", [[SPLIT[0] + 1, 50, 2], [SPLIT[0], 49, 2], [1, 1, 1]])
def test_tar_split_data_elsewhere_is_refused(split: list[int]) -> None:
    with pytest.raises(LayerRefused):
        read(zstd_footer([OFFSET, SIZE, JSON_SIZE, 1, *split], b"GNUlInUx"), SPLIT[0] + 50)


def test_a_newer_footer_may_be_without_tar_split_data() -> None:
    footer = zstd_footer([OFFSET, SIZE, JSON_SIZE, 1, 0, 0, 0], b"GNUlInUx")
    assert read(footer, OFFSET + SIZE).size == SIZE


def test_a_toc_over_the_cap_is_refused() -> None:
    caps = TocCaps(compressed_bytes=SIZE - 1)
    for footer, at in FOOTERS.values():
        with pytest.raises(LayerRefused, match="over 299"):
            parse_footer(footer, at + len(footer), caps)


@given(st.binary(max_size=200), st.integers(0, 1 << 63))
def test_other_bytes_are_refused(tail: bytes, size: int) -> None:
    with pytest.raises(LayerRefused):
        parse_footer(tail, size)


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 20), st.booleans())
def test_any_place_comes_back(offset: int, size: int, legacy: bool) -> None:
    location = read(gzip_footer(offset, legacy=legacy), offset + size)
    assert (location.offset, location.size) == (offset, size)
