"""An image as model servers are: a program, a Python library, weights; as gzip and as eStargz.

Made once and kept (:mod:`bench.kept`). The weights are numbers of 16 bits (bfloat16, normally
distributed), which gzip shrinks by a fifth as it does real ones.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.estargz import estargz
from bench.kept import kept
from bench.library_tree import LibraryTree
from bench.measure import MIB
from bench.start_program import compiled
from bench.tars import FAST, USUAL, TarLayer, gzipped, write_tar
from tests.parts.images import OCI_CONFIG, OCI_MANIFEST

GZIP, ESTARGZ = "gzip", "estargz"
LIBRARY, WEIGHTS = "usr/lib/python3/site-packages", "models"
PROGRAM = "usr/bin/start"
_SHARD = 512 * MIB
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class LlmImage:
    """``directory`` has ``blobs/`` and ``manifests/``, both by digest, and ``unpacked/``."""

    directory: Path
    library: LibraryTree
    tags: dict[str, str]
    """Digests of the manifests."""
    sizes: dict[str, int]
    """Bytes of all layers, by the tag."""

    @property
    def program(self) -> Path:
        return self.directory / "unpacked" / PROGRAM

    def paths(self, root: Path | None = None) -> list[str]:
        """What the program is to read: in the image, or below an unpacked ``root``."""
        if root is None:
            return [f"/{LIBRARY}", f"/{WEIGHTS}"]
        return [str(root / LIBRARY), str(root / WEIGHTS)]

    @property
    def unpacked(self) -> Path:
        """A directory with all files of the image."""
        return self.directory / "unpacked"


def llm_image(library: LibraryTree, weights: int) -> LlmImage:
    """The image with so many bytes of weights, made where there is none yet."""
    name = f"llm-{_FORMAT}-{library.directory.name}-{weights // MIB}"
    place = kept(name, partial(_make, library, weights))
    described = json.loads((place / "described.json").read_text())
    return LlmImage(place, library, described["tags"], described["sizes"])


def _make(library: LibraryTree, weights: int, place: Path) -> None:
    unpacked, blobs, manifests = (place / name for name in ("unpacked", "blobs", "manifests"))
    for directory in (unpacked / "usr/bin", blobs, manifests):
        directory.mkdir(parents=True)
    compiled(unpacked / "usr/bin").with_suffix(".c").unlink()
    shutil.copytree(library.directory, unpacked / LIBRARY, symlinks=True)
    _write_weights(unpacked / WEIGHTS, weights)
    made: dict[str, list[TarLayer]] = {GZIP: [], ESTARGZ: []}
    for below, level in (("usr/bin", USUAL), (LIBRARY, USUAL), (WEIGHTS, FAST)):
        tar = place / "layer.tar"
        write_tar(unpacked / below, below, tar)
        for kind, write in ((GZIP, gzipped), (ESTARGZ, estargz)):
            layer = write(tar, place / "layer", level)
            (place / "layer").rename(blobs / layer.digest)
            made[kind].append(layer)
        tar.unlink()
    tags = {kind: _write_manifest(place, layers) for kind, layers in made.items()}
    sizes = {kind: sum(layer.size for layer in layers) for kind, layers in made.items()}
    (place / "described.json").write_text(json.dumps({"tags": tags, "sizes": sizes}))


def _write_manifest(place: Path, layers: Sequence[TarLayer]) -> str:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{PROGRAM}"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    ).encode()
    config_digest = _digest(config)
    (place / "blobs" / config_digest).write_bytes(config)
    described = {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(config)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described,
            "layers": [layer.descriptor() for layer in layers],
        }
    ).encode()
    (place / "manifests" / _digest(manifest)).write_bytes(manifest)
    return _digest(manifest)


def _write_weights(directory: Path, size: int) -> None:
    """Files of some hundred mebibytes, as models come."""
    import numpy

    directory.mkdir()
    for number, start in enumerate(range(0, size, _SHARD)):
        generator = numpy.random.default_rng(number)
        with (directory / f"model-{number:05}.safetensors").open("wb") as file:
            for _ in range(start, min(start + _SHARD, size), 16 * MIB):
                numbers = generator.standard_normal(8 * MIB, dtype=numpy.float32) * 0.02
                # bfloat16: the upper half of a float.
                file.write((numbers.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
