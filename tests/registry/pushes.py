"""A pusher for tests, and blobs that say from where they were read."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headstart.content.digest import Digest
from headstart.registry.pushing import RegistryPusher
from headstart.registry.retry import Retry
from headstart.registry.upstream import Credentials, Upstream
from tests.doubles.scripted_upstream import OCI_MANIFEST, ScriptedUpstream
from tests.registry.upstreams import REPOSITORY, upstream_of, write

CHUNK = 1024 * 1024
LARGE = bytes(range(256)) * 4096 * 6 + b"the end"
SMALL = b"small" * 1000
OTHER = "team/other"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()
LOGIN = ("robot", "secret-password")

T = TypeVar("T")


@dataclass(slots=True)
class Payload:
    """A blob in memory; ``opened`` are the offsets at which it was opened."""

    content: bytes
    opened: list[int] = field(default_factory=list)
    piece: int = 100_000

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)

    def open_at(self, start: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As a source opens a blob."""
        self.opened.append(start)
        return self._open(start)

    @asynccontextmanager
    async def _open(self, start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(start, len(self.content), self.piece):
                yield self.content[at : at + self.piece]

        yield pieces()


def push(
    upstream: Upstream,
    work: Callable[[RegistryPusher], Awaitable[T]],
    *,
    chunk_size: int = CHUNK,
) -> T:
    """Run ``work`` with an impatient pusher to ``upstream`` and close it."""

    async def run() -> T:
        pusher = RegistryPusher(upstream, retry=Retry(first_delay=0.01), chunk_size=chunk_size)
        try:
            return await work(pusher)
        finally:
            await pusher.aclose()

    return asyncio.run(run())


def push_blob(
    upstream: Upstream, payload: Payload, *, source: str | None = None, size: int | None = None
) -> None:
    length = len(payload.content) if size is None else size

    async def work(pusher: RegistryPusher) -> None:
        await pusher.push_blob(REPOSITORY, payload.digest, length, payload.open_at, source=source)

    push(upstream, work)


def arrived(double: ScriptedUpstream, payload: Payload) -> bool:
    return double.blob(REPOSITORY, str(payload.digest)) == payload.content


def shared(double: ScriptedUpstream, directory: Path) -> Upstream:
    login = Credentials(file=write(directory / "login", ":".join(LOGIN)))
    return upstream_of(double, credentials=login, access="shared")
