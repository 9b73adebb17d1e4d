"""Snapshots belong to root, as the directories of containers do."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mount.snapshotter.errors import LayerUnavailable
from tests.snapshotter.layers_double import ScriptedLayers
from tests.snapshotter.pulling import APP, Run, Scenario
from tests.snapshotter.serving import served


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("a snapshotter gives directories to other users")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A ``mount.root`` that is still to be made."""
    return tmp_path / "root"


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a scenario against a snapshotter with scripted layers, which know the image APP."""

    def run(
        scenario: Scenario,
        repositories: Sequence[str] = ("*",),
        *,
        unverified: LayerUnavailable | None = None,
    ) -> ScriptedLayers:
        async def scene() -> ScriptedLayers:
            layers = ScriptedLayers(tmp_path / "layers")
            layers.add(APP)
            if unverified is not None:
                for step in ("verified", "verified urgently"):
                    layers.fail(step, APP[0], unverified)
            async with served(root, layers, repositories) as client:
                async with asyncio.timeout(60):
                    await scenario(client, layers)
            return layers

        return asyncio.run(scene())

    return run
