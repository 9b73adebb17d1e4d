"""Brings the bytes of a range over plain HTTP: a socket whose bytes the kernel puts in their place.

libcurl hands over 16 KiB at a time, each with a turn of the interpreter's lock, which eight
connections fight over; here one call brings a MiB. Everything else than an answer of known length
straight from a plain HTTP server (TLS, proxies, chunked bodies, a limited rate) is libcurl's work.
"""

import errno
import os
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from headstart.registry.address import AddressPolicy
from headstart.registry.errors import RefusedTarget
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.receiver import BUFFER_SIZE, FLUSH_SECONDS, Head, RangeReceiver
from proxy.fill.source import (
    IDLE_SECONDS,
    MAX_HEAD_BYTES,
    SHORT_BODY,
    USER_AGENT,
    BlobRequest,
    ReceiverMaker,
    Source,
    keeps_connection,
)

_HEAD_PIECE = 16 * 1024
_AWAKE = struct.pack("ll", 0, int(FLUSH_SECONDS * 1_000_000))  # struct timeval
_STALE = "the connection had ended before it was used again"


class _Connection:
    """A socket with its buffer; it stays open between requests."""

    def __init__(self, place: tuple[str, int], connected: socket.socket) -> None:
        self.place = place
        self.socket = connected
        self.buffer = bytearray(BUFFER_SIZE)
        self.used = time.monotonic()
        self.fresh = True

    def alive(self) -> bool:
        """Whether nothing has come that nobody asked for, the end included."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class PlainSource:
    """Reused sockets, at most as many as requests run at once, beside another source."""

    def __init__(self, other: Source) -> None:
        """``other`` does what is not plain HTTP."""
        self._other = other
        self._idle: list[_Connection] = []
        self._elsewhere: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def perform(self, fetch: Fetch, request: BlobRequest, receiver_of: ReceiverMaker) -> Outcome:
        """Make one request and hand its answer to a receiver; blocks."""
        place = _plain_place(request)
        if place is None or place in self._elsewhere:
            return self._other.perform(fetch, request, receiver_of)
        while fetch.cut_reason is None:
            connection = self._reused(place) or _connect(place, fetch, request)
            if isinstance(connection, Outcome):
                return connection
            transfer = _Transfer(connection, fetch, request, receiver_of)
            try:
                outcome = transfer.run()
            finally:
                fetch.attach(None)
                if transfer.keep:
                    self._keep(connection)
                else:
                    connection.close()
            if transfer.other:
                # Its answers have no length: they are chunked, or end with the connection.
                self._elsewhere.add(place)
                return self._other.perform(fetch, request, receiver_of)
            if outcome is not None:
                return outcome
        return fetch.cut_reason

    def close_idle(self) -> None:
        """Close connections that nobody has used for :data:`IDLE_SECONDS`."""
        limit = time.monotonic() - IDLE_SECONDS
        with self._lock:
            old = [connection for connection in self._idle if connection.used < limit]
            self._idle = [connection for connection in self._idle if connection.used >= limit]
        for connection in old:
            connection.close()
        self._other.close_idle()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._other.close()

    def _reused(self, place: tuple[str, int]) -> _Connection | None:
        while True:
            with self._lock:
                found = next((c for c in reversed(self._idle) if c.place == place), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if found.alive():
                found.fresh = False
                return found
            found.close()

    def _keep(self, connection: _Connection) -> None:
        connection.used = time.monotonic()
        with self._lock:
            self._idle.append(connection)


def _plain_place(request: BlobRequest) -> tuple[str, int] | None:
    """Host and port where the request is one for a plain socket."""
    if request.proxy is not None or request.bytes_per_second is not None:
        return None
    parts = urlsplit(request.url)
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.hostname, parts.port or 80


def _connect(place: tuple[str, int], fetch: Fetch, request: BlobRequest) -> _Connection | Outcome:
    """A connection to the first address that is allowed and answers, or why there is none."""
    host, port = place
    shown = request.url.split("/", 3)[2]
    ends = time.monotonic() + request.connect_seconds
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return Outcome(Ending.NETWORK, f"{shown}: its name does not resolve")
    policy = AddressPolicy(request.allow_private)
    outcome = Outcome(Ending.NETWORK, f"{shown}: connection refused or unreachable")
    for family, kind, protocol, _, address in found:
        try:
            policy.check(str(address[0]))
        except RefusedTarget as error:
            outcome = Outcome(Ending.REFUSED, str(error))
            continue
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(max(0.001, ends - time.monotonic()))
            fetch.attach(made)
            made.connect(address)
        except TimeoutError:
            made.close()
            seconds = request.connect_seconds
            return Outcome(
                Ending.DEADLINE,
                f"{shown}: no connection within {seconds:g} s",
                key="connect",
                value=f"{seconds:g}s",
            )
        except OSError:
            made.close()
            if fetch.cut_reason is not None:
                return fetch.cut_reason
            continue
        made.settimeout(None)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A read for a whole MiB gives what has come when it has waited so long.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _AWAKE)
        return _Connection(place, made)
    fetch.attach(None)
    return outcome


class _Transfer:
    """One request on one connection."""

    def __init__(
        self,
        connection: _Connection,
        fetch: Fetch,
        request: BlobRequest,
        receiver_of: ReceiverMaker,
    ) -> None:
        self.keep = False
        """Whether the connection can be used again."""
        self.other = False
        """Whether the answer is one for the other source."""
        self._connection = connection
        self._socket = connection.socket
        self._fetch = fetch
        self._request = request
        self._receiver_of = receiver_of
        self._shown = request.url.split("/", 3)[2]
        self._left = 0  # bytes of the body that have not been read

    def run(self) -> Outcome | None:
        """Perform the request; None when the connection had ended before anything came."""
        fetch = self._fetch
        fetch.attach(self._socket)
        fetch.request_sent = time.monotonic()
        try:
            self._socket.sendall(_request_head(self._request))
            received = self._read_head()
        except OSError:
            received = b""
        if fetch.cut_reason is not None:
            return fetch.cut_reason
        if not received:
            text = f"{self._shown}: closed without an answer"
            return Outcome(Ending.NETWORK, text) if self._connection.fresh else None
        head_bytes, _, rest = received.partition(b"\r\n\r\n")
        head = _parse_head(head_bytes)
        if head is None:
            return Outcome(Ending.PROTOCOL, "the answer's head is malformed or too long")
        if head.length() is None and head.status not in (204, 304):
            self.other = True
            return None
        return self._take(head, rest)

    def _read_head(self) -> bytes:
        """Bytes up to the end of the head, and what came with it; empty when none came."""
        received = bytearray()
        while b"\r\n\r\n" not in received:
            try:
                piece = self._socket.recv(_HEAD_PIECE)
            except BlockingIOError:
                if self._fetch.cut_reason is not None:
                    return b""
                continue
            if not piece or len(received) > MAX_HEAD_BYTES:
                return bytes(received)
            received += piece
            if received.startswith(b"HTTP/1.1 1") and b"\r\n\r\n" in received:
                del received[: received.index(b"\r\n\r\n") + 4]  # an interim answer
        return bytes(received)

    def _take(self, head: Head, rest: bytes) -> Outcome:
        length = head.length() or 0
        receiver = self._receiver_of(self._connection.buffer)
        reusable = (head.first("connection") or "").lower() != "close"
        if not receiver.answered(head):
            if keeps_connection(head) and reusable and len(rest) <= length:
                self.keep = self._skip(length - len(rest))
            return receiver.finished(None)
        failure: Outcome | None = None
        self._left = length - len(rest)
        if self._left < 0:
            failure = Outcome(Ending.PROTOCOL, "the body is longer than declared")
        elif not rest or receiver.feed(rest):
            failure = self._read_body(receiver)
        outcome = receiver.finished(failure)
        self.keep = outcome.ending is Ending.COMPLETE and reusable and not self._left
        return outcome

    def _read_body(self, receiver: RangeReceiver) -> Outcome | None:
        """Have the kernel put the body where the receiver writes it from."""
        while self._left:
            room = receiver.room()[: self._left]
            try:
                count = self._socket.recv_into(room, len(room), socket.MSG_WAITALL)
            except BlockingIOError:
                count = -1
            except OSError as error:
                return Outcome(Ending.NETWORK, f"{self._shown}: {_reason(error)}")
            if count == 0:
                return Outcome(Ending.NETWORK, f"{self._shown}: the body ended early")
            self._left -= max(count, 0)
            if not receiver.came(max(count, 0)):
                return None
        return None

    def _skip(self, left: int) -> bool:
        """Read past a short body; whether that came to its end."""
        while left:
            try:
                piece = self._socket.recv(min(left, SHORT_BODY))
            except BlockingIOError:
                if self._fetch.cut_reason is not None:
                    return False
                continue
            except OSError:
                return False
            if not piece:
                return False
            left -= len(piece)
        return True


def _request_head(request: BlobRequest) -> bytes:
    parts = urlsplit(request.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"User-Agent: {USER_AGENT}",
        "Accept: */*",
        "Accept-Encoding: identity",
    ]
    if request.stop is not None:
        lines.append(f"Range: bytes={request.start}-{request.stop - 1}")
    if request.authorization is not None:
        lines.append(f"Authorization: {request.authorization}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break in a request's head")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _parse_head(received: bytes) -> Head | None:
    """Status and fields; None for what is no head of HTTP/1."""
    first, *lines = received.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(received) > MAX_HEAD_BYTES or len(words) < 2 or not words[0].startswith("HTTP/1."):
        return None
    if len(words[1]) != 3 or not words[1].isascii() or not words[1].isdecimal():
        return None
    head = Head(status=int(words[1]))
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        head.fields.setdefault(name.strip().lower(), []).append(value.strip())
    if words[0] == "HTTP/1.0":
        head.fields.setdefault("connection", ["close"])
    if "transfer-encoding" in head.fields:
        # Its length is that of the coding: nobody may take Content-Length for it.
        head.fields.pop("content-length", None)
    return head


def _reason(error: OSError) -> str:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return "connection reset"
    return os.strerror(error.errno) if error.errno else "connection lost"
