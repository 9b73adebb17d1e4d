"""Real clients pull from real registries through the mirror, first and again, with and without."""

from pathlib import Path

import pytest

from tests.parts.clients import Arrived, Client
from tests.parts.fixtures import MakeClient
from tests.parts.images import ACCEPT, Image, sha256_of
from tests.parts.processes import ProcessFailed
from tests.parts.registry_api import RegistryApi
from tests.pulls.skopeo import copy
from tests.pulls.upstreams import HOST, Mirrored

REPOSITORY = "team/app"


def test_a_pull_goes_through_the_mirror_and_the_next_ones_need_the_upstream_no_more(
    mirrored: Mirrored, client: Client, images: dict[str, Image]
) -> None:
    image = images[client.name]
    wanted = Arrived.whole(image.platform())
    reference = mirrored.push(image, f"{REPOSITORY}/{client.name}:v1")
    by_digest = f"{reference.removesuffix(':v1')}@{image.top.digest}"
    upstream = mirrored.upstream
    upstream.front.clear()
    mirrored.lead(client)

    assert client.pull(reference) == wanted
    # Whatever a client asked for, it was the mirror that asked the registry, without ?ns=.
    asked = upstream.blobs_asked()
    for blob in wanted.layers:
        assert any(request.endswith(blob) for request in asked), f"{blob} not in {asked}"

    upstream.stop()
    try:
        client.wipe()
        assert client.pull(reference) == wanted
        client.wipe()
        assert client.pull(by_digest) == wanted
    finally:
        upstream.start()


def test_a_second_pull_asks_the_upstream_for_the_tag_and_for_no_blob(
    plain: Mirrored, client: Client, small_image: Image
) -> None:
    reference = plain.push(small_image, f"{REPOSITORY}/again/{client.name}:v1")
    wanted = Arrived.whole(small_image.platform())
    plain.lead(client)
    assert client.pull(reference) == wanted
    client.wipe()
    plain.upstream.front.clear()
    assert client.pull(reference) == wanted
    asked = [access.target for access in plain.upstream.front.wait_for_accesses(1)]
    assert all(target.endswith("/manifests/v1") for target in asked), asked


def test_the_mirror_says_what_it_had_and_who_pulled(
    plain: Mirrored, images: dict[str, Image]
) -> None:
    # One that no other test has pulled through this mirror.
    image = images["skopeo"]
    plain.push(image, f"{REPOSITORY}:headers")
    api = RegistryApi(plain.mirror.url)
    layer = image.platform().layers[0]
    target = f"/v2/{REPOSITORY}/blobs/{layer.digest}?ns={HOST}"
    manifest = f"/v2/{REPOSITORY}/manifests/headers?ns={HOST}"
    first = api.call("GET", manifest, headers={"Accept": ACCEPT})
    assert first.headers["docker-content-digest"] == image.top.digest
    assert first.headers["oci-namespace"] == HOST
    caches = []
    for _ in range(2):
        answer = api.read(target)
        assert (answer.status, answer.size, answer.digest) == (200, layer.size, layer.digest)
        assert answer.headers["docker-content-digest"] == layer.digest
        caches.append(answer.headers["x-headstart-cache"])
    assert caches[0] in ("miss", "partial")
    assert caches[1] == "hit"
    told = plain.mirror.ask("/pulls")
    name = f"{HOST}/{REPOSITORY}:headers"
    (pull,) = [pull for pull in told["running"] + told["recent"] if pull["image"] == name]
    assert pull["digest"] == image.top.digest
    assert pull["bytes"] == 2 * layer.size


def test_a_tag_that_is_served_without_its_upstream_says_so(
    plain: Mirrored, small_image: Image
) -> None:
    plain.push(small_image, f"{REPOSITORY}:stale")
    api = RegistryApi(plain.mirror.url)
    manifest = f"/v2/{REPOSITORY}/manifests/stale?ns={HOST}"
    assert "warning" not in api.call("GET", manifest, headers={"Accept": ACCEPT}).headers
    plain.upstream.stop()
    try:
        stale = api.call("GET", manifest, headers={"Accept": ACCEPT})
    finally:
        plain.upstream.start()
    assert stale.status == 200
    assert stale.headers["docker-content-digest"] == small_image.top.digest
    assert stale.headers["warning"].startswith("299 - ")


def test_a_tag_that_is_gone_is_not_served_though_it_was_before(
    plain: Mirrored, make_client: MakeClient, small_image: Image
) -> None:
    reference = plain.push(small_image, f"{REPOSITORY}/gone:v1")
    skopeo = make_client("skopeo")
    plain.lead(skopeo)
    skopeo.pull(reference)
    target = f"/v2/{REPOSITORY}/gone/manifests/{small_image.top.digest}"
    assert RegistryApi(plain.upstream.registry.url).call("DELETE", target).status == 202
    with pytest.raises(ProcessFailed, match="manifest unknown"):
        skopeo.pull(reference)


def test_every_client_gets_its_platform_of_an_index_and_only_that_is_fetched(
    plain: Mirrored, client: Client, small_index: Image
) -> None:
    reference = plain.push(small_index, f"{REPOSITORY}/index/{client.name}:v1")
    plain.upstream.front.clear()
    plain.lead(client)
    assert client.pull(reference) == Arrived.whole(small_index.platform("linux/amd64"))
    asked = " ".join(plain.upstream.blobs_asked())
    for layer in small_index.platform("linux/arm64/v8").layers:
        assert layer.digest not in asked


def test_an_index_arrives_with_all_its_platforms_by_one_copy(
    plain: Mirrored, small_index: Image, tmp_path: Path
) -> None:
    plain.push(small_index, f"{REPOSITORY}/whole-index:v1")
    layout = tmp_path / "layout"
    copy(f"{plain.mirror.host}/{HOST}/{REPOSITORY}/whole-index:v1", layout, "--all")
    blobs = {f"sha256:{file.name}": sha256_of(file) for file in layout.glob("blobs/sha256/*")}
    assert set(blobs) == set(blobs.values())
    assert set(blobs) == {
        blob.digest
        for image in small_index.platforms
        for blob in (small_index.top, image.manifest, image.config, *image.layers)
    }
