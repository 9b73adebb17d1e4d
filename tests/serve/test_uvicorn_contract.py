"""What ``proxy.serve.sendfile`` relies on in uvicorn, uvloop and httptools.

A failure here after an upgrade means: read what changed, bring the protocol class into line, run
the tests of this directory, then write the new version and digests down.
"""

import asyncio
import hashlib
import inspect
import socket
from typing import Any

import httptools
import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.serve.sendfile import SendfileCycle, SendfileProtocol

# First 16 digits of the sha256 of each function's source.
SOURCES = {
    "HttpToolsProtocol.__init__": "4f08999410347141",
    "HttpToolsProtocol.connection_made": "6efb565ff3d36b91",
    "HttpToolsProtocol.connection_lost": "c91a4c9bf2e29c55",
    "HttpToolsProtocol.data_received": "010a7ae59a5d3b1a",
    "HttpToolsProtocol.on_message_begin": "96d377fdc7c2baef",
    "HttpToolsProtocol.on_url": "37be44e962b04ca8",
    "HttpToolsProtocol.on_header": "65d62c044f61fdbd",
    "HttpToolsProtocol.on_headers_complete": "1ea8589acfad92d8",
    "HttpToolsProtocol.on_body": "dba9c32aeba35b6a",
    "HttpToolsProtocol.on_message_complete": "1fbad42dc31fc01f",
    "HttpToolsProtocol.on_response_complete": "64e254f28e389e76",
    "HttpToolsProtocol._start_asgi_task": "9c08c2571ae9b038",
    "HttpToolsProtocol.shutdown": "d7351fa33f00d430",
    "HttpToolsProtocol.timeout_keep_alive_handler": "8b53bf5f2e202970",
    "RequestResponseCycle.__init__": "4d2f220910c33c12",
    "RequestResponseCycle.run_asgi": "0f33f2449a444bc2",
    "RequestResponseCycle.send": "abdd8601b326a8da",
    "RequestResponseCycle.receive": "8124ae006be71184",
    "FlowControl": "126debcdaa894c83",
}


def source_digest(name: str) -> str:
    target: Any = httptools_impl
    for part in name.split("."):
        target = getattr(target, part)
    return hashlib.sha256(inspect.getsource(target).encode()).hexdigest()[:16]


def test_uvicorn_is_the_version_that_was_read() -> None:
    assert uvicorn.__version__.startswith("0.54.")


@pytest.mark.parametrize("name", SOURCES)
def test_the_code_that_is_overridden_or_repeated_is_what_was_read(name: str) -> None:
    assert source_digest(name) == SOURCES[name]


@pytest.mark.parametrize(
    ("ours", "theirs", "added"),
    [
        (
            SendfileProtocol,
            HttpToolsProtocol,
            {
                "_answer_refusal",
                "_answering",
                "_arm_head_timer",
                "_cancel_head_timer",
                "_give_up_body",
                "_head_timed_out",
                "_refuse",
                "_too_many",
            },
        ),
        (
            SendfileCycle,
            RequestResponseCycle,
            {"_abort", "_run_quietly", "_send_open_file", "_send_path", "_send_range"},
        ),
    ],
)
def test_methods_override_what_exists_and_add_what_does_not(
    ours: type, theirs: type, added: set[str]
) -> None:
    methods = {name: m for name, m in vars(ours).items() if inspect.isfunction(m)}
    del methods["__init__"]
    assert {name for name in methods if not hasattr(theirs, name)} == added
    for name in methods.keys() - added:
        signatures = inspect.signature(getattr(theirs, name)), inspect.signature(methods[name])
        assert list(signatures[0].parameters) == list(signatures[1].parameters), name


def test_the_cycle_takes_the_arguments_that_are_passed() -> None:
    assert list(inspect.signature(RequestResponseCycle).parameters) == [
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    ]


def test_a_cycles_state_has_the_names_that_are_used() -> None:
    cycle: Any = RequestResponseCycle(*[None] * 11)  # type: ignore[arg-type]
    for name in (
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    ):
        assert hasattr(cycle, name)


def test_an_error_in_a_callback_is_the_context_of_the_parsers() -> None:
    class Callbacks:
        def on_url(self, url: bytes) -> None:
            raise LookupError(url)

    with pytest.raises(httptools.HttpParserCallbackError) as raised:
        httptools.HttpRequestParser(Callbacks()).feed_data(b"GET /a HTTP/1.1\r\n")
    assert isinstance(raised.value.__context__, LookupError)


def test_uvloop_writes_at_once_and_says_when_its_buffer_is_empty() -> None:
    class Writer(asyncio.Protocol):
        events: list[str]

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.events = []

        def pause_writing(self) -> None:
            self.events.append("paused")

        def resume_writing(self) -> None:
            self.events.append("resumed")

    async def scenario(ours: socket.socket, theirs: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_accepted_socket(Writer, ours)
        transport.set_write_buffer_limits(0)
        transport.write(b"small")
        assert theirs.recv(100) == b"small"  # no turn of the loop between
        assert protocol.events == []
        transport.write(bytes(16 * 1024 * 1024))
        assert protocol.events == ["paused"]
        left = 16 * 1024 * 1024
        while left:
            left -= len(await loop.sock_recv(theirs, 1024 * 1024))
            if protocol.events == ["paused", "resumed"]:
                assert transport.get_write_buffer_size() == 0
        assert protocol.events == ["paused", "resumed"]
        duplicate = transport.get_extra_info("socket").dup()
        loop.add_writer(duplicate.fileno(), int)
        with pytest.raises(RuntimeError):
            loop.add_writer(transport.get_extra_info("socket").fileno(), int)
        loop.remove_writer(duplicate.fileno())
        duplicate.close()
        transport.close()
        await asyncio.sleep(0)

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(ours, theirs))
