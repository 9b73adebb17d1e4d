"""The double itself: correct without rules, wrong exactly as told, and everything recorded."""

import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.black_hole import black_hole, refused_port
from tests.doubles.certificates import Authority
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream, TokenService, captive_page
from tests.parts.registry_api import RegistryApi

PAYLOAD = bytes(range(256)) * 4096


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


class Client:
    """One keep-alive connection."""

    def __init__(self, upstream: ScriptedUpstream, context: ssl.SSLContext | None = None) -> None:
        self._connection: http.client.HTTPConnection
        if context is not None:
            self._connection = http.client.HTTPSConnection(
                "localhost", upstream.port, timeout=5, context=context
            )
        else:
            self._connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=5)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(
        self, path: str, method: str = "GET", **fields: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, path, headers=fields)
        answer = self._connection.getresponse()
        return answer, answer.read()


def blob_path(upstream: ScriptedUpstream) -> str:
    return f"/v2/team/app/blobs/{upstream.add_blob('team/app', PAYLOAD)}"


def test_ranges_are_exact_and_recorded_on_one_connection(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    with Client(upstream) as client:
        whole, body = client.ask(path)
        assert (whole.status, hashlib.sha256(body).hexdigest()) == (200, path[-64:])
        assert whole.headers["Docker-Content-Digest"] == "sha256:" + path[-64:]
        head, nothing = client.ask(path, "HEAD")
        assert (head.headers["Content-Length"], nothing) == (str(len(PAYLOAD)), b"")
        part, body = client.ask(path, Range="bytes=10-19")
        assert (part.status, body) == (206, PAYLOAD[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(PAYLOAD)}"
        assert client.ask(path, Range="bytes=-5")[1] == PAYLOAD[-5:]
        assert client.ask(path, Range=f"bytes={len(PAYLOAD) - 3}-")[1] == PAYLOAD[-3:]
        beyond, _ = client.ask(path, Range=f"bytes={len(PAYLOAD)}-")
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(PAYLOAD)}")
    assert upstream.connections == 1
    recorded = upstream.blob_requests()
    assert [request.range for request in recorded[:3]] == [None, (10, 19), (None, 5)]
    assert recorded[0].bytes_sent == len(PAYLOAD)
    assert recorded[0].first_byte is not None
    assert recorded[0].started <= recorded[0].first_byte <= (recorded[0].finished or 0)


def test_manifests_tags_and_referrers_are_served(upstream: ScriptedUpstream) -> None:
    digest = upstream.add_manifest("team/app", b"{}", tags=["latest", "1.0"])
    with Client(upstream) as client:
        by_tag, body = client.ask("/v2/team/app/manifests/1.0")
        assert (by_tag.headers["Docker-Content-Digest"], body) == (digest, b"{}")
        assert client.ask("/v2/team/app/tags/list")[1] == (
            b'{"name": "team/app", "tags": ["1.0", "latest"]}'
        )
        assert client.ask(f"/v2/team/app/referrers/{digest}")[0].status == 200
        assert client.ask("/v2/team/app/manifests/none")[0].status == 404


def test_a_rule_applies_after_skipped_requests_and_only_so_often(
    upstream: ScriptedUpstream,
) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(method="GET", path="/blobs/", skip=1, times=2, status=503))
    with Client(upstream) as client:
        assert [client.ask(path)[0].status for _ in range(4)] == [200, 503, 503, 200]


@pytest.mark.parametrize(
    ("rule", "status", "fields"),
    [
        (Rule(ignore_range=True), 200, {"Content-Range": None}),
        (Rule(range_shift=1), 206, {"Content-Range": f"bytes 1-100/{len(PAYLOAD)}"}),
        (Rule(range_total=7), 206, {"Content-Range": "bytes 0-99/7"}),
        (Rule(without_content_range=True), 206, {"Content-Range": None}),
        (Rule(chunked=True), 206, {"Transfer-Encoding": "chunked", "Content-Length": None}),
        (Rule(gzip=True), 206, {"Content-Encoding": "gzip"}),
        (Rule(etag='"other"'), 206, {"ETag": '"other"'}),
        (captive_page(), 200, {"Content-Type": "text/html; charset=utf-8"}),
        (Rule(status=429, headers={"Retry-After": "7"}), 429, {"Retry-After": "7"}),
        (Rule(close_delimited=True), 206, {"Content-Length": None, "Connection": "close"}),
    ],
    ids=lambda case: None,
)
def test_rules_change_the_head_of_an_answer(
    upstream: ScriptedUpstream, rule: Rule, status: int, fields: dict[str, str | None]
) -> None:
    path = blob_path(upstream)
    upstream.add_rule(rule)
    with Client(upstream) as client:
        answer, _ = client.ask(path, Range="bytes=0-99")
    assert answer.status == status
    assert {name: answer.headers[name] for name in fields} == fields


def test_a_flip_changes_one_bit_at_its_offset_in_the_blob(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(flip=1000))
    with Client(upstream) as client:
        assert client.ask(path, Range="bytes=0-999")[1] == PAYLOAD[:1000]
        wrong = client.ask(path, Range="bytes=990-1009")[1]
    assert wrong[10] == PAYLOAD[1000] ^ 1
    assert wrong[:10] + wrong[11:] == PAYLOAD[990:1000] + PAYLOAD[1001:1010]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_is_cut_after_the_bytes_that_the_rule_names(
    upstream: ScriptedUpstream, reset: bool
) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(close_after=5000, reset=reset))
    with Client(upstream) as client, pytest.raises((http.client.IncompleteRead, OSError)):
        client.ask(path)
    assert upstream.blob_bytes_sent() == 5000


def test_extra_bytes_follow_the_declared_ones(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(extra=9))
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nRange: bytes=0-9\r\n\r\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Length: 10\r\n" in head
    assert body == PAYLOAD[:10] + b"\0" * 9


def test_a_stall_ends_when_the_client_leaves(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(stall_after=100))
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 100:
            received += connection.recv(65536)
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    deadline = time.monotonic() + 5
    while upstream.requests[0].finished is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert upstream.requests[0].client_left
    assert upstream.requests[0].bytes_sent == 100


def test_rates_and_delays_take_their_time(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(rate=200_000, delay=0.1))
    started = time.monotonic()
    with Client(upstream) as client:
        assert client.ask(path, Range="bytes=0-39999")[1] == PAYLOAD[:40000]
    assert 0.25 <= time.monotonic() - started < 1.0
    first_byte = upstream.requests[0].first_byte
    assert first_byte is not None
    assert first_byte - upstream.requests[0].started >= 0.1


def test_stopping_ends_connections_that_wait(upstream: ScriptedUpstream) -> None:
    path = blob_path(upstream)
    upstream.add_rule(Rule(delay=float("inf")))
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        deadline = time.monotonic() + 5
        while not upstream.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        upstream.stop()
        assert connection.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if "_serve" in thread.name]


def test_tokens_are_asked_for_given_out_and_expire(upstream: ScriptedUpstream) -> None:
    service = upstream.access = TokenService(uses=1)
    path = blob_path(upstream)
    with Client(upstream) as client:
        refused, _ = client.ask(path)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == (
            f'Bearer realm="{upstream.url}/token",service="scripted",'
            'scope="repository:team/app:pull"'
        )
        client.ask("/token?service=scripted&scope=repository:team/app:pull")
        authorization = f"Bearer {service.issued[0].text}"
        assert client.ask(path, Authorization=authorization)[0].status == 200
        assert client.ask(path, Authorization=authorization)[0].status == 401


def test_signed_urls_lead_to_the_storage_and_expire(upstream: ScriptedUpstream) -> None:
    with ScriptedUpstream() as storage:
        upstream.redirect_blobs(storage, uses=1, expired_status=400)
        path = blob_path(upstream)
        with Client(upstream) as client, Client(storage) as other:
            redirect, _ = client.ask(path)
            assert redirect.status == 307
            target = redirect.headers["Location"].removeprefix(storage.url)
            assert other.ask(target, "HEAD")[0].status == 403
            assert other.ask(target, Authorization="Bearer x")[0].status == 400
            assert other.ask(target, Range="bytes=0-9")[1] == PAYLOAD[:10]
            assert other.ask(target)[0].status == 400


def test_blobs_and_manifests_are_taken_as_a_registry_takes_them(
    upstream: ScriptedUpstream,
) -> None:
    api = RegistryApi(upstream.url)
    digest = api.push_blob("team/app", PAYLOAD)
    assert upstream.blob("team/app", digest) == PAYLOAD
    manifest = api.push_manifest("team/app", "latest", b"{}", "application/json")
    assert upstream.manifest("team/app", manifest) == (b"{}", "application/json")
    assert upstream.manifest("team/app", "latest") == (b"{}", "application/json")
    mount = f"/v2/other/app/blobs/uploads/?mount={digest}&from=team/app"
    assert api.call("POST", mount).status == 201
    assert upstream.blob("other/app", digest) == PAYLOAD
    assert upstream.uploads.under_way() == 0


def test_an_upload_that_is_cut_keeps_what_came(upstream: ScriptedUpstream) -> None:
    api = RegistryApi(upstream.url)
    location = api.call("POST", "/v2/team/app/blobs/uploads/").headers["location"]
    upstream.add_rule(Rule(method="PATCH", receive_only=10_000))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        api.call("PATCH", location, body=PAYLOAD)
    asked = api.call("GET", location)
    assert (asked.status, asked.headers["range"]) == (204, "0-9999")
    stale = location.replace("state=0", "state=7")
    assert api.call("GET", stale).status == 404


def test_tls_serves_the_name_on_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    with ScriptedUpstream(certificate=authority.issue("localhost")) as upstream:
        path = blob_path(upstream)
        with Client(upstream, context) as client:
            assert client.ask(path)[1] == PAYLOAD
        assert upstream.requests[0].server_name == "localhost"
    with ScriptedUpstream(certificate=authority.issue("localhost", expired=True)) as upstream:
        with Client(upstream, context) as client, pytest.raises(ssl.SSLCertVerificationError):
            client.ask("/v2/")
        assert upstream.requests == []


def test_a_black_hole_answers_no_connection_attempt() -> None:
    with black_hole() as port, socket.socket() as connection:
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.connect(("127.0.0.1", port))


def test_a_refused_port_refuses() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", refused_port()), timeout=5)
