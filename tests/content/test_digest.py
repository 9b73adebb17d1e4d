"""Digests: one exact form, and nothing else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import HEX_LENGTH, Digest
from headstart.content.errors import InvalidInput

ALGORITHMS = sorted(HEX_LENGTH)
HEX = "0123456789abcdef"


@given(content=st.binary(max_size=200), algorithm=st.sampled_from(ALGORITHMS))
def test_a_digest_reads_back_as_it_is_written(content: bytes, algorithm: str) -> None:
    digest = Digest.of(content, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@given(pieces=st.lists(st.binary(max_size=50)), algorithm=st.sampled_from(ALGORITHMS))
def test_a_hasher_over_pieces_gives_the_digest_of_the_whole(
    pieces: list[bytes], algorithm: str
) -> None:
    whole = Digest.of(b"".join(pieces), algorithm)
    hasher = whole.hasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.hexdigest() == whole.hex


@given(algorithm=st.sampled_from(ALGORITHMS), length=st.integers(0, 200), data=st.data())
def test_only_the_exact_length_is_accepted(
    algorithm: str, length: int, data: st.DataObject
) -> None:
    text = f"{algorithm}:" + data.draw(st.text(HEX, min_size=length, max_size=length))
    if length == HEX_LENGTH[algorithm]:
        assert str(Digest.parse(text)) == text
    else:
        with pytest.raises(InvalidInput):
            Digest.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        "a" * 64,
        f"sha256:{'A' * 64}",
        f"SHA256:{'a' * 64}",
        f"sha256:{'g' * 64}",
        f"md5:{'a' * 32}",
        f"sha384:{'a' * 96}",
        f"sha256:{'a' * 128}",
        f"sha512:{'a' * 64}",
        f"sha256:{'a' * 64}\n",
        f"sha256:{'a' * 63} ",
        f" sha256:{'a' * 64}",
        f"sha256::{'a' * 63}",
        f"sha256:{'a' * 60}/../",
        f"sha256:../{'a' * 61}",
        f"../sha256:{'a' * 64}",
        f"sha256:{'a' * 63}\0",
        f"sha256:{'٣' * 64}",
        f"sha256:{'a' * 64}@sha256:{'a' * 64}",
    ],
)
def test_everything_else_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Digest.parse(text)
    assert raised.value.field == "digest"
    assert "sha256:" in raised.value.remedy
    assert "\n" not in str(raised.value)


@given(st.text())
def test_whatever_is_read_can_be_a_file_name(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidInput:
        return
    assert set(digest.hex) <= set(HEX)
    assert digest.algorithm in HEX_LENGTH


def test_the_error_repeats_a_long_value_only_in_part() -> None:
    with pytest.raises(InvalidInput) as raised:
        Digest.parse("x" * 100_000)
    assert len(str(raised.value)) < 300
