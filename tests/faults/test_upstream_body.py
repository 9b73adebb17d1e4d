"""Faults 1 to 8: bodies that end early, lie about their range, or have no length."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.doubles.scripted_upstream import Rule
from tests.faults.reading import End
from tests.faults.setting import (
    MIB,
    REPOSITORY,
    Setting,
    new_content,
    of_blobs,
    pulls,
    pulls_soon,
    right_or_error,
    scripted,
)
from tests.faults.watching import eventually

SIZE = 3 * MIB + 12_345
PATIENCE = 30.0


# --- 1, 2: the connection breaks ---


def test_f01_upstream_closes_early_and_the_range_goes_on_where_it_broke(setting: Setting) -> None:
    size = MIB - 7
    for stop in (1024, 70_000, 300_001, size - 1):
        content = new_content(size)
        upstream, digest = scripted(setting, content, of_blobs(times=1, close_after=stop))
        reply = setting.blob(upstream.host, digest)
        assert right_or_error(reply, content) and reply.complete, reply
        starts = [request.range and request.range[0] for request in upstream.blob_requests()]
        assert starts == [0, stop], "the second request resumes at the byte that is missing"
        assert upstream.blob_bytes_sent() == size


def test_f01_resets_in_every_range_still_give_the_whole_blob(setting: Setting) -> None:
    content = new_content(SIZE)
    rule = of_blobs(times=8, close_after=400_000, reset=True)
    upstream, digest = scripted(setting, content, rule)
    pulls(setting, upstream.host, digest, content)


def test_f02_retries_exhausted_reset_the_client_and_then_are_an_error(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(
        setting, content, of_blobs(times=1, close_after=300_000), of_blobs(close_before_answer=True)
    )
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status == 200
    assert reply.end is End.RESET
    assert reply.body == content[: len(reply.body)]
    again = setting.blob(upstream.host, digest, "300000-", patience=PATIENCE)
    assert again.status in (404, 502, 503), again
    upstream.clear_rules()
    # Of the failing fill's other ranges one may have been refused a moment ago: it ends the first.
    pulls_soon(setting, upstream.host, digest, content)


# --- 3: no ranges ---


def test_f03_whole_answers_to_ranges_are_used_once_and_remembered(setting: Setting) -> None:
    first, second, third = (new_content(SIZE) for _ in range(3))
    upstream, digest = scripted(setting, first, of_blobs(ignore_range=True))
    pulls(setting, upstream.host, digest, first)
    assert len(upstream.blob_requests()) == 1
    assert upstream.blob_bytes_sent() == SIZE

    digest = upstream.add_blob(REPOSITORY, second)
    upstream.forget_requests()
    pulls(setting, upstream.host, digest, second)
    asked = upstream.blob_requests()
    assert [request.range for request in asked] == [None], "it has been remembered"

    digest = upstream.add_blob(REPOSITORY, third)
    upstream.forget_requests()
    for start, stop in ((2_000_000, 2_000_010), (10, 20), (SIZE - 5, SIZE)):
        reply = setting.blob(upstream.host, digest, f"{start}-{stop - 1}")
        assert reply.status == 206
        assert right_or_error(reply, third, start, stop) and reply.complete, reply
    pulls(setting, upstream.host, digest, third)
    assert upstream.blob_bytes_sent() <= 2 * SIZE


def test_f03_ranges_that_stop_in_mid_blob_cost_one_stream(setting: Setting) -> None:
    content = new_content(8 * MIB)
    upstream, digest = scripted(setting, content)
    assert setting.blob(upstream.host, digest, "0-9").complete
    upstream.forget_requests()
    # Slowly, so that what is sent in vain is what was asked for in vain.
    upstream.add_rule(of_blobs(ignore_range=True, rate=8 * MIB))
    pulls(setting, upstream.host, digest, content)

    def hung_up() -> bool:
        return all(request.finished is not None for request in upstream.blob_requests())

    eventually(hung_up, 10, "the connections whose answers were turned down are closed")
    assert upstream.blob_bytes_sent() <= 2 * len(content)


def test_f03_a_small_blob_sent_whole_says_nothing_about_ranges(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(times=1, ignore_range=True))
    little = new_content(100)
    pulls(setting, upstream.host, upstream.add_blob(REPOSITORY, little), little)
    upstream.forget_requests()
    pulls(setting, upstream.host, digest, content)
    assert len(upstream.blob_requests()) == 4, "it goes on to be asked for ranges"


# --- 4, 5, 6: a 206 that is not what was asked for ---


def earlier(content: bytes, **chosen: Any) -> Rule:
    """An honest answer to another question: the bytes of 4 KiB further to the front."""
    shifted = bytes(4096) + content
    return of_blobs(payload=shifted, range_shift=-4096, range_total=len(content), **chosen)


def of_another_size(content: bytes, **chosen: Any) -> Rule:
    return of_blobs(range_total=len(content) + 1000, **chosen)


def without_content_range(content: bytes, **chosen: Any) -> Rule:
    return of_blobs(without_content_range=True, **chosen)


WRONG = {
    "4-start": earlier,
    "5-total": of_another_size,
    "6-no-content-range": without_content_range,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_f04_f05_f06_wrong_206_is_rejected_and_asked_for_again(
    setting: Setting, wrong: Callable[..., Rule]
) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, wrong(content, skip=1, times=2))
    pulls(setting, upstream.host, digest, content)
    assert len(upstream.blob_requests()) > 4


def test_f04_f05_f06_wrong_206_each_time_is_502(setting: Setting) -> None:
    def ask(wrong: Callable[..., Rule]) -> int:
        content = new_content(SIZE)
        upstream, digest = scripted(setting, content)
        assert setting.blob(upstream.host, digest, "0-9").complete
        upstream.add_rule(wrong(content))
        reply = setting.blob(upstream.host, digest, "2000000-2000009", patience=PATIENCE)
        upstream.clear_rules()
        pulls_soon(setting, upstream.host, digest, content)
        return reply.status

    with ThreadPoolExecutor(len(WRONG)) as clients:
        statuses = dict(zip(WRONG, clients.map(ask, WRONG.values()), strict=True))
    assert statuses == dict.fromkeys(WRONG, 502)


def test_f04_wrong_start_of_the_first_answer_is_502(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, earlier(content))
    bounds = "2000000-2000009"
    assert setting.blob(upstream.host, digest, bounds, patience=PATIENCE).status == 502
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


def test_f05_wrong_total_of_the_first_answer_does_not_stay(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(times=1, range_total=SIZE + 1000))
    right_or_error(setting.blob(upstream.host, digest, patience=PATIENCE), content)
    pulls(setting, upstream.host, digest, content)


def test_f06_missing_content_range_of_the_first_answer_is_502(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(without_content_range=True))
    assert setting.blob(upstream.host, digest, patience=PATIENCE).status == 502
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


# --- 7, 8: no length ---


def test_f07_chunked_answers_are_accepted_when_size_and_digest_match(setting: Setting) -> None:
    for whole in (False, True):
        content = new_content(SIZE)
        rule = of_blobs(chunked=True, ignore_range=whole, rate=8 * MIB)
        upstream, digest = scripted(setting, content, rule)
        pulls(setting, upstream.host, digest, content)
        assert upstream.blob_bytes_sent() <= 2 * SIZE


def test_f07_chunked_body_of_another_size_or_content_is_refused(setting: Setting) -> None:
    def other_than(content: bytes, number: int) -> bytes:
        return (content[:-5], content[:-5] + b"other", content + b"more")[number]

    def ask(number: int) -> None:
        content = new_content(SIZE)
        wrong = other_than(content, number)
        rule = of_blobs(chunked=True, ignore_range=True, payload=wrong)
        upstream, digest = scripted(setting, content, rule)
        reply = setting.blob(upstream.host, digest, patience=PATIENCE)
        assert not right_or_error(reply, content), reply
        upstream.clear_rules()
        pulls(setting, upstream.host, digest, content)

    with ThreadPoolExecutor(3) as clients:
        assert list(clients.map(ask, range(3))) == [None] * 3


def test_f08_close_delimited_truncation_is_never_committed(setting: Setting) -> None:
    content = new_content(SIZE)
    rule = of_blobs(ignore_range=True, close_delimited=True, close_after=SIZE - 1)
    upstream, digest = scripted(setting, content, rule)
    assert not right_or_error(setting.blob(upstream.host, digest, patience=15), content)
    here = [entry for entry in setting.mirror.ask("/cache")["objects"] if entry["verified"]]
    assert digest not in [entry["digest"] for entry in here]
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


def test_f08_close_delimited_ranges_are_resumed(setting: Setting) -> None:
    content = new_content(SIZE)
    rule = of_blobs(times=3, close_delimited=True, close_after=500_000)
    upstream, digest = scripted(setting, content, rule)
    pulls(setting, upstream.host, digest, content)
