"""Control calls over real sockets, with nothing added by a client library."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 30.0
JSON_BODY = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """Status, header fields (names in lower case) and body."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class _OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


@dataclass
class Caller:
    """Somebody who calls: ``place`` is (host, port), or the path of a Unix socket."""

    place: tuple[str, int] | Path

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        if isinstance(self.place, Path):
            return _OverSocket(self.place)
        return http.client.HTTPConnection(*self.place, timeout=PATIENCE)

    def call(
        self,
        path: str,
        method: str = "GET",
        content: object = None,
        fields: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call; ``content`` is bytes, or sent as JSON; changing calls say that it is JSON."""
        sent = dict(JSON_BODY if method != "GET" else {}) if fields is None else dict(fields)
        body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
        connection = self.connection()
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, received, answer.read())
        finally:
            connection.close()

    def events(self, path: str) -> Iterator[Any]:
        """Server-sent events until the stream ends."""
        connection = self.connection()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            for line in answer:
                if line.startswith(b"data:"):
                    yield json.loads(line.removeprefix(b"data:"))
        finally:
            connection.close()


def assert_problem(answer: Answer, status: int, **expected: str) -> None:
    """The answer is a problem of RFC 9457 with this status and these members."""
    assert answer.status == status, answer.body
    assert answer.fields["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert problem["type"].startswith("urn:headstart:problem:")
    assert problem["title"]
    for name, words in expected.items():
        assert words in problem[name], problem
