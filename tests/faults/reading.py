"""A client on a raw socket, which tells a clean end of a body from a short one and from a reset."""

import socket
import time
from dataclasses import dataclass, field
from enum import Enum

PIECE = 64 * 1024


class End(Enum):
    """How an answer ended."""

    CLEAN = "as declared"
    SHORT = "closed before the declared end"
    RESET = "reset"
    LEFT = "left by the client itself"


@dataclass(slots=True)
class Reply:
    """An answer as it was received; names of ``fields`` in lower case, times in seconds."""

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: End = End.SHORT
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether a client must take this for the whole of what it asked for."""
        return self.status in (200, 206) and self.end is End.CLEAN

    def __repr__(self) -> str:
        return (
            f"Reply({self.status}, {len(self.body)} bytes, {self.end.value}, "
            f"{self.seconds:.1f} s, {self.fields})"
        )


def read(
    port: int,
    path: str,
    *,
    method: str = "GET",
    fields: dict[str, str] | None = None,
    leave_after: int | None = None,
    patience: float = 60.0,
) -> Reply:
    """Ask 127.0.0.1:``port`` on a connection of its own and read to whatever end there is.

    ``leave_after`` closes the connection after so many bytes of the body. Raises TimeoutError
    when there is no end after ``patience`` seconds.
    """
    reply, began = Reply(), time.monotonic()
    deadline = began + patience
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += [f"{name}: {text}" for name, text in (fields or {}).items()]
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            _receive(connection, reply, method, leave_after, deadline)
        except ConnectionError:
            reply.end = End.RESET
    reply.seconds = time.monotonic() - began
    return reply


def _receive(
    connection: socket.socket,
    reply: Reply,
    method: str,
    leave_after: int | None,
    deadline: float,
) -> None:
    received = bytearray()
    while (head_end := received.find(b"\r\n\r\n")) < 0:
        piece = _piece(connection, deadline)
        if not piece:
            return
        received += piece
    first, *lines = received[:head_end].decode("latin-1").split("\r\n")
    reply.status = int(first.split(" ")[1])
    for line in lines:
        name, _, text = line.partition(":")
        reply.fields[name.strip().lower()] = text.strip()
    del received[: head_end + 4]
    if "transfer-encoding" in reply.fields:
        raise ValueError("an answer without a length: its end could not be told from a break")
    length = 0 if method == "HEAD" else int(reply.fields["content-length"])
    while len(received) < length:
        if leave_after is not None and len(received) >= leave_after:
            reply.body, reply.end = bytes(received), End.LEFT
            return
        try:
            piece = _piece(connection, deadline)
        except ConnectionError:
            reply.body, reply.end = bytes(received), End.RESET
            return
        if not piece:
            reply.body = bytes(received)
            return
        received += piece
    reply.body = bytes(received)
    reply.end = End.CLEAN if len(received) == length else End.SHORT


def _piece(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer has no end")
    connection.settimeout(left)
    return connection.recv(PIECE)
