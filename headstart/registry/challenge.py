"""Reads WWW-Authenticate and decides which realms may see credentials. Pure."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from headstart.registry.errors import RefusedTarget
from headstart.registry.redirect import origin, printable_url
from headstart.registry.upstream import Upstream

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|\s*,|$)")
_MAX_LENGTH = 8192

# Below these everybody can have a name (after the public suffix list's private part).
_SHARED_SUFFIXES = frozenset(
    (
        *("amazonaws.com", "on.aws", "cloudfront.net", "azurecr.io", "azure.com", "windows.net"),
        *("azurewebsites.net", "googleapis.com", "appspot.com", "pkg.dev", "run.app", "web.app"),
        *("cloudflarestorage.com", "digitaloceanspaces.com", "backblazeb2.com", "scw.cloud"),
        *("ovh.net", "github.io", "gitlab.io", "jfrog.io", "cloudsmith.io", "herokuapp.com"),
        *("fly.dev", "ngrok.io", "ngrok.app", "duckdns.org", "nip.io", "sslip.io"),
    )
)
_SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "gob", "gov", "go", "gv", "mil", "ne", "net", "nom", "or", "org")
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme in lower case and its parameters, names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of the WWW-Authenticate fields; what cannot be read is left out."""
    found = []
    for value in values:
        position = 0
        value = value[:_MAX_LENGTH]
        while (scheme := _SCHEME.match(value, position)) is not None:
            position = scheme.end()
            parameters: dict[str, str] = {}
            while (parameter := _PARAMETER.match(value, position)) is not None:
                quoted, plain = parameter[2], parameter[3]
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(parameter[1].lower(), text)
                position = parameter.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def check_realm(upstream: Upstream, realm: str, *, with_credentials: bool) -> str:
    """The realm's URL when it may be asked for a token. Raises RefusedTarget.

    It is https when the upstream is. Credentials go only to the upstream's own host, to hosts of
    the same registrable domain, and to ``realm_hosts``.
    """
    if re.search(r"[\x00-\x20\x7f-\U0010ffff\\]", realm):
        raise RefusedTarget(f"{upstream.host}: its realm is no URL")
    try:
        scheme, host, port = origin(realm)
    except ValueError:
        raise RefusedTarget(f"{upstream.host}: its realm is no URL") from None
    if scheme == "http" and upstream.url.lower().startswith("https:"):
        raise RefusedTarget(f"{printable_url(realm)}: an http realm of an https upstream")
    if with_credentials and not _allowed(upstream, host, port):
        raise RefusedTarget(
            f"{upstream.host} sends credentials to {host}; "
            f"add it to upstreams.{upstream.host}.realm_hosts if that is right"
        )
    return realm.partition("#")[0]


def _allowed(upstream: Upstream, host: str, port: int) -> bool:
    own = {origin(upstream.url)[1], urlsplit(f"//{upstream.host}").hostname or ""}
    listed = {entry.lower() for entry in upstream.realm_hosts}
    if host in own or host in listed or f"{host}:{port}" in listed:
        return True
    domain = registrable_domain(host)
    return domain is not None and domain in {registrable_domain(name) for name in own}


def registrable_domain(host: str) -> str | None:
    """The domain that one owner has registered; None for addresses and single labels.

    The public suffix list is not at hand: two labels, three below ``co.uk`` and its like, and the
    whole host where neighbours belong to different people.
    """
    host = host.lower().rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
    else:
        return None
    if len(labels) < 2:
        return None
    if ".".join(labels[-2:]) in _SHARED_SUFFIXES or host.endswith(".amazonaws.com.cn"):
        return host
    wide = len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
    length = 3 if wide else 2
    return ".".join(labels[-length:]) if len(labels) >= length else None
