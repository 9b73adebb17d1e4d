"""Images with a TOC: containers start while most of the image is still on its way."""

import random
import time
from pathlib import Path

from tests.content.estargz.writer import Form
from tests.layers.images import ServedImage, estargz, serve
from tests.node.node import Node
from tests.node.trees import Archive, base_layer
from tests.node.view import view

MIB = 1 << 20


def large_image(node: Node, program: bytes, name: str, seed: int) -> tuple[ServedImage, bytes]:
    """A small base and a layer of 64 MiB; and the large file."""
    weights = random.Random(seed).randbytes(64 * MIB)
    archive = Archive()
    archive.add("models/weights", weights)
    archive.add("etc/motd", b"the weights are on their way\n")
    form = Form(chunk_size=MIB)
    layers = [estargz(base_layer(program, seed, 20), form), estargz(archive.finish(), form)]
    return serve(node.upstream, layers, repository=name), weights


def test_a_container_starts_while_most_of_its_image_is_missing_and_then_sees_all_of_it(
    node: Node, tmp_path: Path, program: bytes
) -> None:
    name = "team/lazy"
    image, weights = large_image(node, program, name, 21)
    reference = node.reference(f"{name}:v1")
    big = str(image.layers[1].digest)
    with node.slowly(big, 2 * MIB):
        started = time.monotonic()
        node.containerd.cri_pull(reference)
        printed = node.containerd.run(reference, "lazy", "/etc/motd", namespace="k8s.io")
        first_line = time.monotonic() - started
        assert printed == "the weights are on their way\n"
        fetched = node.fetched(big)
        assert fetched < len(image.layers[1].blob) // 2, f"after {first_line:.1f} s: {fetched}"
    node.pull_with("overlayfs", reference, "compared")
    with (
        node.mounted(image.chains[-1], tmp_path / "ours", snapshotter="headstart") as ours,
        node.mounted(
            image.chains[-1], tmp_path / "theirs", snapshotter="overlayfs", namespace="compared"
        ) as theirs,
    ):
        assert (ours / "models/weights").read_bytes() == weights
        assert whole_seconds(view(ours)) == whole_seconds(view(theirs))


def whole_seconds(shown: dict[str, str]) -> dict[str, str]:
    """Without the fractions of seconds, which a TOC of eStargz does not have."""
    return {
        path: " ".join(word[:-9] if word.startswith("mtime=") else word for word in line.split(" "))
        for path, line in shown.items()
    }
