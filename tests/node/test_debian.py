"""A real root file system, below a layer of everything: we show what overlayfs shows."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from tests.layers.images import MadeLayer, ServedImage, gzipped, serve
from tests.node.debian import NoDebian, debian_root
from tests.node.node import Node
from tests.node.test_lazy import whole_seconds
from tests.node.test_stargz_tools import convert, diff_ids
from tests.node.trees import upon_debian
from tests.node.view import view

MIB = 1 << 20
NAME = "team/debian"
COMPARED = "compared-debian"
SCRIPT = "dpkg-query -W -f '${Status}\\n' dpkg; sha256sum < /usr/bin/perl"


@pytest.fixture(scope="module")
def image(node: Node, program: bytes, tmp_path_factory: pytest.TempPathFactory) -> ServedImage:
    """A Debian as an ordinary gzip layer, and the layer above it."""
    try:
        debian = debian_root(tmp_path_factory.mktemp("debian"))
    except NoDebian as error:
        pytest.skip(f"no Debian can be made here: {error}")
    layers = [gzipped(debian, 1), gzipped(upon_debian(program), 1)]
    return serve(node.upstream, layers, repository=NAME, command=["/usr/bin/show", "/etc/issue"])


def written(node: Node) -> set[Path]:
    """All that the snapshotter has below its snapshots."""
    return set((node.snapshotter.root / "snapshots").rglob("*"))


def runs(node: Node, tmp_path: Path, reference: str, debian: MadeLayer) -> None:
    """Its own shell, loader and libraries work, and read what the archive has."""
    with tarfile.open(fileobj=BytesIO(debian.tar)) as archive:
        file = archive.extractfile("./usr/bin/perl")
        assert file is not None
        expected = Digest.of(file.read()).hex
    with node.cri.pod(tmp_path) as pod:
        printed = pod.run(reference, "/bin/sh", "-c", SCRIPT).splitlines()
    assert printed == ["install ok installed", f"{expected}  -"]


def without_differences(ours: Path, theirs: Path) -> None:
    """By ``diff``, which says of two device nodes or pipes only that they are such."""
    command = ["diff", "-r", "--no-dereference", str(ours), str(theirs)]
    found = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if "special file while" not in line]
    lines = [line for line in lines if "is a fifo while" not in line]
    assert (lines, found.stderr) == ([], "")


def test_a_debian_is_what_overlayfs_shows_with_no_blob_here_and_nothing_unpacked(
    node: Node, tmp_path: Path, image: ServedImage
) -> None:
    reference, before = node.reference(f"{NAME}:v1"), written(node)
    node.cri.pull(reference)
    assert not {layer.digest.hex for layer in image.layers} & node.content()
    assert written(node) == before
    runs(node, tmp_path, reference, image.layers[0])
    node.pull_with("overlayfs", reference, COMPARED)
    with (
        node.mounted(image.chains[-1], tmp_path / "ours", snapshotter="headstart") as ours,
        node.mounted(
            image.chains[-1], tmp_path / "theirs", snapshotter="overlayfs", namespace=COMPARED
        ) as theirs,
    ):
        without_differences(ours, theirs)
        shown = view(ours)
        assert shown == view(theirs)
    assert len(shown) > 3000 and "etc/issue.net" not in shown and "opt/third" in shown


def test_the_same_debian_with_a_toc_runs_before_it_is_here_and_is_what_overlayfs_shows(
    node: Node, tmp_path: Path, image: ServedImage
) -> None:
    node.pull_with("overlayfs", node.reference(f"{NAME}:v1"), COMPARED)
    source, name = node.reference(f"{NAME}:v1"), f"{NAME}-converted"
    manifest = convert(node, "convert", COMPARED, source, name, "--estargz-compression-level=1")
    reference, base = node.reference(f"{name}:v1"), manifest["layers"][0]
    half = base["size"] // 2
    with node.slowly(base["digest"], MIB // 16, before=half):
        node.cri.pull(reference)
        printed = node.containerd.run(reference, "lazy", "/etc/issue", namespace="k8s.io")
        assert printed == "a Debian that was changed\n"
        fetched = node.fetched(base["digest"])
        assert fetched < half + 4 * MIB, f"{fetched} of {base['size']} bytes"
    hexes = {layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
    assert not hexes & node.content()
    runs(node, tmp_path, reference, image.layers[0])
    node.pull_with("overlayfs", reference, COMPARED)
    chain = chain_ids([Digest.parse(one) for one in diff_ids(node, manifest)])[-1]
    with (
        node.mounted(chain, tmp_path / "ours", snapshotter="headstart") as ours,
        node.mounted(
            chain, tmp_path / "theirs", snapshotter="overlayfs", namespace=COMPARED
        ) as theirs,
    ):
        without_differences(ours, theirs)
        # A TOC has no fractions of seconds.
        assert whole_seconds(view(ours)) == whole_seconds(view(theirs))
