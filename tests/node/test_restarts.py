"""containerd, the snapshotter and everything at once are restarted; containers and images stay."""

import hashlib
import random
import threading
from pathlib import Path

import pytest

from tests.content.estargz.writer import Form
from tests.doubles.scripted_upstream import Rule
from tests.faults.watching import eventually
from tests.layers.images import ServedImage, estargz, gzipped, serve
from tests.node.node import Node
from tests.node.trees import Archive, base_layer, changing_layer

MIB = 1 << 20
FORM = Form(chunk_size=256 << 10)


def weights_image(
    node: Node, name: str, seed: int, program: bytes, copier: bytes, size: int
) -> tuple[ServedImage, bytes]:
    """A base, and an eStargz layer of one large file and ``bin/copy``; and the file."""
    weights = random.Random(seed).randbytes(size)
    archive = Archive()
    archive.add("bin/copy", copier, mode=0o755)
    archive.add("models/weights", weights)
    layers = [gzipped(base_layer(program, seed, 5)), estargz(archive.finish(), FORM)]
    return serve(node.upstream, layers, repository=name), weights


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_f48_a_container_reads_on_while_containerd_is_restarted(
    node: Node, tmp_path: Path, program: bytes, copier: bytes, how: str
) -> None:
    name = f"team/restart-{how.lower()}"
    seed = 600 + len(how)
    image, weights = weights_image(node, name, seed + (how == "SIGKILL"), program, copier, 16 * MIB)
    reference = node.reference(f"{name}:v1")
    with node.slowly(image.layers[1].digest, MIB // 2) as slow:
        node.cri.pull(reference)
        with node.started(reference, how, "/bin/copy", "/models/weights", "/copied") as root:
            copied = root / "copied"

            def grows_by(size: int, what: str) -> None:
                start = copied.stat().st_size
                eventually(lambda: copied.stat().st_size >= start + size, 30, what)

            eventually(copied.exists, 20, "the container runs")
            if how == "SIGKILL":
                node.containerd.running.kill()
                node.containerd.process = None
            else:
                node.containerd.stop()
            try:
                assert copied.stat().st_size < len(weights) - 4 * MIB
                grows_by(MIB, "it reads on without containerd")
            finally:
                node.containerd.start()
            slow.rate = None
            node.upstream.drop_connections()
            eventually(lambda: copied.stat().st_size == len(weights), 60, "it has read all")
            assert hashlib.sha256(copied.read_bytes()).digest() == hashlib.sha256(weights).digest()
            assert node.task(how)[1] == "RUNNING"
            assert reference in node.cri.images()
            with node.cri.pod(tmp_path) as pod:
                assert pod.run(reference, "/bin/show", "/etc/motd") == "good morning\n"
    node.cri.remove_image(reference)


def test_f46_images_that_are_removed_while_the_snapshotter_is_killed_are_gone_after_it(
    node: Node, program: bytes
) -> None:
    before = set(node.snapshots())
    references, digests = [], set()
    for number in range(5):
        layers = [
            gzipped(base_layer(program, 620 + 2 * number, 5)),
            estargz(changing_layer(621 + 2 * number, 5), FORM),
        ]
        serve(node.upstream, layers, repository=f"team/removed{number}")
        references.append(node.reference(f"team/removed{number}:v1"))
        digests |= {layer.digest.hex for layer in layers}
        node.cri.pull(references[-1])
    assert digests <= node.used_layers()
    kept = references.pop()
    first = threading.Event()

    def remove() -> None:
        for reference in references:
            node.cri.remove_image(reference)
            first.set()

    removing = threading.Thread(target=remove)
    removing.start()
    assert first.wait(30)
    node.snapshotter.kill()
    removing.join(60)
    assert not removing.is_alive()
    node.snapshotter.start()
    node.reconnected()
    assert not set(references) & node.cri.images()
    # containerd does not try again by itself; its next removal takes all with it.
    assert kept in node.cri.images()
    node.cri.remove_image(kept)
    eventually(lambda: set(node.snapshots()) <= before, 30, "their snapshots are collected")
    eventually(lambda: not digests & node.used_layers(), 30, "their layers are unmounted")
    mounted = {path for path in node.snapshotter.mounts() if "/layers/" in path}
    assert len(mounted) <= len(node.used_layers())


def test_f47_a_container_is_made_after_a_start_with_the_mirror_and_the_upstream_down(
    node: Node, program: bytes, copier: bytes, tmp_path: Path
) -> None:
    image, weights = weights_image(node, "team/offline", 640, program, copier, 2 * MIB)
    reference = node.reference("team/offline:v1")
    node.cri.pull(reference)
    digest = str(image.layers[1].digest)
    eventually(lambda: node.complete(digest), 30, "the layer is whole")
    node.mirror.stop()
    node.upstream.add_rule(Rule(close_before_answer=True))
    try:
        # As after a restart of the machine: nothing runs, nothing is mounted.
        node.snapshotter.end()
        assert node.snapshotter.mounts() == []
        node.snapshotter.start()
        node.reconnected()
        printed = node.containerd.run(reference, "offline", "/etc/motd", namespace="k8s.io")
        assert printed == "good morning\n"
        with node.mounted(image.chains[-1], tmp_path / "root", snapshotter="headstart") as root:
            assert (root / "models/weights").read_bytes() == weights
    finally:
        node.upstream.clear_rules()
        if node.snapshotter.process is None:
            node.snapshotter.start()
            node.reconnected()
        node.mirror.start()
    node.cri.remove_image(reference)
