"""Names of images: registry, repository, tag, digest.

Grammars: OCI distribution specification (repository and tag), and for the registry in front of an
image's name that of the docker reference (github.com/distribution/reference).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput

DOCKER_HUB = "docker.io"
LONGEST_REPOSITORY = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::([0-9]{{1,5}}))?")
_HUB_NAMES = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))


def parse_registry(text: str) -> str:
    """``HOST``, ``HOST:PORT`` or ``[V6]:PORT``; names of Docker Hub become ``docker.io``.

    Raises InvalidInput.
    """
    found = _REGISTRY.fullmatch(text) if len(text) <= 260 else None
    remedy = "write a registry host such as ghcr.io or localhost:5000, without a scheme"
    if found is None or (found[2] is not None and not 0 < int(found[2]) <= 65535):
        raise InvalidInput("registry", text, remedy)
    if found[1].startswith("["):
        try:
            ipaddress.IPv6Address(found[1][1:-1])
        except ValueError:
            raise InvalidInput("registry", text, remedy) from None
    host = text.lower()
    return DOCKER_HUB if host in _HUB_NAMES else host


def parse_repository(text: str) -> str:
    """A repository's name, at most 255 characters. Raises InvalidInput."""
    if len(text) > LONGEST_REPOSITORY or not _REPOSITORY.fullmatch(text):
        raise InvalidInput(
            "repository",
            text,
            "write lower-case letters, digits and single separators, such as team/app",
        )
    return text


def qualified_repository(registry: str, repository: str) -> str:
    """Docker Hub keeps what has one component (``alpine``) below ``library/``."""
    if registry == DOCKER_HUB and "/" not in repository:
        return f"library/{repository}"
    return repository


def parse_tag(text: str) -> str:
    """A tag. Raises InvalidInput."""
    if not _TAG.fullmatch(text):
        raise InvalidInput(
            "tag", text, "write at most 128 letters, digits, dots, dashes and underscores"
        )
    return text


def parse_reference(text: str) -> str | Digest:
    """What follows ``/manifests/``: a tag, or a digest (which has a colon). Raises InvalidInput."""
    return Digest.parse(text) if ":" in text else parse_tag(text)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """``registry/repository:tag@digest`` with defaults filled in; tag or digest is set."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an image's name as people write it. Raises InvalidInput.

        Without a registry it is Docker Hub's, without tag and digest ``latest``.
        """
        name, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        first, slash, rest = name.partition("/")
        registry = DOCKER_HUB
        if slash and (any(sign in first for sign in ".:[") or first == "localhost"):
            registry, name = parse_registry(first), rest
        repository, colon, tag_text = name.partition(":")
        tag = parse_tag(tag_text) if colon else None if digest else "latest"
        if not repository:
            raise InvalidInput("image", text, "write REGISTRY/REPOSITORY:TAG")
        repository = parse_repository(qualified_repository(registry, repository))
        return cls(registry, repository, tag, digest)

    @property
    def reference(self) -> str:
        """What is asked of the registry: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest is not None else self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"
