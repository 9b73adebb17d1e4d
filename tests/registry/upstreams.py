"""Upstreams and clients for tests of the registry package."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from headstart.registry.client import RegistryClient
from headstart.registry.retry import Retry
from headstart.registry.upstream import Deadlines, Upstream
from tests.doubles.scripted_upstream import ScriptedUpstream

ACCEPT = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = "team/app"
QUICK = Deadlines(connect=2.0, first_byte=2.0, stall=2.0, stall_rate=1024)

T = TypeVar("T")


def upstream_of(double: ScriptedUpstream, **changes: Any) -> Upstream:
    """The configuration of an upstream that is ``double``."""
    given: dict[str, Any] = {
        "host": double.host,
        "url": double.url,
        "allow_private": True,
        "deadlines": QUICK,
    }
    return Upstream(**{**given, **changes})


def use(
    upstream: Upstream,
    work: Callable[[RegistryClient], Awaitable[T]],
    resolve_host: Callable[[str, int], Awaitable[list[str]]] | None = None,
) -> T:
    """Run ``work`` with an impatient client of ``upstream`` and close it."""

    async def run() -> T:
        if resolve_host is None:
            client = RegistryClient(upstream, retry=Retry(first_delay=0.01))
        else:
            client = RegistryClient(
                upstream, retry=Retry(first_delay=0.01), resolve_host=resolve_host
            )
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def write(path: Path, text: str) -> Path:
    """Write a file and give its path."""
    path.write_text(text)
    return path


def authorizations(double: ScriptedUpstream, path: str = "") -> set[str | None]:
    """The distinct Authorization fields that were received."""
    return {request.authorization for request in double.requests_to(path)}


def leaks(texts: Iterable[str]) -> list[str]:
    """Those of ``texts`` that hold something secret: all secrets of the tests say so."""
    return [text for text in texts if "secret" in text.lower()]
