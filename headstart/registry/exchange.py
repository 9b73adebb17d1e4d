"""One request of the control plane and its answer: deadlines, size caps, no decisions."""

import asyncio
import http.cookiejar
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlencode, urlsplit

import httpx

from headstart.registry.address import AddressPolicy, resolve
from headstart.registry.errors import (
    RegistryError,
    UpstreamDeadline,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from headstart.registry.outgoing import Content, ContentFailed, Sending
from headstart.registry.proxies import ProxySettings
from headstart.registry.redirect import origin, printable_url
from headstart.registry.transport import (
    EXACT_TARGET,
    PinnedBackend,
    PinnedTransport,
    Resolve,
    silence_libraries,
)
from headstart.registry.trust import tls_context
from headstart.registry.upstream import Deadlines, Upstream

USER_AGENT = "headstart"

_DISCARD_SIZE = 64 * 1024

logger = logging.getLogger(__name__)


class Answer:
    """The head of an answer and its body, still to be read. Close it, or use it as a context."""

    def __init__(self, response: httpx.Response, url: str, deadlines: Deadlines) -> None:
        """``url`` is what was asked, redirects followed."""
        self.status = response.status_code
        self.url = url
        self._response = response
        self._deadlines = deadlines
        self._begun = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def host(self) -> str:
        """Who answered, for messages."""
        return origin(self.url)[1]

    def first(self, name: str) -> str | None:
        """The first value of a field, or None."""
        values = self.all(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        """The values of a field, one for each line."""
        return self._response.headers.get_list(name)

    def length(self) -> int | None:
        """Content-Length, or None when there is none or it is no number."""
        text = self.first("content-length")
        return int(text) if text is not None and text.isascii() and text.isdecimal() else None

    def media_type(self) -> str:
        """Content-Type without parameters; empty when absent."""
        return (self.first("content-type") or "").partition(";")[0].strip()

    def check_identity(self) -> None:
        """Raise UpstreamProtocol for an encoded body or a page of HTML."""
        encoding = self.first("content-encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            raise UpstreamProtocol(
                f"{self.host} answers with a coded body, though identity was asked for"
            )
        if self.media_type().lower() in ("text/html", "application/xhtml+xml"):
            raise UpstreamProtocol(f"{self.host} answers with a page of HTML, no content")

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamProtocol above ``limit`` bytes."""
        body = bytearray()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    raise UpstreamProtocol(f"{self.host}: the answer is longer than {limit} bytes")
        return bytes(body)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, not decoded. Raises UpstreamDeadline when it is too slow.

        Only time spent waiting for the upstream counts, not the reader's own.
        """
        stall, rate = self._deadlines.stall, self._deadlines.stall_rate
        waited, received = 0.0, 0
        self._begun = True
        async with aclosing(_raw(self._response)) as pieces:
            while True:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(stall):
                        piece = await anext(pieces)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise UpstreamDeadline(
                        "stall", stall, f"{self.host} sent nothing for {stall:g} s"
                    ) from None
                waited += time.monotonic() - begun
                received += len(piece)
                if waited >= stall:
                    if received < rate * waited:
                        raise UpstreamDeadline(
                            "stall_rate", rate, f"{self.host} sent {received / waited:.0f} B/s"
                        )
                    waited, received = 0.0, 0
                yield piece

    async def discard(self) -> None:
        """Read past a short body, so that its connection stays of use; close either way."""
        length = self.length()
        if not self._begun and length is not None and length <= _DISCARD_SIZE:
            try:
                await self.read(_DISCARD_SIZE)
            except RegistryError as error:
                logger.debug("%s: body not read to its end: %s", self.host, error)
        await self.aclose()

    async def aclose(self) -> None:
        """Close; what has not been read is lost, and its connection with it."""
        await self._response.aclose()


class Exchange:
    """Sends requests to one upstream, its realm and its redirect targets."""

    def __init__(self, upstream: Upstream, resolve_host: Resolve = resolve) -> None:
        """Reads the proxy variables of the environment; connects to nothing yet."""
        silence_libraries()
        self._upstream = upstream
        self._policy = AddressPolicy(upstream.allow_private)
        self._backend = PinnedBackend(self._policy, resolve_host)
        self._proxies = ProxySettings()
        self._clients: dict[str | None, httpx.AsyncClient] = {}

    async def open(
        self,
        method: str,
        url: str,
        fields: dict[str, str],
        form: dict[str, str] | None = None,
        content: Content | None = None,
        patience: float = 0.0,
    ) -> Answer:
        """Send a request with ``form`` or ``content``, wait for the head of its answer.

        ``patience`` is how many seconds more than others this answer may take. Raises RegistryError
        and ContentFailed.
        """
        _, host, _ = origin(url)
        self._policy.check_host(host)
        client = self._client(self._proxies.proxy_for(url))
        headers = [(b"Accept-Encoding", b"identity")]
        headers += [(name.encode(), _field_value(text)) for name, text in fields.items()]
        encoded: bytes | None = None
        if form is not None:
            encoded = urlencode(form).encode()
            headers.append((b"Content-Type", b"application/x-www-form-urlencoded"))
        if content is not None:
            headers.append((b"Content-Length", b"%d" % content.length))
        try:
            request = client.build_request(method, url, headers=headers, content=encoded)
        except (httpx.InvalidURL, UnicodeError):
            raise UpstreamProtocol(f"{printable_url(url)} is no URL") from None
        request.extensions[EXACT_TARGET] = _target(url)
        deadlines = self._upstream.deadlines
        started = time.monotonic()
        answer_seconds = deadlines.first_byte + patience
        if content is not None:
            # What is handed over may still lie in this machine's send buffer.
            answer_seconds += deadlines.stall
            request.extensions["timeout"]["write"] = None
        request.extensions["timeout"]["read"] = answer_seconds
        sending: Sending | None = None
        try:
            # httpcore's deadline is for each read: this one is for a head that comes in drops.
            async with asyncio.timeout(2 * deadlines.connect + answer_seconds) as limit:
                if content is not None:
                    sending = Sending(content, host, deadlines, limit, answer_seconds)
                    request.stream = sending
                response = await self._send(client, request)
        except RegistryError:
            if sending is not None and sending.failure is not None:
                raise ContentFailed(sending.failure) from sending.failure
            raise
        except TimeoutError:
            if sending is not None and not sending.complete:
                raise UpstreamDeadline(
                    "stall", deadlines.stall, f"{host} took nothing for {deadlines.stall:g} s"
                ) from None
            waited = time.monotonic() - started
            raise UpstreamDeadline(
                "first_byte", deadlines.first_byte, f"{host}: no answer in {waited:.1f} s"
            ) from None
        # The body has deadlines of its own, in Answer.pieces.
        request.extensions["timeout"]["read"] = None
        answer = Answer(response, url, deadlines)
        logger.debug(
            "%s %s: %d in %.3f s",
            method,
            printable_url(url),
            answer.status,
            time.monotonic() - started,
        )
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        try:
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise UpstreamUnavailable(f"{request.url.host}: {type(error).__name__}") from None

    def _client(self, proxy: str | None) -> httpx.AsyncClient:
        if proxy not in self._clients:
            context = tls_context(self._upstream.ca_file)
            deadlines = self._upstream.deadlines
            # A cookie of one client's session must not travel with another's request.
            no_cookies = http.cookiejar.CookieJar(
                http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
            )
            self._clients[proxy] = httpx.AsyncClient(
                transport=PinnedTransport(context, self._backend, deadlines, proxy),
                headers={"User-Agent": USER_AGENT},
                cookies=no_cookies,
                timeout=httpx.Timeout(deadlines.first_byte, connect=deadlines.connect),
                follow_redirects=False,
                trust_env=False,
            )
        return self._clients[proxy]


def _raw(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    # httpx declares the iterator only; it is a generator, and to be closed when left early.
    return cast(AsyncGenerator[bytes, None], response.aiter_raw())


def _field_value(text: str) -> bytes:
    """A value that no line break can end: what is not printable is left out."""
    return "".join(letter for letter in text if " " <= letter <= "~").encode("ascii")


def _target(url: str) -> bytes:
    parts = urlsplit(url)
    path = parts.path or "/"
    return (f"{path}?{parts.query}" if parts.query else path).encode("ascii")
