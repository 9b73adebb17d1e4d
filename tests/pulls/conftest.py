"""Registries of each kind with a mirror before them, shared by the tests of a module."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts.fixtures import ACCOUNT, LAYERS, REGISTRY_KINDS
from tests.parts.images import Image, make_image
from tests.parts.mirror import Mirror
from tests.parts.nginx import Front
from tests.parts.object_storage import ObjectStorage
from tests.parts.registry import Htpasswd, Registry
from tests.parts.token_server import TokenServer
from tests.pulls.upstreams import HOST, Mirrored, Upstream


@pytest.fixture(scope="module", params=REGISTRY_KINDS)
def mirrored(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Mirrored]:
    """A registry of each kind and the mirror of it, which has the credentials."""
    kind: str = request.param
    directory = tmp_path_factory.mktemp(f"pulls-{kind}")
    with ExitStack() as parts:
        access: Htpasswd | TokenServer | None = None
        storage = None
        if kind == "htpasswd":
            access = Htpasswd((ACCOUNT,))
        elif kind == "token":
            access = parts.enter_context(TokenServer(directory, ACCOUNT))
        elif kind == "s3":
            server: ObjectStorage = request.getfixturevalue("object_storage")
            storage = server.bucket(prefix=directory.name)
        registry = Registry(directory / "registry", access=access, storage=storage)
        yield _mirrored(parts, parts.enter_context(registry), directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    """A registry for everybody and the mirror of it."""
    directory = tmp_path_factory.mktemp("pulls")
    with ExitStack() as parts:
        registry = parts.enter_context(Registry(directory / "registry"))
        yield _mirrored(parts, registry, directory)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """An image for each client: a pull by one must not warm the mirror for the next."""
    directory = tmp_path_factory.mktemp("pulled")
    names = ("ctr", "skopeo", "podman", "buildah")
    return {
        name: make_image(directory / name, LAYERS, seed=10 + number)
        for number, name in enumerate(names)
    }


def _mirrored(parts: ExitStack, registry: Registry, directory: Path) -> Mirrored:
    front = parts.enter_context(Front(directory / "front", registry.url))
    upstream = Upstream(registry, front)
    mirror = Mirror(directory / "mirror", {HOST: upstream.configuration(directory)})
    return Mirrored(upstream, parts.enter_context(mirror))
