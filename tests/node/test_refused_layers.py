"""Layers that are wrong or hostile: the pull says why, and the next one is an ordinary pull."""

import errno
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from headstart.content.layer.entry import EntryKind
from tests.content.estargz.writer import Form, rewritten, write_layer
from tests.content.layer.archives import Member, member, write
from tests.faults.watching import eventually
from tests.layers.images import MadeLayer, ServedImage, estargz, gzipped, serve
from tests.node.node import Node
from tests.node.trees import Archive, base_layer

MIB = 1 << 20
ESTARGZ = "application/vnd.oci.image.layer.v1.tar+gzip"


def failed_pull(node: Node, reference: str) -> str:
    """PullImage fails, and containerd collects what was there of it; the reason."""
    before = set(node.snapshots())
    with pytest.raises(grpc.RpcError) as failed:
        node.cri.pull(reference)

    def collected() -> bool:
        node.collect_garbage()
        return set(node.snapshots()) <= before

    eventually(collected, 20, "the failed pull is collected")
    return str(failed.value)


def published(
    node: Node, name: str, program: bytes, seed: int, layer: MadeLayer
) -> tuple[str, ServedImage]:
    """An image of ``layer`` and a small one above it.

    Of a layer further up the filler may know what is wrong with it before containerd asks.
    """
    above = gzipped(base_layer(program, seed, 5))
    image = serve(node.upstream, [layer, above], repository=name)
    return node.reference(f"{name}:v1"), image


def test_f51_a_wrong_toc_digest_fails_the_pull_and_the_retry_is_an_ordinary_one(
    node: Node, program: bytes
) -> None:
    archive = Archive()
    archive.add("etc/issue", b"from the second pull\n")
    honest = estargz(archive.finish())
    announced = {name: f"sha256:{'0' * 64}" for name in honest.annotations if "digest" in name}
    layer = MadeLayer(honest.blob, honest.tar, honest.media_type, announced)
    reference, _ = published(node, "team/toc", program, 400, layer)
    assert re.search(r"TOC|table of contents", failed_pull(node, reference))
    assert layer.digest.hex not in node.used_layers()
    node.cri.pull(reference)
    assert layer.digest.hex in node.content()
    printed = node.containerd.run(reference, "toc", "/etc/issue", namespace="k8s.io")
    assert printed == "from the second pull\n"
    node.cri.remove_image(reference)


def test_f51_a_wrong_chunk_digest_is_eio_and_the_next_pull_is_an_ordinary_one(
    node: Node, tmp_path: Path, program: bytes, copier: bytes
) -> None:
    weights = random.Random(401).randbytes(8 * MIB)
    archive = Archive()
    archive.add("bin/copy", copier, mode=0o755)
    archive.add("models/weights", weights)
    written = write_layer(archive.finish(), Form(chunk_size=MIB))
    toc = json.loads(written.toc)
    wrong = [one for one in toc["entries"] if one["name"] == "models/weights"][3]
    wrong["chunkDigest"] = f"sha256:{'0' * 64}"
    written = rewritten(written, json.dumps(toc).encode())
    layer = MadeLayer(written.blob, written.tar, ESTARGZ, written.annotations)
    reference, image = published(node, "team/chunk", program, 401, layer)
    with (
        node.slowly(layer.digest, 2 * MIB, before=len(layer.blob) // 2),
        node.cri.pod(tmp_path) as pod,
    ):
        node.cri.pull(reference)
        reading = pod.create(reference, ["/bin/copy", "/models/weights", "/copied"])
        assert pod.wait(reading) == errno.EIO, "the reader is told, and has not got wrong bytes"
        pod.remove(reading)
    node.cri.remove_image(reference)
    eventually(lambda: layer.digest.hex not in node.used_layers(), 20, "it is unmounted")
    node.cri.pull(reference)
    assert layer.digest.hex in node.content()
    with node.mounted(image.chains[-1], tmp_path / "root", snapshotter="headstart") as root:
        assert (root / "models/weights").read_bytes() == weights
    node.cri.remove_image(reference)


def test_f52_without_the_digest_of_its_toc_a_layer_is_mounted_once_it_is_whole(
    node: Node, program: bytes
) -> None:
    archive = Archive()
    archive.add("etc/issue", b"nobody said that I have a TOC\n")
    archive.add("models/weights", random.Random(402).randbytes(4 * MIB))
    made = estargz(archive.finish())
    layer = MadeLayer(made.blob, made.tar, made.media_type)
    reference, _ = published(node, "team/silent", program, 402, layer)
    with node.slowly(layer.digest, MIB):
        node.cri.pull(reference)
        assert node.fetched(str(layer.digest)) >= len(layer.blob)
    assert layer.digest.hex not in node.content()
    printed = node.containerd.run(reference, "silent", "/etc/issue", namespace="k8s.io")
    assert printed == "nobody said that I have a TOC\n"
    node.cri.remove_image(reference)


HOSTILE: dict[str, tuple[Sequence[Member], str, str | None]] = {
    "a path that leaves the layer": (
        [member(b"../../etc/escaped", contents=b"x")],
        "leaves the layer",
        None,
    ),
    "a file below a symbolic link": (
        [member(b"a", EntryKind.SYMLINK, target=b"/etc"), member(b"a/escaped", contents=b"x")],
        "is no directory, but a symlink",
        None,
    ),
    "a hard link to nothing": (
        [member(b"a", EntryKind.HARD_LINK, target=b"../../../etc/passwd")],
        "leaves the layer",
        "no such file or directory",
    ),
    "a file and its whiteout": (
        [member(b"escaped", contents=b"x"), member(b".wh.escaped")],
        "hides a name",
        None,
    ),
}
"""Entries, what we say of them, and what containerd's own pull of such a base says.

None: it takes them. The last one it refuses above another layer ("file exists").
"""


@pytest.mark.parametrize("what", HOSTILE)
def test_f53_a_hostile_tar_fails_the_pull_with_its_reason_and_then_containerd_judges(
    node: Node, program: bytes, what: str
) -> None:
    entries, ours, theirs = HOSTILE[what]
    layer = gzipped(write([member(b"f", contents=os.urandom(4096)), *entries]))
    number = 410 + list(HOSTILE).index(what)
    reference, _ = published(node, f"team/hostile{number}", program, number, layer)
    assert re.search(ours, failed_pull(node, reference))
    assert layer.digest.hex not in node.used_layers()
    if theirs is None:
        node.cri.pull(reference)
        assert layer.digest.hex in node.content()
        node.cri.remove_image(reference)
    else:
        assert re.search(theirs, failed_pull(node, reference))
