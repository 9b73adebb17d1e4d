"""What every place can do: the protocols of a source and of a target, and what passes between."""

from dataclasses import dataclass
from typing import Protocol

from headstart.content.digest import Digest
from headstart.content.manifest import Descriptor
from headstart.registry.feed import OpenAt

PIECE = 1024 * 1024
"""Bytes that are read at once: what a blob costs of memory, whatever its size."""

MOST_DOCUMENT = 4 * 1024 * 1024
"""Bytes of a manifest or index; registries take no larger ones."""


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index: its exact bytes, its media type and the digest of the bytes."""

    body: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that can be read again, from any offset; whoever takes them checks them.

    ``repository`` is the registry and the repository that have it, for a mount.
    """

    digest: Digest
    size: int
    open_at: OpenAt
    repository: tuple[str, str] | None = None


class Source(Protocol):
    """A place that an image is read from. Raises PlaceUnusable and RegistryError."""

    async def root(self) -> Document:
        """The manifest or index that the place's name stands for. Comes first."""

    async def manifest(self, descriptor: Descriptor) -> Document:
        """A manifest that an index names, its bytes checked."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """A blob that a manifest names; nothing is read yet."""


class Target(Protocol):
    """A place that an image is written to. Raises PlaceUnusable and RegistryError.

    What names others comes after what it names; nothing has the place's name before
    :meth:`commit`.
    """

    async def has(self, digest: Digest) -> bool:
        """Whether the blob is there already."""

    async def put_blob(self, blob: Blob) -> None:
        """Write a blob, its bytes checked; nothing where it is there already."""

    async def put_manifest(self, document: Document) -> None:
        """Write a manifest or index that an index will name."""

    async def commit(self, root: Document) -> None:
        """Write the image's root and give it the place's name. Comes last, and once."""
