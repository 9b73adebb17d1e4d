"""Images as Debian's stargz-snapshotter makes them, and its client that pulls them lazily."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from tests.content.layer.archives import member, write
from tests.faults.watching import eventually
from tests.layers.images import gzipped, serve
from tests.node.node import Node
from tests.node.test_lazy import large_image, whole_seconds
from tests.node.trees import Archive, base_layer, changing_layer
from tests.node.view import view
from tests.parts.processes import ProcessFailed, run

MIB = 1 << 20
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
TOOLS = {
    "convert": ["convert", "--estargz", "--oci"],
    "optimize": ["optimize", "--oci", "--period", "1", "--net-host"],
}
SEEDS = {"convert": 200, "optimize": 210}
RPULLED = "rpulled"
"""The namespace of ``ctr-remote images rpull``."""


def ctr_remote(node: Node, namespace: str, *arguments: str) -> None:
    """Run ``ctr-remote images …``."""
    address = ["--address", str(node.containerd.address), "-n", namespace]
    run(["ctr-remote", *address, "images", *arguments], deadline=120)


def made_by(node: Node, tool: str, name: str, program: bytes) -> dict[str, Any]:
    """Make an image by one of the tools; its manifest."""
    seed = SEEDS[tool]
    weights = Archive()
    weights.add("models/weights", random.Random(seed).randbytes(6 * MIB))
    tars = [base_layer(program, seed, 20), changing_layer(seed + 1, 20), weights.finish()]
    source = node.reference(f"{name}-from:v1")
    serve(
        node.upstream,
        [gzipped(tar, 1) for tar in tars],
        repository=f"{name}-from",
        command=["/bin/show", "/etc/motd"],
    )
    node.pull_with("overlayfs", source, f"made-by-{tool}")
    return convert(node, tool, f"made-by-{tool}", source, name)


def convert(
    node: Node, tool: str, namespace: str, source: str, name: str, *options: str
) -> dict[str, Any]:
    """Convert an image that ``namespace`` has; it is at the upstream then, and nowhere else.

    Returns its manifest.
    """
    target = node.reference(f"{name}:v1")
    ctr_remote(node, namespace, *TOOLS[tool], *options, source, target)
    manifest = upload(node, namespace, target, name)
    node.containerd.ctr(["-n", namespace, "images", "rm", "--sync", source, target])
    return manifest


def upload(node: Node, namespace: str, target: str, repository: str) -> dict[str, Any]:
    """Put an image of containerd into the upstream; its manifest."""
    listed = node.containerd.ctr(["-n", namespace, "images", "list"]).splitlines()
    digest = next(line.split()[2] for line in listed if line.startswith(target))

    def content(digest: str) -> bytes:
        return (node.containerd.content / digest.removeprefix("sha256:")).read_bytes()

    manifest: dict[str, Any] = json.loads(content(digest))
    for descriptor in [manifest["config"], *manifest["layers"]]:
        node.upstream.add_blob(repository, content(descriptor["digest"]))
    assert node.upstream.add_manifest(repository, content(digest), tags=["v1"]) == digest
    return manifest


def pulled_lazily(node: Node, reference: str, manifest: dict[str, Any]) -> None:
    """Pull it cold and run it; half of the largest layer is missing then, and no blob is here."""
    largest = manifest["layers"][-1]
    half = largest["size"] // 2
    with node.slowly(largest["digest"], MIB // 16, before=half):
        node.cri.pull(reference)
        printed = node.containerd.run(reference, "lazy", "/etc/motd", namespace="k8s.io")
        assert printed == "good evening\n"
        fetched = node.fetched(largest["digest"])
        assert fetched < half + MIB, f"{fetched} of {largest['size']} bytes"
    hexes = {layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
    assert not hexes & node.content()


def rpull(node: Node, reference: str, namespace: str) -> None:
    """Pull with its own client, of which containerd tells us neither namespace nor lease."""
    hosts = ["--hosts-dir", str(node.containerd.hosts)]
    ctr_remote(node, namespace, "rpull", "--snapshotter", "headstart", *hosts, reference)


def test_rpull_is_lazy_and_each_namespace_has_its_own_snapshots(node: Node, program: bytes) -> None:
    image, _ = large_image(node, program, "team/rpull", 220)
    reference = node.reference("team/rpull:v1")
    large = image.layers[1]
    with node.slowly(large.digest, 2 * MIB):
        for namespace in ("one", "other"):
            rpull(node, reference, namespace)
            printed = node.containerd.run(reference, "lazy", "/etc/motd", namespace=namespace)
            assert printed == "the weights are on their way\n"
        fetched = node.fetched(str(large.digest))
        assert fetched < len(large.blob) // 2, f"{fetched} of {len(large.blob)} bytes"
    assert not {layer.digest.hex for layer in image.layers} & node.content()
    assert len(node.snapshots("one")) == len(node.snapshots("other")) == 2
    node.containerd.ctr(["-n", "one", "images", "rm", "--sync", reference])
    eventually(lambda: node.snapshots("one") == {}, 20, "its snapshots are gone")
    printed = node.containerd.run(reference, "still", "/etc/motd", namespace="other")
    assert printed == "the weights are on their way\n"
    node.containerd.ctr(["-n", "other", "images", "rm", "--sync", reference])


def test_rpull_waits_for_an_ordinary_layer_and_says_what_is_wrong_with_it(
    node: Node, program: bytes
) -> None:
    weights = Archive()
    weights.add("models/weights", random.Random(222).randbytes(4 * MIB))
    layers = [gzipped(base_layer(program, 222, 5)), gzipped(weights.finish(), 1)]
    serve(node.upstream, layers, repository="team/waits")
    reference = node.reference("team/waits:v1")
    with node.slowly(layers[1].digest, 2 * MIB):
        rpull(node, reference, RPULLED)
        # Nothing is left to wait for: a container has two seconds for that.
        node.containerd.run(reference, "ordinary", "/etc/motd", namespace=RPULLED)
    assert not {layer.digest.hex for layer in layers} & node.content()
    hostile = gzipped(write([member(b"../../etc/escaped", contents=b"x")]))
    serve(node.upstream, [layers[0], hostile], repository="team/hostile-rpull")
    with pytest.raises(ProcessFailed, match="leaves the layer"):
        rpull(node, node.reference("team/hostile-rpull:v1"), RPULLED)
    assert hostile.digest.hex not in node.used_layers()


@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_of_stargz_snapshotters_tools_runs_lazily_and_is_what_overlayfs_shows(
    node: Node, tmp_path: Path, program: bytes, tool: str
) -> None:
    name = f"team/{tool}d"
    manifest = made_by(node, tool, name, program)
    assert all(TOC_DIGEST in layer["annotations"] for layer in manifest["layers"])
    reference = node.reference(f"{name}:v1")
    pulled_lazily(node, reference, manifest)
    rpull(node, reference, RPULLED)
    printed = node.containerd.run(reference, "rpulled", "/etc/motd", namespace=RPULLED)
    assert printed == "good evening\n"
    node.pull_with("overlayfs", reference, "compared")
    chain = chain_ids([Digest.parse(one) for one in diff_ids(node, manifest)])[-1]
    with node.mounted(
        chain, tmp_path / "theirs", snapshotter="overlayfs", namespace="compared"
    ) as theirs:
        expected = whole_seconds(view(theirs))
    assert (".prefetch.landmark" in expected) is (tool == "optimize")
    for namespace in ("k8s.io", RPULLED):
        with node.mounted(
            chain, tmp_path / namespace, snapshotter="headstart", namespace=namespace
        ) as ours:
            assert whole_seconds(view(ours)) == expected


def diff_ids(node: Node, manifest: dict[str, Any]) -> list[str]:
    """What the image's configuration says."""
    config = node.containerd.content / manifest["config"]["digest"].removeprefix("sha256:")
    found: list[str] = json.loads(config.read_text())["rootfs"]["diff_ids"]
    return found
