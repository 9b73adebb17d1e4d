"""Layers written here, as gzip, GNU tar, containerd and stargz-snapshotter's reader take them."""

import json
import subprocess
from pathlib import Path

import pytest

from headstart.content.estargz.writing.options import WritingOptions
from tests.content.estargz.reading import opened
from tests.content.estargz.test_real_writers import (
    BASE,
    MEMBERS,
    agrees_with_containerd,
)
from tests.content.estargz.writing.converting import Converted, convert, names
from tests.content.layer.archives import write
from tests.content.layer.unpacked import unpack
from tests.parts.containerd import Containerd
from tests.parts.processes import ProcessFailed, run

TAR = write(MEMBERS)
ORDER = [b"/late", b"etc/hard", b"low/implied/x", b"no/such/file"]
OPTIONS = {
    "usual": WritingOptions(),
    "small chunks": WritingOptions(chunk_size=100_000),
    "packed": WritingOptions(chunk_size=1_000_000, pack=True),
}


def converted(kind: str) -> Converted:
    return convert(TAR, ORDER, OPTIONS[kind])


@pytest.mark.parametrize("kind", OPTIONS)
def test_gzip_and_tar_read_it(kind: str, tmp_path: Path) -> None:
    layer = converted(kind).layer
    file = tmp_path / "layer.tar.gz"
    file.write_bytes(layer.blob)
    run(["gzip", "-t", file], deadline=20)
    listed = (
        run(["tar", "-tzf", file, "--quoting-style=literal"], deadline=20).stdout[:-1].split("\n")
    )
    # tar shows directories with their slash.
    assert [name.rstrip("/") for name in listed] == names(layer.tar)
    assert [name.rstrip("/") for name in listed[:6]] == [
        "late", "etc", "etc/.wh..wh..opq", "etc/first", "etc/hard", "low/implied/x",
    ]  # fmt: skip
    verbose = run(["tar", "-tvzf", file], deadline=20).stdout
    assert "-rwsr-xr-x 0/0         2500000 2020-09-13" in verbose
    assert "link to etc/first" in verbose


@pytest.mark.parametrize("kind", OPTIONS)
def test_containerd_unpacks_what_the_toc_says(
    kind: str, containerd: Containerd, tmp_path: Path
) -> None:
    layer = converted(kind).layer
    unpacked = unpack(containerd, tmp_path / "image", BASE, layer.tar)
    agrees_with_containerd(layer, unpacked)


def keep_blob(containerd: Containerd, blob: bytes, digest: str) -> None:
    """Put a blob to which nothing refers into containerd, and keep it there."""
    ingest: list[str | Path] = ["ctr", "--address", containerd.address, "content", "ingest"]
    for attempt in range(10):
        name = f"{digest[-12:]}-{attempt}"
        subprocess.run([*ingest, name], input=blob, check=False, timeout=20)
        try:
            containerd.ctr(["content", "label", digest, "containerd.io/gc.root=true"])
        except ProcessFailed:
            # It was collected as garbage before it had its label.
            continue
        return
    raise AssertionError(f"{digest} does not stay in containerd")


@pytest.mark.parametrize("kind", OPTIONS)
def test_stargz_snapshotters_reader_reads_the_toc(
    kind: str, containerd: Containerd, tmp_path: Path
) -> None:
    made = converted(kind)
    layer, result = made.layer, made.result
    digest = str(result.digest)
    keep_blob(containerd, layer.blob, digest)
    reading: list[str | Path] = [
        "ctr-remote",
        "--address",
        containerd.address,
        "images",
        "get-toc-digest",
    ]
    assert run([*reading, digest], deadline=20).stdout.strip() == str(result.toc_digest)
    dumped = json.loads(run([*reading, "--dump-toc", digest], deadline=20).stdout)
    expected = json.loads(layer.toc)
    assert len(dumped["entries"]) == len(expected["entries"])
    for theirs, ours in zip(dumped["entries"], expected["entries"], strict=True):
        for field in ("type", "size", "linkName", "offset", "chunkOffset", "chunkDigest", "xattrs"):
            assert theirs.get(field) == ours.get(field), (field, theirs)


def test_chunks_are_as_large_as_they_may_be() -> None:
    toc = opened(converted("small chunks").layer).toc
    big = toc.tree.root.children[b"big"]
    assert len(toc.chunks.chunks_covering(big.offset, big.offset + big.size)) == 25
