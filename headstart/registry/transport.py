"""Carries requests of the control plane: addresses checked and pinned, proxies, our errors.

Everything that httpx, httpcore, ssl and the socket say is translated here, without their texts
where those could repeat what was sent.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import unquote, urlsplit

import httpcore
import httpx

from headstart.registry.address import AddressPolicy, resolve
from headstart.registry.errors import (
    RefusedTarget,
    RegistryError,
    UpstreamDeadline,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from headstart.registry.upstream import Deadlines

MAX_CONNECTIONS = 64
MAX_IDLE_CONNECTIONS = 16
IDLE_SECONDS = 30.0

EXACT_TARGET = "headstart.exact_target"
"""Request extension: path and query as they are sent, since a signature covers every byte."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


class _Silence(logging.Filter):
    """Drops what httpx and httpcore would log: URLs with signatures, and header fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        return False


_SILENCE = _Silence()


def silence_libraries() -> None:
    """Keep tokens and signed queries out of every log; calling it again changes nothing."""
    for name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
        logging.getLogger(name).addFilter(_SILENCE)


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked after DNS, and to no others.

    The request keeps its host, so the Host field and the TLS server name stay as they were.
    """

    def __init__(self, policy: AddressPolicy, resolve_host: Resolve = resolve) -> None:
        """``resolve_host`` gives the addresses of a name."""
        self._policy = policy
        self._resolve = resolve_host
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that is allowed and answers, within ``timeout``."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(timeout):
                addresses = self._checked(host, await self._resolve(host, port))
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        for number, address in enumerate(addresses):
            share = None
            if timeout is not None:
                # A dead first address must leave time for the others.
                left = started + timeout - loop.time()
                share = max(0.0, left) / (len(addresses) - number)
            try:
                return await self._backend.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses) - 1:
                    raise
        raise UpstreamUnavailable(f"{host}: the name has no addresses")

    def _checked(self, host: str, addresses: list[str]) -> list[str]:
        allowed: list[str] = []
        refusal: RefusedTarget | None = None
        for address in addresses:
            try:
                self._policy.check(address)
            except RefusedTarget as error:
                refusal = error
            else:
                allowed.append(address)
        if refusal is not None and not allowed:
            raise RefusedTarget(f"{host}: {refusal}")
        return allowed

    async def sleep(self, seconds: float) -> None:
        """Sleep between the pool's own connection attempts."""
        await self._backend.sleep(seconds)


class PinnedTransport(httpx.AsyncBaseTransport):
    """An httpx transport over httpcore's pool; raises RegistryError only."""

    def __init__(
        self,
        context: ssl.SSLContext,
        backend: httpcore.AsyncNetworkBackend,
        deadlines: Deadlines,
        proxy: str | None = None,
    ) -> None:
        """``proxy`` is a URL; its own address is the operator's business and is not checked."""
        self._deadlines = deadlines
        self._proxy_host: str | None = None
        via: httpcore.Proxy | None = None
        if proxy is not None:
            via, self._proxy_host = _proxy(proxy)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=via,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=None if proxy is not None else backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        url = request.url
        target = request.extensions.get(EXACT_TARGET, url.raw_path)
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=target
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with self._translated(url.host):
            answer = await self._pool.handle_async_request(sent)
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer, lambda: self._translated(url.host)),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    @contextmanager
    def _translated(self, host: str) -> Iterator[None]:
        try:
            yield
        except RegistryError:
            raise
        except Exception as error:
            # "from None": the libraries' texts can repeat header values.
            raise self._translate(error, host) from None

    def _translate(self, error: Exception, host: str) -> RegistryError:
        if isinstance(error, httpcore.ConnectTimeout):
            seconds = self._deadlines.connect
            return UpstreamDeadline("connect", seconds, f"{host}: no connection in {seconds:g} s")
        if isinstance(error, httpcore.ReadTimeout | httpcore.WriteTimeout):
            seconds = self._deadlines.first_byte
            return UpstreamDeadline("first_byte", seconds, f"{host}: no answer in {seconds:g} s")
        if isinstance(error, httpcore.PoolTimeout):
            return UpstreamUnavailable(f"{host}: {MAX_CONNECTIONS} requests are under way already")
        if isinstance(error, httpcore.ProxyError):
            return UpstreamUnavailable(f"{host}: the proxy {self._proxy_host} refuses: {error}")
        tls = _cause(error, ssl.SSLError)
        if isinstance(tls, ssl.SSLCertVerificationError):
            reason = f"its certificate is refused ({tls.verify_message})"
            return UpstreamUnavailable(f"{host}: {reason}", transient=False)
        if isinstance(tls, ssl.SSLError):
            return UpstreamUnavailable(f"{host}: TLS fails ({tls.reason or 'no reason given'})")
        if isinstance(error, httpcore.ConnectError):
            at = f" at the proxy {self._proxy_host}" if self._proxy_host is not None else ""
            return UpstreamUnavailable(f"{host}: connection refused or unreachable{at}")
        if isinstance(error, httpcore.UnsupportedProtocol):
            return RefusedTarget(f"{host}: only http and https are followed")
        if isinstance(error, httpcore.LocalProtocolError):
            return UpstreamProtocol(f"{host}: the request cannot be sent as it is")
        if isinstance(error, httpcore.NetworkError | httpcore.RemoteProtocolError):
            return UpstreamUnavailable(f"{host}: the connection broke, or the answer was no HTTP")
        return UpstreamUnavailable(f"{host}: {type(error).__name__}")


class _Body(httpx.AsyncByteStream):
    """The bytes of an answer's body, with our errors."""

    def __init__(
        self, answer: httpcore.Response, translated: Callable[[], "AbstractContextManager[None]"]
    ) -> None:
        self._answer = answer
        self._translated = translated

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._translated():
            async for piece in self._answer.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        with self._translated():
            await self._answer.aclose()


def _proxy(url: str) -> tuple[httpcore.Proxy, str]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise UpstreamUnavailable(
            f"the proxy {host or 'of the environment'} is no http or https URL", transient=False
        )
    port = parts.port or (443 if parts.scheme == "https" else 80)
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    address = f"[{host}]" if ":" in host else host
    return httpcore.Proxy(f"{parts.scheme}://{address}:{port}", auth=auth), f"{address}:{port}"


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first of ``kind`` among an error and what it came from."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
