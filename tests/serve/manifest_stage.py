"""A stage for :class:`proxy.serve.manifests.Manifests`: an index, clocks to turn, documents."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headstart.content.digest import Digest
from headstart.content.manifest import (
    ACCEPT,
    OCI_MANIFEST,
)
from headstart.registry.client import RegistryClient
from headstart.registry.retry import Retry
from headstart.registry.upstream import Upstream
from proxy.serve.grants import Grants
from proxy.serve.kept import Kept, Moment
from proxy.serve.manifests import Manifests
from proxy.serve.records import AsyncIndex

REPOSITORY = "team/app"
BLOB = {"mediaType": "application/x", "digest": str(Digest.of(b"layer")), "size": 5}
HOUR = 3600.0


def document(kind: str = OCI_MANIFEST, **more: object) -> bytes:
    content: dict[str, object] = {"schemaVersion": 2, "mediaType": kind, **more}
    if "index" in kind or "list" in kind:
        content.setdefault("manifests", [])
    else:
        content.update(config=BLOB, layers=[BLOB])
    return json.dumps(content).encode()


BODY = document()
OTHER = document(annotations={"version": "2"})


class Stage:
    """One upstream (several where a test wants more), an index, and clocks that a test turns."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.wall = 1_000_000.0
        self.uptime = 500.0
        self.settings = settings
        self.directory = directory
        self.expected: list[tuple[str, str]] = []
        self.clients: dict[str, RegistryClient] = {}
        self.find: Callable[..., Awaitable[Any]]

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    @asynccontextmanager
    async def open(self, *upstreams: Upstream) -> Any:
        index = AsyncIndex(self.directory, lambda: True)
        self.clients = {
            given.host: RegistryClient(given, retry=Retry(first_delay=0.01)) for given in upstreams
        }
        manifests = Manifests(
            self.clients,
            Kept(index, lambda: Moment(self.wall, self.uptime, "boot")),
            Grants(lambda: self.uptime),
            expect=lambda host, repository, *_: self.expected.append((host, repository)),
            **self.settings,
        )

        async def find(reference: str, **changes: Any) -> Any:
            given = {
                "upstream": upstreams[0],
                "repository": REPOSITORY,
                "reference": reference,
                "accept": ACCEPT,
                **changes,
            }
            return await manifests.find(**given)

        self.find = find
        try:
            yield manifests
        finally:
            await manifests.aclose()
            await index.aclose()
            for client in self.clients.values():
                await client.aclose()


def play(stage: Stage, upstreams: tuple[Upstream, ...], act: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with stage.open(*upstreams):
            await act()

    asyncio.run(run())
