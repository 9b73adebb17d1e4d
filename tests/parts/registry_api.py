"""The registry's HTTP API in plain Python: single blobs of any size, pushed and read as streams.

Not a client under test and not Headstart's: nothing of ``headstart`` is used here.
"""

import hashlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.accounts import Account
from tests.parts.pattern import PIECE, Pattern

_Body = bytes | Iterable[bytes] | None


class RegistryRefused(Exception):
    """The registry answered with another status than the expected one."""

    def __init__(self, call: str, status: int, body: bytes) -> None:
        super().__init__(f"{call}: {status} {body[:500].decode(errors='replace')}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body was read; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """An answer whose body is counted and hashed, not kept."""

    status: int
    headers: Mapping[str, str]
    size: int
    digest: str


class RegistryApi:
    """Calls to the registry (or mirror) at ``url``, with the rights of ``account``.

    Redirects are not followed: what a registry redirects is for the test to see.
    """

    def __init__(
        self,
        url: str,
        account: Account | None = None,
        *,
        ca_file: Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._parts = urllib.parse.urlsplit(url)
        self._account = account
        self._timeout = timeout
        self._tls = ssl.create_default_context(cafile=ca_file) if ca_file else None
        self._tokens: dict[str, str] = {}

    def call(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request; after a 401 with a challenge once more with what it asks for."""
        for last in (False, True):
            with self._exchange(method, target, headers, body) as response:
                answer = Answer(response.status, _headers(response), response.read())
            if last or not self._met(target, answer.status, answer.headers):
                break
        return answer

    def read(self, target: str, *, headers: Mapping[str, str] | None = None) -> StreamedAnswer:
        """GET a body of any size; only its size and sha256 are kept."""
        for last in (False, True):
            digester = hashlib.sha256()
            size = 0
            with self._exchange("GET", target, headers, None) as response:
                while piece := response.read(PIECE):
                    digester.update(piece)
                    size += len(piece)
            digest = f"sha256:{digester.hexdigest()}"
            answer = StreamedAnswer(response.status, _headers(response), size, digest)
            if last or not self._met(target, answer.status, answer.headers):
                break
        return answer

    def push_blob(self, repository: str, blob: Pattern | Path | bytes) -> str:
        """Upload a blob as a stream; returns its digest."""
        size, pieces = _source(blob)
        begun = self._expect(202, "POST", f"/v2/{repository}/blobs/uploads/")
        digester = hashlib.sha256()
        location = self._location(begun)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._exchange("PATCH", location, headers, _digested(pieces, digester)) as response:
            answer = Answer(response.status, _headers(response), response.read())
        if answer.status != 202:
            raise RegistryRefused(f"PATCH {location}", answer.status, answer.body)
        digest = f"sha256:{digester.hexdigest()}"
        location = self._location(answer)
        joint = "&" if "?" in location else "?"
        self._expect(201, "PUT", f"{location}{joint}digest={urllib.parse.quote(digest)}")
        return digest

    def push_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> str:
        """PUT a manifest under a tag or its digest; returns its digest."""
        self._expect(
            201,
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            headers={"Content-Type": media_type},
            body=body,
        )
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _expect(
        self,
        status: int,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        answer = self.call(method, target, headers=headers, body=body)
        if answer.status != status:
            raise RegistryRefused(f"{method} {target}", answer.status, answer.body)
        return answer

    @contextmanager
    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str] | None, body: _Body
    ) -> Iterator[http.client.HTTPResponse]:
        assert self._parts.hostname is not None
        host, port = self._parts.hostname, self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._timeout)
        )
        sent = dict(headers or {})
        authorization = self._tokens.get(_repository(target))
        if authorization is not None:
            sent.setdefault("Authorization", authorization)
        try:
            connection.request(method, target, body, sent)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def _met(self, target: str, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a challenge came and was met, so that there is something better to send now."""
        challenge = headers.get("www-authenticate", "")
        if status != 401 or not challenge:
            return False
        repository = _repository(target)
        kind, _, parameters = challenge.partition(" ")
        if kind.lower() == "basic" and self._account is not None:
            self._tokens[repository] = self._account.basic
            return True
        if kind.lower() != "bearer":
            return False
        fields = dict(_challenge_fields(parameters))
        realm = urllib.parse.urlsplit(fields["realm"])
        asked = [(name, fields[name]) for name in ("service", "scope") if name in fields]
        query = urllib.parse.urlencode(asked)
        headers = {"Authorization": self._account.basic} if self._account else {}
        tokens = RegistryApi(f"{realm.scheme}://{realm.netloc}", timeout=self._timeout)
        tokens._tls = self._tls
        with tokens._exchange("GET", f"{realm.path}?{query}", headers, None) as response:
            body = response.read()
            if response.status != 200:
                raise RegistryRefused(f"GET {fields['realm']}", response.status, body)
        self._tokens[repository] = f"Bearer {json.loads(body)['token']}"
        return True

    def _location(self, answer: Answer) -> str:
        """Path and query of a Location, which is always on the same server."""
        parts = urllib.parse.urlsplit(answer.headers["location"])
        return parts.path + (f"?{parts.query}" if parts.query else "")


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _repository(target: str) -> str:
    """The repository in a path; empty for other paths."""
    path = target.partition("?")[0].removeprefix("/v2/")
    for part in ("/blobs/", "/manifests/", "/tags/", "/referrers/"):
        if part in path:
            return path.partition(part)[0]
    return ""


def _challenge_fields(parameters: str) -> Iterator[tuple[str, str]]:
    # A scope holds commas, so the list cannot be split at them.
    for piece in parameters.split('",'):
        name, _, value = piece.partition("=")
        yield name.strip(), value.strip().strip('"')


def _source(blob: Pattern | Path | bytes) -> tuple[int, Iterable[bytes]]:
    if isinstance(blob, Pattern):
        return blob.size, blob.pieces()
    if isinstance(blob, Path):
        return blob.stat().st_size, _pieces(blob)
    return len(blob), [blob]


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece


def _digested(pieces: Iterable[bytes], digester: "hashlib._Hash") -> Iterator[bytes]:
    for piece in pieces:
        digester.update(piece)
        yield piece
