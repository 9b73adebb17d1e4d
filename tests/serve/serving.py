"""The mirror's HTTP side in this process: a real server, a scripted filler, scripted upstreams."""

import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from headstart.command.configuration import Configuration
from headstart.content.manifest import OCI_MANIFEST
from headstart.registry.client import RegistryClient
from headstart.registry.retry import Retry
from headstart.store.fill_client import FillClient
from proxy.serve.blobs import Blobs
from proxy.serve.chains import Chains, expectation
from proxy.serve.grants import Grants
from proxy.serve.kept import Kept
from proxy.serve.manifests import Manifests
from proxy.serve.records import AsyncIndex
from proxy.serve.registry import RegistryApplication
from proxy.serve.request import Receive, Scope, Send
from proxy.serve.services import PullWatcher, Services, Unwatched
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import MIB, Client, Response, RunningServer, wait_until
from tests.serve.scripted_filler import ScriptedFiller

KIB = 1024
WITHHELD = 64 * KIB
SIZE = 3 * MIB + 12_345
PAYLOAD = random.Random(7).randbytes(SIZE)
LAYER_DIGEST = "sha256:" + "a" * 64
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/x", "digest": LAYER_DIGEST, "size": 12_345},
        "layers": [],
    }
).encode()
"""A manifest that names one blob."""

QUICK = {"connect": "2s", "first_byte": "2s", "stall": "2s"}


def configuration_of(
    filler: ScriptedFiller,
    upstreams: Mapping[str, Mapping[str, object]],
    **sections: Mapping[str, object],
) -> Configuration:
    """A configuration with the filler's cache; the first upstream is the default one."""
    first = next(iter(upstreams))
    return Configuration.model_validate(
        {
            "mirror": {"default_upstream": first, **sections.get("mirror", {})},
            "cache": {"stripes": [{"path": str(path)} for path in filler.layout.stripes]},
            "fetch": {"deadlines": QUICK, **sections.get("fetch", {})},
            "upstreams": {host: dict(keys) for host, keys in upstreams.items()},
        }
    )


def keys_of(upstream: ScriptedUpstream, **keys: object) -> dict[str, object]:
    """What the configuration says of a scripted upstream."""
    return {"url": upstream.url, "allow_private": True, **keys}


@asynccontextmanager
async def services_of(
    configuration: Configuration, filler: ScriptedFiller, pulls: PullWatcher | None = None
) -> AsyncIterator[Services]:
    """The services of a mirror, without its control API."""
    upstreams = configuration.upstreams()
    clients = {
        host: RegistryClient(upstream, retry=Retry(first_delay=0.01))
        for host, upstream in upstreams.items()
    }
    async with FillClient(filler.layout.fill_socket, "mirror") as fill_client:
        index = AsyncIndex(filler.layout.index, lambda: fill_client.connected)
        grants = Grants()
        chains = Chains(fill_client)
        blobs = Blobs(fill_client, grants, idle_seconds=0.3)
        manifests = Manifests(
            clients,
            Kept(index),
            grants,
            tag_ttl=configuration.mirror.tag_ttl,
            stale_window=configuration.mirror.stale_window,
            expect=expectation(blobs, chains),
        )
        try:
            yield Services(
                configuration=configuration,
                upstreams=upstreams,
                clients=clients,
                filler=fill_client,
                index=index,
                manifests=manifests,
                blobs=blobs,
                chains=chains,
                pulls=pulls or Unwatched(),
            )
        finally:
            await manifests.aclose()
            await blobs.aclose()
            await index.aclose()
            for client in clients.values():
                await client.aclose()


class ServingApplication:
    """The registry's application with the services of its server's life."""

    def __init__(
        self,
        configuration: Configuration,
        filler: ScriptedFiller,
        pulls: PullWatcher | None = None,
    ) -> None:
        self._configuration = configuration
        self._filler = filler
        self._pulls = pulls
        self.services: Services
        self.answer: RegistryApplication

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "lifespan":
            await self.answer(scope, receive, send)
            return
        await receive()
        async with services_of(self._configuration, self._filler, self._pulls) as services:
            self.services = services
            self.answer = RegistryApplication(services)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


class Serving(RunningServer):
    """A running server; ``application.services`` are its own."""

    def __init__(
        self,
        filler: ScriptedFiller,
        upstreams: Mapping[str, Mapping[str, object]],
        pulls: PullWatcher | None = None,
        **sections: Mapping[str, object],
    ) -> None:
        configuration = configuration_of(filler, upstreams, **sections)
        self.application = ServingApplication(configuration, filler, pulls)
        super().__init__(self.application, lifespan="on")

    @property
    def services(self) -> Services:
        """The services of the running server."""
        return self.application.services


def ask(client: Client, digest: str, byte_range: str | None = None, method: str = "GET") -> None:
    """Ask for a blob of ``team/app``."""
    fields = [] if byte_range is None else [f"Range: {byte_range}"]
    client.ask(f"/v2/team/app/blobs/{digest}", method, *fields)


def get(client: Client, digest: str, byte_range: str | None = None) -> Response:
    """The whole answer to GET of a blob."""
    ask(client, digest, byte_range)
    return client.response()


def whole_blob(filler: ScriptedFiller, payload: bytes = PAYLOAD) -> str:
    """A blob that is here and verified."""
    digest = filler.add_blob(payload)
    filler.bring(digest)
    filler.verify(digest)
    return digest


def await_wants(filler: ScriptedFiller, count: int = 1) -> None:
    """Return when so many wants have been received."""
    wait_until(lambda: len(filler.messages("want")) >= count)


def read_until_cut(client: Client) -> bytes:
    """What comes of a body before the connection is reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.receive():
            received += piece
    return received


def parts_of(response: Response) -> list[tuple[str, bytes]]:
    """Content-Range and body of each part of a multipart answer (RFC 2046)."""
    kind, _, boundary = response.fields["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    before, *parts, after = response.body.split(b"\r\n--" + boundary.encode())
    assert (before, after) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        found.append((fields["Content-Range"], body))
    return found


def error_of(response: Response) -> dict[str, Any]:
    """The one error of an OCI error body."""
    assert response.fields["content-type"] == "application/json"
    (error,) = json.loads(response.body)["errors"]
    assert set(error) <= {"code", "message", "detail"}
    return dict(error)
