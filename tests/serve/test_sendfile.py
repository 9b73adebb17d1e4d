"""Bytes of files over real sockets from a real uvicorn."""

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.responses import FileResponse

from proxy.serve import outlet
from proxy.serve.limits import Limits
from proxy.serve.page_cache import DISK_THREADS, disk_threads
from proxy.serve.sendfile import ClientDisconnected, FileTooShort
from tests.doubles.certificates import Authority
from tests.serve.running_server import (
    MIB,
    FileApplication,
    RunningServer,
    descriptors_return,
    digest_of,
    resident_memory,
    sparse_file,
    wait_until,
)

SIZE = 96 * MIB + 12_345


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_file(tmp_path_factory.mktemp("files") / "blob", SIZE)


@pytest.fixture(scope="module")
def whole(file: Path) -> str:
    return digest_of(file)


@pytest.fixture(scope="module")
def served(file: Path) -> Iterator[FileApplication]:
    application = FileApplication(file)
    yield application
    application.close()


@pytest.fixture
def application(served: FileApplication) -> FileApplication:
    wait_until(lambda: served.running == 0)
    served.forget()
    return served


@pytest.fixture(scope="module")
def plain_server(served: FileApplication) -> Iterator[RunningServer]:
    with RunningServer(served) as server:
        yield server


@pytest.fixture(scope="module")
def tls_server(served: FileApplication, authority: Authority) -> Iterator[RunningServer]:
    with RunningServer(served, certificate=authority.issue()) as server:
        yield server


@pytest.fixture
def server(plain_server: RunningServer, application: FileApplication) -> Iterator[RunningServer]:
    yield plain_server
    wait_until(lambda: plain_server.open_connections == 0)


@pytest.fixture
def encrypted(tls_server: RunningServer, application: FileApplication) -> Iterator[RunningServer]:
    yield tls_server
    wait_until(lambda: tls_server.open_connections == 0)


@pytest.fixture(autouse=True)
def no_errors_logged(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Nothing is logged as an error, except by tests that take ``caplog`` themselves."""
    yield
    if "caplog" in request.node.function.__code__.co_varnames:
        return
    loud = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING]
    assert loud == []


@pytest.fixture(scope="module", autouse=True)
def threads_are_there() -> None:
    """Disk threads have no part in what a test leaves open."""
    barrier = threading.Barrier(DISK_THREADS)
    for job in [disk_threads().submit(barrier.wait) for _ in range(DISK_THREADS)]:
        job.result()


def drop_from_page_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


# Bytes


def test_a_whole_file_arrives_from_disk_and_from_memory(
    server: RunningServer, file: Path, whole: str
) -> None:
    drop_from_page_cache(file)
    with server.client() as client:
        for _ in range(2):
            client.ask("/file")
            assert client.digest() == whole


def test_ranges_are_the_bytes_of_the_file(server: RunningServer, file: Path) -> None:
    chance = random.Random(7)
    with server.client() as client, file.open("rb") as reader:
        for _ in range(60):
            offset = chance.randrange(SIZE)
            count = min(chance.choice([1, 4095, 65_536, 3 * MIB + 1]), SIZE - offset)
            reader.seek(offset)
            response = client.get(f"/file?offset={offset}&count={count}")
            assert response.status == 206
            assert response.body == reader.read(count)


@pytest.mark.parametrize("step", [1 * MIB, 7 * MIB + 3])
def test_a_file_sent_in_steps_arrives(server: RunningServer, whole: str, step: int) -> None:
    with server.client() as client:
        client.ask(f"/steps?step={step}")
        assert client.digest() == whole


@pytest.mark.parametrize("text", [10, 40_000, 12 * MIB])
@pytest.mark.parametrize("chunked", [0, 1])
def test_files_and_bodies_mix_in_their_order(
    server: RunningServer, file: Path, text: int, chunked: int
) -> None:
    content = file.read_bytes()
    expected = b"a" * text + content[5 : 5 + MIB] + b"b" * text + content[7 * MIB : 7 * MIB + 300]
    with server.client() as client:
        client.ask(f"/mixed?text={text}&chunked={chunked}")
        time.sleep(0.05 if text > MIB else 0)  # the transport's buffer fills
        response = client.response()
        assert ("transfer-encoding" in response.fields) == bool(chunked)
        assert hashlib.sha256(response.body).digest() == hashlib.sha256(expected).digest()
        assert client.get("/file?count=3").body == content[:3]


def test_without_offset_and_count_the_files_position_counts(
    server: RunningServer, file: Path
) -> None:
    with server.client() as client:
        assert client.get("/position").body == file.read_bytes()[-3000:]


def test_pathsend_sends_the_file(server: RunningServer, whole: str) -> None:
    with server.client() as client:
        client.ask("/path")
        assert client.digest() == whole


def test_starlettes_file_response_uses_pathsend(file: Path, whole: str) -> None:
    with RunningServer(FileResponse(file)) as server, server.client() as client:
        client.ask("/")
        assert client.digest() == whole


def test_head_has_the_length_and_no_body(server: RunningServer) -> None:
    with server.client() as client:
        for target in ("/file", "/path", "/mixed?text=5"):
            client.ask(target, "HEAD")
            assert int(client.response(body=False).fields["content-length"]) > MIB
        assert client.get("/file?count=1").status == 206


def test_a_head_is_sent_before_its_body_is_there(
    server: RunningServer, application: FileApplication, file: Path
) -> None:
    with server.client() as client:
        client.ask("/later")
        head = client.head()
        application.released.set()
        assert head.status == 200
        assert client.exactly(1000) == file.read_bytes()[:1000]


def test_a_hundred_requests_on_one_connection(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client() as client:
        for offset in range(100):
            assert len(client.get(f"/file?offset={offset}&count=70000").body) == 70_000
        assert server.open_connections == 1
    wait_until(lambda: len(application.served) == 100)


def test_pipelined_requests_are_answered_in_turn(
    server: RunningServer, application: FileApplication, file: Path
) -> None:
    targets = [f"/file?offset={n * 9 * MIB}&count={8 * MIB + n}" for n in range(3)]
    request = "".join(f"GET {target} HTTP/1.1\r\nHost: mirror\r\n\r\n" for target in targets)
    content = file.read_bytes()
    with server.client() as client:
        client.send(request.encode())
        client.ask("/file?count=9")  # in a packet of its own: waits unread
        time.sleep(0.1)
        assert application.most_running == 1
        assert application.served == []
        for n in range(3):
            body = client.response().body
            assert body == content[n * 9 * MIB : n * 9 * MIB + 8 * MIB + n]
        assert client.response().body == content[:9]
    # A request's task may have its last step before it while the next one's has its first.
    assert application.most_running <= 2
    assert [target.split("&")[0] for target in application.served[:3]] == [
        target.split("&")[0] for target in targets
    ]


def test_a_request_after_connection_close_ends_the_connection(server: RunningServer) -> None:
    with server.client() as client:
        client.ask("/file?count=2000000", "GET", "Connection: close")
        response = client.response()
        assert response.fields["connection"] == "close"
        assert len(response.body) == 2_000_000
        assert client.ended()


def test_an_upgrade_is_answered_in_http_1_1_and_ends_the_connection(server: RunningServer) -> None:
    with server.client() as client:
        client.ask("/file?count=4", "GET", "Connection: Upgrade", "Upgrade: h2c")
        assert len(client.response().body) == 4
        assert client.ended()


# Errors of the application


@pytest.mark.parametrize(("target", "words"), [("surplus", "longer"), ("deficit", "shorter")])
def test_the_content_length_is_enforced(
    server: RunningServer, caplog: pytest.LogCaptureFixture, target: str, words: str
) -> None:
    with server.client() as client:
        client.ask(f"/{target}")
        with pytest.raises((EOFError, ConnectionError)):
            client.response()
    wait_until(lambda: any(r.exc_info for r in caplog.records))
    errors = [r.exc_info[1] for r in caplog.records if r.exc_info]
    assert f"Response content {words} than Content-Length" in [str(error) for error in errors]


def test_a_file_shorter_than_promised_resets_the_connection(
    server: RunningServer, application: FileApplication, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as client:
        client.ask("/beyond")
        with pytest.raises((EOFError, ConnectionError)):
            client.response()
    wait_until(lambda: application.running == 0)
    assert [type(error) for error in application.raised] == [FileTooShort]
    logged = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.exc_info for r in logged] == [None]
    assert f"ends at byte {SIZE}" in logged[0].getMessage()


def test_an_aborted_response_is_a_reset_and_no_error(server: RunningServer) -> None:
    with server.client() as client:
        client.ask("/abort")
        with pytest.raises((EOFError, ConnectionError)):
            client.response()
    wait_until(lambda: server.open_connections == 0)


# Slow and vanishing clients


def test_slow_readers_cost_nothing_and_hold_nobody(server: RunningServer, whole: str) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client(65_536)) for _ in range(48)]
        memory = resident_memory()
        for client in clients:
            client.ask("/file")
            client.exactly(100)
        time.sleep(0.2)
        cpu, began = server.cpu_seconds(), time.monotonic()
        while time.monotonic() - began < 1.0:
            for client in clients:
                client.exactly(1000)
            time.sleep(0.1)
        assert server.cpu_seconds() - cpu < 0.1
        assert resident_memory() - memory < 16 * MIB
        began = time.monotonic()
        fast = stack.enter_context(server.client())
        fast.ask("/file")
        assert fast.digest() == whole
        assert time.monotonic() - began < 5


def test_slow_readers_over_tls_cost_bounded_memory(
    encrypted: RunningServer, authority: Authority, whole: str
) -> None:
    with ExitStack() as stack:
        ca_file = authority.ca_file
        memory = resident_memory()
        for _ in range(8):
            client = stack.enter_context(encrypted.client(65_536, ca_file=ca_file))
            client.ask("/file")
            client.exactly(100)
        time.sleep(0.3)
        cpu = encrypted.cpu_seconds()
        time.sleep(0.3)
        assert encrypted.cpu_seconds() - cpu < 0.05
        assert resident_memory() - memory < 8 * 3 * MIB
        fast = stack.enter_context(encrypted.client(ca_file=ca_file))
        fast.ask("/file")
        assert fast.digest() == whole


@pytest.mark.parametrize("target", ["/file", "/steps?step=1048576", "/text?count=90000000"])
def test_a_client_that_leaves_raises_in_send_and_leaves_nothing_open(
    server: RunningServer, application: FileApplication, target: str
) -> None:
    with descriptors_return():
        for number in range(12):
            with server.client() as client:
                client.ask(target)
                client.exactly(1 + number * 100_000)
        wait_until(lambda: application.running == 0)
        wait_until(lambda: server.open_connections == 0)
    assert [type(error) for error in application.raised] == [ClientDisconnected] * 12
    cpu = server.cpu_seconds()
    time.sleep(0.3)
    assert server.cpu_seconds() - cpu < 0.03


def test_a_client_that_leaves_over_tls_leaves_nothing_open(
    encrypted: RunningServer, application: FileApplication, authority: Authority
) -> None:
    with descriptors_return():
        for _ in range(5):
            with encrypted.client(ca_file=authority.ca_file) as client:
                client.ask("/file")
                client.exactly(300_000)
        wait_until(lambda: application.running == 0)
        wait_until(lambda: encrypted.open_connections == 0)
    assert {type(error) for error in application.raised} == {ClientDisconnected}


def test_a_client_that_leaves_while_requests_wait_ends_the_one_that_runs(
    server: RunningServer, application: FileApplication
) -> None:
    with server.client() as client:
        client.ask("/disconnect")
        client.ask("/file")
        wait_until(lambda: application.running == 1)
    # Reading is paused: only the next write, or the end of the read ones, can tell.
    server.server.server_state.connections.copy().pop().transport.abort()
    wait_until(lambda: application.running == 0)


@pytest.mark.parametrize("target", ["/file", "/text?count=90000000"])
def test_a_client_that_takes_nothing_is_reset_and_a_slow_one_is_not(
    application: FileApplication, target: str
) -> None:
    with RunningServer(application, Limits(stall_seconds=0.8)) as server:
        with server.client(65_536) as stalled, server.client(65_536) as slow:
            stalled.ask(target)
            slow.ask(target)
            wait_until(lambda: application.running == 2)
            began = time.monotonic()
            while server.open_connections == 2 and time.monotonic() - began < 5:
                slow.exactly(20_000)
                time.sleep(0.05)
            assert 0.7 < time.monotonic() - began < 2
            for _ in range(30):
                slow.exactly(20_000)
                time.sleep(0.05)
            assert server.open_connections == 1
        wait_until(lambda: application.running == 0)
    assert [type(error) for error in application.raised] == [ClientDisconnected] * 2


def test_a_client_that_takes_nothing_over_tls_is_reset(
    application: FileApplication, authority: Authority
) -> None:
    limits = Limits(stall_seconds=0.6)
    certificate = authority.issue()
    with (
        RunningServer(application, limits, certificate) as server,
        server.client(65_536, ca_file=authority.ca_file) as client,
    ):
        client.ask("/file")
        wait_until(lambda: [type(error) for error in application.raised] == [ClientDisconnected])
        wait_until(lambda: server.open_connections == 0)


def test_a_closed_connection_with_unread_bytes_does_not_stay(
    application: FileApplication,
) -> None:
    limits = Limits(stall_seconds=0.6)
    with RunningServer(application, limits) as server, server.client(4096) as client:
        client.ask("/text?count=9000000", "GET", "Connection: close")
        wait_until(lambda: application.running == 1)
        wait_until(lambda: application.running == 0 and server.open_connections == 0)


# Disks


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is in the page cache, and reads wait until the event is set."""
    released = threading.Event()
    send, read = outlet._send_from_disk, outlet._read_from_disk

    def send_later(*arguments: int) -> int:
        released.wait()
        return send(*arguments)

    def read_later(*arguments: int) -> bytes:
        released.wait()
        return read(*arguments)

    monkeypatch.setattr(outlet, "resident_bytes", lambda *_: 0)
    monkeypatch.setattr(outlet, "_send_from_disk", send_later)
    monkeypatch.setattr(outlet, "_read_from_disk", read_later)
    yield released
    released.set()


def test_a_slow_disk_holds_only_its_readers(
    server: RunningServer, slow_disk: threading.Event, whole: str
) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(server.client()) for _ in range(DISK_THREADS + 3)]
        for reader in readers:
            reader.ask("/file?count=200000")
        reader = stack.enter_context(server.client())
        reader.ask("/file")
        time.sleep(0.1)
        began = time.monotonic()
        with server.client() as client:
            assert len(client.get("/text?count=5000").body) == 5000
        assert time.monotonic() - began < 0.5
        cpu = server.cpu_seconds()
        time.sleep(0.2)
        assert server.cpu_seconds() - cpu < 0.03
        slow_disk.set()
        for waiting in readers:
            assert len(waiting.response().body) == 200_000
        assert reader.digest() == whole


def test_bytes_from_a_slow_disk_arrive_over_tls(
    encrypted: RunningServer, authority: Authority, slow_disk: threading.Event, whole: str
) -> None:
    slow_disk.set()
    with encrypted.client(ca_file=authority.ca_file) as client:
        client.ask("/file")
        assert client.digest() == whole


def test_a_client_that_leaves_during_a_read_leaves_nothing_open(
    server: RunningServer, application: FileApplication, slow_disk: threading.Event
) -> None:
    with descriptors_return():
        with server.client() as client:
            client.ask("/file")
            wait_until(lambda: application.running == 1)
            time.sleep(0.05)
        wait_until(lambda: server.open_connections == 0)
        slow_disk.set()
        wait_until(lambda: application.running == 0)
    assert [type(error) for error in application.raised] == [ClientDisconnected]


# TLS


def test_whole_files_and_ranges_arrive_over_tls(
    encrypted: RunningServer, authority: Authority, file: Path, whole: str
) -> None:
    content = file.read_bytes()
    drop_from_page_cache(file)
    with encrypted.client(ca_file=authority.ca_file) as client:
        client.ask("/file")
        assert client.digest() == whole
        assert client.get("/file?offset=77&count=99999").body == content[77 : 77 + 99_999]
        client.ask("/mixed?text=3")
        assert client.response().body[:3] == b"aaa"
        client.ask("/file", "HEAD")
        assert int(client.response(body=False).fields["content-length"]) == SIZE
        assert client.get("/file?count=5").body == content[:5]


# The end


def test_responses_under_way_finish_when_the_server_ends(
    application: FileApplication, whole: str
) -> None:
    with descriptors_return(), RunningServer(application, timeout_graceful_shutdown=10) as server:
        with server.client(65_536) as client, server.client() as idle:
            assert idle.get("/file?count=1").status == 206
            client.ask("/file")
            wait_until(lambda: application.running == 1)
            server.server.should_exit = True
            assert idle.ended()
            assert client.digest() == whole
            assert client.ended()
        server.stop()


def test_responses_that_take_longer_are_cut_without_a_traceback(
    application: FileApplication, caplog: pytest.LogCaptureFixture
) -> None:
    server = RunningServer(application, timeout_graceful_shutdown=1)
    with descriptors_return(), server, server.client(65_536) as client:
        client.ask("/file")
        wait_until(lambda: application.running == 1)
        server.stop()
        with pytest.raises((EOFError, ConnectionError)):
            client.digest()
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []
