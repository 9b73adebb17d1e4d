"""Brings the bytes of a range: one HTTP request on a reused pycurl handle, in a thread.

libcurl was measured against httpx, aiohttp and raw sockets: it is the fastest over TLS and close
to raw sockets on plain HTTP. Redirects, credentials and retries are decided elsewhere.
"""

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pycurl

from headstart.registry.address import AddressPolicy
from headstart.registry.errors import RefusedTarget
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.receiver import BUFFER_SIZE, Head, RangeReceiver

logger = logging.getLogger(__name__)

CURL_BUFFER_SIZE = 512 * 1024
MAX_HEAD_BYTES = 64 * 1024
IDLE_SECONDS = 30.0
USER_AGENT = "headstart"

SHORT_BODY = 64 * 1024
_SUPPRESS_CONNECT_HEADERS = 265  # curl/curl.h; pycurl does not name it


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """One GET: ``stop`` None asks for the whole blob, without a Range field."""

    url: str
    authorization: str | None
    start: int
    stop: int | None
    connect_seconds: float
    ca_file: Path | None
    allow_private: bool
    bytes_per_second: int | None
    proxy: str | None = None
    """URL of an HTTP proxy; its own address is the operator's business and is not checked."""


class Source(Protocol):
    """What the scheduler needs of whatever brings bytes; tests have their own."""

    def perform(self, fetch: Fetch, request: BlobRequest, receiver_of: "ReceiverMaker") -> Outcome:
        """Make one request and hand its answer to a receiver; blocks."""

    def close_idle(self) -> None:
        """Close connections that nobody has used for a while."""

    def close(self) -> None:
        """Close idle connections."""


class ReceiverMaker(Protocol):
    """Makes the receiver of one answer around a connection's buffer."""

    def __call__(self, buffer: bytearray) -> RangeReceiver:
        """A receiver for one answer."""


def keeps_connection(head: Head) -> bool:
    """Whether an answer that is no content is short enough to read past, keeping the connection."""
    length = head.length()
    kept = head.status in (301, 302, 303, 307, 308, 401)
    return kept and length is not None and length <= SHORT_BODY


class _Carrier:
    """A curl handle with its buffer; its connection stays open between requests."""

    def __init__(self) -> None:
        self.handle = pycurl.Curl()
        self.buffer = bytearray(BUFFER_SIZE)
        self.connection: socket.socket | None = None
        self.used = time.monotonic()

    def hang_up(self) -> None:
        """Close our copy of the socket: libcurl's own is another descriptor of the connection."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()
            self.connection = None

    def close(self) -> None:
        """Close handle and connection."""
        self.handle.close()
        self.hang_up()


class CurlSource:
    """Reused easy handles, at most as many as requests run at once."""

    def __init__(self) -> None:
        """No handle yet."""
        self._idle: list[_Carrier] = []
        self._lock = threading.Lock()

    def perform(self, fetch: Fetch, request: BlobRequest, receiver_of: ReceiverMaker) -> Outcome:
        """Make one request and hand its answer to a receiver; blocks."""
        with self._lock:
            carrier = self._idle.pop() if self._idle else None
        carrier = carrier or _Carrier()
        try:
            return _Transfer(carrier, fetch, request, receiver_of(carrier.buffer)).run()
        finally:
            fetch.attach(None)
            carrier.used = time.monotonic()
            with self._lock:
                self._idle.append(carrier)

    def close_idle(self) -> None:
        """Close handles that nobody has used for :data:`IDLE_SECONDS`."""
        limit = time.monotonic() - IDLE_SECONDS
        with self._lock:
            old = [carrier for carrier in self._idle if carrier.used < limit]
            self._idle = [carrier for carrier in self._idle if carrier.used >= limit]
        for carrier in old:
            carrier.close()

    def close(self) -> None:
        """Close all idle handles."""
        with self._lock:
            idle, self._idle = self._idle, []
        for carrier in idle:
            carrier.close()


class _Transfer:
    """One request on one handle."""

    def __init__(
        self, carrier: _Carrier, fetch: Fetch, request: BlobRequest, receiver: RangeReceiver
    ) -> None:
        self._carrier = carrier
        self._fetch = fetch
        self._request = request
        self._receiver = receiver
        self._policy = AddressPolicy(request.allow_private)
        self._head = Head()
        self._head_bytes = 0
        self._judged = False
        self._refused: str | None = None
        self._skipped = 0

    def run(self) -> Outcome:
        """Perform the request."""
        if self._fetch.cut_reason is not None:
            return self._fetch.cut_reason
        handle = self._carrier.handle
        self._prepare(handle)
        self._fetch.request_sent = time.monotonic()
        failure: Outcome | None = None
        try:
            self._fetch.attach(self._carrier.connection)
            handle.perform()
        except pycurl.error as error:
            failure = self._failure(*error.args)
        if failure is not None or (self._head.first("connection") or "").lower() == "close":
            # Else the upstream goes on sending an answer that we have turned down.
            self._fetch.attach(None)
            self._carrier.hang_up()
        return self._receiver.finished(failure)

    def _prepare(self, handle: pycurl.Curl) -> None:
        request = self._request
        handle.reset()
        fields = ["Accept: */*", "Accept-Encoding: identity"]
        if request.stop is not None:
            fields.append(f"Range: bytes={request.start}-{request.stop - 1}")
        if request.authorization is not None:
            fields.append(f"Authorization: {request.authorization}")
        handle.setopt(pycurl.URL, request.url)
        handle.setopt(pycurl.HTTPHEADER, fields)
        handle.setopt(pycurl.USERAGENT, USER_AGENT)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.BUFFERSIZE, CURL_BUFFER_SIZE)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, int(request.connect_seconds * 1000))
        handle.setopt(_SUPPRESS_CONNECT_HEADERS, 1)
        handle.setopt(pycurl.MAXCONNECTS, 1)
        # Empty: none, whatever the environment says; it has been read already.
        handle.setopt(pycurl.PROXY, request.proxy or "")
        handle.setopt(pycurl.NOPROGRESS, 0)
        handle.setopt(pycurl.XFERINFOFUNCTION, self._still_wanted)
        handle.setopt(pycurl.HEADERFUNCTION, self._header)
        handle.setopt(pycurl.WRITEFUNCTION, self._body)
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        if request.bytes_per_second is not None:
            handle.setopt(pycurl.MAX_RECV_SPEED_LARGE, request.bytes_per_second)
        if request.url.startswith("https:"):
            _trust(handle, request.ca_file)

    def _open_socket(self, purpose: int, address: tuple[int, int, int, object]) -> object:
        family, kind, protocol, place = address
        host = place[0] if isinstance(place, tuple) else place
        text = host.decode("ascii") if isinstance(host, bytes) else str(host)
        if self._request.proxy is None:
            try:
                self._policy.check(text)
            except RefusedTarget as error:
                self._refused = str(error)
                return pycurl.SOCKET_BAD
        if self._carrier.connection is not None:
            # Of a connection that libcurl has given up, or tries at the same time.
            self._carrier.connection.close()
        connection = socket.socket(family, kind, protocol)
        self._carrier.connection = connection
        self._fetch.attach(connection)
        return connection

    def _still_wanted(self, *_: int) -> int:
        return 1 if self._fetch.cut_reason is not None else 0

    def _header(self, line: bytes) -> int | None:
        self._head_bytes += len(line)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._receiver.outcome = Outcome(
                Ending.PROTOCOL, f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"
            )
            return 0
        text = line.decode("latin-1").rstrip("\r\n")
        if text.startswith("HTTP/"):
            _, _, status = text.partition(" ")
            if not status[:3].isdecimal():
                return 0
            self._head = Head(status=int(status[:3]))
        elif text:
            name, _, value = text.partition(":")
            self._head.fields.setdefault(name.strip().lower(), []).append(value.strip())
        elif self._head.status >= 200 and not self._judged:
            self._judged = True
            if not self._receiver.answered(self._head) and not keeps_connection(self._head):
                return 0
        return None

    def _body(self, received: bytes) -> int | None:
        if self._receiver.outcome is not None:
            self._skipped += len(received)
            return None if self._skipped <= SHORT_BODY else 0
        return None if self._receiver.feed(received) else 0

    def _failure(self, code: int, text: str) -> Outcome:
        host = self._request.url.split("/", 3)[2].rpartition("@")[2]
        if self._refused is not None:
            return Outcome(Ending.REFUSED, self._refused)
        if code == pycurl.E_OPERATION_TIMEDOUT and not self._judged:
            seconds = self._request.connect_seconds
            return Outcome(
                Ending.DEADLINE,
                f"{host}: no connection within {seconds:g} s",
                key="connect",
                value=f"{seconds:g}s",
            )
        return Outcome(Ending.NETWORK, f"{host}: {_reason(code, text)}")


_REASONS = {
    pycurl.E_COULDNT_RESOLVE_HOST: "its name does not resolve",
    pycurl.E_COULDNT_RESOLVE_PROXY: "the proxy's name does not resolve",
    pycurl.E_COULDNT_CONNECT: "connection refused or unreachable",
    pycurl.E_PARTIAL_FILE: "the body ended early",
    pycurl.E_GOT_NOTHING: "closed without an answer",
    pycurl.E_RECV_ERROR: "connection reset",
    pycurl.E_SEND_ERROR: "connection reset",
}


def _reason(code: int, text: str) -> str:
    known = _REASONS.get(code)
    # libcurl's own texts can quote the URL, and with it a signature: only those about TLS are
    # passed on, which name certificates.
    if known is not None:
        return known
    if code in (pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION):
        return f"TLS: {text}"
    return f"libcurl error {code}"


def _trust(handle: pycurl.Curl, ca_file: Path | None) -> None:
    """Point libcurl, which is built without knowing this system, to the right certificates."""
    handle.setopt(pycurl.SSL_VERIFYPEER, 1)
    handle.setopt(pycurl.SSL_VERIFYHOST, 2)
    paths = ssl.get_default_verify_paths()
    if ca_file is not None:
        handle.setopt(pycurl.CAINFO, str(ca_file))
        # Beside the system's: a private registry's object storage may have a public certificate.
        directory = paths.capath or "/etc/ssl/certs"
        if os.path.isdir(directory):
            handle.setopt(pycurl.CAPATH, directory)
        return
    for candidate in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if candidate and os.path.exists(candidate):
            handle.setopt(pycurl.CAINFO, candidate)
            return
    if paths.capath:
        handle.setopt(pycurl.CAPATH, paths.capath)
