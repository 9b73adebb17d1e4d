"""What the places write is read by the tools that others have, and the other way round."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import Manifest, read_manifest
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.naming import parse_place
from headstart.convert.places.opening import open_source
from headstart.convert.places.place import Document
from headstart.registry.errors import PushRefused
from headstart.registry.upstream import Upstream
from tests.convert.places.images import PATIENT, copy, upstream_of
from tests.parts.clients import Ctr, Podman
from tests.parts.containerd import Containerd
from tests.parts.fixtures import MakeClient, MakeRegistry
from tests.parts.images import Image
from tests.parts.images import push as push_by_skopeo
from tests.parts.processes import run
from tests.parts.registry import Registry


def copied(source: str, target: str, *upstreams: Upstream) -> Document:
    known = {upstream.host: upstream for upstream in upstreams}
    return asyncio.run(copy(parse_place(source), parse_place(target), known))


def skopeo(*arguments: str | Path) -> str:
    return run(["skopeo", "--insecure-policy", *arguments]).stdout


def raw_digest(reference: str, *options: str) -> str:
    """The digest of the manifest as skopeo reads it."""
    raw = skopeo("inspect", "--raw", *options, reference).encode()
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def options_for(registry: Registry, verb: str = "") -> list[str]:
    account = registry.account
    return [
        f"--{verb}tls-verify=false",
        *([f"--{verb}creds={account}"] if account else []),
    ]


def test_a_pushed_image_is_read_by_skopeo_whole(
    any_registry: Registry, small_index: Image, tmp_path: Path
) -> None:
    reference = f"{any_registry.host}/team/app:1"
    source = f"oci:{small_index.directory}:image"
    root = copied(source, reference, upstream_of(any_registry, tmp_path))
    assert str(root.digest) == small_index.top.digest
    options = options_for(any_registry)
    assert raw_digest(f"docker://{reference}", *options) == small_index.top.digest
    skopeo(
        *("copy", "--all", "--preserve-digests", *options_for(any_registry, "src-")),
        *(f"docker://{reference}", f"oci:{tmp_path / 'back'}:image"),
    )
    for blob in (small_index.directory / "blobs/sha256").iterdir():
        back = tmp_path / "back/blobs/sha256" / blob.name
        assert back.read_bytes() == blob.read_bytes()


def test_what_the_registry_has_is_not_even_read(
    registry: Registry, small_image: Image, tmp_path: Path
) -> None:
    layout, reference = f"oci:{tmp_path / 'layout'}:mine", f"{registry.host}/team/app"
    copied(f"oci:{small_image.directory}", layout)
    upstream = upstream_of(registry, tmp_path)
    copied(layout, f"{reference}:1", upstream)
    for layer in small_image.platform().layers:
        (tmp_path / "layout/blobs" / layer.digest.replace(":", "/")).unlink()
    copied(layout, f"{reference}:2", upstream)
    second = raw_digest(f"docker://{reference}:2", *options_for(registry))
    assert second == small_image.top.digest


@pytest.mark.parametrize("kind", ["plain", "htpasswd"])
def test_an_image_that_skopeo_pushed_is_copied_to_a_layout_and_to_another_repository(
    make_registry: MakeRegistry, small_image: Image, tmp_path: Path, kind: str
) -> None:
    registry = make_registry(kind)
    reference = push_by_skopeo(small_image, registry, "team/app:1")
    upstream = upstream_of(registry, tmp_path)
    copied(reference, f"oci:{tmp_path / 'layout'}:mine", upstream)
    assert raw_digest(f"oci:{tmp_path / 'layout'}:mine") == small_image.top.digest
    by_digest = f"{registry.host}/team/app@{small_image.top.digest}"
    copied(by_digest, f"{registry.host}/other/app:2", upstream)
    other = f"docker://{registry.host}/other/app:2"
    assert raw_digest(other, *options_for(registry)) == small_image.top.digest


def test_a_digest_as_a_target_has_to_be_the_images(
    registry: Registry, small_image: Image, tmp_path: Path
) -> None:
    source = f"oci:{small_image.directory}"
    upstream = upstream_of(registry, tmp_path)
    target = f"{registry.host}/team/app@{small_image.top.digest}"
    copied(source, target, upstream)
    assert raw_digest(f"docker://{target}", *options_for(registry)) == small_image.top.digest
    with pytest.raises(PlaceUnusable, match="cannot name an image of the digest sha256:"):
        copied(source, f"{registry.host}/team/app@{Digest.of(b'')}", upstream)


def test_a_registry_that_is_not_configured_is_not_asked(tmp_path: Path, small_image: Image) -> None:
    with pytest.raises(PlaceUnusable, match=r"ghcr\.io is not among the upstreams; name an image"):
        copied(f"oci:{small_image.directory}", "ghcr.io/team/app:1")
    with pytest.raises(PlaceUnusable, match="add it to upstreams in the configuration"):
        copied("ghcr.io/team/app:1", f"oci:{tmp_path / 'x'}")


def test_a_registry_without_credentials_is_told_apart_from_one_that_is_away(
    make_registry: MakeRegistry, small_image: Image
) -> None:
    registry = make_registry("htpasswd")
    upstream = Upstream(registry.host, registry.url, allow_private=True, deadlines=PATIENT)
    with pytest.raises(PushRefused, match="credentials that may push"):
        copied(f"oci:{small_image.directory}", f"{registry.host}/team/app:1", upstream)


def test_an_archive_is_read_by_skopeo_in_both_of_its_forms(
    small_image: Image, tmp_path: Path
) -> None:
    file = tmp_path / "a.tar"
    copied(f"oci:{small_image.directory}", f"docker-archive:{file}:team/app:1")
    assert raw_digest(f"oci-archive:{file}:1") == small_image.top.digest
    raw = skopeo("inspect", "--raw", f"docker-archive:{file}:team/app:1")
    config = json.loads(raw)["config"]
    assert config["digest"] == small_image.platform().config.digest


def test_an_archive_is_imported_by_containerd(
    make_client: MakeClient, containerd: Containerd, small_image: Image, tmp_path: Path
) -> None:
    client = make_client("ctr")
    assert isinstance(client, Ctr)
    file = tmp_path / "a.tar"
    copied(f"oci:{small_image.directory}", f"docker-archive:{file}:registry.example/team/app:1")
    containerd.ctr(["images", "import", "--snapshotter", "native", file], deadline=60)
    listed = containerd.ctr(["images", "list", "name==registry.example/team/app:1"])
    assert small_image.top.digest in listed
    for layer in small_image.platform().layers:
        stored = containerd.content / layer.digest.removeprefix("sha256:")
        assert stored.stat().st_size == layer.size


def test_an_archive_is_loaded_by_podman(
    make_client: MakeClient, small_image: Image, tmp_path: Path
) -> None:
    podman = make_client("podman")
    assert isinstance(podman, Podman)
    file = tmp_path / "a.tar"
    copied(f"oci:{small_image.directory}", f"docker-archive:{file}:registry.example/team/app:1")
    loaded = podman.load(file)
    assert loaded.config == small_image.platform().config.digest
    assert len(loaded.layers) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_of_skopeo_becomes_an_ordinary_image(
    small_image: Image, tmp_path: Path, packed: bool
) -> None:
    file = tmp_path / "old.tar"
    skopeo("copy", f"oci:{small_image.directory}:image", f"docker-archive:{file}:team/app:1")
    if packed:
        run(["gzip", file])
        file = tmp_path / "old.tar.gz"
    root = copied(f"docker-archive:{file}:docker.io/team/app:1", f"oci:{tmp_path / 'out'}:x")
    manifest = read_manifest(root.body, root.media_type)
    assert isinstance(manifest, Manifest)
    image = small_image.platform()
    assert [str(layer.digest) for layer in manifest.layers] == list(image.diff_ids)
    # skopeo checks every digest, and the tars against the configuration.
    skopeo("copy", f"oci:{tmp_path / 'out'}:x", f"dir:{tmp_path / 'checked'}")


def test_a_layout_of_skopeo_with_several_images_is_read_by_name(
    small_image: Image, small_index: Image, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    for image, name in ((small_image, "one"), (small_index, "two")):
        skopeo(
            *("copy", "--all", "--preserve-digests"),
            *(f"oci:{image.directory}:image", f"oci:{layout}:{name}"),
        )

    async def root(name: str) -> str:
        async with open_source(parse_place(f"oci:{layout}:{name}"), {}) as source:
            return str((await source.root()).digest)

    assert asyncio.run(root("one")) == small_image.top.digest
    assert asyncio.run(root("two")) == small_index.top.digest
