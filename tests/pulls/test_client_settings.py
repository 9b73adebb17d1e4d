"""What users configure in their clients: the files of deploy/, and registries without a mirror."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts.clients import Arrived, Buildah, Client, Ctr, Podman, Skopeo
from tests.parts.fixtures import MakeClient
from tests.parts.images import Image, push
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.registry import Registry
from tests.pulls.upstreams import AWAY, HOST, Mirrored, mirror_url_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SHIPPED_ADDRESS = "127.0.0.1:5050"
REPOSITORY = "library/settings"

Install = Callable[[str, Mirror], Ctr]


@dataclass(frozen=True)
class Hub:
    """A registry that the mirror takes for docker.io."""

    registry: Registry
    mirror: Mirror


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The default upstream as shipped, with a registry of this machine behind it."""
    directory = tmp_path_factory.mktemp("hub")
    with ExitStack() as parts:
        registry = parts.enter_context(Registry(directory / "registry"))
        mirror = Mirror(directory / "mirror", {"docker.io": upstream_at(registry.url)})
        yield Hub(registry, parts.enter_context(mirror))


@pytest.fixture
def install(parts: ExitStack, make_client: MakeClient) -> Install:
    """Copy a shipped hosts.toml, with a mirror's address, to where the ctr looks that it gives."""

    def install(host: str, mirror: Mirror) -> Ctr:
        ctr = make_client("ctr")
        assert isinstance(ctr, Ctr)
        shutil.rmtree(ctr.hosts, ignore_errors=True)
        parts.callback(shutil.rmtree, ctr.hosts)
        shipped = (DEPLOY / f"containerd/certs.d/{host}/hosts.toml").read_text()
        assert SHIPPED_ADDRESS in shipped
        file = ctr.hosts / host / "hosts.toml"
        file.parent.mkdir(parents=True)
        file.write_text(shipped.replace(SHIPPED_ADDRESS, mirror.host))
        return ctr

    return install


def test_ctr_pulls_with_the_shipped_file_of_one_registry(
    hub: Hub, install: Install, small_image: Image
) -> None:
    push(small_image, hub.registry, f"{REPOSITORY}:v1")
    ctr = install("docker.io", hub.mirror)
    assert ctr.pull(f"docker.io/{REPOSITORY}:v1") == Arrived.whole(small_image.platform())


def test_ctr_pulls_from_every_registry_with_the_shipped_default_file(
    plain: Mirrored, install: Install, small_image: Image
) -> None:
    reference = plain.push(small_image, f"{REPOSITORY}:v1")
    ctr = install("_default", plain.mirror)
    assert ctr.pull(reference) == Arrived.whole(small_image.platform())


def test_the_shipped_default_file_leaves_unlisted_registries_to_themselves(
    plain: Mirrored, install: Install, small_image: Image
) -> None:
    # The mirror knows this registry by another name only.
    reference = push(small_image, plain.upstream.registry, f"{REPOSITORY}:v1")
    plain.upstream.front.clear()
    ctr = install("_default", plain.mirror)
    assert ctr.pull(reference) == Arrived.whole(small_image.platform())
    assert plain.upstream.front.accesses() == []


@pytest.mark.parametrize("name", ["skopeo", "podman", "buildah"])
def test_a_short_name_comes_with_the_shipped_registries_conf(
    hub: Hub, make_client: MakeClient, name: str, small_image: Image
) -> None:
    push(small_image, hub.registry, f"{REPOSITORY}:v1")
    client = make_client(name)
    assert isinstance(client, Skopeo | Podman | Buildah)
    shipped = (DEPLOY / "sidecar/registries.conf").read_text()
    assert SHIPPED_ADDRESS in shipped
    client.use_registries(shipped.replace(SHIPPED_ADDRESS, hub.mirror.host))
    short = REPOSITORY.removeprefix("library/")
    assert client.pull(f"docker.io/{short}:v1") == Arrived.whole(small_image.platform())


def test_an_unlisted_registry_is_refused_and_asked_directly(
    plain: Mirrored, client: Client, small_image: Image
) -> None:
    registry = plain.upstream.registry
    push(small_image, registry, f"{REPOSITORY}:v1")
    unlisted = "unlisted.example"
    plain.upstream.front.clear()
    client.use_mirror(unlisted, registry.url, mirror_url_for(client, plain.mirror, unlisted))
    wanted = Arrived.whole(small_image.platform())
    assert client.pull(f"{unlisted}/{REPOSITORY}:v1") == wanted
    # Without ?ns= it could be a repository of the default upstream, which does not have it.
    assert {access.status for access in plain.upstream.front.accesses()} <= {404}


@pytest.mark.parametrize("name", ["skopeo", "podman", "buildah"])
def test_clients_that_name_no_registry_get_the_default_upstream(
    plain: Mirrored, make_client: MakeClient, name: str, small_image: Image
) -> None:
    reference = plain.push(small_image, f"{REPOSITORY}:v1")
    client = make_client(name)
    client.use_mirror(HOST, AWAY, plain.mirror.url)
    assert client.pull(reference) == Arrived.whole(small_image.platform())
