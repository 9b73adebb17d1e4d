"""An answer's head is judged, its body is written where it belongs and shown when it is there."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.receiver import FLUSH_SECONDS, Head
from tests.fill.fills import Clock, Upstreams
from tests.fill.writing import WritingAdmission, head, layout_in, reader_of, receiver_for
from tests.store.stored_objects import pattern

EXTENT = 4 * MIB
SIZE = 10 * MIB + 1234
DIGEST = Digest.of(b"blob")
WHOLE = pattern(0, SIZE)
NETWORK = Outcome(Ending.NETWORK, "reset")


@pytest.fixture
def fill(loop: asyncio.AbstractEventLoop) -> Fill:
    return Upstreams(loop).fill()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 2)


@pytest.fixture
def admission(layout: Layout) -> Iterator[WritingAdmission]:
    made = WritingAdmission(layout, DIGEST, SIZE, EXTENT)
    yield made
    made.files.close()


def fetch_of(fill: Fill, start: int = 0, stop: int = SIZE, *, bulk: bool = True) -> Fetch:
    return Fetch(fill, start, stop, bulk=bulk, priority=0, order=1)


def partial(start: int, stop: int, size: int | str = SIZE, **more: str | int | None) -> Head:
    fields: dict[str, str | int | None] = {
        "content_range": f"bytes {start}-{stop - 1}/{size}",
        "content_length": stop - start,
    }
    return head(206, **(fields | more))


def give(fetch: Fetch, admission: WritingAdmission, *pieces: bytes) -> Outcome:
    """A right head and these pieces of a body, for the whole fetch."""
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(fetch.start, min(fetch.stop, SIZE)))
    for piece in pieces:
        if not receiver.feed(piece):
            break
    return receiver.finished(None)


def judged(fetch: Fetch, admission: WritingAdmission, given_head: Head) -> Outcome | None:
    receiver = receiver_for(fetch, admission)
    accepted = receiver.answered(given_head)
    assert accepted == (receiver.outcome is None)
    assert fetch.first_byte is not None
    return receiver.outcome


def shown(admission: WritingAdmission, start: int, stop: int) -> bool:
    """Whether a reader sees these bytes, and sees them right."""
    reader = reader_of(admission.files)
    try:
        if reader.available(start) < stop - start:
            return False
        assert reader.read(start, stop - start) == WHOLE[start:stop]
        return True
    finally:
        reader.close()


# --- the head ---


def test_a_right_answer_to_a_range_is_accepted(fill: Fill, admission: WritingAdmission) -> None:
    given_head = partial(MIB, 2 * MIB, etag='"v1"')
    assert judged(fetch_of(fill, MIB, 2 * MIB), admission, given_head) is None
    assert admission.admitted == [(SIZE, '"v1"')]


@pytest.mark.parametrize(
    ("given_head", "text"),
    [
        (partial(0, MIB), "206 starts at 0, asked was 1048576"),
        (partial(MIB + 1, 2 * MIB), "206 starts at"),
        (partial(MIB, 2 * MIB + 1), "206 ends at 2097153, asked was 2097152"),
        (partial(MIB, 2 * MIB, SIZE + 1), "of 10486995 bytes"),
        (head(206, content_length=MIB), "206 without Content-Range"),
        (partial(MIB, 2 * MIB, content_range="bytes */5"), "206 starts at"),
        (partial(MIB, 2 * MIB, content_range="items 1-2/3"), "206 with Content-Range"),
        (partial(MIB, 2 * MIB, content_range="bytes 5-2/3"), "206 with Content-Range"),
        (partial(MIB, 2 * MIB, content_length=MIB - 1), "they disagree"),
        (partial(MIB, 2 * MIB, content_encoding="gzip"), "identity was asked for"),
        (partial(MIB, 2 * MIB, content_type="text/html"), "is text/html, no blob"),
        (head(200, content_type="Text/HTML; charset=utf-8", content_length=5), "no blob"),
        (head(200, content_type="application/xhtml+xml"), "no blob"),
        (head(206, content_type="multipart/byteranges; boundary=x"), "no blob"),
        (head(200, content_encoding="GZIP", content_length=SIZE), "identity was asked for"),
        (head(200, content_length=0), "of 0 bytes"),
        (head(200, content_length=SIZE - 1), "of 10486993 bytes"),
    ],
)
def test_f04_to_f14_a_wrong_head_is_a_breach_of_the_protocol(
    fill: Fill, admission: WritingAdmission, given_head: Head, text: str
) -> None:
    outcome = judged(fetch_of(fill, MIB, 2 * MIB), admission, given_head)
    assert outcome is not None
    assert outcome.ending is Ending.PROTOCOL
    assert text in outcome.text
    assert admission.written == []


@pytest.mark.parametrize("encoding", ["identity", "Identity", None])
def test_identity_is_no_encoding(
    fill: Fill, admission: WritingAdmission, encoding: str | None
) -> None:
    assert judged(fetch_of(fill), admission, partial(0, SIZE, content_encoding=encoding)) is None


@pytest.mark.parametrize("length", [None, SIZE, "nonsense", "9" * 30, "9" * 10_000, "-1", ""])
def test_a_length_that_is_none_is_absent(
    fill: Fill, admission: WritingAdmission, length: str | int | None
) -> None:
    """Python would refuse to read the longest, and a disk to keep it."""
    given_head = partial(0, SIZE, content_length=length)
    assert given_head.length() in (None, SIZE)
    assert judged(fetch_of(fill), admission, given_head) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_handed_on(fill: Fill, admission: WritingAdmission, status: int) -> None:
    outcome = judged(fetch_of(fill), admission, head(status, location="https://s3/x"))
    assert outcome == Outcome(Ending.REDIRECT, location="https://s3/x")


def test_every_challenge_is_handed_on(fill: Fill, admission: WritingAdmission) -> None:
    challenges = ['Bearer realm="https://a"', 'Basic realm="b"']
    outcome = judged(fetch_of(fill), admission, Head(401, {"www-authenticate": challenges}))
    assert outcome == Outcome(Ending.CHALLENGE, status=401, challenges=challenges)


def test_an_unsatisfiable_range_tells_the_size_where_it_can(
    fill: Fill, admission: WritingAdmission
) -> None:
    told = judged(fetch_of(fill), admission, head(416, content_range="bytes */77"))
    assert told == Outcome(Ending.UNSATISFIABLE, status=416, size=77)
    for odd in (None, "bytes */*", "nonsense"):
        untold = judged(fetch_of(fill), admission, head(416, content_range=odd))
        assert untold == Outcome(Ending.UNSATISFIABLE, status=416)


@pytest.mark.parametrize("status", [204, 400, 403, 404, 410, 429, 500, 502, 503, 504])
def test_other_statuses_are_handed_on_with_the_pause_they_ask_for(
    fill: Fill, admission: WritingAdmission, status: int
) -> None:
    given_head = head(status, retry_after="7", date="Mon, 01 Jan 2024 00:00:00 GMT")
    outcome = judged(fetch_of(fill), admission, given_head)
    assert outcome is not None
    assert (outcome.ending, outcome.status, outcome.retry_after) == (Ending.STATUS, status, "7")
    assert outcome.date == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_what_the_fill_refuses_is_refused(fill: Fill, admission: WritingAdmission) -> None:
    admission.refused = Outcome(Ending.CHANGED, "another entity tag")
    assert judged(fetch_of(fill), admission, partial(0, SIZE)) is admission.refused


# --- the body ---


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, SIZE // UNIT_SIZE).map(UNIT_SIZE.__mul__),
    length=st.integers(1, SIZE),
    pieces=st.lists(st.integers(1, 3 * MIB), max_size=12),
    bulk=st.booleans(),
)
def test_a_body_in_any_pieces_is_written_at_its_place(
    fill: Fill, layout: Layout, start: int, length: int, pieces: list[int], bulk: bool
) -> None:
    admission = WritingAdmission(layout, DIGEST, SIZE, EXTENT)
    try:
        fetch = fetch_of(fill, start, min(start + length, SIZE), bulk=bulk)
        body = WHOLE[start : fetch.stop]
        parts = []
        for piece in pieces:
            parts.append(body[:piece])
            body = body[piece:]
        outcome = give(fetch, admission, *[part for part in (*parts, body) if part])
        assert outcome == Outcome(Ending.COMPLETE)
        assert fetch.committed == fetch.reserved == fetch.stop
        assert fetch.received == fetch.stop - start
        first = -(-start // UNIT_SIZE) * UNIT_SIZE
        last = fetch.stop if fetch.stop == SIZE else fetch.stop // UNIT_SIZE * UNIT_SIZE
        assert first >= last or shown(admission, first, last)
        assert sum(written for _, _, written in admission.written) == fetch.stop - start
        assert admission.reserved == set(range(start // EXTENT, -(-fetch.stop // EXTENT)))
    finally:
        admission.files.close()


def test_a_range_over_extents_and_stripes_is_flushed_at_every_border(
    fill: Fill, admission: WritingAdmission
) -> None:
    """Pieces end on whole MiB of the blob, whatever the range began with."""
    start = EXTENT - 3 * UNIT_SIZE
    assert give(fetch_of(fill, start), admission, WHOLE[start:]) == Outcome(Ending.COMPLETE)
    assert admission.written[0] == (0, start, 3 * UNIT_SIZE)
    assert admission.written[1:5] == [(1, number * MIB, MIB) for number in range(4)]
    assert admission.written[5:] == [
        (0, EXTENT, MIB),
        (0, EXTENT + MIB, MIB),
        (0, EXTENT + 2 * MIB, SIZE - 10 * MIB),
    ]
    assert shown(admission, start, SIZE)


def test_an_extent_that_one_range_brought_carries_its_digest(
    fill: Fill, admission: WritingAdmission
) -> None:
    assert give(fetch_of(fill), admission, WHOLE) == Outcome(Ending.COMPLETE)
    assert admission.whole == {
        extent: blake3(WHOLE[extent * EXTENT : (extent + 1) * EXTENT]).digest()
        for extent in range(3)
    }


def test_an_extent_that_several_ranges_brought_is_to_be_read_back(
    fill: Fill, admission: WritingAdmission
) -> None:
    middle = 2 * MIB
    assert give(fetch_of(fill, middle, EXTENT), admission, WHOLE[middle:EXTENT])
    assert admission.whole == {}
    assert give(fetch_of(fill, 0, middle), admission, WHOLE[:middle])
    assert admission.whole == {0: None}


def test_a_resumed_range_makes_its_first_unit_whole(
    fill: Fill, admission: WritingAdmission
) -> None:
    """Its bytes before the resume point were written by the range that broke off."""
    begun = EXTENT + UNIT_SIZE + 100
    broken = fetch_of(fill, EXTENT + UNIT_SIZE, EXTENT + MIB)
    receiver = receiver_for(broken, admission)
    assert receiver.answered(partial(EXTENT + UNIT_SIZE, EXTENT + MIB))
    assert receiver.feed(WHOLE[EXTENT + UNIT_SIZE : begun])
    assert receiver.finished(NETWORK) == NETWORK
    assert broken.committed == begun
    assert not shown(admission, EXTENT + UNIT_SIZE, begun)
    resumed = fetch_of(fill, begun, EXTENT + MIB)
    assert give(resumed, admission, WHOLE[begun : EXTENT + MIB]) == Outcome(Ending.COMPLETE)
    assert shown(admission, EXTENT + UNIT_SIZE, EXTENT + MIB)


def test_bulk_is_shown_after_a_while_and_a_read_with_every_unit(
    fill: Fill, admission: WritingAdmission
) -> None:
    clock = Clock()
    bulk = receiver_for(fetch_of(fill, 0, MIB), admission, clock)
    read = receiver_for(fetch_of(fill, MIB, 2 * MIB, bulk=False), admission, clock)
    assert bulk.answered(partial(0, MIB))
    assert read.answered(partial(MIB, 2 * MIB))
    assert bulk.feed(WHOLE[: UNIT_SIZE + 10])
    assert read.feed(WHOLE[MIB : MIB + UNIT_SIZE + 10])
    assert not shown(admission, 0, UNIT_SIZE)
    assert shown(admission, MIB, MIB + UNIT_SIZE)
    clock.now += 2 * FLUSH_SECONDS
    assert bulk.feed(WHOLE[UNIT_SIZE + 10 : UNIT_SIZE + 20])
    assert shown(admission, 0, UNIT_SIZE + 20)


# --- bodies that are not what was declared ---


def test_f01_a_short_body_is_kept_up_to_its_last_byte(
    fill: Fill, admission: WritingAdmission
) -> None:
    fetch = fetch_of(fill, 0, 2 * MIB)
    outcome = give(fetch, admission, WHOLE[: MIB + 5])
    assert outcome.ending is Ending.NETWORK
    assert "ended at byte 1048581, declared were 2097152" in outcome.text
    assert fetch.committed == MIB + 5
    assert shown(admission, 0, MIB + 5)


@pytest.mark.parametrize("surplus", [1, 100, 2 * MIB])
@pytest.mark.parametrize("together", [True, False])
def test_f11_a_body_longer_than_declared_is_cut(
    fill: Fill, admission: WritingAdmission, surplus: int, together: bool
) -> None:
    fetch = fetch_of(fill, 0, MIB)
    body, more = WHOLE[:MIB], b"x" * surplus
    outcome = give(fetch, admission, *([body + more] if together else [body, more]))
    if together:
        assert outcome.ending is Ending.PROTOCOL
        assert "longer than declared" in outcome.text
    assert fetch.committed <= MIB
    assert admission.reserved <= {0}
    reader = reader_of(admission.files)
    assert reader.available(0) <= MIB
    reader.close()


def test_a_range_that_the_upstream_answers_in_part_is_not_complete(
    fill: Fill, admission: WritingAdmission
) -> None:
    """The rest has to be released and asked for again, so it must stay part of the fetch."""
    fetch = fetch_of(fill, MIB, 4 * MIB)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(MIB, 2 * MIB))
    assert receiver.feed(WHOLE[MIB : 2 * MIB])
    assert receiver.finished(None).ending is Ending.CUT
    assert (fetch.committed, fetch.stop) == (2 * MIB, 4 * MIB)


def test_an_upstream_that_answers_with_crumbs_is_not_asked_for_ever(
    fill: Fill, admission: WritingAdmission
) -> None:
    """As a broken connection, which is tried a few times only unless units come."""
    fetch = fetch_of(fill, MIB, 4 * MIB)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(MIB, MIB + 1))
    assert receiver.feed(WHOLE[MIB : MIB + 1])
    assert receiver.finished(None).ending is Ending.NETWORK
    assert (fetch.committed, fetch.stop) == (MIB + 1, 4 * MIB)


def test_a_range_that_goes_beyond_the_blob_ends_with_it(
    fill: Fill, admission: WritingAdmission
) -> None:
    """The size was not known when it was asked for."""
    fetch = fetch_of(fill, 8 * MIB, 40 * MIB)
    outcome = give(fetch, admission, WHOLE[8 * MIB :])
    assert outcome == Outcome(Ending.COMPLETE)
    assert fetch.stop == SIZE


def test_a_body_without_a_head_is_turned_down(fill: Fill, admission: WritingAdmission) -> None:
    receiver = receiver_for(fetch_of(fill), admission)
    assert not receiver.feed(bytes(2 * MIB))
    assert receiver.finished(None).ending is Ending.NETWORK


def test_an_answer_without_a_head_is_an_error_of_the_network(
    fill: Fill, admission: WritingAdmission
) -> None:
    receiver = receiver_for(fetch_of(fill), admission)
    assert receiver.finished(None).ending is Ending.NETWORK
    assert receiver_for(fetch_of(fill), admission).finished(NETWORK) == NETWORK


# --- ranges that are shortened or cut under way ---


def test_a_shortened_range_stops_at_its_new_end_and_counts_as_complete(
    fill: Fill, admission: WritingAdmission
) -> None:
    fetch = fetch_of(fill, 0, EXTENT)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(0, EXTENT))
    assert receiver.feed(WHOLE[:MIB])
    taken = fetch.split(MIB)
    assert taken == (2 * MIB + MIB // 2, EXTENT)
    assert receiver.feed(WHOLE[MIB : 2 * MIB])
    assert not receiver.feed(WHOLE[2 * MIB : 3 * MIB])
    assert receiver.finished(NETWORK) == Outcome(Ending.COMPLETE)
    assert fetch.committed == fetch.stop == taken[0]
    reader = reader_of(admission.files)
    assert reader.available(0) == taken[0]
    reader.close()


def test_a_cut_range_keeps_what_has_come(fill: Fill, admission: WritingAdmission) -> None:
    fetch = fetch_of(fill, 0, EXTENT)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(0, EXTENT))
    assert receiver.feed(WHOLE[: MIB + 777])
    reason = Outcome(Ending.CUT, "gave way")
    fetch.cut(reason)
    assert not receiver.feed(WHOLE[MIB + 777 : 2 * MIB])
    assert receiver.finished(NETWORK) is reason
    assert fetch.committed == MIB + 777
    assert shown(admission, 0, MIB + 777)


def test_a_cut_after_the_last_byte_is_no_cut(fill: Fill, admission: WritingAdmission) -> None:
    fetch = fetch_of(fill, 0, MIB)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(partial(0, MIB))
    assert receiver.feed(WHOLE[:MIB])
    fetch.cut(Outcome(Ending.CUT))
    assert receiver.finished(NETWORK) == Outcome(Ending.COMPLETE)


# --- whole answers where a range was asked ---


def test_f03_a_whole_answer_is_used_from_its_first_byte_to_its_last(
    fill: Fill, admission: WritingAdmission
) -> None:
    fetch = fetch_of(fill, 5 * MIB, 6 * MIB)
    receiver = receiver_for(fetch, admission)
    assert receiver.answered(head(200, content_length=SIZE))
    for start in range(0, SIZE, MIB):
        assert receiver.feed(WHOLE[start : start + MIB])
    assert receiver.finished(None) == Outcome(Ending.COMPLETE)
    assert admission.streams == [SIZE]
    assert shown(admission, 0, SIZE)
    assert fetch.committed == SIZE


def test_f07_a_whole_answer_without_a_length_is_complete_at_the_known_size(
    fill: Fill, admission: WritingAdmission
) -> None:
    receiver = receiver_for(fetch_of(fill), admission)
    assert receiver.answered(head(200, transfer_encoding="chunked"))
    assert receiver.feed(WHOLE)
    assert receiver.finished(None) == Outcome(Ending.COMPLETE)
    assert admission.streams == [None]


def test_f08_a_whole_answer_that_the_connection_ends_early_is_not_complete(
    fill: Fill, admission: WritingAdmission
) -> None:
    receiver = receiver_for(fetch_of(fill), admission)
    assert receiver.answered(head(200))
    assert receiver.feed(WHOLE[:-1])
    assert receiver.finished(None).ending is Ending.NETWORK
    assert not shown(admission, SIZE - 1, SIZE)


def test_a_stream_does_not_replace_bytes_that_readers_have_had(
    fill: Fill, admission: WritingAdmission
) -> None:
    assert give(fetch_of(fill, 2 * MIB, 3 * MIB), admission, WHOLE[2 * MIB : 3 * MIB])
    receiver = receiver_for(fetch_of(fill), admission)
    assert receiver.answered(head(200, content_length=SIZE))
    lie = bytearray(WHOLE)
    lie[2 * MIB : 3 * MIB] = bytes(MIB)
    assert receiver.feed(bytes(lie))
    assert receiver.finished(None) == Outcome(Ending.COMPLETE)
    assert shown(admission, 0, SIZE)
    # What it has hashed is not what lies there: the extent has to be read back.
    assert admission.whole[0] is None
    assert admission.whole[1] == blake3(WHOLE[EXTENT : 2 * EXTENT]).digest()


# --- the disk ---


def test_f27_a_full_disk_ends_the_range_with_what_fitted(
    fill: Fill, admission: WritingAdmission
) -> None:
    admission.disk_full_at = 1
    fetch = fetch_of(fill)
    outcome = give(fetch, admission, WHOLE)
    assert outcome.ending is Ending.DISK
    assert outcome.error is not None
    assert outcome.error.errno == 28
    assert fetch.committed == EXTENT
    assert shown(admission, 0, EXTENT)
    assert not shown(admission, EXTENT, EXTENT + 1)


def test_f27_a_disk_that_fills_with_the_last_bytes_is_told_too(
    fill: Fill, admission: WritingAdmission
) -> None:
    admission.disk_full_at = 0
    fetch = fetch_of(fill, 0, 1000)
    assert give(fetch, admission, WHOLE[:1000]).ending is Ending.DISK
    assert fetch.committed == 0
