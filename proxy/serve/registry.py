"""Everything below ``/v2/``: the pull side of the OCI distribution specification, as plain ASGI.

No routing of a framework: on the way to sendfile it would cost more than everything else.
"""

import asyncio
import json
import logging
import re
from functools import lru_cache

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_INDEX
from headstart.content.reference import qualified_repository
from headstart.registry.errors import UpstreamDenied, UpstreamMissing
from headstart.registry.passed import PassedAnswer
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from proxy.serve.blob_answers import BlobAnswers, BlobAsk
from proxy.serve.errors import (
    UNEXPECTED,
    CredentialsWanted,
    MethodRefused,
    kind_of,
    problem,
)
from proxy.serve.outlet import ClientDisconnected, FileTooShort
from proxy.serve.request import JSON, Fields, Receive, Request, Scope, Send
from proxy.serve.route import PREFIX, Route, find_route
from proxy.serve.sendfile import ResponseAborted
from proxy.serve.services import Services

logger = logging.getLogger(__name__)

_UNKNOWN_CODES = {
    "blobs": "BLOB_UNKNOWN",
    "manifests": "MANIFEST_UNKNOWN",
    "tags": "NAME_UNKNOWN",
    "referrers": "MANIFEST_UNKNOWN",
}
_EMPTY_INDEX = json.dumps(
    {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, separators=(",", ":")
).encode()
_NOBODY = "Basic Og=="
"""Empty user name, empty password: skopeo and its kind send it where they have none."""

_LINK = re.compile(r"<[^<>?]*(?:\?([^<>]*))?>")


class RegistryApplication:
    """The ASGI application for paths that start with ``/v2``."""

    def __init__(self, services: Services) -> None:
        """Answers with what ``services`` have."""
        self._services = services
        self._blobs = BlobAnswers(services)
        self._upstreams = services.upstreams
        self._default = services.configuration.mirror.default_upstream
        # Ranges of one blob come by the thousand; the longest URLs take 8 KiB each.
        self._route = lru_cache(1024)(
            lambda path, query: find_route(path, query, self._upstreams, self._default)
        )
        self._greeting: Fields = [(b"content-type", JSON)]
        if any(upstream.access == "passthrough" for upstream in services.upstreams.values()):
            # podman, buildah and skopeo send credentials only in the scheme that they see here.
            self._greeting.append((b"www-authenticate", b'Basic realm="headstart"'))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request.of(scope, receive, send)
        unknown = "NAME_UNKNOWN"
        try:
            if request.method not in ("GET", "HEAD"):
                raise MethodRefused(f"{request.method}: this mirror is for pulling only")
            if request.path in (PREFIX, PREFIX[:-1]):
                await request.answer(200, self._greeting, b"{}")
                return
            route = self._route(request.path, request.query)
            unknown = _UNKNOWN_CODES[route.kind]
            if route.named:
                request.echo.append((b"oci-namespace", route.host.encode("ascii")))
            await self._answer(request, route, self._upstreams[route.host])
        except (ClientDisconnected, ResponseAborted, FileTooShort, asyncio.CancelledError):
            raise
        except Exception as error:
            await self._refuse(request, error, unknown)

    async def _answer(self, request: Request, route: Route, upstream: Upstream) -> None:
        authorization = None
        if upstream.access == "passthrough":
            authorization = request.fields.get(b"authorization")
            if authorization == _NOBODY:
                authorization = None
        try:
            if route.kind == "blobs" and isinstance(route.reference, Digest):
                ask = BlobAsk(request, upstream, route.repository, route.reference, authorization)
                await (self._blobs.get(ask) if request.method == "GET" else self._blobs.head(ask))
            elif route.kind == "manifests" and route.reference is not None:
                await self._manifest(request, route, upstream, authorization)
            else:
                await self._list(request, route, upstream, authorization)
        except (UpstreamDenied, FillFailed) as error:
            denied = isinstance(error, UpstreamDenied) or error.code == "denied"
            if denied and upstream.access == "passthrough" and authorization is None:
                raise CredentialsWanted(upstream.host, str(error)) from error
            raise

    async def _manifest(
        self, request: Request, route: Route, upstream: Upstream, authorization: str | None
    ) -> None:
        assert route.reference is not None
        found = await self._services.manifests.find(
            upstream,
            route.repository,
            route.reference,
            request.fields.get(b"accept", ""),
            authorization,
        )
        digest = str(found.digest).encode("ascii")
        fields: Fields = [
            (b"content-type", found.media_type.encode("latin-1")),
            (b"docker-content-digest", digest),
            (b"etag", b'"%s"' % digest),
            (b"x-headstart-cache", found.cache.encode("ascii")),
        ]
        if found.warning is not None:
            fields.append((b"warning", b'299 - "%s"' % found.warning.encode("ascii")))
        await request.answer(200, fields, found.body)
        self._services.pulls.manifest_served(
            request.client,
            request.fields.get(b"user-agent", ""),
            upstream.host,
            route.repository,
            str(route.reference),
            str(found.digest),
            found.document,
        )

    async def _list(
        self, request: Request, route: Route, upstream: Upstream, authorization: str | None
    ) -> None:
        """Tags or referrers, as the upstream has them."""
        repository = qualified_repository(upstream.host, route.repository)
        tail = "tags/list" if route.kind == "tags" else f"referrers/{route.reference}"
        try:
            passed = await self._services.clients[upstream.host].passthrough(
                f"{PREFIX}{repository}/{tail}",
                route.query,
                request.fields.get(b"accept"),
                authorization,
            )
        except UpstreamMissing:
            if route.kind != "referrers":
                raise
            # A registry of before version 1.1: it cannot say that there are none.
            await request.answer(200, [(b"content-type", OCI_INDEX.encode())], _EMPTY_INDEX)
            return
        await request.answer(passed.status, _list_fields(request, route, passed), passed.body)

    async def _refuse(self, request: Request, error: Exception, unknown: str) -> None:
        asked = f"{request.method} {request.path!a}"
        if kind_of(error) is UNEXPECTED:
            logger.error("%s: an error of the mirror itself", asked, exc_info=error)
        elif isinstance(error, OSError | MemoryError):
            logger.error("%s: %s", asked, error)
        else:
            level = logging.WARNING if request.started else logging.INFO
            logger.log(level, "%s: %s", asked, error)
        if request.started:
            # A clean end would let the client take what it has for the whole.
            raise ResponseAborted(str(error)) from error
        await request.refuse(problem(error, unknown))


def _list_fields(request: Request, route: Route, passed: PassedAnswer) -> Fields:
    """The upstream's fields; the link to the next page as the client has to ask for it."""
    fields: Fields = []
    for name, value in passed.headers.items():
        if name == "link":
            found = _LINK.match(value)
            if found is None or not found[1]:
                continue
            namespace = f"&ns={route.host}" if route.named else ""
            value = f'<{request.path}?{found[1]}{namespace}>; rel="next"'
        fields.append((name.encode("latin-1"), value.encode("latin-1")))
    return fields
