"""Images made for tests: OCI layouts with layers of given sizes, and their way to a registry."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parts.layers import Layer, write_layer
from tests.parts.processes import run
from tests.parts.registry import Registry

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
"""What docker-registry has to be told before it answers an OCI manifest."""
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

_CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Blob:
    """A descriptor: digest and size of the stored bytes."""

    media_type: str
    digest: str
    size: int

    def descriptor(self, **more: object) -> dict[str, object]:
        """As it is written in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **more}


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """The image of one platform: what a client has when it pulled it."""

    platform: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """An OCI layout on disk that holds one image under the name ``image``."""

    directory: Path
    top: Blob
    """The index where there are several platforms, else the manifest."""
    platforms: tuple[PlatformImage, ...]

    def platform(self, name: str = "linux/amd64") -> PlatformImage:
        """The image of a platform; KeyError when it has none."""
        for image in self.platforms:
            if image.platform == name:
                return image
        raise KeyError(name)

    def blob(self, digest: str) -> Path:
        """The file of a blob or manifest."""
        return _blob_file(self.directory, digest)


def make_image(
    directory: Path,
    layers: Sequence[Layer],
    *,
    platforms: Sequence[str] = ("linux/amd64",),
    seed: int = 0,
) -> Image:
    """Write an OCI layout to ``directory`` (made); an index only where ``platforms`` are several.

    Different seeds give different layers; so do the platforms of one image.
    """
    (directory / "blobs/sha256").mkdir(parents=True)
    numbers = itertools.count(1000 * seed)
    made = tuple(_make_platform(directory, layers, platform, numbers) for platform in platforms)
    top = made[0].manifest
    if len(made) > 1:
        entries = [image.manifest.descriptor(platform=_platform(image.platform)) for image in made]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        top = _write_json(directory, index, OCI_INDEX)
    named = top.descriptor(annotations={"org.opencontainers.image.ref.name": "image"})
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return Image(directory, top, made)


def push(image: Image, registry: Registry, name: str) -> str:
    """Push an image with skopeo, all platforms, digests kept; ``name`` is ``repository:tag``.

    Returns the reference ``HOST:PORT/repository:tag``.
    """
    reference = f"{registry.host}/{name}"
    account = registry.account
    run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            # Without it plain layers are compressed on the way.
            "--preserve-digests",
            "--dest-tls-verify=false",
            *([f"--dest-creds={account}"] if account else []),
            f"oci:{image.directory}:image",
            f"docker://{reference}",
        ],
        deadline=300,
    )
    return reference


def sha256_of(file: Path) -> str:
    """``sha256:…`` of a file's bytes."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _make_platform(
    directory: Path, layers: Sequence[Layer], platform: str, numbers: "itertools.count[int]"
) -> PlatformImage:
    made = [_make_layer(directory, layer, next(numbers)) for layer in layers]
    diff_ids = tuple(diff_id for _, diff_id in made)
    blobs = tuple(blob for blob, _ in made)
    configuration = {
        **_platform(platform),
        "created": _CREATED,
        "config": {"Cmd": ["/content"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": _CREATED, "created_by": "tests"} for _ in blobs],
    }
    config = _write_json(directory, configuration, OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": [blob.descriptor() for blob in blobs],
    }
    top = _write_json(directory, manifest, OCI_MANIFEST)
    return PlatformImage(platform, top, config, blobs, diff_ids)


def _make_layer(directory: Path, layer: Layer, number: int) -> tuple[Blob, str]:
    """Write the blob of a layer; returns it and its diff ID."""
    temporary = directory / "layer"
    written = write_layer(temporary, layer, number)
    temporary.rename(_blob_file(directory, written.digest))
    media_type = OCI_LAYER + ("+gzip" if layer.compressed else "")
    return Blob(media_type, written.digest, written.size), written.diff_id


def _write_json(directory: Path, value: object, media_type: str) -> Blob:
    body = json.dumps(value, separators=(",", ":")).encode()
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    _blob_file(directory, digest).write_bytes(body)
    return Blob(media_type, digest, len(body))


def _blob_file(directory: Path, digest: str) -> Path:
    return directory / "blobs" / digest.replace(":", "/")


def _platform(name: str) -> dict[str, str]:
    """``linux/arm64/v8`` as the members of a platform object."""
    return dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
