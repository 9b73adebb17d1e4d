"""Images as they are on the registry today: pulled by the real containerd, mounted, run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.layers.images import MadeLayer, gzipped, plain, serve, zstd
from tests.node.node import Node
from tests.node.trees import base_layer, changing_layer
from tests.node.view import view


# Other seeds for each: of a chain ID that it has containerd asks nobody.
@pytest.mark.parametrize(("pack", "seed"), [(gzipped, 10), (zstd, 12), (plain, 14)])
def test_an_ordinary_image_is_run_without_its_blobs_in_containerd_and_nothing_unpacked(
    node: Node, tmp_path: Path, program: bytes, pack: Callable[[bytes], MadeLayer], seed: int
) -> None:
    name = f"team/{pack.__name__}"
    layers = [pack(base_layer(program, seed, 40)), pack(changing_layer(seed + 1, 40))]
    image = serve(node.upstream, layers, repository=name)
    reference = node.reference(f"{name}:v1")
    before = unpacked(node)
    node.containerd.cri_pull(reference)
    digests = {layer.digest.hex for layer in image.layers}
    assert not digests & node.content(), "no layer was downloaded by containerd"
    printed = node.containerd.run(reference, "one", "/etc/motd", namespace="k8s.io")
    assert printed == "good evening\n"
    node.pull_with("overlayfs", reference, "compared")
    with (
        node.mounted(image.chains[-1], tmp_path / "ours", snapshotter="headstart") as ours,
        node.mounted(
            image.chains[-1], tmp_path / "theirs", snapshotter="overlayfs", namespace="compared"
        ) as theirs,
    ):
        shown = view(ours)
        assert shown == view(theirs)
    assert "etc/shadow" not in shown and "opt/python/bin/python3" in shown
    assert unpacked(node) == before, "no directory of files was made"


def unpacked(node: Node) -> set[Path]:
    """What the snapshotter has written of images' files."""
    return set((node.snapshotter.root / "snapshots").rglob("motd"))
