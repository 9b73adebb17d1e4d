"""Who may call the control API.

Loopback peers on the mirror's port, everybody on the control socket (its mode decides), and from
elsewhere whoever has the token. A browser on this machine is a loopback peer that anybody's page
can use: so calls by another name than this machine's are refused (DNS rebinding), and calls that
change something need a content type that no page may send unasked, and no foreign origin.
"""

import asyncio
import hmac
import ipaddress
import os
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from proxy.control.problem import Problem
from proxy.serve.services import VIA_CONTROL_SOCKET

CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))

_PASSED_ON = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_LONGEST_TOKEN = 4096


class TokenFile:
    """The bearer token, read again when its file has changed."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._token = b""

    def accepts(self, given: str) -> bool:
        """Whether ``given`` is the token; never while the file is absent or empty. Blocks."""
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    self._token = file.read(_LONGEST_TOKEN + 1).strip()
                self._seen = seen
        except OSError:
            self._seen, self._token = None, b""
        usable = 0 < len(self._token) <= _LONGEST_TOKEN
        same = hmac.compare_digest(self._token, given.encode("utf-8", "surrogateescape"))
        return usable and same


class Access:
    """Lets control calls in, or raises the :class:`Problem` that says why not."""

    def __init__(self, token_file: Path | None) -> None:
        """``token_file`` is ``control.token_file``."""
        self._token = None if token_file is None else TokenFile(token_file)

    async def check(self, request: Request) -> None:
        """Raise :class:`Problem` unless the call is allowed."""
        if not request.scope.get(VIA_CONTROL_SOCKET):
            if _is_loopback_peer(request):
                _check_host(request)
            else:
                await self._check_token(request)
        if request.method in CHANGING:
            _check_origin(request)
            _check_content_type(request)

    async def _check_token(self, request: Request) -> None:
        if self._token is None:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "not-local",
                "Control calls come from this machine",
                "call from loopback or over the control socket, or set control.token_file and "
                "send its content as a bearer token",
            )
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        allowed = scheme.lower() == "bearer" and await asyncio.to_thread(
            self._token.accepts, given.strip()
        )
        if not allowed:
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                "token",
                "The token is absent or wrong",
                "send the content of control.token_file as Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="headstart control"'},
            )


def _is_loopback_peer(request: Request) -> bool:
    """Whether the peer is on this machine and speaks for itself, not for somebody behind it."""
    if request.client is None or any(name in request.headers for name in _PASSED_ON):
        return False
    return _is_loopback(request.client.host)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _check_host(request: Request) -> None:
    named = request.headers.get("host", "")
    try:
        host = urlsplit(f"//{named}").hostname or ""
    except ValueError:
        host = ""
    if host != "localhost" and not host.endswith(".localhost") and not _is_loopback(host):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "foreign-host",
            "Called by another machine's name",
            "call 127.0.0.1 or localhost, or use the control socket",
            field="Host",
            value=named[:100],
        )


def _check_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    own = request.headers.get("host", "")
    # An origin is scheme://host, or the word null; anything behind the host makes it none.
    if origin is not None and (not own or origin.lower().partition("://")[2] != own.lower()):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "foreign-origin",
            "A page of another origin calls",
            "only this mirror's own pages may change something",
            field="Origin",
            value=origin[:100],
        )


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "content-type",
            "The content type is not JSON",
            "send Content-Type: application/json, also where there is no body",
            field="Content-Type",
            value=given[:100],
        )
