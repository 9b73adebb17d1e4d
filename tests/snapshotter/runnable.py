"""Images that can be run: small layers, with a program that needs nothing but itself."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.known_layer import KnownLayer
from tests.parts.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Blob, Image, PlatformImage
from tests.parts.processes import run

SHOW = "bin/show"
"""Prints the files that it is given; ``+FILE`` is appended to instead, ``-`` waits for ever."""

_SOURCE = r"""
#include <fcntl.h>
#include <unistd.h>
int main(int count, char **names) {
    char bytes[4096];
    for (int i = 1; i < count; i++) {
        char *name = names[i];
        int adds = name[0] == '+';
        if (name[0] == '-') for (;;) pause();
        int file = open(name + adds, adds ? O_WRONLY | O_CREAT | O_APPEND : O_RDONLY, 0644);
        if (file < 0) return 1;
        if (adds && write(file, "added\n", 6) != 6) return 2;
        for (ssize_t got; !adds && (got = read(file, bytes, sizeof bytes)) > 0;)
            if (write(1, bytes, got) != got) return 3;
        close(file);
    }
    return 0;
}
"""


@dataclass(frozen=True, slots=True)
class RunnableImage:
    """An image, and each of its layers as a directory, which is what a mount of it would show."""

    image: Image
    directories: tuple[Path, ...]

    def layers(self, repository: str) -> tuple[KnownLayer, ...]:
        """What the mirror would say of them."""
        platform = self.image.platform()
        return tuple(
            KnownLayer(
                "registry.example",
                repository,
                Digest.parse(blob.digest),
                blob.size,
                Digest.parse(diff_id),
                blob.media_type,
            )
            for blob, diff_id in zip(platform.layers, platform.diff_ids, strict=True)
        )


def compiled(directory: Path) -> bytes:
    """The program, linked statically."""
    source, program = directory / "show.c", directory / "show"
    source.write_text(_SOURCE)
    run(["gcc", "-static", "-Os", "-s", "-o", program, source])
    return program.read_bytes()


def make_runnable_image(directory: Path, layers: Sequence[Mapping[str, bytes]]) -> RunnableImage:
    """Write an OCI layout to ``directory``, which is made; a layer is paths and contents.

    The layers' directories have short names, as mount points of layers have.
    """
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, media_type: str) -> Blob:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return Blob(media_type, f"sha256:{digest}", len(content))

    tars = [_tar(files) for files in layers]
    stored = tuple(add(gzip.compress(tar, 1, mtime=0), f"{OCI_LAYER}+gzip") for tar in tars)
    diff_ids = tuple(f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars)
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": [f"/{SHOW}"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    described = add(json.dumps(config).encode(), OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described.descriptor(),
        "layers": [blob.descriptor() for blob in stored],
    }
    top = add(json.dumps(manifest).encode(), OCI_MANIFEST)
    named = top.descriptor(annotations={"org.opencontainers.image.ref.name": "image"})
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    platform = PlatformImage("linux/amd64", top, described, stored, diff_ids)
    directories = tuple(
        _unpacked(tar, directory / "l" / str(number)) for number, tar in enumerate(tars)
    )
    return RunnableImage(Image(directory, top, (platform,)), directories)


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _unpacked(tar: bytes, directory: Path) -> Path:
    directory.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        # By attribute: Debian 12's Python has no `filter` yet, later ones warn without one.
        opened.extraction_filter = lambda member, _: member
        opened.extractall(directory)
    return directory
