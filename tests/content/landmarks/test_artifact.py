"""The manifest of a list in a registry."""

import json
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.artifact import (
    EMPTY_CONFIG,
    EMPTY_CONFIG_TYPE,
    ListArtifact,
    make_artifact,
    read_artifact,
)
from headstart.content.landmarks.caps import ListCaps
from headstart.content.landmarks.prefetch_list import MEDIA_TYPE, ListedFile, PrefetchList
from headstart.content.manifest import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    read_manifest,
)

SUBJECT = Descriptor(DOCKER_MANIFEST, Digest.of(b"image"), 1234, annotations={"a": "b"})
LISTED = PrefetchList((ListedFile(b"usr/bin/python3", 0),)).encode()
CONTENT = Descriptor(MEDIA_TYPE, Digest.of(LISTED), len(LISTED))


def changed(**more: object) -> bytes:
    document: dict[str, Any] = json.loads(make_artifact(SUBJECT, LISTED))
    document.update(more)
    return json.dumps({key: value for key, value in document.items() if value != "-"}).encode()


def test_the_manifest_is_that_of_the_specification() -> None:
    assert json.loads(make_artifact(SUBJECT, LISTED)) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.headstart.prefetch.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/vnd.headstart.prefetch.v1+json",
                "digest": str(Digest.of(LISTED)),
                "size": len(LISTED),
            }
        ],
        "subject": {
            "mediaType": DOCKER_MANIFEST,
            "digest": str(SUBJECT.digest),
            "size": 1234,
        },
    }
    assert Digest.of(EMPTY_CONFIG) == Digest.parse(
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )


def test_the_same_list_of_the_same_image_has_the_same_manifest() -> None:
    again = Descriptor(DOCKER_MANIFEST, Digest.of(b"image"), 1234)
    assert make_artifact(SUBJECT, LISTED) == make_artifact(again, bytes(LISTED))
    assert make_artifact(SUBJECT, LISTED) != make_artifact(SUBJECT, LISTED + b" ")


def test_an_artifact_is_recognised_and_is_a_manifest_for_a_mirror() -> None:
    body = make_artifact(SUBJECT, LISTED)
    assert read_artifact(body) == ListArtifact(SUBJECT.digest, CONTENT)
    read = read_manifest(body, OCI_MANIFEST)
    assert isinstance(read, Manifest) and read.layers == (CONTENT,)
    # What other clients add.
    assert read_artifact(changed(annotations={"org.opencontainers.image.created": "now"}))


@pytest.mark.parametrize(
    "more",
    [
        {"artifactType": "-"},
        {"artifactType": "application/vnd.example"},
        {"artifactType": ["application/vnd.headstart.prefetch.v1+json"]},
    ],
)
def test_an_image_or_another_artifact_is_none(more: dict[str, Any]) -> None:
    assert read_artifact(changed(**more)) is None


LAYER = {"mediaType": MEDIA_TYPE, "digest": str(CONTENT.digest), "size": CONTENT.size}
EMPTY = {"mediaType": EMPTY_CONFIG_TYPE, "digest": str(Digest.of(EMPTY_CONFIG)), "size": 2}


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("config", {"config": "-"}),
        ("config", {"config": EMPTY | {"mediaType": OCI_MANIFEST}}),
        ("config", {"config": EMPTY | {"digest": str(CONTENT.digest)}}),
        ("layers", {"layers": []}),
        ("layers", {"layers": [LAYER, LAYER]}),
        ("layers", {"layers": [LAYER | {"mediaType": "application/json"}]}),
        ("size", {"layers": [LAYER | {"size": ListCaps().json_bytes + 1}]}),
        ("subject", {"subject": "-"}),
        ("subject", {"subject": str(SUBJECT.digest)}),
        ("subject", {"subject": {"digest": 3}}),
        ("subject.digest", {"subject": {"digest": "sha256:0"}}),
        ("manifest", {"mediaType": OCI_INDEX}),
        ("manifest", {"manifests": []}),
        ("manifest", {"layers": [{"mediaType": MEDIA_TYPE}]}),
    ],
)
def test_a_malformed_artifact_is_refused(field: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=field):
        read_artifact(changed(**more))


INDEX = json.dumps({"schemaVersion": 2, "manifests": [], "artifactType": MEDIA_TYPE}).encode()


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 100_000, INDEX])
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="manifest"):
        read_artifact(body)
