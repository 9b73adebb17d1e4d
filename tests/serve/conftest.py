"""The mirror's HTTP side for a test: upstream, filler, server and a connected client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import Serving, keys_of


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """A scripted upstream without content."""
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[ScriptedFiller]:
    """A scripted filler with an empty cache of one stripe."""
    with ScriptedFiller(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def server(filler: ScriptedFiller, upstream: ScriptedUpstream) -> Iterator[Serving]:
    """A server whose one upstream is ``upstream``."""
    with Serving(filler, {upstream.host: keys_of(upstream)}) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    """A connection to ``server``."""
    with server.client() as connected:
        yield connected


@pytest.fixture
def registry() -> Iterator[ScriptedUpstream]:
    """A scripted upstream without content, for tests that need no server."""
    with ScriptedUpstream() as running:
        yield running
