"""Manifests and indexes: what one names, and which documents are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MOST_DESCRIPTORS,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    Platform,
    read_manifest,
)

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)

Document = dict[str, Any]


def descriptor(name: str, size: int = 10, media_type: str = LAYER_TYPE, **more: object) -> Document:
    return {"mediaType": media_type, "digest": str(Digest.of(name.encode())), "size": size, **more}


def manifest(media_type: str | None = OCI_MANIFEST, **more: object) -> Document:
    document: Document = {
        "schemaVersion": 2,
        "config": descriptor("config", media_type=CONFIG_TYPE),
        "layers": [descriptor("one"), descriptor("two", 20)],
    }
    return document | ({"mediaType": media_type} if media_type else {}) | more


def index(*platforms: str | None, media_type: str | None = OCI_INDEX, **more: object) -> Document:
    entries = []
    for number, platform in enumerate(platforms):
        entry = descriptor(f"manifest {number}", media_type=OCI_MANIFEST)
        if platform is not None:
            names = ("os", "architecture", "variant")
            entry["platform"] = dict(zip(names, platform.split("/"), strict=False))
        entries.append(entry)
    document: Document = {"schemaVersion": 2, "manifests": entries}
    return document | ({"mediaType": media_type} if media_type else {}) | more


def read(document: object, media_type: str) -> Manifest | Index:
    return read_manifest(json.dumps(document).encode(), media_type)


def refused(document: object, media_type: str) -> str:
    with pytest.raises(InvalidInput) as raised:
        read(document, media_type)
    return str(raised.value)


@pytest.mark.parametrize("media_type", MANIFESTS)
@pytest.mark.parametrize("named", [True, False])
def test_a_manifest_names_its_config_and_its_layers_in_order(media_type: str, named: bool) -> None:
    found = read(
        manifest(media_type if named else None, annotations={"a": "b", "odd": 1}), media_type
    )
    assert isinstance(found, Manifest)
    assert found.media_type == media_type
    assert found.config is not None
    assert found.config.digest == Digest.of(b"config")
    assert [layer.digest for layer in found.layers] == [Digest.of(b"one"), Digest.of(b"two")]
    assert [layer.size for layer in found.layers] == [10, 20]
    assert found.annotations == {"a": "b"}


@pytest.mark.parametrize("media_type", INDEXES)
@pytest.mark.parametrize("named", [True, False])
def test_an_index_names_its_manifests_in_order(media_type: str, named: bool) -> None:
    found = read(index("linux/amd64", None, media_type=media_type if named else None), media_type)
    assert isinstance(found, Index)
    assert found.media_type == media_type
    assert [entry.digest for entry in found.manifests] == [
        Digest.of(b"manifest 0"),
        Digest.of(b"manifest 1"),
    ]
    assert [entry.platform for entry in found.manifests] == [Platform("linux", "amd64"), None]


def test_an_artifact_may_lack_config_or_layers() -> None:
    assert read({"layers": []}, OCI_MANIFEST) == Manifest(OCI_MANIFEST, None, (), {})
    only_config = read({"config": descriptor("config")}, OCI_MANIFEST)
    assert isinstance(only_config, Manifest)
    assert only_config.layers == ()


# --- documents that could be taken for something else (CVE-2021-41190) ---


@pytest.mark.parametrize("media_type", [*MANIFESTS, *INDEXES, "application/json"])
@pytest.mark.parametrize("key", ["layers", "config"])
def test_what_has_manifests_beside_layers_or_config_is_refused(media_type: str, key: str) -> None:
    both = index("linux/amd64", media_type=None)
    both[key] = manifest()[key]
    assert "could be taken for" in refused(both, media_type)


@pytest.mark.parametrize("media_type", MANIFESTS)
def test_an_index_served_as_a_manifest_is_refused(media_type: str) -> None:
    refused(index("linux/amd64", media_type=None), media_type)
    refused(index("linux/amd64", media_type=media_type), media_type)
    refused(index("linux/amd64", media_type=OCI_INDEX), media_type)


@pytest.mark.parametrize("media_type", INDEXES)
def test_a_manifest_served_as_an_index_is_refused(media_type: str) -> None:
    refused(manifest(None), media_type)
    refused(manifest(media_type), media_type)
    refused(manifest(OCI_MANIFEST), media_type)


def test_a_document_that_calls_itself_otherwise_than_it_was_served_is_refused() -> None:
    assert "calls itself" in refused(manifest(DOCKER_MANIFEST), OCI_MANIFEST)
    assert "calls itself" in refused(index("linux/amd64", media_type=DOCKER_INDEX), OCI_INDEX)


def test_a_server_that_names_no_type_is_corrected_by_the_document() -> None:
    assert read(manifest(OCI_MANIFEST), "application/json").media_type == OCI_MANIFEST
    refused(manifest(OCI_INDEX), "application/json")
    refused(index(media_type=OCI_MANIFEST), "text/plain")


@pytest.mark.parametrize("named", [None, 5, [], {}, [OCI_MANIFEST], True])
@pytest.mark.parametrize("served", [OCI_MANIFEST, "application/json"])
def test_a_media_type_that_is_no_text_is_refused(named: object, served: str) -> None:
    refused(manifest(None) | {"mediaType": named}, served)
    refused(index(media_type=None) | {"mediaType": named}, served)


# --- malformed documents ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"layers"',
        b"\xff\xfe",
        b"<html>",
        b"[" * 100_000,
        b'{"layers":' + b"[" * 100_000,
        b'{"layers": [{"digest": 1' + b"0" * 10_000 + b"}]}",
        b"{}",
        b'{"schemaVersion": 1, "fsLayers": [], "history": []}',
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_manifest(body, OCI_MANIFEST)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "text",
        [],
        {},
        {"digest": str(Digest.of(b""))},
        {"size": 1},
        {"digest": 5, "size": 1},
        {"digest": "sha256:short", "size": 1},
        {"digest": "../../etc/passwd", "size": 1},
        descriptor("x", -1),
        descriptor("x") | {"size": True},
        descriptor("x") | {"size": 1.0},
        descriptor("x") | {"size": "1"},
        descriptor("x", 1 << 63),
    ],
)
def test_a_malformed_descriptor_refuses_the_whole(broken: object) -> None:
    refused(manifest(layers=[descriptor("one"), broken]), OCI_MANIFEST)
    refused(index() | {"manifests": [broken]}, OCI_INDEX)
    if broken is not None:
        refused(manifest(config=broken), OCI_MANIFEST)


@pytest.mark.parametrize("listed", [{}, "text", 5, True])
def test_layers_and_manifests_are_lists(listed: object) -> None:
    refused(manifest(layers=listed), OCI_MANIFEST)
    refused({"manifests": listed}, OCI_INDEX)


def test_at_most_4096_descriptors_are_read() -> None:
    assert MOST_DESCRIPTORS == 4096
    layer = descriptor("one")
    found = read(manifest(layers=[layer] * MOST_DESCRIPTORS), OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert len(found.layers) == MOST_DESCRIPTORS
    assert "4096" in refused(manifest(layers=[layer] * (MOST_DESCRIPTORS + 1)), OCI_MANIFEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mediaType": st.sampled_from([*MANIFESTS, *INDEXES]) | JSON,
            "layers": st.lists(st.just(descriptor("one"))) | JSON,
            "manifests": st.lists(st.just(descriptor("one"))) | JSON,
            "config": st.just(descriptor("config")) | JSON,
            "annotations": JSON,
        },
    ),
    st.sampled_from([*MANIFESTS, *INDEXES, "application/json", ""]),
)
def test_any_document_is_one_kind_or_refused(document: Document, media_type: str) -> None:
    try:
        found = read(document, media_type)
    except InvalidInput as error:
        assert len(str(error)) < 400
        return
    assert isinstance(found, Index) == ("manifests" in document)
    assert isinstance(found, Manifest) == ("layers" in document or "config" in document)


# --- what descriptors say ---


def test_a_foreign_layer_is_marked_and_its_urls_are_not_kept() -> None:
    """``urls`` are never fetched: a manifest could point them anywhere (threats.md, SSRF)."""
    foreign = descriptor("foreign", urls=["http://169.254.169.254/latest"])
    found = read(manifest(layers=[descriptor("one", urls=[]), foreign]), OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert [layer.foreign for layer in found.layers] == [False, True]
    assert "169.254" not in repr(found)


def test_annotations_that_are_no_text_are_dropped() -> None:
    layer = descriptor("one", annotations={"toc": "sha256:x", "number": 5, "list": []})
    found = read(manifest(layers=[layer, descriptor("two", annotations="text")]), OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert [layer.annotations for layer in found.layers] == [{"toc": "sha256:x"}, {}]


# --- platforms ---


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", 1),
        ("linux/arm64", 2),
        ("linux/arm64/v8", 2),
        ("linux/arm/v7", 4),
        ("linux/arm/v6", 3),
        ("linux/arm", 3),
        ("windows/amd64", 5),
        ("linux/s390x", None),
        ("linux/arm/v5", None),
        ("linux/arm64/v9", None),
    ],
)
def test_the_first_manifest_that_fits_the_platform_is_chosen(
    wanted: str, chosen: int | None
) -> None:
    offered = (None, "linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7")
    found = read(index(*offered, "windows/amd64", "linux/amd64"), OCI_INDEX)
    assert isinstance(found, Index)
    expected = None if chosen is None else found.manifests[chosen]
    assert found.select(Platform.parse(wanted)) == expected


def test_arm64_and_arm64_v8_are_one_platform_both_ways() -> None:
    bare, named = Platform.parse("linux/arm64"), Platform.parse("linux/arm64/v8")
    assert bare.matches(named)
    assert named.matches(bare)
    assert not Platform.parse("linux/arm/v8").matches(Platform.parse("linux/arm"))


def test_attestations_are_never_chosen() -> None:
    found = read(index("unknown/unknown", "linux/amd64"), OCI_INDEX)
    assert isinstance(found, Index)
    assert found.select(Platform.parse("linux/amd64")) == found.manifests[1]


@pytest.mark.parametrize("odd", [5, "linux/amd64", {"os": "linux"}, {"os": 1, "architecture": 2}])
def test_a_platform_that_cannot_be_read_is_none(odd: object) -> None:
    found = read({"manifests": [descriptor("one", platform=odd)]}, OCI_INDEX)
    assert isinstance(found, Index)
    assert found.manifests[0].platform is None


@given(
    st.lists(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), min_size=2, max_size=3).map("/".join)
)
def test_a_platform_reads_back_as_it_is_written(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "linux", "/", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/../x", "a/b/"]
)
def test_other_platforms_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Platform.parse(text)
