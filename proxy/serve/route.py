"""From a request's path and query to an upstream, a repository and what is asked of it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_plus

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.reference import parse_reference, parse_registry, parse_repository
from proxy.serve.errors import NoSuchEndpoint, NotOnAllowlist

Kind = Literal["blobs", "manifests", "tags", "referrers"]

PREFIX = "/v2/"

_KINDS: dict[str, Kind] = {
    "blobs": "blobs",
    "manifests": "manifests",
    "tags": "tags",
    "referrers": "referrers",
}


@dataclass(frozen=True, slots=True)
class Route:
    """What is asked of whom.

    ``host`` is of the allowlist, ``repository`` as the client wrote it, ``reference`` a Digest for
    blobs and referrers, a tag or Digest for manifests, None for tags. ``query`` is the request's
    without ``ns``; ``named`` whether the client sent an ``ns``.
    """

    host: str
    repository: str
    kind: Kind
    reference: Digest | str | None
    query: str
    named: bool


def find_route(path: str, query: str, hosts: Collection[str], default: str | None) -> Route:
    """Read ``path`` (decoded, below ``/v2/``) and ``query`` (as sent).

    The upstream is the one that ``ns`` names, else the first component of the path when it is one
    of ``hosts``, else ``default``. Raises InvalidInput, NoSuchEndpoint or NotOnAllowlist.
    """
    name, kind, reference = _split(path)
    namespace, rest = _take_namespace(query)
    first, slash, below = name.partition("/")
    if namespace is not None:
        host = parse_registry(namespace)
        # containerd sends both where its configuration has the host in the URL's path.
        if slash and first == host:
            name = below
    elif slash and first in hosts:
        host, name = first, below
    elif default is not None:
        host = default
    else:
        raise NotOnAllowlist(
            "no registry is named: add ?ns=HOST or put the host in front of the repository"
        )
    repository = parse_repository(name)
    if host not in hosts:
        raise NotOnAllowlist(f"{host} is not among the upstreams of this mirror")
    found: Digest | str | None = None
    if kind == "manifests":
        found = parse_reference(reference)
    elif kind != "tags":
        found = Digest.parse(reference)
    return Route(host, repository, kind, found, rest, namespace is not None)


def _split(path: str) -> tuple[str, Kind, str]:
    parts = path.removeprefix(PREFIX).rsplit("/", 2)
    if len(parts) == 3 and parts[0]:
        name, word, reference = parts
        kind = _KINDS.get(word)
        if kind is not None and (kind != "tags" or reference == "list"):
            return name, kind, reference
    raise NoSuchEndpoint("the mirror has manifests, blobs, tags/list and referrers of repositories")


def _take_namespace(query: str) -> tuple[str | None, str]:
    """The value of ``ns`` and the query without it."""
    if not query:
        return None, ""
    given: list[str] = []
    rest: list[str] = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) == "ns":
            given.append(unquote_plus(value))
        elif part:
            rest.append(part)
    if len(given) > 1:
        raise InvalidInput("registry", ", ".join(given), "send one ns parameter")
    return (given[0] if given else None), "&".join(rest)
