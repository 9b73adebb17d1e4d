"""What of an upstream's answer to a list is passed on to a client."""

import re
from dataclasses import dataclass

from headstart.registry.errors import RefusedTarget
from headstart.registry.exchange import Answer
from headstart.registry.redirect import origin

_LINK = re.compile(r'<([^<>\s]{1,4096})>\s*;\s*rel="?next"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PassedAnswer:
    """Status, the header fields that may be passed on (names in lower case), and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


def passed_headers(answer: Answer, upstream_url: str) -> dict[str, str]:
    """``content-type``, ``oci-filters-applied``, and ``link`` as a path of ``/v2/``."""
    headers: dict[str, str] = {}
    for name in ("content-type", "oci-filters-applied"):
        value = answer.first(name)
        if value is not None:
            headers[name] = value
    link = _LINK.search(answer.first("link") or "")
    if link is not None:
        path = _path_below(link[1], upstream_url)
        if path is not None:
            headers["link"] = f'<{path}>; rel="next"'
    return headers


def _path_below(target: str, upstream_url: str) -> str | None:
    """The target's path and query below the upstream's URL, or None when it leads elsewhere."""
    base = upstream_url.rstrip("/")
    if target.startswith(("http://", "https://")):
        parts = target.split("/", 3)
        try:
            if len(parts) < 4 or origin(target)[1:] != origin(base)[1:]:
                return None
        except (RefusedTarget, ValueError):
            return None
        target = "/" + parts[3]
    prefix = "/".join(["", *base.split("/", 3)[3:]]).rstrip("/")
    target = target.removeprefix(prefix)
    return target if target.startswith("/v2/") else None
