"""``access: passthrough``: each client with its own credentials, which the registry judges."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts.accounts import Account
from tests.parts.clients import Arrived, Ctr
from tests.parts.fixtures import ACCOUNT, MakeClient
from tests.parts.images import ACCEPT, Image, push
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import ProcessFailed
from tests.parts.registry import Htpasswd, Registry
from tests.parts.registry_api import RegistryApi
from tests.parts.token_server import TokenServer
from tests.pulls.skopeo import copy
from tests.pulls.upstreams import AWAY, HOST

REPOSITORY = "team/private"
STRANGER = Account("mallory", "guess")


@dataclass(frozen=True)
class Private:
    """A registry that wants an account, and a mirror that has none itself."""

    registry: Registry
    mirror: Mirror


@pytest.fixture(scope="module", params=["htpasswd", "token"])
def private(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Private]:
    """One with Basic authentication, one with tokens."""
    directory = tmp_path_factory.mktemp(f"private-{request.param}")
    with ExitStack() as parts:
        access: Htpasswd | TokenServer = Htpasswd((ACCOUNT,))
        if request.param == "token":
            access = parts.enter_context(TokenServer(directory, ACCOUNT))
        registry = parts.enter_context(Registry(directory / "registry", access=access))
        keys = upstream_at(registry.url, access="passthrough", realm_hosts=["127.0.0.1"])
        yield Private(registry, parts.enter_context(Mirror(directory / "mirror", {HOST: keys})))


def test_who_has_rights_pulls_and_who_has_none_gets_nothing_though_all_is_cached(
    private: Private, small_image: Image, tmp_path: Path
) -> None:
    push(small_image, private.registry, f"{REPOSITORY}:v1")
    reference = f"{private.mirror.host}/{HOST}/{REPOSITORY}:v1"
    for number in range(2):
        layout = tmp_path / f"layout-{number}"
        copy(reference, layout, account=ACCOUNT)
        layers = {layer.digest.removeprefix("sha256:") for layer in small_image.platform().layers}
        assert layers < {file.name for file in layout.glob("blobs/sha256/*")}
    for account in (STRANGER, None):
        with pytest.raises(ProcessFailed, match=r"unauthorized|denied|authentication required"):
            copy(reference, tmp_path / "nothing", account=account)


def test_a_blob_by_its_digest_alone_is_no_way_around(private: Private, small_image: Image) -> None:
    push(small_image, private.registry, f"{REPOSITORY}:v1")
    layer = small_image.platform().layers[0]
    target = f"/v2/{REPOSITORY}/blobs/{layer.digest}?ns={HOST}"
    url = private.mirror.url
    mine = RegistryApi(url).call("GET", target, headers={"Authorization": ACCOUNT.basic})
    assert (mine.status, len(mine.body)) == (200, layer.size)
    theirs = RegistryApi(url).call("GET", target, headers={"Authorization": STRANGER.basic})
    assert theirs.status in (403, 404)
    nobody = RegistryApi(url).call("GET", target)
    assert nobody.status == 401
    assert nobody.headers["www-authenticate"].startswith("Basic ")
    assert json.loads(nobody.body)["errors"][0]["code"] == "UNAUTHORIZED"


def test_a_manifest_that_is_cached_is_judged_anew_for_each_client(
    private: Private, small_image: Image
) -> None:
    push(small_image, private.registry, f"{REPOSITORY}:v1")
    target = f"/v2/{REPOSITORY}/manifests/{small_image.top.digest}?ns={HOST}"
    statuses = [
        RegistryApi(private.mirror.url)
        .call("GET", target, headers={"Accept": ACCEPT, "Authorization": account.basic})
        .status
        for account in (ACCOUNT, STRANGER, ACCOUNT)
    ]
    assert statuses[0] == statuses[2] == 200
    assert statuses[1] in (403, 404)


def test_ctr_hands_its_account_to_the_mirror(
    private: Private, make_client: MakeClient, small_image: Image
) -> None:
    push(small_image, private.registry, f"{REPOSITORY}:v1")
    ctr = make_client("ctr")
    assert isinstance(ctr, Ctr)
    ctr.use_mirror(HOST, AWAY, private.mirror.url)
    assert ctr.pull(f"{HOST}/{REPOSITORY}:v1", ACCOUNT) == Arrived.whole(small_image.platform())
    ctr.wipe()
    with pytest.raises(ProcessFailed):
        ctr.pull(f"{HOST}/{REPOSITORY}:v1", STRANGER)


def test_what_the_registry_gives_to_everybody_needs_no_account(
    parts: ExitStack, small_image: Image, tmp_path: Path
) -> None:
    tokens = parts.enter_context(TokenServer(tmp_path, ACCOUNT, anonymous_pull=True))
    registry = parts.enter_context(Registry(tmp_path / "registry", access=tokens))
    push(small_image, registry, f"{REPOSITORY}:v1")
    keys = upstream_at(registry.url, access="passthrough")
    mirror = parts.enter_context(Mirror(tmp_path / "mirror", {HOST: keys}))
    layout = tmp_path / "layout"
    copy(f"{mirror.host}/{HOST}/{REPOSITORY}:v1", layout)
    layers = {layer.digest.removeprefix("sha256:") for layer in small_image.platform().layers}
    assert layers < {file.name for file in layout.glob("blobs/sha256/*")}
