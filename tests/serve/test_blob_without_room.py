"""A full cache disk fails no pull: bytes pass through, checked as ever."""

import time

import pytest

from headstart.store.errors import FillFailed
from proxy.serve import blob_answers
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream
from tests.serve.running_server import MIB, Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import (
    PAYLOAD,
    SIZE,
    WITHHELD,
    ask,
    await_wants,
    get,
    parts_of,
    read_until_cut,
)

SPACE = FillFailed("space", "no room")


def with_upstream(upstream: ScriptedUpstream, filler: ScriptedFiller) -> str:
    digest = upstream.add_blob("team/app", PAYLOAD)
    filler.add_blob(PAYLOAD)
    return digest


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [(None, 0, SIZE), ("bytes=1000-", 1000, SIZE), ("bytes=1000-1999", 1000, 2000)],
)
def test_f27_without_room_bytes_pass_through(
    filler: ScriptedFiller,
    client: Client,
    upstream: ScriptedUpstream,
    asked: str | None,
    start: int,
    stop: int,
) -> None:
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    response = get(client, digest, asked)
    assert response.status == (200 if asked is None else 206)
    assert response.body == PAYLOAD[start:stop]
    assert response.fields["x-headstart-cache"] == "miss"


def test_f27_without_room_head_tells_the_size(
    filler: ScriptedFiller, client: Client, upstream: ScriptedUpstream
) -> None:
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    ask(client, digest, method="HEAD")
    assert client.head().fields["content-length"] == str(SIZE)


def test_f27_without_room_parts_pass_through(
    filler: ScriptedFiller, client: Client, upstream: ScriptedUpstream
) -> None:
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    response = get(client, digest, "bytes=5-9,-3")
    assert [body for _, body in parts_of(response)] == [PAYLOAD[5:10], PAYLOAD[-3:]]


@pytest.mark.parametrize("asked", [None, "bytes=0-", "bytes=1000-", "bytes=0-2999999"])
@pytest.mark.parametrize("here", [0, MIB])
def test_f27_disk_that_fills_in_mid_pull_fails_no_pull(
    filler: ScriptedFiller,
    client: Client,
    upstream: ScriptedUpstream,
    asked: str | None,
    here: int,
) -> None:
    digest = with_upstream(upstream, filler)
    ask(client, digest, asked)
    await_wants(filler)
    filler.bring(digest, here)
    filler.fail(digest, SPACE)
    response = client.response()
    start = 1000 if asked == "bytes=1000-" else 0
    assert response.body == PAYLOAD[start : start + len(response.body)]
    assert len(response.body) == int(response.fields["content-length"])


def test_f27_what_passes_through_is_checked_too(
    filler: ScriptedFiller, client: Client, upstream: ScriptedUpstream
) -> None:
    digest = with_upstream(upstream, filler)
    upstream.add_rule(Rule(path="/blobs/", flip=2 * MIB))
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest, MIB)
    filler.fail(digest, SPACE)
    client.head()
    assert WITHHELD < len(read_until_cut(client)) <= SIZE - WITHHELD


def test_f27_upstream_that_ends_early_resets(
    filler: ScriptedFiller, client: Client, upstream: ScriptedUpstream
) -> None:
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    upstream.add_rule(Rule(path="/blobs/", method="GET", payload=PAYLOAD[:-100_000]))
    ask(client, digest)
    client.head()
    assert len(read_until_cut(client)) < SIZE


def test_f27_head_goes_out_alone_when_the_upstream_takes_long(
    filler: ScriptedFiller,
    client: Client,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blob_answers, "HEAD_SECONDS", 0.2)
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    upstream.add_rule(Rule(path="/blobs/", method="GET", delay=1.0))
    began = time.monotonic()
    ask(client, digest)
    assert client.head().status == 200
    assert time.monotonic() - began < 0.9
    assert client.exactly(SIZE) == PAYLOAD


@pytest.mark.parametrize(("status", "seen"), [(404, 404), (500, 503), (401, 404)])
def test_f27_upstream_that_refuses_has_a_status(
    filler: ScriptedFiller, client: Client, upstream: ScriptedUpstream, status: int, seen: int
) -> None:
    digest = with_upstream(upstream, filler)
    filler.refuse(digest, SPACE)
    upstream.add_rule(Rule(path="/blobs/", method="GET", status=status))
    assert get(client, digest).status == seen
