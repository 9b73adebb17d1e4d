"""Images in registries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headstart.content.digest import Digest
from headstart.content.manifest import ACCEPT, Descriptor
from headstart.content.reference import ImageReference
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.checking import CheckedBlob, checked_document
from headstart.convert.places.place import Blob, Document
from headstart.registry.client import RegistryClient
from headstart.registry.pushing import RegistryPusher


class RegistrySource:
    """Reads an image of a registry."""

    def __init__(self, client: RegistryClient, image: ImageReference) -> None:
        """``client`` is closed by who made it."""
        self._client = client
        self._image = image

    async def root(self) -> Document:
        """See :class:`Source`."""
        answer = await self._client.get_manifest(
            self._image.repository, self._image.reference, ACCEPT
        )
        return Document(answer.body, answer.media_type, answer.digest)

    async def manifest(self, descriptor: Descriptor) -> Document:
        """See :class:`Source`."""
        answer = await self._client.get_manifest(
            self._image.repository, str(descriptor.digest), ACCEPT
        )
        return checked_document(
            answer.body, answer.media_type, descriptor.digest, descriptor.size, self._image
        )

    def blob(self, descriptor: Descriptor) -> Blob:
        """See :class:`Source`."""
        repository = self._image.repository

        @asynccontextmanager
        async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async with self._client.stream_blob(repository, descriptor.digest, start) as pieces:
                yield pieces

        here = (self._image.registry, repository)
        return Blob(descriptor.digest, descriptor.size, open_at, here)


class RegistryTarget:
    """Pushes an image to a registry."""

    def __init__(self, pusher: RegistryPusher, image: ImageReference) -> None:
        """``pusher`` is closed by who made it."""
        self._pusher = pusher
        self._image = image

    async def has(self, digest: Digest) -> bool:
        """See :class:`Target`."""
        return await self._pusher.has_blob(self._image.repository, digest)

    async def put_blob(self, blob: Blob) -> None:
        """See :class:`Target`."""
        if await self.has(blob.digest):
            return
        source = None
        if blob.repository is not None and blob.repository[0] == self._image.registry:
            source = blob.repository[1]
        await self._pusher.push_blob(
            self._image.repository,
            blob.digest,
            blob.size,
            CheckedBlob(blob, self._image).open_at,
            source=source,
        )

    async def put_manifest(self, document: Document) -> None:
        """See :class:`Target`."""
        await self._push(str(document.digest), document)

    async def commit(self, root: Document) -> None:
        """See :class:`Target`."""
        wanted = self._image.digest
        if wanted is not None and Digest.of(root.body, wanted.algorithm) != wanted:
            raise PlaceUnusable(
                self._image, f"cannot name an image of the digest {root.digest}", "write a tag"
            )
        await self._push(self._image.tag or self._image.reference, root)

    async def _push(self, reference: str, document: Document) -> None:
        await self._pusher.push_manifest(
            self._image.repository, reference, document.body, document.media_type
        )
