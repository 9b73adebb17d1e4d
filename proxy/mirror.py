"""The mirror's process: what it is made of, and its life.

``python -P -m proxy.mirror [--config FILE]``; exit status 2 with one line on standard error when
the configuration or an address cannot be used.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from headstart.command.configuration import Configuration, ConfigurationError
from headstart.command.output import complain
from headstart.registry.client import RegistryClient
from headstart.store.fill_client import FillClient
from headstart.store.layout import LOCK_WAIT_SECONDS, Layout
from proxy.child import die_with_parent, keep_private, launcher_process_id
from proxy.control.application import make_control
from proxy.control.figures_reader import FiguresReader
from proxy.control.pulls import PullBook
from proxy.control.request_counts import RequestCounts
from proxy.launcher import DRAIN_SECONDS
from proxy.serve.blobs import Blobs
from proxy.serve.chains import Chains, expectation
from proxy.serve.grants import Grants
from proxy.serve.kept import Kept
from proxy.serve.listening import CannotListen, listen_all, listen_unix
from proxy.serve.manifests import Manifests
from proxy.serve.records import AsyncIndex
from proxy.serve.registry import RegistryApplication
from proxy.serve.request import Receive, Scope, Send
from proxy.serve.sendfile import SendfileProtocol
from proxy.serve.services import VIA_CONTROL_SOCKET, Services
from proxy.warm.jobs import WarmJobs

logger = logging.getLogger("proxy.mirror")  # __name__ is __main__ here

BAD_CONFIGURATION = 2
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GRACE_SECONDS = round(DRAIN_SECONDS) - 5
"""How long pulls may take to end after SIGTERM; the launcher kills what takes longer."""

MOST_DESCRIPTORS = 65536

CONTROL_SECONDS = LOCK_WAIT_SECONDS + 2.0
"""How long to try for the control socket: where another mirror has the cache, our filler says so
after its wait for the lock, and better than we could."""

_POLL_SECONDS = 0.05
_CONTROL_PAUSE_SECONDS = 0.5


class MirrorApplication:
    """The ASGI application: ``/v2/`` to the registry, everything else to the control API."""

    def __init__(self, configuration: Configuration) -> None:
        """Everything else is made when the server starts, and closed when it ends."""
        self._configuration = configuration
        self._control_address = (str(configuration.control_socket()), None)
        self._counts = RequestCounts(self._dispatch)
        self._made: _Made | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live through the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._counts(scope, receive, send)

    @property
    def filler_greeted(self) -> bool:
        """Whether the filler has greeted us: then the cache is locked and its directories exist."""
        return self._made is not None and self._made.services.filler.connected

    def about_to_stop(self) -> None:
        """End what would never end by itself, before the server waits for its connections."""
        if self._made is not None:
            self._made.jobs.stop_following()

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        made = self._made
        if made is None:
            raise RuntimeError("a request before the server has started")
        if scope["path"].startswith("/v2/") or scope["path"] == "/v2":
            await made.registry(scope, receive, send)
        else:
            scope[VIA_CONTROL_SOCKET] = scope["server"] == self._control_address
            await made.control(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with _make(self._configuration, self._counts) as made:
            self._made = made
            gc.collect()
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


class _Made:
    """What the process has while it serves."""

    def __init__(
        self, services: Services, registry: RegistryApplication, control: Any, jobs: WarmJobs
    ) -> None:
        self.services = services
        self.registry = registry
        self.control = control
        self.jobs = jobs


@asynccontextmanager
async def _make(configuration: Configuration, counts: RequestCounts) -> AsyncIterator[_Made]:
    """Put everything together; taken apart in reverse order."""
    layout = Layout(tuple(stripe.path for stripe in configuration.cache.stripes))
    upstreams = configuration.upstreams()
    async with AsyncExitStack() as stack:
        clients = {host: RegistryClient(upstream) for host, upstream in upstreams.items()}
        for client in clients.values():
            stack.push_async_callback(client.aclose)
        filler = await stack.enter_async_context(FillClient(layout.fill_socket, "mirror"))
        index = AsyncIndex(layout.index, lambda: filler.connected)
        stack.push_async_callback(index.aclose)
        grants = Grants()
        chains = Chains(filler)
        blobs = Blobs(filler, grants)
        stack.push_async_callback(blobs.aclose)
        manifests = Manifests(
            clients,
            Kept(index),
            grants,
            tag_ttl=configuration.mirror.tag_ttl,
            stale_window=configuration.mirror.stale_window,
            expect=expectation(blobs, chains),
        )
        stack.push_async_callback(manifests.aclose)
        figures = FiguresReader(filler)
        book = await stack.enter_async_context(PullBook(figures.read))
        services = Services(
            configuration=configuration,
            upstreams=upstreams,
            clients=clients,
            filler=filler,
            index=index,
            manifests=manifests,
            blobs=blobs,
            chains=chains,
            pulls=book,
        )

        async def capacity() -> int | None:
            read = await figures.read()
            return None if read is None else read.high_water

        jobs = await stack.enter_async_context(
            WarmJobs(
                upstreams=upstreams,
                manifests=manifests,
                filler=filler,
                index=index,
                capacity=capacity,
            )
        )
        control = make_control(
            services, figures=figures, book=book, jobs=jobs, requests=counts.counts
        )
        yield _Made(services, RegistryApplication(services), control, jobs)


class MirrorServer(uvicorn.Server):
    """uvicorn's server, which also listens for control calls once the cache is there."""

    def __init__(
        self, config: uvicorn.Config, application: MirrorApplication, control: Path
    ) -> None:
        super().__init__(config)
        self.refusal: CannotListen | None = None
        self._application = application
        self._control = control
        self._opening: asyncio.Task[None] | None = None
        self._controlled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and go on to open the control socket."""
        await super().startup(sockets)
        self._opening = asyncio.create_task(self._open_control(), name="control socket")
        logger.info("mirror: ready on %s", ", ".join(map(_shown, sockets or [])))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and stop."""
        logger.info("mirror: stopping")
        if self._opening is not None:
            self._opening.cancel()
        self._application.about_to_stop()
        await super().shutdown(sockets)
        with contextlib.suppress(OSError):
            # Where it was never opened, the socket is that of another daemon.
            if self._controlled:
                self._control.unlink()

    async def _open_control(self) -> None:
        while True:
            if self._application.filler_greeted:
                break
            await asyncio.sleep(_POLL_SECONDS)
        loop = asyncio.get_running_loop()
        ends = loop.time() + CONTROL_SECONDS
        while True:
            try:
                listener = listen_unix(self._control, "control.socket")
                break
            except CannotListen as error:
                if loop.time() >= ends:
                    self.refusal = error
                    self.should_exit = True
                    return
            await asyncio.sleep(_CONTROL_PAUSE_SECONDS)
        self._controlled = True
        self.servers.append(await loop.create_server(self._plain_protocol, sock=listener))

    def _plain_protocol(self) -> asyncio.Protocol:
        return SendfileProtocol(self.config, self.server_state, self.lifespan.state)


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def run(configuration: Configuration) -> None:
    """Serve until SIGTERM. Raises :class:`CannotListen` or ConfigurationError."""
    for complaint in configuration.unreadable_files():
        raise complaint
    listeners = listen_all(configuration.mirror.listen)
    application = MirrorApplication(configuration)
    tls = configuration.mirror.tls
    config = uvicorn.Config(
        application,
        http=SendfileProtocol,
        loop="uvloop",
        ws="none",
        limit_concurrency=_most_connections(),
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(
            "mirror.tls", None, f"cannot be used: {error}", "name a PEM certificate and its key"
        ) from error
    server = MirrorServer(config, application, configuration.control_socket())
    # uvicorn raises the signals that it took once more at its end; they must not kill us then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(listeners)
    if server.refusal is not None:
        raise server.refusal


def _most_connections() -> int:
    """Each may need two descriptors for its socket and one for a blob's file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(8192, soft // 4))


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST_DESCRIPTORS), hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mirror; return its exit status."""
    die_with_parent(launcher_process_id())
    keep_private()
    parser = argparse.ArgumentParser(prog="headstart mirror")
    parser.add_argument("--config", type=Path)
    named = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        configuration = Configuration.load(named.config)
        _allow_many_files()
        run(configuration)
    except (ConfigurationError, CannotListen) as error:
        complain(str(error))
        return BAD_CONFIGURATION
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
