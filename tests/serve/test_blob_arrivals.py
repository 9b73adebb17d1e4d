"""Answers whose bytes are still arriving, with a scripted filler behind."""

from pathlib import Path

import pytest

from headstart.store.errors import FillFailed
from proxy.serve import blob_answers
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import MIB, Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import (
    PAYLOAD,
    SIZE,
    WITHHELD,
    Serving,
    ask,
    await_wants,
    get,
    keys_of,
    parts_of,
)


def test_bytes_leave_as_they_arrive_and_the_end_when_verified(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest, MIB)
    response = client.head()
    assert (response.status, response.fields["content-length"]) == (200, str(SIZE))
    assert response.fields["x-headstart-cache"] == "miss"
    assert client.exactly(MIB) == PAYLOAD[:MIB]
    filler.bring(digest)
    assert client.exactly(SIZE - WITHHELD - MIB) == PAYLOAD[MIB:-WITHHELD]
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(10)
    filler.verify(digest)
    rest = b""
    while len(rest) < WITHHELD:
        rest += client.socket.recv(WITHHELD)
    assert rest == PAYLOAD[-WITHHELD:]


def test_open_ended_range_waits_for_the_digest_and_fetches_what_lies_before(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, f"bytes={MIB}-")
    await_wants(filler, 2)
    last, first = filler.messages("want")
    assert (last["offset"], last["length"], last["bulk"]) == (MIB, SIZE - MIB, True)
    assert (first["offset"], first["length"]) == (0, MIB)
    assert filler.messages("open")[0]["first"] == [MIB, None]
    filler.bring(digest, start=MIB)
    assert client.head().status == 206
    assert client.exactly(SIZE - MIB - WITHHELD) == PAYLOAD[MIB:-WITHHELD]
    filler.bring(digest, MIB)
    filler.verify(digest)
    assert client.exactly(WITHHELD) == PAYLOAD[-WITHHELD:]


@pytest.mark.parametrize("asked", ["bytes=0-99999", f"bytes=-{SIZE}"])
def test_closed_and_suffix_ranges_go_out_unverified_and_say_so(
    filler: ScriptedFiller, client: Client, asked: str
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, asked)
    await_wants(filler)
    filler.bring(digest)
    response = client.response()
    assert response.fields["x-headstart-verified"] == "false"
    assert response.body == PAYLOAD[: len(response.body)]


@pytest.mark.parametrize(
    ("asked", "bulk"),
    [("bytes=0-65535", False), (f"bytes=0-{MIB - 1}", True), ("bytes=-100", False)],
)
def test_only_long_ranges_are_bulk(
    tmp_path: Path, upstream: ScriptedUpstream, asked: str, bulk: bool
) -> None:
    with (
        ScriptedFiller(tmp_path / "bulk") as filler,
        Serving(
            filler,
            {upstream.host: keys_of(upstream)},
            fetch={"request_size": "1MiB"},
        ) as server,
        server.client() as client,
    ):
        digest = filler.add_blob(PAYLOAD)
        filler.brings = True
        assert get(client, digest, asked).status == 206
        assert [want["bulk"] for want in filler.messages("want")] == [bulk]


def test_parts_are_wanted_all_at_once(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, f"bytes=0-9,{MIB}-{MIB + 9},{2 * MIB}-{2 * MIB + 9}")
    await_wants(filler, 3)
    filler.bring(digest)
    assert [body for _, body in parts_of(client.response())] == [
        PAYLOAD[start : start + 10] for start in (0, MIB, 2 * MIB)
    ]


def test_small_blob_waits_for_its_digest_before_the_head(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD[:1000])
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest)
    filler.fail(digest, FillFailed("digest", "the bytes are others"))
    assert client.response().status == 502


def test_head_goes_out_alone_when_the_first_byte_takes_long(
    filler: ScriptedFiller, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_answers, "HEAD_SECONDS", 0.2)
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    assert client.head().status == 200
    filler.bring(digest)
    filler.verify(digest)
    assert client.exactly(SIZE) == PAYLOAD


def test_what_an_open_itself_has_brought_was_not_in_the_cache(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    filler.hurries = filler.brings = True
    words = [get(client, digest).fields["x-headstart-cache"] for _ in range(2)]
    assert words == ["miss", "hit"]


def test_partly_cached_blob(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(PAYLOAD)
    filler.bring(digest, MIB)
    filler.brings = True
    response = get(client, digest)
    assert response.fields["x-headstart-cache"] == "partial"
    assert response.body == PAYLOAD
