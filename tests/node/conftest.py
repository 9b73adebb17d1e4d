"""One node for the tests of a module."""

import os
from collections.abc import Iterator

import pytest

from tests.node.node import Node, running_node
from tests.snapshotter.runnable import compiled


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Mirror, snapshotter and containerd before a scripted upstream."""
    if os.geteuid() != 0:
        pytest.skip("a node mounts, and so has to run as root")
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``bin/show``: prints the files that it is told."""
    return compiled(tmp_path_factory.mktemp("program"))
