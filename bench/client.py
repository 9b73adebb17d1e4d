"""A client that costs next to nothing: one request on a socket, its body thrown away unread.

MSG_TRUNC makes the kernel drop what has arrived instead of copying it, so that on a machine with
few cores the server under test is what limits a transfer.
"""

import hashlib
import socket
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.measure import MIB, WrongAnswer

TIMEOUT = 120.0
_DROPPED = bytearray(4 * MIB)
_LONGEST_HEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """An answer that came whole: seconds since before the connection was made; ``digest`` only
    where it was asked for."""

    status: int
    size: int
    first_byte: float
    seconds: float
    digest: str | None = None


def receive(
    url: str,
    start: int | None = None,
    stop: int | None = None,
    *,
    hashed: bool = False,
    timeout: float = TIMEOUT,
) -> Received:
    """GET a plain HTTP ``url``: all of it, or bytes ``start`` to ``stop`` (not included).

    ``hashed``: the body is read and its sha256 computed. Raises :class:`WrongAnswer` and OSError.
    """
    begun = time.monotonic()
    parts = urllib.parse.urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    wanted = "" if start is None else f"Range: bytes={start}-{'' if stop is None else stop - 1}\r\n"
    expected = 200 if start is None else 206
    with socket.create_connection((parts.hostname, parts.port), timeout) as connection:
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{wanted}\r\n".encode()
        )
        head, rest = _read_head(connection)
        status, length = _parse(head)
        if status >= 400 and not rest and length:
            rest = connection.recv(_LONGEST_HEAD)
        if status != expected or (
            start is not None and stop is not None and length != stop - start
        ):
            raise WrongAnswer(
                f"GET {url} {wanted.strip()}: status {status}, {length} bytes: {_start(rest)}"
            )
        if not rest and length:
            # Waits for the first byte without taking it.
            connection.recv(1, socket.MSG_PEEK)
        first_byte = time.monotonic() - begun
        digester = hashlib.sha256(rest) if hashed else None
        size = len(rest)
        view = memoryview(bytearray(MIB) if hashed else _DROPPED)
        flags = 0 if hashed else socket.MSG_TRUNC
        while size < length:
            count = connection.recv_into(view, min(len(view), length - size), flags)
            if not count:
                raise WrongAnswer(f"GET {url}: the body ended at {size} of {length}")
            if digester is not None:
                digester.update(view[:count])
            size += count
    digest = None if digester is None else f"sha256:{digester.hexdigest()}"
    return Received(status, size, first_byte, time.monotonic() - begun, digest)


def together(calls: Sequence[Callable[[], Received]]) -> tuple[float, list[Received]]:
    """Run all calls at once, a thread each; seconds until the last one ended, and their answers."""
    begun = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as threads:
        received = [running.result() for running in [threads.submit(call) for call in calls]]
    return time.monotonic() - begun, received


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head without its empty line, and what came of the body with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(4096)
        if not piece or len(received) > _LONGEST_HEAD:
            raise WrongAnswer(f"no answer but {received[:200]!r}")
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _start(body: bytes) -> str:
    """What an error's body begins with, in one line; a blob's is no text."""
    return body[:200].decode("ascii", "replace") if body.startswith(b"{") else ""


def _parse(head: bytes) -> tuple[int, int]:
    """Status and Content-Length."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if "content-length" not in fields:
        raise WrongAnswer(f"an answer without Content-Length: {head!r}")
    return int(first.split()[1]), int(fields["content-length"])
