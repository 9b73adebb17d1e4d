"""uvicorn's HTTP/1.1 protocol with file bytes sent by the kernel and input bounded.

``uvicorn.Config(app, http=SendfileProtocol, loop="uvloop", ws="none")``. Applications find
``http.response.zerocopysend`` and ``http.response.pathsend`` in ``scope["extensions"]``::

    {"type": "http.response.zerocopysend", "file": descriptor or object with fileno(),
     "offset": int, "count": int, "more_body": bool}

any number of times in one response, mixed with ``http.response.body``. ``await send(...)``
returns when the kernel has the bytes (with TLS: all but a bounded buffer), and raises
:class:`ClientDisconnected` when the client has gone; not one of these is logged.

tests/serve/test_uvicorn_contract.py holds what this relies on in uvicorn.
"""

import asyncio
import os
import urllib.parse
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, cast

import httptools
from starlette.requests import ClientDisconnect
from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl, service_unavailable
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from proxy.serve.limits import (
    HEADERS_TOO_SLOW,
    REQUEST_MALFORMED,
    TOO_MANY_PIPELINED,
    Limits,
    Refusal,
    RequestMeter,
    RequestRefused,
)
from proxy.serve.outlet import ClientDisconnected, FileTooShort, Outlet
from proxy.serve.page_cache import disk_threads

__all__ = ["ClientDisconnected", "FileTooShort", "ResponseAborted", "SendfileProtocol"]

ZERO_COPY_SEND = "http.response.zerocopysend"
PATH_SEND = "http.response.pathsend"


class ResponseAborted(Exception):
    """Raised by an application to reset its connection, which it has logged the reason of."""


class SendfileCycle(RequestResponseCycle):
    """One request and its response; ``transport`` is the connection's :class:`Outlet`."""

    def __init__(self, *, outlet: Outlet, **rest: Any) -> None:
        super().__init__(transport=cast(asyncio.Transport, outlet), **rest)
        self.outlet = outlet

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run ``app``; a client that goes away is no error."""
        with suppress(ClientDisconnected):  # while uvicorn sends its own 500
            await super().run_asgi(partial(self._run_quietly, app))

    async def _run_quietly(
        self,
        app: ASGI3Application,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        # Starlette answers a ClientDisconnected with a ClientDisconnect of its own.
        gone = (ClientDisconnected, ClientDisconnect, ResponseAborted, asyncio.CancelledError)
        try:
            # Whatever it returns goes on: uvicorn refuses all but None.
            return await app(scope, receive, send)
        except gone:
            self._abort()
        except FileTooShort as error:
            self.logger.error("%s %s: %s", self.scope["method"], self.scope["path"], error)
            self._abort()
        except BaseExceptionGroup as group:
            self._abort()
            rest = group.split(gone)[1]
            if rest is not None:
                raise rest from None

    def _abort(self) -> None:
        # Cancelled by uvicorn at the end of its graceful shutdown, among others.
        if not self.response_complete:
            self.disconnected = True
            self.outlet.abort()

    async def send(self, message: ASGISendEvent) -> None:
        """Send one message of the response; see the module's text."""
        try:
            if self.disconnected:
                raise ClientDisconnected("the client has gone")
            if not self.response_complete:
                self.outlet.ensure_open()
            await self.outlet.drained()
            extended = cast(dict[str, Any], message)
            if extended["type"] == ZERO_COPY_SEND:
                await self._send_open_file(extended)
            elif extended["type"] == PATH_SEND:
                await self._send_path(extended)
            else:
                await super().send(message)
            if self.response_complete:
                self.outlet.flush()
            await self.outlet.drained()
        except ClientDisconnected:
            self.disconnected = True
            raise

    async def _send_open_file(self, message: dict[str, Any]) -> None:
        file = message["file"]
        descriptor: int = file if isinstance(file, int) else file.fileno()
        offset: int | None = message.get("offset")
        count: int | None = message.get("count")
        # Without an offset the file's own position counts, and moves: so says the extension.
        start = os.lseek(descriptor, 0, os.SEEK_CUR) if offset is None else offset
        if count is None:
            count = max(0, os.fstat(descriptor).st_size - start)
        if start < 0 or count < 0:
            raise ValueError(f"offset and count are not negative; got {start} and {count}")
        await self._send_range(descriptor, start, count, bool(message.get("more_body", False)))
        if offset is None:
            os.lseek(descriptor, start + count, os.SEEK_SET)

    async def _send_path(self, message: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        opened = loop.run_in_executor(
            disk_threads(), os.open, message["path"], os.O_RDONLY | os.O_CLOEXEC
        )
        try:
            descriptor = await asyncio.shield(opened)
        except asyncio.CancelledError:
            opened.add_done_callback(_close_opened)
            raise
        try:
            size = os.fstat(descriptor).st_size
            await self._send_range(descriptor, 0, size, more_body=False)
        finally:
            os.close(descriptor)

    async def _send_range(self, file: int, start: int, count: int, more_body: bool) -> None:
        # Framing and accounting are those of uvicorn's own ``send`` of a body.
        if not self.response_started or self.response_complete:
            raise RuntimeError("A file can be sent between a response's start and its end only.")
        if self.scope["method"] == "HEAD" or not count:
            pass
        elif self.chunked_encoding:
            self.outlet.write(b"%x\r\n" % count)
            await self.outlet.send_file(file, start, count)
            self.outlet.write(b"\r\n")
        elif count > self.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        else:
            await self.outlet.send_file(file, start, count)
            self.expected_content_length -= count
        if not more_body:
            await super().send({"type": "http.response.body", "body": b"", "more_body": False})


class _Flow(FlowControl):
    """Reading stays paused while requests wait for their turn, whoever asks for more."""

    def __init__(self, protocol: "SendfileProtocol") -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        if not self._protocol.pipeline and not self._protocol.refused:
            super().resume_reading()


class SendfileProtocol(HttpToolsProtocol):
    """One connection. Subclass it to change :attr:`limits`."""

    limits: ClassVar[Limits] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False  # the mirror logs pulls, not requests
        self.ws_protocol_class = None
        self.outlet: Outlet = None  # type: ignore[assignment]  # as uvicorn's: from connection_made
        self.refused: Refusal | None = None
        self._meter = RequestMeter(self.limits)
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(self)
        self.outlet = Outlet(transport, self.flow, self.loop, self.limits.stall_seconds)
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._cancel_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self.outlet.connection_lost(exc)
        # uvicorn tells the request that was read last; the one that is answered may be another.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._answering():
            super().shutdown()
        else:
            self.outlet.close()

    def timeout_keep_alive_handler(self) -> None:
        self.outlet.close()

    # Requests.

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self._unset_keepalive_if_required()
        self._meter.fed(len(data))
        try:
            self.parser.feed_data(data)
            self._meter.check_unparsed()
        except httptools.HttpParserUpgrade:
            # Answered as if it had not asked; what follows is not HTTP for the parser any more.
            self.cycle.keep_alive = False
        except RequestRefused as error:
            self._refuse(error.refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.refusal if isinstance(cause, RequestRefused) else REQUEST_MALFORMED)
        else:
            if self._in_head or not self._answering():
                self._arm_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._meter.begin()
        # From 2.4 on a send to a client that has gone raises OSError.
        self.scope["asgi"]["spec_version"] = "2.4"
        self.scope["extensions"] = {ZERO_COPY_SEND: {}, PATH_SEND: {}}

    def on_url(self, url: bytes) -> None:
        self._meter.url(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._meter.header(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_head_timer()
        self._meter.parsed()
        version = self.parser.get_http_version()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            self.scope["http_version"] = version
        parsed_url = httptools.parse_url(self.url)
        raw_path: bytes = parsed_url.path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        self.scope["path"] = self.root_path + path
        self.scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        self.scope["query_string"] = parsed_url.query or b""
        # The rest as uvicorn does it, with our cycle.
        cycle = SendfileCycle(
            outlet=self.outlet,
            scope=self.scope,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        app = service_unavailable if self._too_many() else self.app
        answering = self._answering()
        if len(self.pipeline) >= self.limits.pipelined_requests:
            raise RequestRefused(TOO_MANY_PIPELINED)
        self.cycle = cycle
        if answering:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            self._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._meter.parsed()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._meter.parsed()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._answering():
            return
        if self.refused:
            self._answer_refusal(self.refused)
        elif self._in_head:
            self._unset_keepalive_if_required()  # the head's own deadline runs

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _answering(self) -> bool:
        """Whether a request that has been read still lacks (the end of) its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _too_many(self) -> bool:
        limit = self.limit_concurrency
        if limit is None or (len(self.connections) < limit and len(self.tasks) < limit):
            return False
        self.logger.warning("Exceeded concurrency limit.")
        return True

    # Bounds.

    def _arm_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.limits.header_seconds, self._head_timed_out
            )

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(HEADERS_TOO_SLOW)
        elif not self._answering():
            self.outlet.close()  # nothing was asked, so there is nothing to answer

    def _refuse(self, refusal: Refusal) -> None:
        """Answer ``refusal``, after the responses that are due, and close."""
        self.refused = refusal
        self._cancel_head_timer()
        self.logger.info("%s: refused with %d: %s", self.client, refusal.status, refusal.text)
        if self._answering() and self.cycle.more_body and not self._in_head:
            self._give_up_body()
        if self.transport.is_closing():
            return
        if self._answering():
            self.flow.pause_reading()
        else:
            self._answer_refusal(refusal)

    def _give_up_body(self) -> None:
        """The body of the request read last is broken: its application waits for it in vain."""
        broken = self.cycle
        if broken is not self._running:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast(Any, self._running)
            return
        broken.disconnected = True
        broken.message_event.set()
        if broken.response_started:
            self.outlet.abort()
        else:
            broken.response_complete = True

    def _answer_refusal(self, refusal: Refusal) -> None:
        text = refusal.text.encode("ascii")
        fields = [*self.server_state.default_headers, (b"content-type", b"text/plain")]
        fields += [(b"content-length", b"%d" % len(text)), (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % field for field in fields]
        self._unset_keepalive_if_required()
        self.outlet.write(b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", text]))
        self.outlet.flush()
        if not self.transport.can_write_eof():  # TLS
            self.outlet.close()
            return
        # Closed with input unread, the kernel would reset, and take the answer from the client.
        self.transport.write_eof()
        FlowControl.resume_reading(self.flow)
        self._linger_timer = self.loop.call_later(self.limits.linger_seconds, self.outlet.close)


def _close_opened(opened: "asyncio.Future[int]") -> None:
    if not opened.cancelled() and opened.exception() is None:
        os.close(opened.result())
