"""The parts by themselves: real clients pull from real registries, no Headstart between them."""

import time
import tracemalloc
import urllib.parse
from contextlib import ExitStack

import pytest

from tests.doubles.certificates import Authority
from tests.parts.clients import Arrived, Client, Ctr
from tests.parts.curl import fetch
from tests.parts.fixtures import ACCOUNT, REGISTRY_KINDS, MakeClient, MakeRegistry
from tests.parts.images import ACCEPT, Image, push, sha256_of
from tests.parts.nginx import Front
from tests.parts.pattern import Pattern
from tests.parts.ports import accepts
from tests.parts.processes import (
    ProcessFailed,
)
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi, RegistryRefused
from tests.parts.token_server import TokenServer

REPOSITORY = "team/app"
MIB = 1 << 20


def test_every_client_pulls_from_every_registry_what_was_pushed(
    any_registry: Registry, client: Client, small_image: Image
) -> None:
    reference = push(small_image, any_registry, f"{REPOSITORY}:v1")
    wanted = Arrived.whole(small_image.platform())
    assert client.pull(reference, any_registry.account) == wanted
    client.wipe()
    by_digest = f"{any_registry.host}/{REPOSITORY}@{small_image.top.digest}"
    assert client.pull(by_digest, any_registry.account) == wanted


def test_every_client_takes_its_platform_from_an_index(
    registry: Registry, client: Client, small_index: Image
) -> None:
    reference = push(small_index, registry, f"{REPOSITORY}:v1")
    assert client.pull(reference) == Arrived.whole(small_index.platform("linux/amd64"))


def test_every_client_asks_its_mirror_first_and_needs_no_upstream(
    make_registry: MakeRegistry, client: Client, small_image: Image
) -> None:
    upstream = make_registry()
    mirror = make_registry(remote=upstream)
    reference = push(small_image, upstream, f"{REPOSITORY}:v1")
    client.use_mirror(upstream.host, upstream.url, mirror.url)
    image = small_image.platform()
    wanted = Arrived.whole(image)
    assert client.pull(reference) == wanted
    # docker-registry's proxy keeps a blob only some time after it has sent it.
    kept = [mirror.layer_link(REPOSITORY, blob.digest) for blob in (image.config, *image.layers)]
    deadline = time.monotonic() + 20
    while not all(link.exists() for link in kept):
        assert time.monotonic() < deadline, "the mirror keeps every blob"
        time.sleep(0.02)
    upstream.stop()
    client.wipe()
    assert client.pull(reference) == wanted


def test_every_client_falls_back_to_the_upstream(
    registry: Registry, client: Client, small_image: Image
) -> None:
    reference = push(small_image, registry, f"{REPOSITORY}:v1")
    dead = Registry(registry.directory / "dead")
    client.use_mirror(registry.host, registry.url, dead.url)
    assert client.pull(reference) == Arrived.whole(small_image.platform())


def test_a_wiped_client_has_nothing_left(
    registry: Registry, client: Client, small_image: Image
) -> None:
    reference = push(small_image, registry, f"{REPOSITORY}:v1")
    client.pull(reference)
    client.wipe()
    registry.stop()
    with pytest.raises(ProcessFailed):
        client.pull(reference)


def test_ctr_tells_the_mirror_the_upstream_whether_it_unpacks_or_not(
    parts: ExitStack, registry: Registry, make_client: MakeClient, small_image: Image
) -> None:
    front = parts.enter_context(Front(registry.directory / "front", registry.url))
    reference = push(small_image, registry, f"{REPOSITORY}:v1")
    ctr = make_client("ctr")
    assert isinstance(ctr, Ctr)
    ctr.use_mirror("registry.example", registry.url, front.url)
    wanted = Arrived.whole(small_image.platform())
    reference = reference.replace(registry.host, "registry.example")
    for bring in (ctr.pull, ctr.fetch):
        assert bring(reference) == wanted
        targets = [access.target for access in front.accesses()]
        assert f"/v2/{REPOSITORY}/manifests/v1?ns=registry.example" in targets
        ctr.wipe()
        front.clear()


def test_registry_on_s3_redirects_blobs_to_a_signed_url_that_works(
    make_registry: MakeRegistry, small_image: Image
) -> None:
    registry = make_registry("s3")
    push(small_image, registry, f"{REPOSITORY}:v1")
    layer = small_image.platform().layers[0]
    target = f"/v2/{REPOSITORY}/blobs/{layer.digest}"
    answer = RegistryApi(registry.url).call("GET", target)
    assert answer.status == 307
    assert "X-Amz-Signature=" in answer.headers["location"]
    output = registry.directory / "layer"
    assert fetch(registry.url + target, output=output, follow=True).status == 200
    assert sha256_of(output) == layer.digest
    part = fetch(answer.headers["location"], byte_range="100-199")
    assert (part.status, part.size) == (206, 100)
    assert part.headers["content-range"] == f"bytes 100-199/{layer.size}"
    # The signature is one for GET.
    parts = urllib.parse.urlsplit(answer.headers["location"])
    storage = RegistryApi(f"{parts.scheme}://{parts.netloc}")
    assert storage.call("HEAD", f"{parts.path}?{parts.query}").status == 403


def test_registry_with_tokens_challenges_and_takes_a_token_of_the_token_server(
    make_registry: MakeRegistry, small_image: Image
) -> None:
    registry = make_registry("token")
    tokens = registry.access
    assert isinstance(tokens, TokenServer)
    push(small_image, registry, f"{REPOSITORY}:v1")
    target = f"/v2/{REPOSITORY}/manifests/v1"
    refused = fetch(registry.url + target)
    assert refused.status == 401
    challenge = refused.headers["www-authenticate"]
    assert challenge.startswith(f'Bearer realm="{tokens.realm}"')
    assert f'scope="repository:{REPOSITORY}:pull"' in challenge
    before = len(tokens.requested())
    answer = RegistryApi(registry.url, ACCOUNT).call("GET", target, headers={"Accept": ACCEPT})
    assert answer.status == 200
    assert len(tokens.requested()) == before + 1
    with pytest.raises(RegistryRefused):
        RegistryApi(registry.url).call("GET", target)
    assert len(tokens.requested(401)) == 1


def test_a_token_is_refused_when_its_lifetime_is_over(
    make_registry: MakeRegistry, small_image: Image
) -> None:
    registry = make_registry("token")
    tokens = registry.access
    assert isinstance(tokens, TokenServer)
    push(small_image, registry, f"{REPOSITORY}:v1")
    url = f"{registry.url}/v2/{REPOSITORY}/manifests/v1"
    scopes = [f"repository:{REPOSITORY}:pull"]
    token = tokens.sign("alice", scopes, lifetime=1.5)
    headers = {"Authorization": f"Bearer {token}", "Accept": ACCEPT}
    assert fetch(url, headers=headers).status == 200
    time.sleep(2.6)
    assert fetch(url, headers=headers).status == 401


def test_registry_with_htpasswd_challenges_for_basic_and_refuses_a_wrong_password(
    make_registry: MakeRegistry,
) -> None:
    registry = make_registry("htpasswd")
    url = f"{registry.url}/v2/"
    assert fetch(url).headers["www-authenticate"].startswith("Basic ")
    assert fetch(url, headers={"Authorization": ACCOUNT.basic}).status == 200
    wrong = type(ACCOUNT)(ACCOUNT.username, "wrong")
    assert fetch(url, headers={"Authorization": wrong.basic}).status == 401


def test_a_stopped_registry_refuses_and_keeps_its_images(
    registry: Registry, small_image: Image
) -> None:
    push(small_image, registry, f"{REPOSITORY}:v1")
    registry.stop()
    assert not accepts(registry.port)
    registry.start()
    url = f"{registry.url}/v2/{REPOSITORY}/manifests/v1"
    assert fetch(url, headers={"Accept": ACCEPT}).status == 200


@pytest.mark.parametrize("kind", REGISTRY_KINDS)
def test_a_pattern_is_pushed_and_read_as_a_stream(make_registry: MakeRegistry, kind: str) -> None:
    registry = make_registry(kind)
    pattern = Pattern(20 * MIB + 5, seed=3)
    api = RegistryApi(registry.url, registry.account)
    digest = api.push_blob(REPOSITORY, pattern)
    assert digest == pattern.digest()
    answer = api.read(f"/v2/{REPOSITORY}/blobs/{digest}")
    if kind == "s3":
        assert answer.status == 307
    else:
        assert (answer.status, answer.size, answer.digest) == (200, pattern.size, digest)


def test_a_large_blob_is_pushed_and_read_in_little_memory(registry: Registry) -> None:
    pattern = Pattern(64 * MIB)
    api = RegistryApi(registry.url)
    tracemalloc.start()
    try:
        digest = api.push_blob(REPOSITORY, pattern)
        assert api.read(f"/v2/{REPOSITORY}/blobs/{digest}").size == pattern.size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


def test_a_pushed_manifest_is_answered_as_it_was(registry: Registry, small_image: Image) -> None:
    api = RegistryApi(registry.url)
    image = small_image.platform()
    for blob in (image.config, *image.layers):
        assert api.push_blob(REPOSITORY, small_image.blob(blob.digest)) == blob.digest
    body = small_image.blob(image.manifest.digest).read_bytes()
    digest = api.push_manifest(REPOSITORY, "v2", body, image.manifest.media_type)
    assert digest == image.manifest.digest
    answer = api.call("GET", f"/v2/{REPOSITORY}/manifests/v2", headers={"Accept": ACCEPT})
    assert answer.body == body


def test_registry_speaks_tls_to_who_trusts_the_authority(
    make_registry: MakeRegistry, authority: Authority
) -> None:
    registry = make_registry(tls=authority.issue())
    assert fetch(f"{registry.url}/v2/", ca_file=authority.ca_file).status == 200
    with pytest.raises(ProcessFailed, match="certificate"):
        fetch(f"{registry.url}/v2/")


def test_proxy_registry_serves_a_fetched_blob_without_its_upstream(
    registry: Registry, make_registry: MakeRegistry
) -> None:
    proxy = make_registry(remote=registry)
    digest = RegistryApi(registry.url).push_blob(REPOSITORY, Pattern(2 * MIB))
    target = f"/v2/{REPOSITORY}/blobs/{digest}"
    assert RegistryApi(proxy.url).read(target).digest == digest
    # It stores what it fetches a second time, while and after it answers.
    deadline = time.monotonic() + 5
    while not proxy.blob_file(digest).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    registry.stop()
    assert RegistryApi(proxy.url).read(target).digest == digest
