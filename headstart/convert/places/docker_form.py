"""The archive form of ``docker save``: ``manifest.json`` beside the configuration and the layers.

github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format". The old
form has nothing else: its layers are tars without descriptors, which are given them here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_MANIFEST
from headstart.content.reference import ImageReference
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.place import Document
from headstart.convert.places.root import same_image

MANIFEST_FILE = "manifest.json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

_MAGIC = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}
_MOST_LAYERS = 4096
_REMEDY = "make the archive anew"


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image of an archive: its names, and the archive's names of its files."""

    names: tuple[str, ...]
    config: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """What was found out about a file that has no descriptor."""

    digest: Digest
    size: int
    media_type: str


def layer_type(beginning: bytes) -> str:
    """The media type of a layer by its first bytes; a tar is one that is not compressed."""
    for magic, ending in _MAGIC.items():
        if beginning.startswith(magic):
            return LAYER_TYPE + ending
    return LAYER_TYPE


def read_saved(body: bytes, place: object) -> tuple[SavedImage, ...]:
    """The images that a manifest.json names. Raises PlaceUnusable."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, list):
        raise _bad(place, "is no list of images")
    return tuple(_read_image(listed, place) for listed in document)


def select_saved(
    images: Sequence[SavedImage], image: ImageReference | None, place: object
) -> SavedImage:
    """The image called ``image``, the only one where there is none. Raises PlaceUnusable."""
    found = [
        saved
        for saved in images
        if image is None or any(same_image(name, image) for name in saved.names)
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted({name for saved in images for name in saved.names})[:10])
    if not images:
        raise PlaceUnusable(place, "holds no image", "name another place")
    if image is None:
        problem, remedy = f"holds {len(images)} images", "say which behind a colon"
    else:
        problem, remedy = f"is {'twice' if found else 'not'} in the archive", "images there"
    raise PlaceUnusable(place, problem, f"{remedy}: {listed or 'none with a name'}")


def describe(config: FoundBlob, layers: Sequence[FoundBlob]) -> Document:
    """An ordinary manifest of these."""
    described = [
        {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}
        for blob in (config, *layers)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described[0],
        "layers": described[1:],
    }
    body = json.dumps(manifest, separators=(",", ":")).encode()
    return Document(body, OCI_MANIFEST, Digest.of(body))


def saved_entry(image: SavedImage) -> dict[str, object]:
    """An image in manifest.json."""
    return {"Config": image.config, "RepoTags": list(image.names), "Layers": list(image.layers)}


def _read_image(listed: object, place: object) -> SavedImage:
    if not isinstance(listed, dict):
        raise _bad(place, "has an image that is no object")
    config, names, layers = (listed.get(key) for key in ("Config", "RepoTags", "Layers"))
    if not isinstance(config, str) or not config:
        raise _bad(place, "has an image without Config")
    texts = _texts(layers)
    if texts is None or len(texts) > _MOST_LAYERS:
        raise _bad(place, f"has an image without a list of at most {_MOST_LAYERS} Layers")
    return SavedImage(_texts(names) or (), config, texts)


def _texts(listed: object) -> tuple[str, ...] | None:
    if isinstance(listed, list) and all(isinstance(text, str) for text in listed):
        return tuple(listed)
    return None


def _bad(place: object, problem: str) -> PlaceUnusable:
    return PlaceUnusable(place, f"has a {MANIFEST_FILE} that {problem}", _REMEDY)
