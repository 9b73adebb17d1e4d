"""Pulls over TLS: from a mirror that has a certificate, and by it from an upstream that has one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.doubles.certificates import Authority
from tests.parts.clients import Arrived, Ctr
from tests.parts.fixtures import MakeClient
from tests.parts.images import Image, push, sha256_of
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import ProcessFailed
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi
from tests.pulls.skopeo import copy
from tests.pulls.upstreams import AWAY, HOST

REPOSITORY = "team/tls"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Registry]:
    """A registry with a certificate of the authority."""
    directory = tmp_path_factory.mktemp("tls-upstream")
    with Registry(directory, tls=authority.issue()) as registry:
        yield registry


@pytest.fixture(scope="module")
def mirror(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, upstream: Registry
) -> Iterator[Mirror]:
    """TLS on both sides."""
    directory = tmp_path_factory.mktemp("tls-mirror")
    keys = upstream_at(upstream.url, ca_file=str(authority.ca_file))
    with Mirror(directory, {HOST: keys}, tls=authority.issue()) as mirror:
        yield mirror


@pytest.fixture
def ca_directory(authority: Authority, tmp_path: Path) -> Path:
    """As clients of containers/image have it in /etc/containers/certs.d/HOST."""
    directory = tmp_path / "trusted"
    directory.mkdir()
    shutil.copy(authority.ca_file, directory / "ca.crt")
    return directory


def test_ctr_and_skopeo_pull_from_a_mirror_whose_authority_they_trust(
    upstream: Registry,
    mirror: Mirror,
    make_client: MakeClient,
    authority: Authority,
    ca_directory: Path,
    small_image: Image,
    tmp_path: Path,
) -> None:
    push(small_image, upstream, f"{REPOSITORY}:v1")
    layout = tmp_path / "layout"
    copy(f"{mirror.host}/{HOST}/{REPOSITORY}:v1", layout, ca_directory=ca_directory)
    blobs = {f"sha256:{file.name}": sha256_of(file) for file in layout.glob("blobs/sha256/*")}
    image = small_image.platform()
    assert set(blobs.values()) == {
        blob.digest for blob in (image.manifest, image.config, *image.layers)
    }
    assert set(blobs) == set(blobs.values())
    ctr = make_client("ctr")
    assert isinstance(ctr, Ctr)
    ctr.use_mirror(HOST, AWAY, mirror.url)
    hosts = ctr.hosts / HOST / "hosts.toml"
    verified = hosts.read_text().replace("skip_verify = true", f'ca = "{authority.ca_file}"')
    hosts.write_text(verified)
    assert ctr.pull(f"{HOST}/{REPOSITORY}:v1") == Arrived.whole(image)


def test_a_client_that_does_not_trust_the_authority_takes_nothing(
    upstream: Registry, mirror: Mirror, small_image: Image, tmp_path: Path
) -> None:
    push(small_image, upstream, f"{REPOSITORY}:v1")
    empty = tmp_path / "nobody"
    empty.mkdir()
    with pytest.raises(ProcessFailed, match="certificate"):
        copy(f"{mirror.host}/{HOST}/{REPOSITORY}:v1", tmp_path / "layout", ca_directory=empty)


@pytest.mark.parametrize("name", ["podman", "buildah"])
def test_podman_and_buildah_pull_from_a_mirror_with_tls(
    upstream: Registry, mirror: Mirror, make_client: MakeClient, name: str, small_image: Image
) -> None:
    push(small_image, upstream, f"{REPOSITORY}:v1")
    client = make_client(name)
    client.use_mirror(HOST, AWAY, f"{mirror.url}/{HOST}")
    assert client.pull(f"{HOST}/{REPOSITORY}:v1") == Arrived.whole(small_image.platform())


def test_a_mirror_without_the_authority_file_does_not_trust_the_upstream(
    parts: ExitStack, upstream: Registry, small_image: Image, tmp_path: Path
) -> None:
    push(small_image, upstream, f"{REPOSITORY}:v1")
    untrusting = Mirror(tmp_path / "untrusting", {HOST: upstream_at(upstream.url)})
    parts.enter_context(untrusting)
    answer = RegistryApi(untrusting.url).call("GET", f"/v2/{REPOSITORY}/manifests/v1?ns={HOST}")
    assert answer.status == 503
    (error,) = json.loads(answer.body)["errors"]
    assert "certificate" in error["message"]
