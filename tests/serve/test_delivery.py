"""Framing of answers: lengths, parts, what is withheld. Pure arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.ranges import RangeSpec
from proxy.serve.delivery import first_wanted, if_range_holds, plan, whole
from proxy.serve.errors import RangeUnsatisfiable

SPECS = st.one_of(
    st.tuples(st.integers(0, 300), st.integers(0, 300)).map(
        lambda pair: RangeSpec(min(pair), max(pair))
    ),
    st.integers(0, 300).map(lambda first: RangeSpec(first, None)),
    st.integers(0, 300).map(lambda last: RangeSpec(None, last)),
)


@given(st.lists(SPECS, min_size=1, max_size=8), st.integers(0, 250))
def test_an_answer_has_the_bytes_that_were_asked_for_and_its_exact_length(
    specs: list[RangeSpec], size: int
) -> None:
    payload = bytes(number % 251 for number in range(size))
    wanted = [part for part in (spec.within(size) for spec in specs) if part is not None]
    if not wanted:
        with pytest.raises(RangeUnsatisfiable):
            plan(specs, size)
        return
    delivery = plan(specs, size)
    fields = dict(delivery.fields())
    body = b"".join(
        (delivery.preludes[number] if delivery.preludes else b"") + payload[part.start : part.stop]
        for number, part in enumerate(delivery.parts)
    )
    assert int(fields[b"content-length"]) == len(body + delivery.epilogue) == delivery.length
    if delivery.status == 200:
        assert (delivery.parts, delivery.to_the_end) == (((0, size),), True)
        assert sum(part.length for part in wanted) > size
    else:
        assert list(delivery.parts) == wanted
        assert (b"content-range" in fields) == (len(wanted) == 1)
        assert fields[b"content-type"].startswith(b"multipart/byteranges") == (len(wanted) > 1)
        assert sum(part.length for part in wanted) <= size


@pytest.mark.parametrize(
    ("spec", "withheld"),
    [
        (RangeSpec(0, None), True),
        (RangeSpec(5, None), True),
        (RangeSpec(0, 99), False),
        (RangeSpec(0, 1000), False),
        (RangeSpec(None, 100), False),
    ],
)
def test_the_end_of_open_ended_ranges_is_withheld(spec: RangeSpec, withheld: bool) -> None:
    assert plan([spec], 100).to_the_end is withheld
    assert whole(100).to_the_end


def test_boundaries_cannot_be_foreseen() -> None:
    specs = [RangeSpec(0, 1), RangeSpec(5, 6)]
    assert plan(specs, 100).boundary != plan(specs, 100).boundary


@pytest.mark.parametrize(
    ("specs", "first"),
    [
        (None, (0, None)),
        ([RangeSpec(7, None)], (7, None)),
        ([RangeSpec(7, 9)], (7, 3)),
        ([RangeSpec(None, 9)], None),
        ([RangeSpec(7, 7), RangeSpec(0, None)], (7, 1)),
    ],
)
def test_what_is_wanted_first(
    specs: list[RangeSpec] | None, first: tuple[int, int | None] | None
) -> None:
    assert first_wanted(specs) == first


def test_if_range() -> None:
    digest = Digest.of(b"")
    assert if_range_holds(None, digest)
    assert if_range_holds(f'"{digest}"', digest)
    assert not if_range_holds(f'W/"{digest}"', digest)
    assert not if_range_holds("Tue, 15 Nov 1994 12:45:26 GMT", digest)
