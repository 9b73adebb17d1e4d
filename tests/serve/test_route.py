"""Which upstream, repository and object a URL means."""

import pytest

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from proxy.serve.errors import NoSuchEndpoint, NotOnAllowlist
from proxy.serve.route import Route, find_route

HOSTS = {"docker.io", "ghcr.io", "localhost:5000"}
HEX = "sha256:" + "a" * 64
DIGEST = Digest.parse(HEX)


def route(path: str, query: str = "", default: str | None = "docker.io") -> Route:
    return find_route(path, query, HOSTS, default)


@pytest.mark.parametrize(
    ("path", "query", "host", "repository"),
    [
        ("/v2/alpine/manifests/latest", "", "docker.io", "alpine"),
        ("/v2/team/app/manifests/latest", "ns=ghcr.io", "ghcr.io", "team/app"),
        ("/v2/ghcr.io/team/app/manifests/latest", "", "ghcr.io", "team/app"),
        ("/v2/ghcr.io/team/app/manifests/latest", "ns=ghcr.io", "ghcr.io", "team/app"),
        ("/v2/localhost:5000/app/manifests/latest", "", "localhost:5000", "app"),
        ("/v2/app/manifests/latest", "ns=localhost%3A5000", "localhost:5000", "app"),
        ("/v2/docker.io/library/alpine/manifests/1", "", "docker.io", "library/alpine"),
        ("/v2/app/manifests/latest", "ns=index.docker.io", "docker.io", "app"),
        # A proxied repository of another registry keeps its name.
        ("/v2/ghcr.io/team/app/manifests/1", "ns=docker.io", "docker.io", "ghcr.io/team/app"),
        ("/v2/quay.io/team/app/manifests/1", "", "docker.io", "quay.io/team/app"),
        # A repository may be called as a registry is.
        ("/v2/ghcr.io/manifests/latest", "", "docker.io", "ghcr.io"),
        ("/v2/blobs/manifests/manifests/latest", "", "docker.io", "blobs/manifests"),
    ],
)
def test_upstream_and_repository(path: str, query: str, host: str, repository: str) -> None:
    found = route(path, query)
    assert (found.host, found.repository) == (host, repository)
    assert found.named == ("ns=" in query)


@pytest.mark.parametrize(
    ("path", "kind", "reference"),
    [
        ("/v2/app/manifests/v1.0", "manifests", "v1.0"),
        (f"/v2/app/manifests/{HEX}", "manifests", DIGEST),
        (f"/v2/app/blobs/{HEX}", "blobs", DIGEST),
        (f"/v2/app/referrers/{HEX}", "referrers", DIGEST),
        ("/v2/app/tags/list", "tags", None),
        ("/v2/app/manifests/list", "manifests", "list"),
    ],
)
def test_what_is_asked_for(path: str, kind: str, reference: Digest | str | None) -> None:
    found = route(path)
    assert (found.kind, found.reference) == (kind, reference)


def test_the_rest_of_the_query_is_kept_as_it_was_sent() -> None:
    assert route("/v2/a/tags/list", "n=5&ns=ghcr.io&last=b%2Fc").query == "n=5&last=b%2Fc"


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v2/App/manifests/latest", "", "repository"),
        ("/v2/a//b/manifests/latest", "", "repository"),
        ("/v2/../../etc/passwd/manifests/latest", "", "repository"),
        ("/v2/a/../b/blobs/" + HEX, "", "repository"),
        ("/v2/a\n/manifests/latest", "", "repository"),
        ("/v2/" + "a" * 256 + "/manifests/latest", "", "repository"),
        ("/v2/app/manifests/-tag", "", "tag"),
        ("/v2/app/manifests/" + "t" * 129, "", "tag"),
        ("/v2/app/manifests/", "", "tag"),
        ("/v2/app/manifests/sha256:abc", "", "digest"),
        ("/v2/app/blobs/latest", "", "digest"),
        ("/v2/app/blobs/" + HEX.upper(), "", "digest"),
        ("/v2/app/blobs/md5:" + "a" * 32, "", "digest"),
        ("/v2/app/referrers/latest", "", "digest"),
        ("/v2/app/manifests/latest", "ns=", "registry"),
        ("/v2/app/manifests/latest", "ns=http://ghcr.io", "registry"),
        ("/v2/app/manifests/latest", "ns=ghcr.io/team", "registry"),
        ("/v2/app/manifests/latest", "ns=ghcr.io&ns=docker.io", "registry"),
        ("/v2/app/manifests/latest", "ns=ghcr.io&%6es=ghcr.io", "registry"),
        ("/v2/app/manifests/latest", "ns=a%0d%0ab", "registry"),
    ],
)
def test_malformed_parts_are_refused_by_name(path: str, query: str, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        route(path, query)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "query", ["ns=quay.io", "ns=169.254.169.254", "ns=localhost", "ns=ghcr.io:443"]
)
def test_other_registries_are_not_on_the_allowlist(query: str) -> None:
    with pytest.raises(NotOnAllowlist):
        route("/v2/app/manifests/latest", query)


def test_without_a_default_the_registry_has_to_be_named() -> None:
    with pytest.raises(NotOnAllowlist, match="ns=HOST"):
        route("/v2/app/manifests/latest", default=None)
    assert route("/v2/ghcr.io/app/manifests/latest", default=None).host == "ghcr.io"


@pytest.mark.parametrize(
    "path",
    ["/v2/_catalog", "/v2/app", "/v2/app/tags/other", "/v2/manifests/latest", "/v2/app/blobs/up/x"],
)
def test_other_endpoints_are_not_there(path: str) -> None:
    with pytest.raises(NoSuchEndpoint):
        route(path)
