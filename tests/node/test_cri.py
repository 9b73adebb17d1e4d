"""A pod's whole life over CRI, as kubelet asks for it, with our snapshots."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.content.estargz.writer import Form
from tests.faults.watching import eventually
from tests.layers.images import estargz, gzipped, serve
from tests.node.node import Node
from tests.node.trees import base_layer, changing_layer


@pytest.fixture(params=[False, True], ids=["default options", "annotations"])
def annotated(node: Node, request: pytest.FixtureRequest) -> Iterator[bool]:
    """containerd with CRI's default options, or with annotations of layers as labels."""
    wanted = bool(request.param)
    if wanted:
        _restart(node, annotations=True)
    try:
        yield wanted
    finally:
        if wanted:
            _restart(node, annotations=False)


def _restart(node: Node, *, annotations: bool) -> None:
    node.containerd.stop()
    node.containerd.annotations = annotations
    node.containerd.start()


def test_a_pod_from_the_pull_of_its_image_to_the_removal(
    node: Node, tmp_path: Path, program: bytes, annotated: bool
) -> None:
    seed = 102 if annotated else 100
    name = f"team/pod{seed}"
    form = Form(chunk_size=64 << 10)
    layers = [gzipped(base_layer(program, seed, 20)), estargz(changing_layer(seed + 1, 20), form)]
    image = serve(node.upstream, layers, repository=name)
    reference = node.reference(f"{name}:v1")
    before = set(node.snapshots())
    node.cri.pull(reference)
    assert reference in node.cri.images()
    digests = {layer.digest.hex for layer in image.layers}
    assert not digests & node.content(), "no layer was downloaded by containerd"
    pods = node.cri.pods()
    with node.cri.pod(tmp_path) as pod:
        assert node.cri.pods() == pods + 1
        assert pod.run(reference, "/bin/show", "/etc/motd") == "good evening\n"
        # The container writes to its own copy.
        added = pod.run(reference, "/bin/show", "+/etc/motd", "/etc/motd")
        assert added == "good evening\nadded\n"
        assert pod.run(reference, "/bin/show", "/etc/motd") == "good evening\n"
        container = pod.create(reference, ["/bin/show", "/etc/shadow"])
        assert pod.wait(container) == 1, "a file that the upper layer removes"
        pod.remove(container)
    assert node.cri.pods() == pods
    assert labelled(node, set(node.snapshots()) - before) is annotated
    node.cri.remove_image(reference)
    assert reference not in node.cri.images()
    eventually(lambda: set(node.snapshots()) <= before, 20, "its snapshots are gone")
    eventually(lambda: not digests & node.used_layers(), 20, "its layers are unmounted")


def labelled(node: Node, keys: set[str]) -> bool:
    """Whether CRI has said by labels which image these snapshots are of."""
    info = ["-n", "k8s.io", "snapshots", "--snapshotter", "headstart", "info"]
    found = {
        "containerd.io/snapshot/cri.image-ref" in node.containerd.ctr([*info, key]) for key in keys
    }
    assert len(found) == 1
    return found.pop()
