"""A mirror before a scripted upstream, and clients of its filler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.stage import Stage, running_stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A mirror of one scripted upstream, by itself."""
    with running_stage(tmp_path) as running:
        yield running
