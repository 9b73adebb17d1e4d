"""Snapshots belong to root, as the directories of containers do."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("a snapshotter gives directories to other users")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A ``mount.root`` that is still to be made."""
    return tmp_path / "root"
