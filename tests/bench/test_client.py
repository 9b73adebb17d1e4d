"""The client that drops what it receives, and the smaller parsers beside it."""

import hashlib
import time
from collections.abc import Iterator

import pytest

from bench.client import receive, together
from bench.first_byte import UNIT, starts_there
from bench.measure import WrongAnswer
from bench.relay import Relay
from bench.small_ranges import parse
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream
from tests.parts.nginx import Access

PAYLOAD = bytes(range(256)) * 8192


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture
def url(upstream: ScriptedUpstream) -> str:
    return f"{upstream.url}/v2/team/app/blobs/{upstream.add_blob('team/app', PAYLOAD)}"


@pytest.mark.parametrize("hashed", [False, True], ids=["dropped", "hashed"])
def test_a_body_is_counted_to_its_end(url: str, hashed: bool) -> None:
    whole = receive(url, hashed=hashed)
    assert (whole.status, whole.size) == (200, len(PAYLOAD))
    assert 0 < whole.first_byte <= whole.seconds
    part = receive(url, 1000, 900_000, hashed=hashed)
    assert (part.status, part.size) == (206, 899_000)
    if hashed:
        assert part.digest == "sha256:" + hashlib.sha256(PAYLOAD[1000:900_000]).hexdigest()
    else:
        assert part.digest is None


def test_the_first_byte_is_one_of_the_body(url: str, upstream: ScriptedUpstream) -> None:
    upstream.add_rule(Rule(stall_after=0, stall_seconds=0.3))
    received = receive(url)
    assert received.first_byte >= 0.3


def test_wrong_answers_are_refused(url: str, upstream: ScriptedUpstream) -> None:
    upstream.add_rule(Rule(ranged=True, ignore_range=True))
    with pytest.raises(WrongAnswer):
        receive(url, 0, 10)
    with pytest.raises(WrongAnswer):
        receive(url + "00")
    upstream.add_rule(Rule(close_after=5000))
    with pytest.raises((WrongAnswer, OSError)):
        receive(url)


def test_calls_run_together(url: str) -> None:
    seconds, received = together([lambda: receive(url)] * 4)
    assert [answer.size for answer in received] == [len(PAYLOAD)] * 4
    assert seconds >= max(answer.seconds for answer in received) * 0.5


def access(first: int) -> Access:
    return Access(0, 0, 1, "GET", "/v2/a/blobs/sha256:x", f"bytes={first}-", 206, 1, None)


def test_a_request_starts_there_within_a_unit_below() -> None:
    offset = 10 * UNIT + 5
    assert starts_there([access(0), access(offset)], offset)
    assert starts_there([access(10 * UNIT)], offset)
    assert not starts_there([access(offset + 1), access(offset - UNIT)], offset)


def test_a_relay_slows_one_busy_connection_and_no_other(
    url: str, upstream: ScriptedUpstream
) -> None:
    with Relay(upstream.port) as relay:
        through = url.replace(upstream.host, relay.host)
        assert receive(through, hashed=True).digest == url.rpartition("/")[2]
        assert not relay.restore()
        relay.slow_down(time.monotonic(), 1_000_000)
        _, received = together([lambda: receive(through, 0, 400_000)] * 2)
        quick, slow = sorted(answer.seconds for answer in received)
        assert quick < 0.35 < slow
        assert relay.restore()
        assert receive(through).seconds < 0.35


PRINTED = """Running 3s test @ http://127.0.0.1:1/data
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.73ms    7.55ms  39.39ms   91.09%
    Req/Sec    34.52k   553.00    35.35k    70.00%
  Latency Distribution
     50%  118.00us
     75%  246.00us
     90%    9.35ms
     99%   39.10ms
  34504 requests in 1.00s, 2.11GB read
{errors}Requests/sec:  34503.91
Transfer/sec:      2.11GB
"""


def test_what_wrk_prints_is_read() -> None:
    rate = parse(PRINTED.format(errors=""))
    assert rate.per_second == 34503.91
    assert rate.p99 == pytest.approx(0.0391)


def test_errors_that_wrk_counts_are_no_result() -> None:
    with pytest.raises(WrongAnswer, match="Non-2xx or 3xx responses: 7"):
        parse(PRINTED.format(errors="  Non-2xx or 3xx responses: 7\n"))
    with pytest.raises(WrongAnswer):
        parse("wrk: unable to connect")
