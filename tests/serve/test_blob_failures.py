"""What clients get of a blob when something fails: a status, or a reset, never a short end."""

import pytest

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.geometry import UNIT_SIZE
from proxy.serve import arrivals, blob_answers
from tests.serve.running_server import MIB, Client, descriptors_return, wait_until
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import (
    KIB,
    PAYLOAD,
    SIZE,
    WITHHELD,
    Serving,
    ask,
    await_wants,
    get,
    read_until_cut,
    whole_blob,
)


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        ("missing", 404, "BLOB_UNKNOWN"),
        ("denied", 404, "DENIED"),
        ("deadline", 503, "UNAVAILABLE"),
        ("upstream", 503, "UNAVAILABLE"),
        ("refused", 502, "UNKNOWN"),
        ("protocol", 502, "UNKNOWN"),
        ("digest", 502, "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_failure_before_the_first_byte_has_a_status(
    filler: ScriptedFiller, client: Client, code: str, status: int, name: str, method: str
) -> None:
    digest = filler.add_blob(PAYLOAD)
    filler.refuse(digest, FillFailed(code, "the reason", retry_after=7.0))
    ask(client, digest, method=method)
    response = client.response(body=method == "GET")
    assert response.status == status
    assert "www-authenticate" not in response.fields
    assert response.fields["retry-after"] == "7"
    if method == "GET":
        assert f'"{name}"'.encode() in response.body
        assert b"the reason" in response.body


def test_failure_of_the_want_before_the_first_byte_has_a_status(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.fail(digest, FillFailed("deadline", "too slow", key="fetch.deadlines.stall", value="2s"))
    response = client.response()
    assert response.status == 503
    assert b"fetch.deadlines.stall" in response.body


@pytest.mark.parametrize("asked", [None, "bytes=0-", f"bytes=0-{SIZE - 1}"])
def test_failure_in_the_middle_resets_the_connection(
    filler: ScriptedFiller, client: Client, asked: str | None
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, asked)
    await_wants(filler)
    filler.bring(digest, MIB)
    client.head()
    assert client.exactly(MIB) == PAYLOAD[:MIB]
    filler.fail(digest, FillFailed("upstream", "it went away"))
    with pytest.raises(ConnectionResetError):
        client.socket.recv(1)


def test_f10_wrong_digest_never_lets_the_client_finish(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest)
    client.head()
    assert client.exactly(SIZE - WITHHELD) == PAYLOAD[:-WITHHELD]
    filler.tell(digest, "refused", FillFailed("digest", "the bytes are others"))
    assert read_until_cut(client) == b""


def test_refused_handle_is_opened_anew(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.tell(digest, "refused", FillFailed("digest", "the bytes are others"))
    assert client.response().status == 502
    filler.brings = True
    assert get(client, digest).body == PAYLOAD
    assert len(filler.messages("open")) == 2


def test_evicted_blob_is_opened_anew(filler: ScriptedFiller, client: Client) -> None:
    digest = whole_blob(filler)
    get(client, digest, "bytes=0-0")
    filler.tell(digest, "evicted")
    wait_until(
        lambda: get(client, digest, "bytes=0-0").status == 206 and len(filler.messages("open")) == 2
    )


def test_file_that_was_cut_behind_our_back_resets_and_is_opened_anew(
    filler: ScriptedFiller, client: Client, server: Serving
) -> None:
    digest = whole_blob(filler)
    path = filler.layout.blob_paths(Digest.parse(digest), 1)[0]
    with path.open("r+b") as file:
        file.truncate(MIB)
    ask(client, digest)
    assert client.head().status == 200
    assert len(read_until_cut(client)) < SIZE
    with server.client() as again:
        get(again, digest, "bytes=0-0")
    assert len(filler.messages("open")) == 2


def test_what_lies_before_an_open_ended_range_may_fail_too(
    filler: ScriptedFiller, client: Client
) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest, f"bytes={SIZE - 1000}-")
    await_wants(filler, 2)
    filler.bring(digest, start=SIZE // UNIT_SIZE * UNIT_SIZE)
    filler.fail(digest, FillFailed("upstream", "it went away"))
    assert client.response().status == 503


# --- the filler and the client come and go ---


def test_pull_goes_on_when_the_filler_restarts(filler: ScriptedFiller, client: Client) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest, MIB)
    client.head()
    assert client.exactly(MIB) == PAYLOAD[:MIB]
    filler.stop()
    filler.start()
    await_wants(filler, 2)
    filler.bring(digest)
    filler.verify(digest)
    assert client.exactly(SIZE - MIB) == PAYLOAD[MIB:]


def test_hits_need_no_filler(filler: ScriptedFiller, client: Client) -> None:
    digest = whole_blob(filler)
    get(client, digest, "bytes=0-0")
    filler.stop()
    assert get(client, digest).body == PAYLOAD


def test_filler_that_stays_away_is_503(
    filler: ScriptedFiller,
    server: Serving,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blob_answers, "OPEN_SECONDS", 0.3)
    wait_until(lambda: server.services.filler.connected)
    filler.stop()
    response = get(client, "sha256:" + "1" * 64)
    assert response.status == 503
    assert b"UNAVAILABLE" in response.body


def test_filler_that_stays_away_ends_a_pull_by_a_reset(
    filler: ScriptedFiller, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(arrivals, "ABSENCE_SECONDS", 0.2)
    digest = filler.add_blob(PAYLOAD)
    ask(client, digest)
    await_wants(filler)
    filler.bring(digest, MIB)
    client.head()
    assert client.exactly(MIB) == PAYLOAD[:MIB]
    filler.stop()
    assert read_until_cut(client) == b""


def test_f40_want_is_cancelled_when_the_client_leaves(
    filler: ScriptedFiller, server: Serving
) -> None:
    digest = filler.add_blob(PAYLOAD)
    with server.client() as client:
        ask(client, digest, "bytes=0-")
        await_wants(filler)
        filler.bring(digest, 256 * KIB)
        client.head()
        assert client.exactly(256 * KIB) == PAYLOAD[: 256 * KIB]
    wait_until(lambda: filler.open_wants() == 0)
    wait_until(lambda: server.services.blobs.open_handles == 0)


def test_idle_handles_and_descriptors_return(filler: ScriptedFiller, server: Serving) -> None:
    digests = [whole_blob(filler, PAYLOAD[: 1000 + number]) for number in range(20)]
    with server.client() as client:
        get(client, digests[0])
    wait_until(lambda: server.services.blobs.open_handles == 0)
    with descriptors_return():
        with server.client() as client:
            for digest in digests:
                assert get(client, digest).status == 200
            assert server.services.blobs.open_handles == 20
        wait_until(lambda: server.services.blobs.open_handles == 0)
