"""Reads the requests of one connection and answers them, one after the other."""

import socket
import time
from typing import Protocol

from tests.doubles.rules import RecordedRequest, Rule
from tests.doubles.sending import Answer, Closed, Sender
from tests.doubles.shaping import shaped

_MAX_HEAD = 256 * 1024


class Host(Protocol):
    """What a conversation needs of its server."""

    connection_rate: float | None

    def received(self, request: RecordedRequest) -> Rule:
        """Record a request; the rule for its answer."""

    def content(self, request: RecordedRequest, body: bytes, rule: Rule) -> Answer:
        """The answer, before the rule has shaped it."""


class Conversation:
    """The requests of one connection, one after the other."""

    def __init__(
        self,
        upstream: Host,
        number: int,
        connection: socket.socket,
        server_name: str | None,
        wake: int,
    ) -> None:
        self._upstream = upstream
        self._number = number
        self._connection = connection
        self._server_name = server_name
        self._sender = Sender(connection, wake, upstream.connection_rate)
        self._received = bytearray()

    def run(self) -> None:
        """Answer until either side closes. Raises Closed, OSError."""
        while (request := self._read_head()) is not None:
            rule = self._upstream.received(request)
            length = int(request.headers.get("content-length", "0"))
            if rule.receive_only is not None:
                body = self._read_body(min(length, rule.receive_only))
                self._upstream.content(request, body, rule)
                return
            body = self._read_body(length)
            try:
                if rule.delay:
                    self._sender.pause(None if rule.delay == float("inf") else rule.delay)
                if rule.close_before_answer:
                    if rule.reset:
                        self._sender.reset()
                    return
                answer = shaped(self._upstream.content(request, body, rule), rule)
                if request.headers.get("connection", "").lower() == "close":
                    answer.close = True
                self._sender.send(answer, request, rule)
            except (Closed, OSError):
                request.client_left = rule.close_after is None
                raise
            finally:
                request.finished = time.monotonic()
            if answer.close:
                return

    def _read_head(self) -> RecordedRequest | None:
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if not self._fill() or len(self._received) > _MAX_HEAD:
                return None
            if not self._received[:1].isalpha():  # a TLS hello, for instance
                self._connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return None
        head = self._received[:end].decode("latin-1")
        del self._received[: end + 4]
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, _, text = line.partition(":")
            headers[name.strip().lower()] = text.strip()
        if target.startswith(("http://", "https://")):  # asked as a proxy
            target = "/" + target.split("/", 3)[3]
        path, _, query = target.partition("?")
        now = time.monotonic()
        return RecordedRequest(method, path, query, headers, self._number, now, self._server_name)

    def _read_body(self, length: int) -> bytes:
        while len(self._received) < length:
            if not self._fill():
                raise Closed
        body = bytes(self._received[:length])
        del self._received[:length]
        return body

    def _fill(self) -> bool:
        received = self._connection.recv(64 * 1024)
        self._received += received
        return bool(received)
