"""Images whose layers are tars of a real tree, served by a scripted upstream."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import zstandard

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.content.manifest import OCI_MANIFEST
from tests.content.estargz.writer import Form, write_layer
from tests.doubles.scripted_upstream import ScriptedUpstream

REPOSITORY = "team/app"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
MTIME = 1_700_000_000


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """The blob of a layer and the tar in it."""

    blob: bytes
    tar: bytes
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """Of the blob."""
        return Digest.of(self.blob)

    @property
    def diff_id(self) -> Digest:
        """Of the tar."""
        return Digest.of(self.tar)


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image at a scripted upstream."""

    upstream: ScriptedUpstream
    layers: tuple[MadeLayer, ...]
    config: str
    manifest: str

    @property
    def chains(self) -> tuple[Digest, ...]:
        """The chain ID of each layer, the base first."""
        return chain_ids([layer.diff_id for layer in self.layers])


def tar_of(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    """A tar of regular files with their directories, and of hard links."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made: set[str] = set()
        for name, content in files.items():
            parts = name.split("/")[:-1]
            for depth in range(len(parts)):
                directory = "/".join(parts[: depth + 1])
                if directory not in made:
                    made.add(directory)
                    entry = tarfile.TarInfo(directory + "/")
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, MTIME
                    archive.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, MTIME
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mtime = tarfile.LNKTYPE, target, MTIME
            archive.addfile(entry)
    return output.getvalue()


def tree(seed: int, count: int, largest: int = 200_000) -> dict[str, bytes]:
    """So many files in some directories, half of them text; each seed gives others."""
    chance = random.Random(seed)
    files = {}
    for number in range(count):
        size = chance.randrange(largest) if chance.random() < 0.9 else 0
        content = (
            chance.randbytes(size)
            if chance.random() < 0.5
            else (b"line %d\n" % number * (size // 8 + 1))[:size]
        )
        files[f"usr/lib/d{number % 7}/file{number:05d}-{seed}"] = content
    return files


def gzipped(tar: bytes, level: int = 6) -> MadeLayer:
    """An ordinary gzip layer."""
    return MadeLayer(gzip.compress(tar, level, mtime=0), tar, _LAYER + "+gzip")


def zstd(tar: bytes) -> MadeLayer:
    """An ordinary zstd layer."""
    return MadeLayer(zstandard.compress(tar, 3), tar, _LAYER + "+zstd")


def plain(tar: bytes) -> MadeLayer:
    """A layer that is not compressed."""
    return MadeLayer(tar, tar, _LAYER)


def estargz(tar: bytes, form: Form | None = None) -> MadeLayer:
    """A layer that can be read before it is whole."""
    written = write_layer(tar, form or Form(chunk_size=256 << 10))
    suffix = "+gzip" if written.compression == "gzip" else "+zstd"
    return MadeLayer(written.blob, written.tar, _LAYER + suffix, written.annotations)


def serve(
    upstream: ScriptedUpstream,
    layers: Sequence[MadeLayer],
    *,
    repository: str = REPOSITORY,
    tag: str = "v1",
    diff_ids: Sequence[Digest] | None = None,
    command: Sequence[str] = (),
) -> ServedImage:
    """Put an image into a scripted upstream; ``diff_ids`` replaces those of the layers.

    ``command`` is what its containers run.
    """
    claimed = diff_ids or [layer.diff_id for layer in layers]
    rootfs = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in claimed]}
    document: dict[str, object] = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    if command:
        document["config"] = {"Cmd": list(command)}
    config = json.dumps(document).encode()
    digest = upstream.add_blob(repository, config)
    for layer in layers:
        upstream.add_blob(repository, layer.blob)
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest,
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": layer.media_type,
                    "digest": str(layer.digest),
                    "size": len(layer.blob),
                    "annotations": dict(layer.annotations),
                }
                for layer in layers
            ],
        }
    ).encode()
    manifest = upstream.add_manifest(repository, body, tags=[tag])
    return ServedImage(upstream, tuple(layers), digest, manifest)


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()
