"""Images as Debian's stargz-snapshotter makes them, and its client that pulls them lazily."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from tests.layers.images import gzipped, serve
from tests.node.node import Node
from tests.node.test_lazy import whole_seconds
from tests.node.trees import Archive, base_layer, changing_layer
from tests.node.view import view
from tests.parts.processes import run

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


def convert(node: Node, tool: str, name: str, program: bytes) -> dict[str, Any]:
    """Make an image by one of the tools; it is at the upstream then, and nowhere else.

    Returns its manifest.
    """
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
    namespace = f"made-by-{tool}"
    node.pull_with("overlayfs", source, namespace)
    target = node.reference(f"{name}:v1")
    ctr_remote(node, namespace, *TOOLS[tool], source, target)
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


@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_of_stargz_snapshotters_tools_runs_lazily_and_is_what_overlayfs_shows(
    node: Node, tmp_path: Path, program: bytes, tool: str
) -> None:
    name = f"team/{tool}d"
    manifest = convert(node, tool, name, program)
    assert all(TOC_DIGEST in layer["annotations"] for layer in manifest["layers"])
    reference = node.reference(f"{name}:v1")
    pulled_lazily(node, reference, manifest)
    # Its own client, whose calls come from containerd without namespace and lease.
    hosts = ["--hosts-dir", str(node.containerd.hosts)]
    ctr_remote(node, RPULLED, "rpull", "--snapshotter", "headstart", *hosts, reference)
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
