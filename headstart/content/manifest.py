"""Manifests and indexes: OCI image specification 1.1 and Docker schema 2.

Only what a mirror needs is read: which blobs and manifests one names. A document that could be
taken for both kinds is refused (CVE-2021-41190).
"""

import json
from dataclasses import dataclass, field
from typing import Self

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
"""What to ask for where no client says what it accepts."""

MOST_DESCRIPTORS = 4096
_INDEXES = frozenset((OCI_INDEX, DOCKER_INDEX))
_MANIFESTS = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]``."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``linux/arm64/v8``. Raises InvalidInput."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(part.isalnum() for part in parts):
            raise InvalidInput("platform", text, "write OS/ARCHITECTURE such as linux/amd64")
        return cls(*parts)

    def matches(self, offered: "Platform") -> bool:
        """Whether an image for ``offered`` is one for this; a variant that is not named fits all.

        ``arm64`` and ``arm64/v8`` are the same (OCI image index, platform variants).
        """
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return False
        if self.variant is None or self.variant == offered.variant:
            return True
        return self.architecture == "arm64" and {self.variant, offered.variant} <= {"v8", None}

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}/{self.architecture}{variant}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest or index says of another object."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    foreign: bool = False
    """Whether the registry need not have it (``urls``): it is never fetched from elsewhere."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one platform; ``config`` is None where an artifact has none."""

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests of several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]

    def select(self, platform: Platform) -> Descriptor | None:
        """The manifest for ``platform``, the first where several fit; None without one."""
        for entry in self.manifests:
            if entry.platform is not None and platform.matches(entry.platform):
                return entry
        return None


def read_manifest(body: bytes, media_type: str) -> Manifest | Index:
    """Read a manifest or an index that was served as ``media_type``. Raises InvalidInput."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _invalid(media_type, "is no JSON object")
    named = document.get("mediaType", media_type)
    if not isinstance(named, str):
        raise _invalid(media_type, "has a mediaType that is no text")
    if named != media_type and media_type in _INDEXES | _MANIFESTS:
        raise _invalid(media_type, f"calls itself {named!r:.80}")
    is_index = "manifests" in document
    is_manifest = "layers" in document or "config" in document
    contradicts = named in (_MANIFESTS if is_index else _INDEXES)
    if is_index == is_manifest or contradicts:
        raise _invalid(media_type, "could be taken for a manifest and for an index, or is neither")
    if is_index:
        return Index(named, _descriptors(document["manifests"], media_type))
    config = document.get("config")
    return Manifest(
        named,
        _descriptor(config, media_type) if config is not None else None,
        _descriptors(document.get("layers", []), media_type),
        _annotations(document),
    )


def _invalid(media_type: str, problem: str) -> InvalidInput:
    return InvalidInput("manifest", media_type, f"the document {problem}")


def _descriptors(listed: object, media_type: str) -> tuple[Descriptor, ...]:
    if not isinstance(listed, list) or len(listed) > MOST_DESCRIPTORS:
        raise _invalid(media_type, f"has no list of at most {MOST_DESCRIPTORS} descriptors")
    return tuple(_descriptor(entry, media_type) for entry in listed)


def _descriptor(entry: object, media_type: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise _invalid(media_type, "has a descriptor that is no object")
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or type(size) is not int or not 0 <= size < 1 << 63:
        raise _invalid(media_type, "has a descriptor without digest and size")
    kind = entry.get("mediaType", "")
    return Descriptor(
        kind if isinstance(kind, str) else "",
        Digest.parse(digest),
        size,
        _platform(entry.get("platform")),
        _annotations(entry),
        bool(entry.get("urls")),
    )


def _platform(entry: object) -> Platform | None:
    if not isinstance(entry, dict):
        return None
    system, architecture = entry.get("os"), entry.get("architecture")
    variant = entry.get("variant")
    if not isinstance(system, str) or not isinstance(architecture, str):
        return None
    return Platform(system, architecture, variant if isinstance(variant, str) else None)


def _annotations(entry: dict[str, object]) -> dict[str, str]:
    found = entry.get("annotations")
    if not isinstance(found, dict):
        return {}
    return {key: text for key, text in found.items() if isinstance(text, str)}
