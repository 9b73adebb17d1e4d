"""Sends an answer over a blocking socket as a rule wants it sent: whole, slowly, or in part."""

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from http import HTTPStatus

from tests.doubles.rules import RecordedRequest, Rule

_PIECE = 1024 * 1024


class Closed(Exception):
    """The connection is to be closed, or the client has left, or the server stops."""


@dataclass(slots=True)
class Answer:
    """Status, fields and body; ``body`` is sent in order without copying."""

    status: int
    fields: dict[str, str]
    body: list[memoryview] = field(default_factory=list)
    length: int | None = None
    """Content-Length; None: chunked or ended by the connection."""
    chunked: bool = False
    close: bool = False
    """Close the connection after the body."""


class Sender:
    """The sending side of one connection."""

    def __init__(self, connection: socket.socket, wake: int, rate: float | None) -> None:
        """``wake`` is a descriptor that becomes readable when the server stops."""
        self._connection = connection
        self._wake = wake
        self._rate = rate
        self._due = 0.0

    def pause(self, seconds: float | None) -> None:
        """Sleep; raises Closed when the client leaves or the server stops meanwhile."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            left = 3600.0 if deadline is None else min(deadline - time.monotonic(), 3600.0)
            descriptors = [self._connection.fileno(), self._wake]
            ready, _, _ = select.select(descriptors, [], [], max(0.0, left))
            if ready:
                raise Closed

    def reset(self) -> None:
        """Make the close of this connection an RST."""
        with contextlib.suppress(OSError):
            self._connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )

    def send(self, answer: Answer, request: RecordedRequest, rule: Rule) -> None:
        """Send the answer. Raises Closed, OSError."""
        request.status = answer.status
        request.first_byte = time.monotonic()
        self._send_head(_head(answer), rule.head_rate)
        if request.method == "HEAD":
            return
        rate = rule.rate if rule.rate is not None else self._rate
        self._due = max(self._due, time.monotonic())
        piece = _PIECE if rate is None else max(1, min(_PIECE, int(rate / 100)))
        for segment in answer.body:
            position = 0
            while position < len(segment):
                room = self._reach_limits(request, rule, piece)
                part = segment[position : position + room]
                # Counted first: who has received the last byte may ask for the sum at once.
                request.bytes_sent += len(part)
                try:
                    self._send_part(part, answer.chunked)
                except OSError:
                    request.bytes_sent -= len(part)
                    raise
                position += len(part)
                if rate is not None:
                    self._pace(len(part) / rate)
        self._reach_limits(request, rule, piece)
        if answer.chunked:
            self._connection.sendall(b"0\r\n\r\n")

    def _send_head(self, head: bytes, rate: float | None) -> None:
        if rate is None:
            self._connection.sendall(head)
            return
        for byte in head:
            self._connection.sendall(bytes([byte]))
            self.pause(1 / rate)

    def _reach_limits(self, request: RecordedRequest, rule: Rule, piece: int) -> int:
        """Stall or close where the rule says so; how many bytes may go until it says more."""
        if rule.stall_after is not None:
            left = rule.stall_after - request.bytes_sent
            if left == 0:
                self.pause(rule.stall_seconds)
            elif left > 0:
                piece = min(piece, left)
        if rule.close_after is not None:
            left = rule.close_after - request.bytes_sent
            if left <= 0:
                if rule.reset:
                    self.reset()
                raise Closed
            piece = min(piece, left)
        return piece

    def _send_part(self, part: memoryview, chunked: bool) -> None:
        if chunked:
            self._connection.sendall(b"%x\r\n" % len(part))
        self._connection.sendall(part)
        if chunked:
            self._connection.sendall(b"\r\n")

    def _pace(self, seconds: float) -> None:
        now = time.monotonic()
        self._due = max(self._due, now - 0.05) + seconds
        if self._due > now:
            self.pause(self._due - now)


def _head(answer: Answer) -> bytes:
    fields = dict(answer.fields)
    if answer.chunked:
        fields["Transfer-Encoding"] = "chunked"
    elif answer.length is not None:
        fields["Content-Length"] = str(answer.length)
    if answer.close:
        fields["Connection"] = "close"
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Scripted"
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {text}" for name, text in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
