"""A node whose kernel mounts no layer image: every layer is a FUSE tree of its files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.mounting.mount_table import mounted_below
from tests.content.estargz.writer import Form
from tests.layers.images import estargz, gzipped, serve
from tests.node.node import Node, running_node
from tests.node.test_lazy import whole_seconds
from tests.node.trees import base_layer, changing_layer
from tests.node.view import view


@pytest.fixture(scope="module")
def tree_node(tmp_path_factory: pytest.TempPathFactory, program: bytes) -> Iterator[Node]:
    """A node with ``mount.mode: tree``."""
    if os.geteuid() != 0:
        pytest.skip("a node mounts, and so has to run as root")
    settings = {"mount": {"mode": "tree"}}
    with running_node(tmp_path_factory.mktemp("tree"), pause=program, settings=settings) as running:
        yield running


def test_an_image_of_both_kinds_is_run_and_looks_as_overlayfs_shows_it(
    tree_node: Node, tmp_path: Path, program: bytes
) -> None:
    node = tree_node
    layers = [
        gzipped(base_layer(program, 301, 40)),
        estargz(changing_layer(302, 40), Form(chunk_size=64 << 10)),
    ]
    image = serve(node.upstream, layers, repository="team/tree")
    reference = node.reference("team/tree:v1")
    node.containerd.cri_pull(reference)
    digests = {layer.digest.hex for layer in image.layers}
    assert not digests & node.content(), "no layer was downloaded by containerd"
    kinds = {point.kind for point in mounted_below(node.snapshotter.root / "layers")}
    assert kinds == {"fuse.headstart"}
    printed = node.containerd.run(reference, "tree", "/etc/motd", namespace="k8s.io")
    assert printed == "good evening\n"
    node.pull_with("overlayfs", reference, "compared")
    with (
        node.mounted(image.chains[-1], tmp_path / "ours", snapshotter="headstart") as ours,
        node.mounted(
            image.chains[-1], tmp_path / "theirs", snapshotter="overlayfs", namespace="compared"
        ) as theirs,
    ):
        shown = view(ours)
        assert whole_seconds(shown) == whole_seconds(view(theirs))
    assert "etc/shadow" not in shown and "opt/python/bin/python3" in shown
