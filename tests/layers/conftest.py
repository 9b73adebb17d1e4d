"""A mirror before a scripted upstream, and clients of its filler."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.layers.stage import Stage
from tests.parts.mirror import Mirror, upstream_at


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A mirror of one scripted upstream, by itself."""
    with ExitStack() as parts:
        upstream = parts.enter_context(ScriptedUpstream())
        mirror = Mirror(
            tmp_path / "mirror",
            {upstream.host: upstream_at(upstream.url)},
            settings={"fetch": {"deadlines": {"connect": "2s", "first_byte": "5s", "stall": "5s"}}},
        )
        yield Stage(parts.enter_context(mirror), upstream)
