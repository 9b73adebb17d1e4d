"""What the mirror reads of a request, and the plain answers that it gives."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from proxy.serve.errors import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

JSON = b"application/json"
VERSION_FIELD = (b"docker-distribution-api-version", b"registry/2.0")

_READ = frozenset((b"range", b"if-range", b"accept", b"authorization", b"user-agent"))


@dataclass(slots=True)
class Request:
    """One request below ``/v2/``; ``echo`` are header fields that every answer to it has."""

    method: str
    path: str
    query: str
    client: str
    fields: dict[bytes, str]
    receive: Receive
    send: Send
    echo: Fields
    started: bool = False

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> "Request":
        """Read an ASGI scope; repeated fields are joined by commas (RFC 9110, 5.3)."""
        fields: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                text = value.decode("latin-1")
                fields[name] = f"{fields[name]}, {text}" if name in fields else text
        address = scope.get("client")
        return cls(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            address[0] if address else "",
            fields,
            receive,
            send,
            [VERSION_FIELD],
        )

    async def start(self, status: int, fields: Fields) -> None:
        """Send the head of an answer; ``fields`` include its Content-Length."""
        self.started = True
        await self.send(
            {"type": "http.response.start", "status": status, "headers": self.echo + fields}
        )

    async def answer(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole answer; of one to HEAD the body is left out by the server."""
        await self.start(status, [(b"content-length", b"%d" % len(body)), *fields])
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, problem: Problem) -> None:
        """Send an error as the distribution specification has it."""
        error: dict[str, object] = {"code": problem.code, "message": problem.message}
        if problem.detail is not None:
            error["detail"] = problem.detail
        body = json.dumps({"errors": [error]}).encode()
        await self.answer(problem.status, [(b"content-type", JSON), *problem.fields], body)
