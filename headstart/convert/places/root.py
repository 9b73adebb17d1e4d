"""Which of the images in an OCI layout's index.json is meant, and how one is named there.

OCI image specification, image-layout.md; the name with its registry is containerd's annotation,
which docker writes and reads too.
"""

import json
from collections.abc import Sequence

from headstart.content.errors import InvalidInput
from headstart.content.manifest import OCI_INDEX, Descriptor, Index, read_manifest
from headstart.content.reference import ImageReference
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.place import Document

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"

_SHOWN = 10


def read_index(body: bytes, place: object) -> tuple[Descriptor, ...]:
    """The images that an index.json names. Raises PlaceUnusable."""
    try:
        document = read_manifest(body, OCI_INDEX)
    except InvalidInput as error:
        raise PlaceUnusable(place, f"has a bad {INDEX_FILE}: {error}", "make it anew") from error
    assert isinstance(document, Index)
    return document.manifests


def check_layout(body: bytes, place: object) -> None:
    """Raise PlaceUnusable unless the file ``oci-layout`` is of a version that we know."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise PlaceUnusable(
            place, f"has the layout version {version!r:.40}", "make it anew, with version 1.0.0"
        )


def select(
    images: Sequence[Descriptor], name: str | ImageReference | None, place: object
) -> Descriptor:
    """The image called ``name``, the only one where there is none. Raises PlaceUnusable."""
    found = {image.digest: image for image in images if name is None or _is_called(image, name)}
    if len(found) == 1:
        return next(iter(found.values()))
    names = [_shown_name(image) for image in images]
    listed = ", ".join(sorted({text for text in names if text})[:_SHOWN]) or "none with a name"
    if not images:
        raise PlaceUnusable(place, "holds no image", "name another place")
    if name is None:
        raise PlaceUnusable(
            place, f"holds {len(images)} images", f"say which behind a colon: {listed}"
        )
    problem = "is there more than once" if found else "is not there"
    raise PlaceUnusable(place, problem, f"images there: {listed}")


def entry(root: Document, name: str | None, full_name: str | None = None) -> dict[str, object]:
    """The descriptor of an image in index.json."""
    annotations = {
        key: text for key, text in ((FULL_NAME, full_name), (NAME, name)) if text is not None
    }
    return {
        "mediaType": root.media_type,
        "digest": str(root.digest),
        "size": len(root.body),
        **({"annotations": annotations} if annotations else {}),
    }


def same_image(text: str, image: ImageReference) -> bool:
    """Whether a name as tools write it, with or without registry, is that of ``image``."""
    try:
        return ImageReference.parse(text) == image
    except InvalidInput:
        return False


def _is_called(image: Descriptor, name: str | ImageReference) -> bool:
    texts = [image.annotations[key] for key in (FULL_NAME, NAME) if key in image.annotations]
    if isinstance(name, str):
        return name in texts
    if any(same_image(text, name) for text in texts):
        return True
    # A tag alone is all that some write; it has to do where nothing says more.
    return FULL_NAME not in image.annotations and image.annotations.get(NAME) == name.tag


def _shown_name(image: Descriptor) -> str | None:
    return image.annotations.get(FULL_NAME) or image.annotations.get(NAME)
