"""From an image's name to its layers: what a registry may say, and what it may not."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.content.config import MOST_BYTES
from headstart.content.digest import Digest
from headstart.content.manifest import Platform
from headstart.content.reference import ImageReference
from headstart.registry.errors import UpstreamMissing
from headstart.registry.upstream import Upstream
from mount.image.errors import ImageUnusable
from mount.image.resolve import ResolvedImage, resolve_image
from tests.doubles.scripted_upstream import OCI_INDEX, OCI_MANIFEST, ScriptedUpstream
from tests.registry.upstreams import upstream_of

REPOSITORY = "team/app"
AMD64 = Platform.parse("linux/amd64")
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


class Published:
    """A registry with an image of two layers, any part of which a test may change before."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.diff_ids = [str(Digest.of(text)) for text in (b"tar 1", b"tar 2")]
        self.layers = [
            {
                "mediaType": LAYER_TYPE,
                "digest": str(Digest.of(text)),
                "size": 1000,
                "annotations": {"note": text.decode()},
            }
            for text in (b"blob 1", b"blob 2")
        ]
        self.config: dict[str, object] = {}

    def publish(self, tag: str | None = "1") -> str:
        """Serve the image; its digest."""
        body = json.dumps({"rootfs": {"type": "layers", "diff_ids": self.diff_ids}}).encode()
        digest = self.upstream.add_blob(REPOSITORY, body)
        config = {"mediaType": "x", "digest": digest, "size": len(body), **self.config}
        document = {"schemaVersion": 2, "config": config, "layers": self.layers}
        return self.serve(document, OCI_MANIFEST, tag)

    def publish_index(self, entries: list[dict[str, object]], tag: str | None = "1") -> str:
        """Serve an index; its digest."""
        return self.serve({"schemaVersion": 2, "manifests": entries}, OCI_INDEX, tag)

    def serve(self, document: dict[str, object], media_type: str, tag: str | None) -> str:
        body = json.dumps(document).encode()
        return self.upstream.add_manifest(
            REPOSITORY, body, media_type, () if tag is None else (tag,)
        )

    def resolve(self, suffix: str = ":1", platform: Platform = AMD64) -> ResolvedImage:
        """What the image's name leads to."""
        image = ImageReference.parse(f"{self.upstream.host}/{REPOSITORY}{suffix}")
        upstreams: dict[str, Upstream] = {self.upstream.host: upstream_of(self.upstream)}
        return asyncio.run(resolve_image(image, upstreams, platform))


def entry(
    digest: str, platform: str | None = None, media_type: str = OCI_MANIFEST
) -> dict[str, object]:
    found: dict[str, object] = {"mediaType": media_type, "digest": digest, "size": 500}
    if platform is not None:
        system, architecture = platform.split("/")
        found["platform"] = {"os": system, "architecture": architecture}
    return found


@pytest.fixture
def published() -> Iterator[Published]:
    with ScriptedUpstream() as upstream:
        yield Published(upstream)


def test_an_image_is_its_layers_with_their_diff_ids(published: Published) -> None:
    digest = published.publish()
    image = published.resolve()
    assert str(image.manifest) == digest
    assert [str(layer.digest) for layer in image.layers] == [
        each["digest"] for each in published.layers
    ]
    assert [str(layer.diff_id) for layer in image.layers] == published.diff_ids
    base = image.layers[0]
    assert (base.upstream, base.repository) == (published.upstream.host, REPOSITORY)
    assert (base.size, base.media_type, base.annotations) == (1000, LAYER_TYPE, {"note": "blob 1"})
    assert image.size == 2000


def test_a_digest_names_an_image_too(published: Published) -> None:
    digest = published.publish(tag=None)
    assert str(published.resolve(f"@{digest}").manifest) == digest


def test_an_index_leads_to_the_image_of_a_platform(published: Published) -> None:
    inner = published.publish(tag=None)
    attestation = entry(str(Digest.of(b"none")), "unknown/unknown")
    published.publish_index([attestation, entry(inner, "linux/amd64")])
    assert str(published.resolve().manifest) == inner
    with pytest.raises(
        ImageUnusable, match=r"not there for linux/arm64; --platform may be .*amd64"
    ):
        published.resolve(platform=Platform.parse("linux/arm64"))


def test_an_index_may_name_an_index_but_no_deeper(published: Published) -> None:
    digest = published.publish(tag=None)
    kind = OCI_MANIFEST
    for depth in range(1, 4):
        digest = published.publish_index([entry(digest, "linux/amd64", kind)], tag=str(depth))
        kind = OCI_INDEX
    assert published.resolve(":2").layers
    with pytest.raises(ImageUnusable, match="nested more than 2 deep"):
        published.resolve(":3")


def test_an_artifact_is_no_image(published: Published) -> None:
    published.layers = []
    published.publish()
    with pytest.raises(ImageUnusable, match="has no layers"):
        published.resolve()


def test_every_layer_needs_its_diff_id(published: Published) -> None:
    published.diff_ids.pop()
    published.publish()
    with pytest.raises(ImageUnusable, match="2 layers and 1 diff IDs"):
        published.resolve()


def test_nothing_is_fetched_from_elsewhere(published: Published) -> None:
    published.layers[1]["urls"] = ["http://127.0.0.1:1/layer"]
    published.publish()
    with pytest.raises(ImageUnusable, match="kept outside of its registry"):
        published.resolve()


def test_a_configuration_must_be_what_the_manifest_names(published: Published) -> None:
    digest = str(Digest.of(b"what it should be"))
    published.upstream._blobs[REPOSITORY, digest] = memoryview(b'{"rootfs": {"diff_ids": []}}')
    published.config = {"digest": digest, "size": 28}
    published.publish()
    with pytest.raises(ImageUnusable, match=f"are not {digest}"):
        published.resolve()


def test_a_configuration_longer_than_it_says_is_cut(published: Published) -> None:
    published.config = {"size": 10}
    published.publish()
    with pytest.raises(ImageUnusable, match="are not sha256"):
        published.resolve()


def test_a_giant_configuration_is_not_fetched(published: Published) -> None:
    published.config = {"size": MOST_BYTES + 1}
    published.publish()
    with pytest.raises(ImageUnusable, match=f"has {MOST_BYTES + 1} bytes"):
        published.resolve()
    assert not published.upstream.blob_requests()


def test_a_configuration_without_layers_is_named(published: Published) -> None:
    digest = published.upstream.add_blob(REPOSITORY, b"{}")
    published.config = {"digest": digest, "size": 2}
    published.publish()
    with pytest.raises(ImageUnusable, match=r"rootfs\.diff_ids"):
        published.resolve()


def test_what_the_registry_has_not_is_missing(published: Published) -> None:
    with pytest.raises(UpstreamMissing):
        published.resolve(":another")


def test_only_upstreams_are_asked(tmp_path: Path) -> None:
    image = ImageReference.parse("registry.test/team/app:1")
    known = {name: Upstream(name, f"https://{name}") for name in ("a.test", "b.test")}
    with pytest.raises(ImageUnusable, match=r"registry\.test is not among .* a\.test, b\.test"):
        asyncio.run(resolve_image(image, known, AMD64))
