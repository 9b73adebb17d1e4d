"""Snapshots as containerd speaks of them, and what this snapshotter knows beyond that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from headstart.store.known_layer import KnownLayer

REF_LABEL = "containerd.io/snapshot.ref"
"""The chain ID that a client pulls: the sign that it takes ALREADY_EXISTS for an answer."""
MANIFEST_LABEL = "containerd.io/snapshot/cri.manifest-digest"
IMAGE_REF_LABEL = "containerd.io/snapshot/cri.image-ref"
"""What CRI says of the image, where ``disable_snapshot_annotations = false``."""


class Kind(Enum):
    """What may be done with a snapshot."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk space: ``size`` in bytes, counted in allocated blocks."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Mount:
    """What containerd mounts: type and source as for mount(2), options as in fstab."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """The part of a snapshot that is a mounted layer image instead of a directory.

    ``leases`` are those under which it was prepared, ``verified`` says that its diff ID was seen
    to be right, ``refused`` why its content is not what it should be.
    """

    layer: KnownLayer
    verified: bool = False
    leases: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row. ``number`` names its directory and is never given out again.

    ``parent`` is the parent's name, empty for the base; times are nanoseconds since the epoch;
    ``usage`` is None until it has been counted.
    """

    number: int
    name: str
    parent: str
    kind: Kind
    created: int
    updated: int
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    usage: Usage | None = None
    remote: RemoteLayer | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by the metadata of the call; None where it says nothing.

    CRI, within containerd, says both. Of what clients ask containerd for over its socket (nerdctl,
    ``ctr``), neither is passed on.
    """

    namespace: str | None = None
    lease: str | None = None


def namespace_of(key: str) -> str | None:
    """The namespace in a key as containerd makes them, NAMESPACE/NUMBER/KEY; None for others."""
    namespace, _, rest = key.partition("/")
    number, slash, _ = rest.partition("/")
    return namespace if namespace and slash and number.isdecimal() else None
