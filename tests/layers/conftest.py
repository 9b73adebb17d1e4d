"""A mirror before a scripted upstream, and clients of its filler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.stage import Stage, running_stage


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A mirror of one scripted upstream; each test has layers that no other has."""
    with running_stage(tmp_path_factory.mktemp("layers")) as running:
        yield running


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """The shared one, whose upstream behaves well at the start."""
    yield shared
    shared.upstream.clear_rules()


@pytest.fixture
def own_stage(tmp_path: Path) -> Iterator[Stage]:
    """A mirror for one test, which may kill it or look at all its files."""
    with running_stage(tmp_path) as running:
        yield running
