"""What a client may send, and how long it may take over it."""

import time
from collections.abc import Iterator

import pytest

from proxy.serve.limits import Limits
from tests.serve.running_server import (
    MIB,
    Client,
    FileApplication,
    RunningServer,
    sparse_file,
    wait_until,
)

LIMITS = Limits(header_seconds=0.5, linger_seconds=0.5)


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileApplication]:
    path = sparse_file(tmp_path_factory.mktemp("files") / "blob", 16 * MIB)
    application = FileApplication(path)
    yield application
    application.close()


@pytest.fixture(scope="module")
def running(application: FileApplication) -> Iterator[RunningServer]:
    with RunningServer(application, LIMITS) as server:
        yield server


@pytest.fixture
def server(running: RunningServer, application: FileApplication) -> Iterator[RunningServer]:
    application.forget()
    yield running
    wait_until(lambda: running.open_connections == 0)


def assert_refused(client: Client, status: int) -> None:
    response = client.response()
    assert response.status == status
    assert response.fields["connection"] == "close"
    assert client.ended()


def test_a_request_at_the_limits_is_answered(server: RunningServer) -> None:
    target = "/file?count=1".ljust(LIMITS.url_bytes, "&")
    width = LIMITS.header_bytes // LIMITS.header_count - 40
    fields = [f"X-{n:03}: {'v' * width}" for n in range(LIMITS.header_count - 1)]
    with server.client() as client:
        client.ask(target, "GET", *fields)
        assert client.response().status == 206


def test_a_longer_url_is_414(server: RunningServer) -> None:
    with server.client() as client:
        client.ask("/file?count=1".ljust(LIMITS.url_bytes + 1, "&"))
        assert_refused(client, 414)


@pytest.mark.parametrize(
    "fields",
    [
        [f"X-{n}: v" for n in range(LIMITS.header_count)],
        [f"X-Large: {'v' * LIMITS.header_bytes}"],
    ],
    ids=["too many", "too large"],
)
def test_more_header_fields_are_431(server: RunningServer, fields: list[str]) -> None:
    with server.client() as client:
        client.ask("/file?count=1", "GET", *fields)
        assert_refused(client, 431)


def test_a_header_field_without_end_is_431(server: RunningServer) -> None:
    with server.client() as client:
        client.send(b"GET / HTTP/1.1\r\nX-Endless: ")
        for _ in range(8):
            client.send(b"v" * 8192)
            time.sleep(0.01)
        assert_refused(client, 431)


def test_trailers_without_end_are_refused(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client() as client:
        client.ask("/body", "POST", "Transfer-Encoding: chunked")
        client.send(b"3\r\nabc\r\n0\r\nX-Trailer: ")
        for _ in range(10):
            client.send(b"v" * 8192)
            time.sleep(0.01)
        assert_refused(client, 431)
        wait_until(lambda: application.running == 0)


@pytest.mark.parametrize("drip", [b"", b"v"], ids=["stopped", "dripping"])
def test_a_head_that_takes_too_long_is_408(server: RunningServer, drip: bytes) -> None:
    with server.client() as client:
        assert client.get("/file?count=1").status == 206
        began = time.monotonic()
        client.send(b"GET / HTTP/1.1\r\nX-Slow: v")
        while time.monotonic() - began < LIMITS.header_seconds - 0.1:
            client.send(drip)
            time.sleep(0.05)
        assert_refused(client, 408)
        assert 0.4 < time.monotonic() - began < 2


@pytest.mark.parametrize("drip", [b"", b"\r\n"], ids=["silent", "empty lines"])
def test_a_connection_without_a_request_is_closed_without_an_answer(
    server: RunningServer, drip: bytes
) -> None:
    with server.client() as client:
        for _ in range(3):
            client.send(drip)
            time.sleep(0.05)
        assert client.ended()


def test_a_long_response_is_no_slow_head(server: RunningServer) -> None:
    with server.client(65_536) as client:
        client.ask("/file")
        for _ in range(10):
            client.exactly(10_000)
            time.sleep(0.1)
        assert server.open_connections == 1


def test_nonsense_behind_a_request_is_refused_after_its_response(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client(65_536) as client:
        client.ask("/file")
        client.send(b"!!! nonsense\r\n\r\n")
        time.sleep(0.1)
        response = client.response()
        assert len(response.body) == application.size
        assert b"HTTP/1.1" not in response.body
        assert_refused(client, 400)


def test_a_broken_body_is_400_and_its_application_is_told(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client() as client:
        client.ask("/body", "POST", "Transfer-Encoding: chunked")
        wait_until(lambda: application.running == 1)
        client.send(b"nonsense\r\n")
        assert_refused(client, 400)
    wait_until(lambda: application.running == 0)


def test_a_broken_body_of_a_waiting_request_is_refused_in_its_turn(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client(65_536) as client:
        client.ask("/file")
        client.send(b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        time.sleep(0.1)
        assert len(client.response().body) == application.size
        assert_refused(client, 400)
    assert application.served == ["/file?"]


def test_requests_beyond_the_pipelines_limit_are_refused(server: RunningServer) -> None:
    wanted = LIMITS.pipelined_requests + 1
    request = b"GET /file?count=2 HTTP/1.1\r\n\r\n"
    with server.client() as client:
        client.send(request * (wanted + 50))
        for _ in range(wanted):
            assert client.response().status == 206
        assert_refused(client, 503)


def test_bodies_and_expectations_pass(server: RunningServer) -> None:
    with server.client() as client:
        client.ask("/body", "POST", "Content-Length: 200000", "Expect: 100-continue")
        assert client.head().status == 100
        client.send(b"x" * 200_000)
        assert client.response().body == b"x" * 200_000
        client.ask("/body", "POST", "Transfer-Encoding: chunked")
        client.send(b"1\r\ny\r\n" * 20_000 + b"0\r\n\r\n")
        assert client.response().body == b"y" * 20_000


def test_connections_beyond_uvicorns_limit_get_503(application: FileApplication) -> None:
    with RunningServer(application, limit_concurrency=2) as server, server.client() as first:
        assert first.get("/file?count=1").status == 206
        with server.client() as second:
            assert second.get("/file?count=1").status == 503
