"""Fixtures of real servers and clients; the logs of those that run are shown when a test fails.

What a fixture starts ends with it. A missing program skips the test and says which one; ``make
test`` installs all of them.
"""

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.doubles.certificates import Authority, ServerCertificate
from tests.parts.clients import Client, Ctr
from tests.parts.containerd import Containerd
from tests.parts.fixtures import ACCOUNT, CLIENTS, LAYERS, REGISTRY_KINDS, MakeClient, MakeRegistry
from tests.parts.images import Image, make_image
from tests.parts.object_storage import ObjectStorage
from tests.parts.processes import ProgramMissing
from tests.parts.registry import Htpasswd, Registry
from tests.parts.server import logs_of_open_servers
from tests.parts.token_server import TokenServer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with _skipping():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with _skipping():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of all servers that run to the report of a failed test."""
    report = yield
    if report.failed:
        report.sections.extend((f"log of {name}", log) for name, log in logs_of_open_servers())
    return report


def _needs_root(name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"{name} has to run as root")


@contextmanager
def _skipping() -> Iterator[None]:
    """Skip the test where a program is missing, and say which one."""
    try:
        yield
    except ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """``parts.enter_context(Front(...))``: parts that end with the test, the last one first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues certificates for TLS servers."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """A real S3 server with one bucket; started by the first test that wants it (3 s)."""
    with ObjectStorage(tmp_path_factory.mktemp("object-storage")) as storage:
        yield storage


@pytest.fixture
def make_registry(parts: ExitStack, tmp_path: Path, request: pytest.FixtureRequest) -> MakeRegistry:
    """Registries of the kinds in :data:`REGISTRY_KINDS`, or a pull-through proxy of another."""
    numbers = itertools.count(1)

    def make(
        kind: str = "plain",
        *,
        remote: Registry | None = None,
        tls: ServerCertificate | None = None,
        token_lifetime: float = 300.0,
    ) -> Registry:
        directory = tmp_path / f"registry-{next(numbers)}"
        access: Htpasswd | TokenServer | None = None
        storage = None
        if kind == "htpasswd":
            access = Htpasswd((ACCOUNT,))
        elif kind == "token":
            tokens = TokenServer(directory, ACCOUNT, lifetime=token_lifetime)
            access = parts.enter_context(tokens)
        elif kind == "s3":
            server: ObjectStorage = request.getfixturevalue("object_storage")
            # Registries of other tests use the same bucket.
            storage = server.bucket(prefix=f"{tmp_path.name}-{directory.name}")
        elif kind != "plain":
            raise ValueError(f"{kind!r} is none of {', '.join(REGISTRY_KINDS)}")
        registry = Registry(
            directory,
            access=access,
            storage=storage,
            remote=remote.url if remote else None,
            remote_account=remote.account if remote else None,
            tls=tls,
        )
        return parts.enter_context(registry)

    return make


@pytest.fixture
def registry(make_registry: MakeRegistry) -> Registry:
    """A plain docker-registry, empty."""
    return make_registry()


@pytest.fixture(params=REGISTRY_KINDS)
def any_registry(make_registry: MakeRegistry, request: pytest.FixtureRequest) -> Registry:
    """A docker-registry of each kind, empty."""
    return make_registry(request.param)


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A private containerd; :meth:`Containerd.wipe` empties it."""
    _needs_root("containerd")
    with Containerd(tmp_path_factory.mktemp("containerd")) as running:
        yield running


@pytest.fixture
def make_client(parts: ExitStack, tmp_path: Path, request: pytest.FixtureRequest) -> MakeClient:
    """Clients by the names in :data:`CLIENTS`."""

    def make(name: str) -> Client:
        kind = CLIENTS[name]
        if name != "skopeo":
            _needs_root(name)
        client: Client
        if issubclass(kind, Ctr):
            client = kind(request.getfixturevalue("containerd"))
        else:
            client = kind(tmp_path / f"client-{name}")
        parts.callback(client.wipe)
        return client

    return make


@pytest.fixture(params=CLIENTS)
def client(make_client: MakeClient, request: pytest.FixtureRequest) -> Client:
    """Each client, which has no images."""
    return make_client(request.param)


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """One platform, the three :data:`LAYERS`."""
    return make_image(tmp_path_factory.mktemp("images") / "small", LAYERS)


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An index of linux/amd64 and linux/arm64/v8, three layers each."""
    directory = tmp_path_factory.mktemp("images") / "index"
    return make_image(directory, LAYERS, platforms=("linux/amd64", "linux/arm64/v8"), seed=1)
