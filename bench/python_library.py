"""A layer that resembles an installed library: thousands of small files, text and machine code.

The bytes are slices of this interpreter's own library, so that they compress as such files do:
gzip -6 leaves some 30 %.
"""

import hashlib
import io
import json
import random
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.parts.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.parts.processes import run

FILES = 15_000
_MEAN_SIZE = 35_500
_MOST = 2_000_000
_BINARY_SHARE = 0.12
_CORPUS = 24_000_000


@dataclass(frozen=True, slots=True)
class LibraryLayer:
    """A tar, the same compressed, and the diff ID."""

    tar: Path
    blob: Path
    diff_id: str
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the tar."""
        return self.tar.stat().st_size


def make_layer(directory: Path, files: int, seed: int = 1) -> LibraryLayer:
    """Write a tar of so many files, and compress it with ``gzip -6``."""
    directory.mkdir(parents=True, exist_ok=True)
    tar = directory / "library.tar"
    chance = random.Random(seed)
    text, code = _corpus(".py"), _corpus(".so")
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for directory_number in range(max(1, files // 15)):
            name = _directory(directory_number)
            entry = _entry(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for number in range(files):
            binary = chance.random() < _BINARY_SHARE
            size = min(_MOST, 1 + int(chance.expovariate(1 / _MEAN_SIZE)))
            name = f"{_directory(chance.randrange(max(1, files // 15)))}/module_{number}"
            entry = _entry(name + (".so" if binary else ".py"), size)
            content = b"".join(_slices(code if binary else text, size, chance))
            archive.addfile(entry, io.BytesIO(content))
    run(["gzip", "-6", "--keep", "--no-name", tar], deadline=600)
    blob = tar.with_name(tar.name + ".gz")
    return LibraryLayer(tar, blob, _digest(tar), _digest(blob))


def write_archive(layer: LibraryLayer, file: Path, name: str) -> None:
    """An OCI archive of one image with this layer, as ``ctr images import`` takes it."""
    blobs: dict[str, bytes] = {}

    def add(media_type: str, value: object) -> dict[str, object]:
        content = json.dumps(value).encode()
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    }
    described = {
        "mediaType": f"{OCI_LAYER}+gzip",
        "digest": layer.digest,
        "size": layer.blob.stat().st_size,
    }
    manifest = {"schemaVersion": 2, "config": add(OCI_CONFIG, config), "layers": [described]}
    top = add(OCI_MANIFEST, {**manifest, "mediaType": OCI_MANIFEST})
    top["annotations"] = {"io.containerd.image.name": name}
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with tarfile.open(file, "w") as archive:
        for path, content in (
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ("index.json", index),
            *((f"blobs/sha256/{digest}", content) for digest, content in blobs.items()),
        ):
            archive.addfile(_entry(path, len(content)), io.BytesIO(content))
        hexadecimal = layer.digest.partition(":")[2]
        archive.add(layer.blob, f"blobs/sha256/{hexadecimal}")


def _directory(number: int) -> str:
    return f"usr/lib/python3/site-packages/package_{number % 97}/part_{number}"


def _entry(name: str, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mtime = 1_700_000_000
    return entry


def _corpus(suffix: str) -> bytes:
    """Files of the interpreter's library, one after the other."""
    content = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob(f"*{suffix}")):
        if len(content) >= _CORPUS:
            break
        content += path.read_bytes()
    if not content:
        raise FileNotFoundError(f"this interpreter's library has no *{suffix}")
    return bytes(content)


def _slices(corpus: bytes, size: int, chance: random.Random) -> Iterator[bytes]:
    """``size`` bytes of the corpus, in runs long enough to compress as they do there."""
    while size > 0:
        count = min(size, chance.randrange(2_000, 40_000))
        start = chance.randrange(max(1, len(corpus) - count))
        piece = corpus[start : start + count]
        yield piece
        size -= len(piece)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
