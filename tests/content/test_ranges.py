"""Ranges against the plainest model there is: slices of a byte string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.errors import InvalidInput
from headstart.content.ranges import (
    MOST_RANGES,
    ByteRange,
    ContentRange,
    InvalidContentRange,
    RangeSpec,
    parse_content_range,
    parse_range,
    satisfiable,
)

SIZE = st.integers(0, 40)


@st.composite
def specs(draw: st.DrawFn) -> RangeSpec:
    """Ranges of every form, with bytes around those sizes."""
    form = draw(st.sampled_from(["closed", "open", "suffix"]))
    first, length = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    if form == "closed":
        return RangeSpec(first, first + length)
    return RangeSpec(first, None) if form == "open" else RangeSpec(None, length)


def written(spec: RangeSpec) -> str:
    """The range as a client writes it."""
    return "-".join("" if end is None else str(end) for end in spec)


def model(spec: RangeSpec, content: bytes) -> bytes:
    """RFC 9110, 14.1.2, said with slices."""
    first, last = spec
    if first is None:
        return content[-last:] if last else b""
    return content[first:] if last is None else content[first : last + 1]


@given(st.lists(specs(), min_size=1, max_size=MOST_RANGES))
def test_ranges_read_back_as_they_are_written(asked: list[RangeSpec]) -> None:
    text = "bytes=" + ",".join(map(written, asked))
    assert parse_range(text) == tuple(asked)
    assert parse_range("bytes=" + " ,\t".join(map(written, asked)) + " ") == tuple(asked)


@given(specs(), SIZE)
def test_a_range_means_the_slice_that_it_names(spec: RangeSpec, size: int) -> None:
    content = bytes(range(size))
    given_range = spec.within(size)
    if given_range is None:
        assert model(spec, content) == b""
    else:
        assert content[given_range.start : given_range.stop] == model(spec, content)
        assert 0 <= given_range.start < given_range.stop <= size
        assert given_range.length == len(model(spec, content))


@given(st.lists(specs(), max_size=20), SIZE)
def test_satisfiable_ranges_keep_their_order_and_the_others_fall_out(
    asked: list[RangeSpec], size: int
) -> None:
    content = bytes(range(size))
    expected = [piece for piece in (model(spec, content) for spec in asked) if piece]
    found = satisfiable(asked, size)
    assert [content[given.start : given.stop] for given in found] == expected


@pytest.mark.parametrize("text", ["items=0-1", "bytes", "bytes 0-1", "", "=0-1", "octets=x"])
def test_another_unit_is_ignored(text: str) -> None:
    assert parse_range(text) is None


def test_the_unit_is_read_in_any_case_and_with_space_around() -> None:
    assert parse_range(" Bytes = 0-1 ") == (RangeSpec(0, 1),)


@pytest.mark.parametrize(
    "text",
    [
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=1-0",
        "bytes=0-1,",
        "bytes=,0-1",
        "bytes=0-1,,2-3",
        "bytes=0-1;2-3",
        "bytes=--1",
        "bytes=0--1",
        "bytes=+0-1",
        "bytes=0 - 1",
        "bytes=0x0-0x1",
        "bytes=0-1-2",
        "bytes=٣-٣",
        "bytes=9223372036854775808-",
        "bytes=-9223372036854775808",
        "bytes=0-99999999999999999999",
        "bytes=" + "9" * 100_000 + "-",
    ],
)
def test_malformed_ranges_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_range(text)
    assert raised.value.field == "range"
    assert "bytes=FIRST-LAST" in raised.value.remedy


def test_256_ranges_are_read_and_257_are_refused_with_the_limit() -> None:
    assert len(parse_range("bytes=" + ",".join(["0-1"] * 256)) or ()) == 256
    with pytest.raises(InvalidInput, match="at most 256"):
        parse_range("bytes=" + ",".join(["0-1"] * 257))
    with pytest.raises(InvalidInput, match="at most 256"):
        parse_range("bytes=" + "," * 1_000_000)


@given(st.text(max_size=40).map("bytes=".__add__))
def test_any_text_ends_in_ranges_or_a_refusal(text: str) -> None:
    try:
        found = parse_range(text)
    except InvalidInput:
        return
    for spec in found or ():
        for end in spec:
            assert end is None or 0 <= end < 1 << 63


# --- Content-Range ---


@given(SIZE.filter(bool), st.data())
def test_a_content_range_reads_back_as_it_is_written(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    text = ByteRange(start, stop).content_range(size)
    assert parse_content_range(text) == ContentRange(start, stop, size)


def test_forms_of_content_range() -> None:
    assert parse_content_range("bytes 0-0/1") == ContentRange(0, 1, 1)
    assert parse_content_range("BYTES 5-9/*") == ContentRange(5, 10, None)
    assert parse_content_range(" bytes */7 ") == ContentRange(0, 0, 7)
    assert ByteRange(0, 2).content_range(5) == "bytes 0-1/5"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes 0-1",
        "bytes 0-1/",
        "bytes 1-0/5",
        "bytes 0-5/5",
        "bytes 5-5/5",
        "bytes */*",
        "bytes -1/5",
        "bytes 0-/5",
        "bytes=0-1/5",
        "items 0-1/5",
        "bytes 0-1/-5",
        "bytes 0-1/5 6",
        "bytes ٣-٣/٣٣",
        "bytes 0-1/9223372036854775808",
        "bytes 0-9223372036854775807/*",
        "bytes 0-1/" + "9" * 10_000,
    ],
)
def test_other_content_ranges_are_refused(text: str) -> None:
    with pytest.raises(InvalidContentRange):
        parse_content_range(text)
