"""``ctr images pull`` of containerd 1.x says nothing of chain IDs: we are an overlayfs then."""

from pathlib import Path

from tests.faults.watching import eventually
from tests.layers.images import gzipped, serve, zstd
from tests.node.node import Node
from tests.node.trees import base_layer, changing_layer
from tests.node.view import view

NAMESPACE = "unlabelled"


def test_a_pull_by_ctr_is_unpacked_and_is_what_overlayfs_shows(
    node: Node, tmp_path: Path, program: bytes
) -> None:
    layers = [gzipped(base_layer(program, 350, 20)), zstd(changing_layer(351, 20))]
    image = serve(node.upstream, layers, repository="team/unlabelled")
    reference = node.reference("team/unlabelled:v1")
    node.pull_with("headstart", reference, NAMESPACE)
    assert {layer.digest.hex for layer in layers} <= node.content()
    printed = node.containerd.run(reference, "unlabelled", "/etc/motd", namespace=NAMESPACE)
    assert printed == "good evening\n"
    node.pull_with("overlayfs", reference, "compared")
    chain = image.chains[-1]
    with (
        node.mounted(
            chain, tmp_path / "ours", snapshotter="headstart", namespace=NAMESPACE
        ) as ours,
        node.mounted(
            chain, tmp_path / "theirs", snapshotter="overlayfs", namespace="compared"
        ) as theirs,
    ):
        assert view(ours) == view(theirs)
    node.containerd.ctr(["-n", NAMESPACE, "images", "rm", "--sync", reference])
    eventually(lambda: node.snapshots(NAMESPACE) == {}, 20, "its snapshots are gone")
