"""Layers that ctr-remote and skopeo have written, against what containerd unpacks of the same."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headstart.content.estargz.announced import announced_toc
from headstart.content.estargz.footer import TAIL_SIZE, parse_footer
from headstart.content.estargz.toc_file import read_toc
from headstart.content.layer.entry import EntryKind
from tests.content.estargz.reading import inflated, opened
from tests.content.estargz.test_whole_layer import put_together
from tests.content.estargz.writer import WrittenLayer
from tests.content.layer.archives import CAPABILITY, member, said, shared, walk, write
from tests.content.layer.test_unpacked import comparable
from tests.content.layer.unpacked import look, unpack
from tests.parts.containerd import Containerd
from tests.parts.processes import run

DIRECTORY = EntryKind.DIRECTORY
BASE = write([member(b"base"), member(b"low", DIRECTORY, mode=0o1777, owner=(9, 9), mtime=55)])

RANDOM = random.Random(1)
MEMBERS = [
    member(b"etc/", DIRECTORY, mode=0o711, owner=(3, 4), mtime=1_700_000_000),
    member(b"etc/first", contents=b"first", mtime=1_700_000_001, owner=(1000, 1001)),
    member(b"etc/empty", mode=0o600),
    member(b"big", contents=RANDOM.randbytes(2_500_000), mode=0o4755, mtime=1_600_000_000),
    member(b"hole", contents=b"a" * 100 + bytes(300_000) + RANDOM.randbytes(200_000)),
    member(b"low/implied/x", contents=b"x" * 512),
    member(b"etc/symlink", EntryKind.SYMLINK, target=b"first"),
    member(b"etc/hard", EntryKind.HARD_LINK, target=b"etc/first", mode=0o640, mtime=5),
    member(b"dev/", DIRECTORY, mode=0o755),
    member(b"dev/null", EntryKind.CHARACTER, mode=0o666, device=(1, 3)),
    member(b"dev/fifo", EntryKind.FIFO, mode=0o622),
    member(
        b"attributes",
        contents=b"x",
        xattrs={b"user.a": b"\xff\0b", b"security.capability": CAPABILITY},
    ),
    member("\u00fc<&>\u2028".encode(), contents=b"umlaut"),
    member(b"/".join([b"p" * 200] * 2 + [b"long"]), contents=b"long path"),
    member(b".wh.base"),
    member(b"etc/.wh..wh..opq"),
    member(b"late", contents=b"z" * 5000),
]

CTR_REMOTE = {
    "estargz": ["--estargz"],
    "estargz, small chunks": ["--estargz", "--estargz-chunk-size", "1000000"],
    "estargz, optimized": ["--estargz", "--estargz-record-in"],
    "zstd:chunked": ["--zstdchunked"],
}


@dataclass(frozen=True, slots=True)
class Source:
    """An image of a plain layer above another: in containerd, and as an OCI layout."""

    containerd: Containerd
    reference: str
    layout: Path
    unpacked: Path
    """The directory of the upper layer's snapshot."""


@pytest.fixture(scope="module")
def source(containerd: Containerd, tmp_path_factory: pytest.TempPathFactory) -> Source:
    layer = write(MEMBERS)
    directory = tmp_path_factory.mktemp("plain") / "image"
    unpacked = unpack(containerd, directory, BASE, layer)
    name = f"localhost/unpacked:{hashlib.sha256(layer).hexdigest()[:12]}"
    return Source(containerd, name, directory / "both", unpacked)


def upper_layer(blobs: Path, manifest: str) -> WrittenLayer:
    """The upper layer of an image in a directory of blobs."""

    def body(digest: str) -> bytes:
        return (blobs / digest.removeprefix("sha256:")).read_bytes()

    image: dict[str, Any] = json.loads(body(manifest))
    descriptor = image["layers"][1]
    blob = body(descriptor["digest"])
    compression = descriptor["mediaType"].rpartition("+")[2]
    tar = inflated(blob, compression)
    diff_ids = json.loads(body(image["config"]["digest"]))["rootfs"]["diff_ids"]
    assert diff_ids[1] == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    announced = announced_toc(descriptor["annotations"], len(blob))
    assert announced is not None
    location = parse_footer(blob[-TAIL_SIZE:], len(blob))
    file = read_toc(blob[location.offset : location.stop], location, announced)
    return WrittenLayer(blob, bytes(file.json), descriptor["annotations"], tar, compression)


def agrees_with_containerd(layer: WrittenLayer, unpacked: Path) -> None:
    """The tree and its contents are what an ordinary unpack of the same blob has."""
    put_together(layer)
    reader = opened(layer)
    expected = look(unpacked)
    found = said(reader.toc.tree, reader.device())
    implied = {path for path, inode in walk(reader.toc.tree.root) if inode.implied}
    assert comparable(found, implied) == comparable(expected, implied)
    assert shared(found) == shared(expected)


@pytest.mark.parametrize("kind", CTR_REMOTE)
def test_a_layer_of_ctr_remote_is_what_containerd_unpacks(
    kind: str, source: Source, tmp_path: Path
) -> None:
    options: list[str | Path] = list(CTR_REMOTE[kind])
    if options[-1] == "--estargz-record-in":
        record = tmp_path / "record"
        paths = ["etc/first", "late"]
        record.write_text(
            "".join(json.dumps({"path": path, "layerIndex": 1}) + "\n" for path in paths)
        )
        options.append(record)
    target = f"{source.reference}-converted"
    manifest = run(
        [
            *("ctr-remote", "--address", source.containerd.address, "images", "convert"),
            *options,
            *("--oci", source.reference, target),
        ],
        deadline=60,
    ).stdout.split()[-1]
    layer = upper_layer(source.containerd.content, manifest)
    unpacked = unpack(source.containerd, tmp_path / "converted", BASE, layer.tar)
    agrees_with_containerd(layer, unpacked)
    toc = opened(layer).toc
    root = toc.tree.root.children
    # ctr-remote leaves the tar's end out, so its own file is unpacked too.
    assert (b"stargz.index.json" in root) == (kind != "zstd:chunked")
    if "optimized" in kind:
        assert toc.landmark_offset is not None
        assert b".prefetch.landmark" in root
        before = [toc.chunks.chunk(at) for at in toc.chunks.chunks_before(toc.landmark_offset)]
        offsets = [root[b"etc"].children[b"first"].offset, root[b"late"].offset]
        assert [chunk.device_offset for chunk in before] == offsets
    else:
        assert toc.no_prefetch
        assert b".no.prefetch.landmark" in root
    # 2.5 MB in pieces of 4 MiB, or of 1 MB.
    assert len(
        toc.chunks.chunks_covering(root[b"big"].offset, root[b"big"].offset + 2_500_000)
    ) == (3 if "small" in kind else 1)


def test_a_layer_of_skopeo_is_what_containerd_unpacks(source: Source, tmp_path: Path) -> None:
    output = tmp_path / "chunked"
    run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet"),
            *("--dest-compress", "--dest-compress-format", "zstd:chunked"),
            *(f"oci:{source.layout}", f"oci:{output}:image"),
        ],
        deadline=60,
    )
    (top,) = json.loads((output / "index.json").read_text())["manifests"]
    layer = upper_layer(output / "blobs/sha256", top["digest"])
    # Its tar is the one that it was given.
    assert layer.tar == write(MEMBERS)
    agrees_with_containerd(layer, source.unpacked)
    toc = opened(layer).toc
    big = toc.tree.root.children[b"big"]
    # Cut where a rolling sum says, 64 KiB apart on average.
    assert len(toc.chunks.chunks_covering(big.offset, big.offset + big.size)) > 20
    assert (toc.landmark_offset, toc.no_prefetch, toc.tail) == (None, False, None)
