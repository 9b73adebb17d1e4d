"""Answers with what is in the store already: ranges, parts, HEAD; over a real socket."""

from pathlib import Path

import pytest

from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import MIB, Client, wait_until
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import KIB, PAYLOAD, SIZE, Serving, ask, get, keys_of, parts_of, whole_blob


def test_whole_blob_from_cache(filler: ScriptedFiller, client: Client) -> None:
    digest = whole_blob(filler)
    response = get(client, digest)
    assert response.status == 200
    assert response.body == PAYLOAD
    assert response.fields["content-length"] == str(SIZE)
    assert response.fields["docker-content-digest"] == digest
    assert response.fields["etag"] == f'"{digest}"'
    assert response.fields["accept-ranges"] == "bytes"
    assert response.fields["x-headstart-cache"] == "hit"
    assert "x-headstart-verified" not in response.fields
    assert response.fields["docker-distribution-api-version"] == "registry/2.0"
    assert filler.messages("want") == []


def test_hits_ask_the_filler_for_nothing(filler: ScriptedFiller, client: Client) -> None:
    digest = whole_blob(filler)
    get(client, digest, "bytes=0-0")
    wait_until(lambda: len(filler.messages("touch")) == 1)
    before = len(filler.received)
    for start in range(0, SIZE - 5, 100_000):
        assert get(client, digest, f"bytes={start}-{start + 4}").body == PAYLOAD[start : start + 5]
    assert len(filler.received) == before


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-1", 0, 2),
        ("bytes=100000-200000", 100_000, 200_001),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE + 100}", 0, SIZE),
        ("bytes=0-", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE + 1000}", 5, SIZE),
        ("BYTES = 7-9", 7, 10),
        (f"bytes=3-4, {SIZE}-", 3, 5),
    ],
)
def test_single_range(
    filler: ScriptedFiller, client: Client, asked: str, start: int, stop: int
) -> None:
    response = get(client, whole_blob(filler), asked)
    assert response.status == 206
    assert response.fields["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert response.body == PAYLOAD[start:stop]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
def test_unsatisfiable_range_is_416_with_the_size(
    filler: ScriptedFiller, client: Client, asked: str
) -> None:
    response = get(client, whole_blob(filler), asked)
    assert response.status == 416
    assert response.fields["content-range"] == f"bytes */{SIZE}"
    assert b"SIZE_INVALID" in response.body


@pytest.mark.parametrize(
    "asked", ["bytes=5-3", "bytes=a-b", "bytes=", "bytes=-", "bytes=1-2,,3-4", "bytes=--1"]
)
def test_malformed_range_is_400(filler: ScriptedFiller, client: Client, asked: str) -> None:
    response = get(client, whole_blob(filler), asked)
    assert response.status == 400
    assert b"SIZE_INVALID" in response.body


def test_range_of_another_unit_is_ignored(filler: ScriptedFiller, client: Client) -> None:
    response = get(client, whole_blob(filler), "pages=1-2")
    assert (response.status, len(response.body)) == (200, SIZE)


@pytest.mark.parametrize(("validator", "status"), [("{}", 206), ("W/{}", 200), ('"other"', 200)])
def test_if_range_holds_for_the_strong_entity_tag_only(
    filler: ScriptedFiller, client: Client, validator: str, status: int
) -> None:
    digest = whole_blob(filler)
    condition = validator.format(f'"{digest}"')
    client.ask(
        f"/v2/team/app/blobs/{digest}", "GET", "Range: bytes=10-19", f"If-Range: {condition}"
    )
    assert client.response().status == status


def test_several_ranges_come_as_parts(filler: ScriptedFiller, client: Client) -> None:
    response = get(client, whole_blob(filler), "bytes=0-9,1000-1999,-3")
    assert response.status == 206
    assert parts_of(response) == [
        (f"bytes 0-9/{SIZE}", PAYLOAD[:10]),
        (f"bytes 1000-1999/{SIZE}", PAYLOAD[1000:2000]),
        (f"bytes {SIZE - 3}-{SIZE - 1}/{SIZE}", PAYLOAD[-3:]),
    ]
    assert get(client, whole_blob(filler), "bytes=0-0").status == 206  # the framing was exact


def test_256_ranges_are_answered_and_257_are_400(filler: ScriptedFiller, client: Client) -> None:
    digest = whole_blob(filler)
    ranges = [f"{number * 1000}-{number * 1000 + 1}" for number in range(257)]
    response = get(client, digest, "bytes=" + ",".join(ranges[:256]))
    assert [body for _, body in parts_of(response)] == [
        PAYLOAD[number * 1000 : number * 1000 + 2] for number in range(256)
    ]
    assert get(client, digest, "bytes=" + ",".join(ranges)).status == 400


def test_ranges_that_are_more_than_the_blob_get_the_blob(
    filler: ScriptedFiller, client: Client
) -> None:
    response = get(client, whole_blob(filler), f"bytes=0-,0-{SIZE}")
    assert (response.status, response.body == PAYLOAD) == (200, True)


def test_blob_over_stripes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    with (
        ScriptedFiller(tmp_path / "two", stripes=2, extent_size=MIB) as filler,
        Serving(filler, {upstream.host: keys_of(upstream)}) as server,
        server.client() as client,
    ):
        digest = whole_blob(filler)
        assert get(client, digest).body == PAYLOAD
        middle = get(client, digest, f"bytes={MIB - 5}-{2 * MIB + 5}")
        assert middle.body == PAYLOAD[MIB - 5 : 2 * MIB + 6]


def test_empty_blob(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(b"")
    response = get(client, digest)
    assert (response.status, response.body) == (200, b"")
    assert get(client, digest, "bytes=0-").status == 416


def test_empty_answer_for_another_digest_is_refused(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(b"", digest="sha256:" + "5" * 64)
    assert get(client, digest).status == 502


def test_head_tells_the_size_and_fetches_nothing(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, method="HEAD")
    response = client.head()
    assert response.status == 200
    assert response.fields["content-length"] == str(SIZE)
    assert response.fields["x-headstart-cache"] == "miss"
    assert "first" not in filler.messages("open")[0]
    assert filler.messages("want") == []


@pytest.mark.parametrize(("here", "word"), [(0, "miss"), (256 * KIB, "partial"), (SIZE, "hit")])
def test_head_tells_what_is_here(
    filler: ScriptedFiller, client: Client, here: int, word: str
) -> None:
    digest = filler.add_blob(PAYLOAD)
    filler.bring(digest, here)
    ask(client, digest, method="HEAD")
    assert client.head().fields["x-headstart-cache"] == word


def test_head_ignores_a_range(filler: ScriptedFiller, client: Client) -> None:
    ask(client, whole_blob(filler), "bytes=0-1", "HEAD")
    assert client.head().fields["content-length"] == str(SIZE)
