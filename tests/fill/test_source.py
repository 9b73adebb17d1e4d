"""Bytes over real connections: ranges, reuse, cuts, TLS, and addresses that are refused."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.geometry import MIB
from headstart.store.layout import Layout
from proxy.fill import plain_source as plain_source_module
from proxy.fill import source as source_module
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.plain_source import PlainSource
from proxy.fill.receiver import RangeReceiver
from proxy.fill.source import BlobRequest, CurlSource, Source
from tests.doubles.black_hole import black_hole, refused_port
from tests.doubles.certificates import Authority
from tests.doubles.connect_proxy import ConnectProxy
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream, captive_page
from tests.fill.fills import Upstreams
from tests.fill.writing import WritingAdmission, layout_in, reader_of
from tests.store.stored_objects import open_descriptors, pattern

SIZE = 9 * MIB + 321
PAYLOAD = pattern(0, SIZE)
REPOSITORY = "team/app"
CUT = Outcome(Ending.CUT, "no longer wanted")


@pytest.fixture
def fill(loop: asyncio.AbstractEventLoop) -> Fill:
    return Upstreams(loop).fill()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path)


@pytest.fixture
def admission(layout: Layout) -> Iterator[WritingAdmission]:
    made = WritingAdmission(layout, Digest.of(PAYLOAD), SIZE)
    yield made
    made.files.close()


@pytest.fixture(params=["libcurl", "socket"])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    """Each source; after it nothing is left open."""
    before = open_descriptors()
    curl = CurlSource()
    made: Source = curl if request.param == "libcurl" else PlainSource(curl)
    yield made
    made.close()
    assert open_descriptors() <= before


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def request_for(upstream: ScriptedUpstream, start: int, stop: int | None) -> BlobRequest:
    digest = upstream.add_blob(REPOSITORY, PAYLOAD)
    return BlobRequest(
        url=f"{upstream.url}/v2/{REPOSITORY}/blobs/{digest}",
        authorization=None,
        start=start,
        stop=stop,
        connect_seconds=5.0,
        ca_file=None,
        allow_private=True,
        bytes_per_second=None,
    )


def fetch_of(fill: Fill, start: int = 0, stop: int = SIZE) -> Fetch:
    return Fetch(fill, start, stop, bulk=True, priority=0, order=1)


class Run:
    """Performs requests with receivers that write to the blob."""

    def __init__(self, source: Source, fill: Fill, admission: WritingAdmission) -> None:
        self._source = source
        self._fill = fill
        self._admission = admission

    def __call__(self, request: BlobRequest, fetch: Fetch | None = None) -> Outcome:
        fetch = fetch or fetch_of(self._fill, request.start, request.stop or SIZE)

        def receiver_of(buffer: bytearray) -> RangeReceiver:
            return RangeReceiver(fetch, self._admission, buffer)

        return self._source.perform(fetch, request, receiver_of)

    def shown(self) -> bytes:
        """What a reader can read from the start."""
        reader = reader_of(self._admission.files)
        try:
            return reader.read(0, reader.available(0))
        finally:
            reader.close()


@pytest.fixture
def run(source: Source, fill: Fill, admission: WritingAdmission) -> Run:
    return Run(source, fill, admission)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- what is asked ---


def test_ranges_are_asked_for_and_written(run: Run, double: ScriptedUpstream) -> None:
    for start in range(0, SIZE, 2 * MIB):
        request = request_for(double, start, min(SIZE, start + 2 * MIB))
        assert run(request) == Outcome(Ending.COMPLETE)
    assert run.shown() == PAYLOAD
    asked = [request.headers["range"] for request in double.blob_requests()]
    assert asked == [
        f"bytes={start}-{min(SIZE, start + 2 * MIB) - 1}" for start in range(0, SIZE, 2 * MIB)
    ]


def test_a_whole_blob_is_asked_for_without_a_range(run: Run, double: ScriptedUpstream) -> None:
    assert run(request_for(double, 0, None)) == Outcome(Ending.COMPLETE)
    assert run.shown() == PAYLOAD
    assert "range" not in double.blob_requests()[0].headers


def test_f13_identity_is_asked_for_and_the_request_says_who_asks(
    run: Run, double: ScriptedUpstream
) -> None:
    request = replace(request_for(double, 0, MIB), authorization="Bearer secret")
    assert run(request) == Outcome(Ending.COMPLETE)
    (seen,) = double.blob_requests()
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["user-agent"].startswith("headstart")
    assert seen.authorization == "Bearer secret"


def test_credentials_of_one_request_are_not_sent_with_the_next(
    run: Run, double: ScriptedUpstream
) -> None:
    run(replace(request_for(double, 0, MIB), authorization="Bearer secret"))
    run(request_for(double, MIB, 2 * MIB))
    assert [seen.authorization for seen in double.blob_requests()] == ["Bearer secret", None]


def test_a_connection_is_used_again(run: Run, double: ScriptedUpstream) -> None:
    for number in range(4):
        run(request_for(double, number * MIB, (number + 1) * MIB))
    assert double.connections == 1


def test_requests_at_once_have_a_connection_each_and_keep_it(
    run: Run, double: ScriptedUpstream, threads: ThreadPoolExecutor
) -> None:
    double.add_rule(Rule(delay=0.1))
    for _ in range(2):
        requests = [request_for(double, number * MIB, (number + 1) * MIB) for number in range(3)]
        assert list(threads.map(run, requests)) == [Outcome(Ending.COMPLETE)] * 3
    assert double.connections == 3


def test_a_connection_that_the_upstream_closed_is_made_anew(
    run: Run, double: ScriptedUpstream
) -> None:
    run(request_for(double, 0, MIB))
    double.drop_connections()
    assert run(request_for(double, MIB, 2 * MIB)) == Outcome(Ending.COMPLETE)
    assert double.connections == 2


def test_an_upstream_is_not_asked_for_more_than_its_rate(
    run: Run, double: ScriptedUpstream
) -> None:
    request = replace(request_for(double, 0, MIB), bytes_per_second=2 * MIB)
    started = time.monotonic()
    assert run(request) == Outcome(Ending.COMPLETE)
    assert time.monotonic() - started >= 0.2


# --- what is answered ---


def test_a_redirect_is_not_followed(run: Run, double: ScriptedUpstream) -> None:
    with ScriptedUpstream() as storage:
        double.redirect_blobs(storage)
        outcome = run(request_for(double, 0, MIB))
        assert outcome.ending is Ending.REDIRECT
        assert outcome.location.startswith(storage.url)
        assert storage.requests == []
        # Its short body is read past, so that the connection stays.
        run(request_for(double, 0, MIB))
        assert double.connections == 1


def test_a_challenge_is_handed_on_and_the_connection_kept(
    run: Run, double: ScriptedUpstream
) -> None:
    fields = {"WWW-Authenticate": 'Bearer realm="https://auth/"', "Content-Length": "12"}
    double.add_rule(Rule(status=401, headers=fields, body=b"unauthorized", times=1))
    outcome = run(request_for(double, 0, MIB))
    assert outcome.ending is Ending.CHALLENGE
    assert outcome.challenges == ['Bearer realm="https://auth/"']
    assert run(request_for(double, 0, MIB)) == Outcome(Ending.COMPLETE)
    assert double.connections == 1


@pytest.mark.parametrize(
    ("rule", "ending"),
    [
        (Rule(status=503, headers={"Retry-After": "3"}), Ending.STATUS),
        (Rule(status=404), Ending.STATUS),
        (Rule(without_content_range=True), Ending.PROTOCOL),
        (Rule(range_shift=1), Ending.PROTOCOL),
        (Rule(range_total=SIZE + 1), Ending.PROTOCOL),
        (Rule(gzip=True), Ending.PROTOCOL),
        (captive_page(), Ending.PROTOCOL),
        (Rule(headers={"X-Padding": "x" * 70_000}), Ending.PROTOCOL),
        (Rule(close_before_answer=True), Ending.NETWORK),
        (Rule(close_before_answer=True, reset=True), Ending.NETWORK),
        (Rule(close_after=100_000), Ending.NETWORK),
        (Rule(close_after=100_000, reset=True), Ending.NETWORK),
    ],
)
def test_what_goes_wrong_is_named_and_does_not_stay(
    run: Run, double: ScriptedUpstream, rule: Rule, ending: Ending
) -> None:
    double.add_rule(rule)
    outcome = run(request_for(double, 0, 2 * MIB))
    assert outcome.ending is ending
    double.clear_rules()
    assert run(request_for(double, 0, 2 * MIB)) == Outcome(Ending.COMPLETE)
    assert run.shown() == PAYLOAD[: 2 * MIB]


def test_f01_what_came_before_a_break_is_kept(
    run: Run, fill: Fill, double: ScriptedUpstream
) -> None:
    double.add_rule(Rule(close_after=MIB + 1000))
    fetch = fetch_of(fill, 0, 4 * MIB)
    outcome = run(request_for(double, 0, 4 * MIB), fetch)
    assert outcome.ending is Ending.NETWORK
    assert fetch.committed == MIB + 1000
    assert run.shown() == PAYLOAD[: MIB + 1000]


def test_f03_a_whole_answer_where_a_range_was_asked_is_taken_whole(
    run: Run, fill: Fill, double: ScriptedUpstream
) -> None:
    double.add_rule(Rule(ignore_range=True))
    fetch = fetch_of(fill, 5 * MIB, 6 * MIB)
    assert run(request_for(double, 5 * MIB, 6 * MIB), fetch) == Outcome(Ending.COMPLETE)
    assert fetch.stream
    assert run.shown() == PAYLOAD


def test_f11_a_chunked_body_that_goes_on_is_cut(run: Run, double: ScriptedUpstream) -> None:
    fields = {"Content-Range": f"bytes 0-{MIB - 1}/{SIZE}"}
    double.add_rule(Rule(status=206, headers=fields, body=PAYLOAD[: 3 * MIB], chunked=True))
    """Whether all that was declared had been written before the surplus came is chance."""
    assert run(request_for(double, 0, MIB)).ending in (Ending.PROTOCOL, Ending.COMPLETE)
    assert run.shown() == PAYLOAD[: len(run.shown())]
    assert len(run.shown()) <= MIB
    eventually(lambda: not double._open)


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1", b"HTTP/1.1 abc OK", b"HTTP/1.1 200 OK\r\nHTTP/x: y", b"SSH-2.0-OpenSSH", b""],
)
def test_an_answer_that_is_hardly_http_is_an_error_and_no_crash(
    run: Run, line: bytes, double: ScriptedUpstream, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(line + b"\r\nContent-Length: 3\r\n\r\nabc")

        answering = threading.Thread(target=answer)
        answering.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        outcome = run(replace(request_for(double, 0, MIB), url=url))
        answering.join()
    assert outcome.ending in (Ending.NETWORK, Ending.PROTOCOL)
    assert run.shown() == b""
    assert capfd.readouterr() == ("", "")


# --- cuts ---


def test_a_cut_wakes_a_transfer_that_waits_for_bytes(
    run: Run, fill: Fill, double: ScriptedUpstream, threads: ThreadPoolExecutor
) -> None:
    """Without a wake-up libcurl would look only once a second."""
    double.add_rule(Rule(stall_after=MIB, times=1))
    fetch = fetch_of(fill, 0, 4 * MIB)
    running = threads.submit(run, request_for(double, 0, 4 * MIB), fetch)
    eventually(lambda: fetch.received >= MIB)
    fetch.cut(CUT)
    assert running.result(10) is CUT
    assert run.shown() == PAYLOAD[:MIB]
    assert run(request_for(double, MIB, 2 * MIB)) == Outcome(Ending.COMPLETE)


def test_a_cut_wakes_a_transfer_that_waits_for_its_answer_on_a_used_connection(
    run: Run, fill: Fill, double: ScriptedUpstream, threads: ThreadPoolExecutor
) -> None:
    run(request_for(double, 0, MIB))
    double.add_rule(Rule(delay=float("inf")))
    fetch = fetch_of(fill, MIB, 2 * MIB)
    running: Future[Outcome] = threads.submit(run, request_for(double, MIB, 2 * MIB), fetch)
    eventually(lambda: len(double.blob_requests()) == 2)
    fetch.cut(CUT)
    assert running.result(10) is CUT


def test_a_range_that_was_cut_before_it_began_is_not_asked_for(
    run: Run, fill: Fill, double: ScriptedUpstream
) -> None:
    fetch = fetch_of(fill, 0, MIB)
    fetch.cut(CUT)
    assert run(request_for(double, 0, MIB), fetch) is CUT
    assert double.requests == []


def test_f40_the_upstream_sees_the_end_of_what_was_cut(
    run: Run, fill: Fill, double: ScriptedUpstream, threads: ThreadPoolExecutor
) -> None:
    """Else it would go on to send into the buffers of a connection that nobody reads."""
    double.add_rule(Rule(rate=4 * MIB))
    fetch = fetch_of(fill)
    running = threads.submit(run, request_for(double, 0, SIZE), fetch)
    eventually(lambda: fetch.received > 0)
    fetch.cut(CUT)
    assert running.result(10) is CUT
    eventually(lambda: not double._open)
    assert double.blob_bytes_sent() < SIZE


def test_f11_the_upstream_sees_the_end_of_what_was_refused(
    run: Run, double: ScriptedUpstream
) -> None:
    double.add_rule(Rule(range_shift=1))
    assert run(request_for(double, 0, SIZE)).ending is Ending.PROTOCOL
    eventually(lambda: not double._open)


def test_a_shortened_range_lets_its_connection_go(
    run: Run, fill: Fill, double: ScriptedUpstream, threads: ThreadPoolExecutor
) -> None:
    double.add_rule(Rule(rate=8 * MIB))
    fetch = fetch_of(fill, 0, 8 * MIB)
    running = threads.submit(run, request_for(double, 0, 8 * MIB), fetch)
    eventually(lambda: fetch.received > 0)
    taken = fetch.split(MIB)
    assert taken is not None
    assert running.result(10) == Outcome(Ending.COMPLETE)
    assert fetch.committed == taken[0]
    assert run.shown() == PAYLOAD[: taken[0]]


def test_idle_connections_are_closed_after_a_while(
    run: Run, source: Source, double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(request_for(double, 0, MIB))
    source.close_idle()
    assert double._open
    for module in (source_module, plain_source_module):
        monkeypatch.setattr(module, "IDLE_SECONDS", -1.0)
    source.close_idle()
    eventually(lambda: not double._open)
    assert run(request_for(double, MIB, 2 * MIB)) == Outcome(Ending.COMPLETE)


# --- addresses and names ---


def test_a_refused_address_is_named_and_never_connected_to(
    run: Run, double: ScriptedUpstream
) -> None:
    outcome = run(replace(request_for(double, 0, MIB), allow_private=False))
    assert outcome.ending is Ending.REFUSED
    assert "127.0.0.1 is this machine" in outcome.text
    assert double.connections == 0


def test_a_name_that_leads_to_a_refused_address_is_refused(
    run: Run, double: ScriptedUpstream
) -> None:
    url = request_for(double, 0, MIB).url.replace("127.0.0.1", "localhost")
    outcome = run(replace(request_for(double, 0, MIB), url=url, allow_private=False))
    assert outcome.ending is Ending.REFUSED
    assert double.connections == 0


@pytest.mark.parametrize("address", ["169.254.169.254", "0.0.0.0", "[::ffff:169.254.169.254]"])
def test_metadata_services_are_refused_even_where_this_machine_is_allowed(
    run: Run, double: ScriptedUpstream, address: str
) -> None:
    outcome = run(replace(request_for(double, 0, MIB), url=f"http://{address}/latest/meta-data"))
    assert outcome.ending is Ending.REFUSED


@pytest.mark.parametrize("scheme", ["file", "ftp", "gopher", "dict"])
def test_other_schemes_are_not_spoken(
    run: Run, double: ScriptedUpstream, scheme: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    request = replace(request_for(double, 0, 6), url=f"{scheme}://127.0.0.1{tmp_path}/secret")
    assert run(request).ending is not Ending.COMPLETE
    assert run.shown() == b""


def test_f20_a_refused_connection_names_host_and_port_and_nothing_of_the_query(
    run: Run, double: ScriptedUpstream
) -> None:
    port = refused_port()
    url = f"http://127.0.0.1:{port}/signed?X-Amz-Signature=secret"
    outcome = run(replace(request_for(double, 0, MIB), url=url))
    assert outcome.ending is Ending.NETWORK
    assert outcome.text == f"127.0.0.1:{port}: connection refused or unreachable"


def test_f20_a_name_that_does_not_resolve_is_named(run: Run, double: ScriptedUpstream) -> None:
    url = "http://registry.invalid/v2/x?X-Amz-Signature=secret"
    outcome = run(replace(request_for(double, 0, MIB), url=url))
    assert outcome.ending is Ending.NETWORK
    assert outcome.text == "registry.invalid: its name does not resolve"


def test_f20_a_black_hole_ends_at_the_connect_deadline(run: Run, double: ScriptedUpstream) -> None:
    with black_hole() as port:
        url = f"http://127.0.0.1:{port}/"
        outcome = run(replace(request_for(double, 0, MIB), url=url, connect_seconds=0.3))
    assert (outcome.ending, outcome.key, outcome.value) == (Ending.DEADLINE, "connect", "0.3s")
    assert outcome.text == f"127.0.0.1:{port}: no connection within 0.3 s"


def test_a_slow_answer_is_not_a_slow_connection(run: Run, double: ScriptedUpstream) -> None:
    """The connect deadline ends with the connection; the others are the scheduler's."""
    double.add_rule(Rule(delay=0.6))
    request = replace(request_for(double, 0, MIB), connect_seconds=0.3)
    assert run(request) == Outcome(Ending.COMPLETE)


def test_the_environment_names_no_proxy_behind_our_back(
    run: Run, double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refused_port()}")
    assert run(request_for(double, 0, MIB)) == Outcome(Ending.COMPLETE)


# --- TLS ---


def test_tls_with_the_configured_authority(run: Run, authority: Authority) -> None:
    with ScriptedUpstream(certificate=authority.issue(), name="localhost") as upstream:
        for number in range(2):
            request = request_for(upstream, number * MIB, (number + 1) * MIB)
            assert run(replace(request, ca_file=authority.ca_file)) == Outcome(Ending.COMPLETE)
        assert run.shown() == PAYLOAD[: 2 * MIB]
        assert upstream.connections == 1
        assert upstream.blob_requests()[0].server_name == "localhost"


@pytest.mark.parametrize("problem", ["unknown authority", "another name", "expired"])
def test_f20_bad_tls_is_refused_before_anything_is_sent(
    run: Run, authority: Authority, problem: str
) -> None:
    names = ("registry.example.com",) if problem == "another name" else ()
    certificate = authority.issue(*names, expired=problem == "expired")
    with ScriptedUpstream(certificate=certificate, name="localhost") as upstream:
        request = replace(
            request_for(upstream, 0, MIB),
            ca_file=None if problem == "unknown authority" else authority.ca_file,
            authorization="Bearer secret",
        )
        outcome = run(request)
        assert outcome.ending is Ending.NETWORK
        assert "TLS: " in outcome.text
        assert upstream.requests == []


def test_a_cut_wakes_a_transfer_over_tls(
    run: Run, fill: Fill, authority: Authority, threads: ThreadPoolExecutor
) -> None:
    with ScriptedUpstream(certificate=authority.issue(), name="localhost") as upstream:
        upstream.add_rule(Rule(stall_after=MIB))
        fetch = fetch_of(fill, 0, 4 * MIB)
        request = replace(request_for(upstream, 0, 4 * MIB), ca_file=authority.ca_file)
        running = threads.submit(run, request, fetch)
        eventually(lambda: fetch.received >= MIB - 20_000)
        fetch.cut(CUT)
        assert running.result(10) is CUT


def test_tls_goes_through_the_proxy_that_the_request_names(run: Run, authority: Authority) -> None:
    with (
        ScriptedUpstream(certificate=authority.issue(), name="localhost") as upstream,
        ConnectProxy({upstream.host: upstream.port}) as proxy,
    ):
        request = replace(
            request_for(upstream, 0, MIB),
            ca_file=authority.ca_file,
            proxy=f"http://127.0.0.1:{proxy.port}",
        )
        assert run(request) == Outcome(Ending.COMPLETE)
        assert run.shown() == PAYLOAD[:MIB]
        assert proxy.heads[0].startswith(f"CONNECT {upstream.host} ")
