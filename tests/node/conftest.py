"""One node for all tests; each test has images of its own."""

import os
from collections.abc import Iterator

import pytest

from tests.node.copier import compiled_copier
from tests.node.node import Node, running_node
from tests.snapshotter.runnable import compiled


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, program: bytes) -> Iterator[Node]:
    """Mirror, snapshotter and containerd before a scripted upstream.

    Layers of ``team/…`` may be mounted, those of other repositories may not.
    """
    if os.geteuid() != 0:
        pytest.skip("a node mounts, and so has to run as root")
    settings = {"mount": {"repositories": ["*/team/*"]}}
    with running_node(tmp_path_factory.mktemp("node"), pause=program, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``bin/show``: prints the files that it is told."""
    return compiled(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="session")
def copier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``bin/copy FROM TO``: see :mod:`tests.node.copier`."""
    return compiled_copier(tmp_path_factory.mktemp("copier"))
