"""Fixtures of the filler's own tests."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.doubles.scripted_upstream import ScriptedUpstream


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for fills to belong to; nothing runs on it."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def double() -> Iterator[ScriptedUpstream]:
    """A scripted upstream."""
    with ScriptedUpstream() as running:
        yield running
