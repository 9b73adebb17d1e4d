"""Sizes, durations and shares: what is written can be read, and nothing is rounded unsaid."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.errors import InvalidInput
from headstart.content.sizes import (
    DURATION_UNITS,
    SIZE_UNITS,
    format_duration,
    format_size,
    parse_duration,
    parse_percent,
    parse_size,
    show_size,
)

PETABYTE = 10**15


@given(
    st.one_of(
        st.integers(0, PETABYTE - 1),
        st.builds(
            lambda count, unit: count * SIZE_UNITS[unit],
            st.integers(0, 999),
            st.sampled_from(list(SIZE_UNITS)),
        ),
    )
)
def test_a_size_reads_back_as_it_is_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("32MiB", 32 << 20),
        ("32mib", 32 << 20),
        ("32 MiB", 32 << 20),
        (" 1GB ", 10**9),
        ("1.5GB", 1_500_000_000),
        ("0.5KiB", 512),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "-1", "1.5", "0.0001KB", "1e6", "1MM", "1M", "0x10", "1,5GB", "nan", "٣MiB", "1."],
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_size(text)
    assert raised.value.field == "size"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1, "1B"), (33554432, "32MiB"), (60_000_000, "60MB"), (1536, "1536B")],
)
def test_the_shortest_exact_form_is_written(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (312 << 20, "312 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people_are_rounded(size: int, text: str) -> None:
    assert show_size(size) == text


# --- durations ---


@given(
    st.one_of(
        st.integers(0, 10**9).map(lambda count: count / 1000),
        st.integers(0, 10**9).map(lambda count: count / 10**9),
        st.builds(
            lambda count, unit: count * DURATION_UNITS[unit],
            st.integers(0, 10_000),
            st.sampled_from(list(DURATION_UNITS)),
        ),
        st.floats(0, 10**7),
    )
)
def test_a_duration_reads_back_as_it_is_written(seconds: float) -> None:
    assert math.isclose(
        parse_duration(format_duration(seconds)), seconds, rel_tol=1e-9, abs_tol=1e-9
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("5s", 5),
        ("2m", 120),
        ("1m30s", 90),
        ("24h", 86400),
        ("1h1m1s1ms", 3661.001),
        (" 5s ", 5),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "1e3s", "inf", "5S", "٣s", "1m30"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_duration(text)
    assert raised.value.field == "duration"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (120, "2m"), (1.5, "1500ms"), (90, "90s"), (7200, "2h"), (0.25, "250ms")],
)
def test_the_shortest_exact_duration_is_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# --- shares ---


@given(st.integers(0, 100))
def test_shares_are_hundredths(share: int) -> None:
    assert parse_percent(f"{share}%") == share
    assert parse_percent(f" {share} % ") == share


@pytest.mark.parametrize("text", ["", "%", "80", "-1%", "100.1%", "1e1%", "80%%", "٨٠%"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_percent(text)
