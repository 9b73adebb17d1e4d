"""Which media types a client accepts of a manifest, and the field with which we ask for it."""

import hashlib
from dataclasses import dataclass
from typing import Self

from headstart.content.manifest import (
    ACCEPT,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
)

KNOWN = frozenset((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
MOST_TYPES = 64

_ANYTHING = frozenset(("*/*", "application/*"))


@dataclass(frozen=True, slots=True)
class Accepted:
    """``types`` are media types in lower case; ``anything`` when a wildcard stands among them."""

    types: frozenset[str]
    anything: bool

    @classmethod
    def parse(cls, field: str) -> Self:
        """Read an Accept field (several are joined by commas); an empty one accepts anything."""
        types: set[str] = set()
        for part in field.split(",", MOST_TYPES)[:MOST_TYPES]:
            name, *parameters = (piece.strip().lower() for piece in part.split(";"))
            if name and not any(_is_zero(parameter) for parameter in parameters):
                types.add(name)
        anything = not types or bool(types & _ANYTHING)
        return cls(frozenset(types - _ANYTHING), anything)

    def admits(self, media_type: str) -> bool:
        """Whether the client takes a document of this type."""
        return self.anything or media_type.lower() in self.types

    @property
    def usual(self) -> bool:
        """Whether all four kinds of manifests are accepted, as every pulling client does."""
        return self.anything or self.types >= KNOWN

    @property
    def field(self) -> str:
        """The Accept field for the upstream; the same for all usual clients."""
        if self.usual:
            return f"{ACCEPT}, */*"
        return ", ".join(sorted(self.types))

    @property
    def key(self) -> str:
        """A short name of what the upstream is asked for: empty for usual clients.

        An upstream may choose another document for the same tag by the Accept field.
        """
        if self.usual:
            return ""
        return hashlib.sha256(self.field.encode()).hexdigest()[:16]


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().rstrip("0") in ("", "0.", ".")
