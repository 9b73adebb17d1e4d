"""A prefetch list in a registry: an artifact that refers to the image.

OCI image specification 1.1, manifest.md, "Guidelines for Artifact Usage": ``artifactType``, the
empty configuration, the content as a layer; ``subject`` is the image's manifest, by which the
referrers API finds it.
"""

import json
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS, ListCaps
from headstart.content.landmarks.prefetch_list import MEDIA_TYPE, canonical_json, parse_digest
from headstart.content.manifest import OCI_MANIFEST, Descriptor, Manifest, read_manifest

EMPTY_CONFIG = b"{}"
"""A blob that a registry has to have before it takes the artifact."""
EMPTY_CONFIG_TYPE = "application/vnd.oci.empty.v1+json"

_EMPTY_DIGEST = Digest.of(EMPTY_CONFIG)


@dataclass(frozen=True, slots=True)
class ListArtifact:
    """What an artifact's manifest says: whose list it is, and where the list is."""

    subject: Digest
    content: Descriptor


def make_artifact(subject: Descriptor, encoded: bytes) -> bytes:
    """The manifest of the artifact with the list ``encoded`` for the image ``subject``.

    The same list and image have the same manifest. The registry needs ``encoded`` and
    :data:`EMPTY_CONFIG` as blobs first.
    """
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": MEDIA_TYPE,
            "config": _described(EMPTY_CONFIG_TYPE, _EMPTY_DIGEST, len(EMPTY_CONFIG)),
            "layers": [_described(MEDIA_TYPE, Digest.of(encoded), len(encoded))],
            "subject": _described(subject.media_type, subject.digest, subject.size),
        }
    )


def read_artifact(body: bytes, caps: ListCaps = DEFAULT_LIST_CAPS) -> ListArtifact | None:
    """What an OCI manifest says if it is of a prefetch list; None for an image or another artifact.

    Raises InvalidInput for what is no such manifest, or calls itself a prefetch list and is none.
    Who asked for the list of an image has to compare ``subject``.
    """
    manifest = read_manifest(body, OCI_MANIFEST)
    document = json.loads(body)
    artifact_type = document.get("artifactType")
    if not isinstance(manifest, Manifest) or artifact_type != MEDIA_TYPE:
        return None
    config, layers = manifest.config, manifest.layers
    if config is None or config.media_type != EMPTY_CONFIG_TYPE or config.digest != _EMPTY_DIGEST:
        raise _invalid("config", config, f"write the empty one, {EMPTY_CONFIG_TYPE}")
    if [layer.media_type for layer in layers] != [MEDIA_TYPE]:
        raise _invalid("layers", layers, f"write one of {MEDIA_TYPE}")
    if layers[0].size > caps.json_bytes:
        raise _invalid("layers[0].size", layers[0].size, f"write at most {caps.json_bytes} bytes")
    subject = document.get("subject")
    digest = subject.get("digest") if isinstance(subject, dict) else None
    if not isinstance(digest, str):
        raise _invalid("subject", subject, "write the descriptor of the image's manifest")
    return ListArtifact(parse_digest(digest, "subject.digest"), layers[0])


def _described(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _invalid(field: str, given: object, remedy: str) -> InvalidInput:
    return InvalidInput(f"{field} of the artifact", f"{given!s:.200}", remedy)
