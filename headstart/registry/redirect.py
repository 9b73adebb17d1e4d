"""Which redirects are followed, and how a URL is shown. Pure; errors show no query."""

import re
from urllib.parse import quote, urljoin, urlsplit

from headstart.registry.errors import RefusedTarget

MAX_REDIRECTS = 5

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Anything else can be read in two ways: by our parser that checks, and by the client that connects.
_AUTHORITY = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_KEEP = "".join(chr(code) for code in range(0x21, 0x7F))


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http or https URL. Raises RefusedTarget."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise RefusedTarget(f"{printable_url(url)}: only http and https are followed")
    if "@" in parts.netloc:
        raise RefusedTarget(f"{printable_url(url)}: a URL that carries credentials is not followed")
    found = _AUTHORITY.fullmatch(parts.netloc)
    if found is None or (found[2] is not None and int(found[2]) > 65535):
        raise RefusedTarget(f"{printable_url(url)}: the URL names no valid host and port")
    port = int(found[2]) if found[2] is not None else _DEFAULT_PORTS[scheme]
    return scheme, found[1].strip("[]").lower(), port


def same_origin(first: str, second: str) -> bool:
    """Whether two URLs have scheme, host and port in common. Raises RefusedTarget."""
    return origin(first) == origin(second)


def check_redirect(source_url: str, location: str) -> str:
    """The absolute URL that ``location`` means at ``source_url``, without its fragment.

    Raises RefusedTarget: https to http, another scheme, user information, no valid host.
    """
    if not location:
        raise RefusedTarget(f"{printable_url(source_url)}: a redirect without a Location")
    if _UNSAFE.search(location):
        raise RefusedTarget(f"{printable_url(source_url)}: a Location with forbidden characters")
    try:
        joined = urljoin(source_url, location).partition("#")[0]
        scheme, _, _ = origin(joined)
    except ValueError:
        raise RefusedTarget(f"{printable_url(source_url)}: a malformed Location") from None
    if scheme == "http" and origin(source_url)[0] == "https":
        raise RefusedTarget(f"{printable_url(joined)}: a redirect from https to http")
    return quote(joined, safe=_KEEP)


def printable_url(url: str) -> str:
    """The URL without query, fragment and user information: what may be logged."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    host = parts.netloc.rpartition("@")[2]
    text = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    return quote(text[:512], safe=_KEEP)
