"""A registry on a real socket that does what a test tells it: correct by default, wrong by rule.

One thread a connection with blocking sockets, because ``sendall`` drops the GIL for plain sockets
and TLS alike and sends memoryviews without copying. Every request is recorded before it is
answered::

    with ScriptedUpstream() as upstream:
        digest = upstream.add_blob("team/app", payload)
        upstream.add_rule(Rule(path="/blobs/", times=1, close_after=70_000))
        ...
        assert len(upstream.blob_requests()) == 2

An object storage is a second ScriptedUpstream: ``upstream.redirect_blobs(storage)``.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.doubles.access import BasicAccess, SignedUrls, TokenService, basic_authorization
from tests.doubles.certificates import ServerCertificate
from tests.doubles.conversation import Conversation
from tests.doubles.rules import CAPTIVE_PAGE, RecordedRequest, Rule, captive_page
from tests.doubles.sending import Answer, Closed
from tests.doubles.shaping import error, plain, ranged
from tests.doubles.uploads import UPLOADS, Uploads

__all__ = [
    "CAPTIVE_PAGE",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "BasicAccess",
    "RecordedRequest",
    "Rule",
    "ScriptedUpstream",
    "TokenService",
    "basic_authorization",
    "captive_page",
]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_ROUTE = re.compile(
    r"/v2/(?P<repository>.+?)/(?P<kind>blobs|manifests|referrers|tags)/(?P<name>[^/]+)"
)


@dataclass(frozen=True, slots=True)
class _Manifest:
    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class _Storage:
    upstream: "ScriptedUpstream"
    lifetime: float
    uses: int | None
    expired_status: int


class ScriptedUpstream:
    """The server; use it as a context manager. Content and rules may change while it runs."""

    def __init__(
        self,
        *,
        certificate: ServerCertificate | None = None,
        name: str = "127.0.0.1",
        connection_rate: float | None = None,
    ) -> None:
        """TLS when there is a ``certificate``; ``name`` stands for the host in :attr:`url`.

        ``connection_rate`` limits each connection's bodies, in bytes a second.
        """
        self.access: TokenService | BasicAccess | None = None
        self.connection_rate = connection_rate
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        """How many connections have been accepted."""
        self.failed_handshakes = 0
        self.failures: list[BaseException] = []
        """Mistakes of this double itself; leaving the context raises the first."""
        self.signed_urls = SignedUrls()
        self._name = name
        self._rules: list[Rule] = []
        self._blobs: dict[tuple[str, str], memoryview] = {}
        self.uploads = Uploads(self._blobs)
        self._manifests: dict[tuple[str, str], _Manifest] = {}
        self._tags: dict[str, list[str]] = {}
        self._referrers: dict[tuple[str, str], bytes] = {}
        self._storage: _Storage | None = None
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._wake_read, self._wake_write = os.pipe()
        self._stopped = False
        self._tls: ssl.SSLContext | None = None
        self._server_names: dict[int, str | None] = {}
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate.certificate, certificate.key)
            self._tls.sni_callback = self._note_server_name
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    # --- life ---

    @property
    def url(self) -> str:
        """Scheme, host and port; no path."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def host(self) -> str:
        """Host and port as in image names."""
        return f"{self._name}:{self.port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if raised is None and self.failures:
            raise self.failures[0]

    def stop(self) -> None:
        """Close every connection and end every thread; stopping twice is allowed."""
        if self._stopped:
            return
        self._stopped = True
        os.write(self._wake_write, b"x")
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor.ident is not None:
            self._acceptor.join(10)
        self._listener.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(10)
        os.close(self._wake_read)
        os.close(self._wake_write)
        if any(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a thread of the scripted upstream did not end")

    def drop_connections(self) -> None:
        """Close every open connection where it stands."""
        with self._lock:
            for connection in self._open.values():
                with contextlib.suppress(OSError):
                    # The plain method: SSLSocket's own takes the TLS state from its thread.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    # --- content ---

    def add_blob(self, repository: str, payload: bytes | bytearray | memoryview) -> str:
        """Serve ``payload`` (any buffer, a mapped file too); returns its sha256 digest."""
        content = memoryview(payload).cast("B")
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self._blobs[repository, digest] = content
        return digest

    def blob(self, repository: str, digest: str) -> bytes | None:
        """The bytes of a blob that is served, pushed ones too."""
        content = self._blobs.get((repository, digest))
        return None if content is None else bytes(content)

    def manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """Bytes and media type of a manifest that is served, pushed ones too."""
        found = self._manifests.get((repository, reference))
        return None if found is None else (found.body, found.media_type)

    def remove_blob(self, repository: str, digest: str) -> None:
        """Answer 404 for the blob from now on."""
        del self._blobs[repository, digest]

    def add_manifest(
        self,
        repository: str,
        body: bytes,
        media_type: str = OCI_MANIFEST,
        tags: Iterable[str] = (),
    ) -> str:
        """Serve a manifest by digest and tags, which are moved when they exist."""
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        for reference in (digest, *tags):
            self._manifests[repository, reference] = _Manifest(body, media_type)
        known = self._tags.setdefault(repository, [])
        known.extend(tag for tag in tags if tag not in known)
        known.sort()
        return digest

    def remove_tag(self, repository: str, tag: str) -> None:
        """Answer 404 for the tag from now on."""
        del self._manifests[repository, tag]
        self._tags[repository].remove(tag)

    def add_referrers(self, repository: str, digest: str, index: bytes) -> None:
        """Serve an image index as the referrers of a digest."""
        self._referrers[repository, digest] = index

    def redirect_blobs(
        self,
        storage: "ScriptedUpstream",
        *,
        lifetime: float = 300.0,
        uses: int | None = None,
        expired_status: int = 403,
    ) -> None:
        """Answer requests for blobs by 307 to signed URLs at ``storage``."""
        self._storage = _Storage(storage, lifetime, uses, expired_status)

    # --- script and record ---

    def add_rule(self, rule: Rule) -> Rule:
        """Add a rule after the others."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear_rules(self) -> None:
        """Behave again."""
        with self._lock:
            self._rules.clear()

    def forget_requests(self) -> None:
        """Start counting anew."""
        with self._lock:
            self.requests.clear()

    def requests_to(self, pattern: str, method: str | None = None) -> list[RecordedRequest]:
        """Requests in whose path the regular expression is found."""
        with self._lock:
            return [
                request
                for request in self.requests
                if re.search(pattern, request.path) and method in (None, request.method)
            ]

    def blob_requests(self, method: str = "GET") -> list[RecordedRequest]:
        """Requests for blobs, at object storage too."""
        return self.requests_to(r"/blobs/|^/signed/", method)

    def blob_bytes_sent(self) -> int:
        """Bytes of blobs that were handed to the kernel."""
        return sum(request.bytes_sent for request in self.blob_requests())

    # --- connections ---

    def _accept(self) -> None:
        for number in itertools.count(1):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections = number
                self._open[number] = connection
            thread = threading.Thread(target=self._serve, args=(number, connection), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _note_server_name(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        if isinstance(connection, ssl.SSLSocket):
            self._server_names[connection.fileno()] = name

    def _serve(self, number: int, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(600)
            if self._tls is not None:
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                except (OSError, ssl.SSLError):
                    self.failed_handshakes += 1
                    return
                with self._lock:
                    self._open[number] = connection
            name = self._server_names.pop(connection.fileno(), None)
            Conversation(self, number, connection, name, self._wake_read).run()
        except (Closed, OSError):
            return
        except BaseException as mistake:
            self.failures.append(mistake)
        finally:
            with self._lock:
                self._open.pop(number, None)
                connection.close()

    def received(self, request: RecordedRequest) -> Rule:
        """Record a request; the rule for its answer."""
        with self._lock:
            self.requests.append(request)
            return next((rule for rule in self._rules if rule.applies(request)), Rule())

    # --- answers ---

    def content(self, request: RecordedRequest, body: bytes, rule: Rule) -> Answer:
        """The answer as the rule shapes its content."""
        service = self.access if isinstance(self.access, TokenService) else None
        if service is not None and request.path == service.path and rule.status is None:
            status, answer = service.answer(request, body)
            return plain(status, answer, {"Content-Type": "application/json"})
        if rule.status is not None or rule.body is not None:
            fields = dict(rule.headers)
            if rule.location is not None:
                fields["Location"] = rule.location(request)
            return plain(rule.status or 200, rule.body or b"", fields)
        if request.path.startswith("/signed/"):
            opened = self.signed_urls.open(request)
            if isinstance(opened, int):
                return plain(opened, b"<Error><Code>AccessDenied</Code></Error>")
            return ranged(request, opened, rule, {"ETag": '"object"'})
        route = _ROUTE.fullmatch(request.path)
        upload = UPLOADS.fullmatch(request.path)
        known = route or upload
        repository = known["repository"] if known else None
        if self.access is not None and not self.access.admits(request, repository):
            challenge = self.access.challenge(self.url, repository)
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        if request.path == "/v2/":
            return plain(200, b"{}", {"Content-Type": "application/json"})
        if upload is not None:
            return self.uploads.answer(upload, request, body)
        if route is not None and request.method == "PUT" and route["kind"] == "manifests":
            return self._put_manifest(route, request, body)
        if route is None or request.method not in ("GET", "HEAD"):
            return error(404, "UNSUPPORTED")
        return self._registry_content(route, request, rule)

    def _put_manifest(self, route: re.Match[str], request: RecordedRequest, body: bytes) -> Answer:
        tags = [] if ":" in route["name"] else [route["name"]]
        media_type = request.headers.get("content-type", "")
        digest = self.add_manifest(route["repository"], body, media_type, tags)
        return plain(201, b"", {"Docker-Content-Digest": digest})

    def _registry_content(
        self, route: re.Match[str], request: RecordedRequest, rule: Rule
    ) -> Answer:
        key = (route["repository"], route["name"])
        if route["kind"] == "blobs":
            content = self._blobs.get(key)
            if content is None:
                return error(404, "BLOB_UNKNOWN")
            if (storage := self._storage) is not None:
                url = storage.upstream.url + storage.upstream.signed_urls.grant(
                    content, storage.lifetime, storage.uses, storage.expired_status
                )
                return plain(307, b"", {"Location": url})
            fields = {"Docker-Content-Digest": route["name"], "ETag": f'"{route["name"]}"'}
            return ranged(request, content, rule, fields)
        if route["kind"] == "manifests":
            manifest = self._manifests.get(key)
            if manifest is None:
                return error(404, "MANIFEST_UNKNOWN")
            digest = "sha256:" + hashlib.sha256(manifest.body).hexdigest()
            fields = {"Content-Type": manifest.media_type, "Docker-Content-Digest": digest}
            return plain(200, manifest.body, fields)
        if route["kind"] == "referrers":
            empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            index = self._referrers.get(key, json.dumps(empty).encode())
            return plain(200, index, {"Content-Type": OCI_INDEX})
        tags = {"name": key[0], "tags": self._tags.get(key[0], [])}
        return plain(200, json.dumps(tags).encode(), {"Content-Type": "application/json"})
