"""OCI layouts on disk, read and written (OCI image specification, image-layout.md)."""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.manifest import Descriptor
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.checking import CheckedBlob, checked_document
from headstart.convert.places.files import NewFile, gathered, open_at_of, read_document
from headstart.convert.places.naming import LayoutPlace
from headstart.convert.places.place import MOST_DOCUMENT, Blob, Document
from headstart.convert.places.root import (
    INDEX_FILE,
    LAYOUT,
    LAYOUT_FILE,
    NAME,
    check_layout,
    entry,
    read_index,
    select,
)


def _blob_file(directory: Path, digest: Digest) -> Path:
    return directory / "blobs" / digest.algorithm / digest.hex


class LayoutSource:
    """Reads an image of a layout."""

    def __init__(self, place: LayoutPlace) -> None:
        """Reads nothing yet."""
        self._place = place

    async def root(self) -> Document:
        """See :class:`Source`."""
        return await asyncio.to_thread(self._read_root)

    async def manifest(self, descriptor: Descriptor) -> Document:
        """See :class:`Source`."""
        return await asyncio.to_thread(self._read_manifest, descriptor)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See :class:`Source`."""
        path = _blob_file(self._place.directory, descriptor.digest)
        return Blob(descriptor.digest, descriptor.size, open_at_of(path, self._place))

    def _read_root(self) -> Document:
        directory = self._place.directory
        if not (directory / LAYOUT_FILE).is_file():
            raise PlaceUnusable(
                self._place,
                f"is no OCI layout: there is no {directory / LAYOUT_FILE}",
                "name a directory that holds one",
            )
        check_layout(
            read_document(directory / LAYOUT_FILE, MOST_DOCUMENT, self._place), self._place
        )
        body = read_document(directory / INDEX_FILE, MOST_DOCUMENT, self._place)
        images = read_index(body, self._place)
        return self._read_manifest(select(images, self._place.name, self._place))

    def _read_manifest(self, descriptor: Descriptor) -> Document:
        path = _blob_file(self._place.directory, descriptor.digest)
        body = read_document(path, MOST_DOCUMENT, self._place)
        return checked_document(
            body, descriptor.media_type, descriptor.digest, descriptor.size, self._place
        )


class LayoutTarget:
    """Adds an image to a layout, which is made where there is none."""

    def __init__(self, place: LayoutPlace) -> None:
        """Writes nothing yet."""
        self._place = place
        self._directory = place.directory
        self._prepared = False
        self._turn = asyncio.Lock()

    async def has(self, digest: Digest) -> bool:
        """See :class:`Target`."""
        return await asyncio.to_thread(_blob_file(self._directory, digest).is_file)

    async def put_blob(self, blob: Blob) -> None:
        """See :class:`Target`."""
        if await self.has(blob.digest):
            return
        await self._prepare()
        file = await asyncio.to_thread(self._new_file, blob.digest)
        try:
            async with (
                CheckedBlob(blob, self._place).open_at(0) as pieces,
                aclosing(gathered(pieces)) as large,
            ):
                async for piece in large:
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(file.settle)
        finally:
            file.discard()

    async def put_manifest(self, document: Document) -> None:
        """See :class:`Target`."""
        if not await self.has(document.digest):
            path = _blob_file(self._directory, document.digest)
            await self._prepare()
            await asyncio.to_thread(self._write, path, document.body)

    async def commit(self, root: Document) -> None:
        """See :class:`Target`."""
        await self.put_manifest(root)
        await asyncio.to_thread(self._name, root)

    def _new_file(self, digest: Digest) -> NewFile:
        path = _blob_file(self._directory, digest)
        self._make_directory(path.parent)
        return NewFile(path, self._place)

    def _write(self, path: Path, body: bytes) -> None:
        self._make_directory(path.parent)
        file = NewFile(path, self._place)
        try:
            file.write(body)
            file.settle()
        finally:
            file.discard()

    def _make_directory(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlaceUnusable(
                self._place,
                f"cannot be made: {directory}: {error.strerror}",
                "name a directory that is writable",
            ) from error

    async def _prepare(self) -> None:
        async with self._turn:
            if not self._prepared:
                await asyncio.to_thread(self._make_layout)
                self._prepared = True

    def _make_layout(self) -> None:
        """Have a layout there; nothing else in the directory is mistaken for one."""
        self._make_directory(self._directory)
        mark = self._directory / LAYOUT_FILE
        found = list(self._directory.iterdir())  # before the mark: what others begin meanwhile
        if mark.is_file():
            check_layout(read_document(mark, MOST_DOCUMENT, self._place), self._place)
        elif any(not other.name.startswith(f".{LAYOUT_FILE}.") for other in found):
            raise PlaceUnusable(
                self._place, "is neither empty nor an OCI layout", "name another directory"
            )
        else:
            self._write(mark, LAYOUT)

    def _name(self, root: Document) -> None:
        name = self._place.name
        with self._locked():
            others = [other for other in self._listed() if _name_of(other) != name]
            index = {"schemaVersion": 2, "manifests": [*others, entry(root, name)]}
            self._write(self._directory / INDEX_FILE, json.dumps(index).encode())

    def _listed(self) -> list[dict[str, object]]:
        """The images there as they are written, with whatever others say of them."""
        path = self._directory / INDEX_FILE
        if not path.exists():
            return []
        body = read_document(path, MOST_DOCUMENT, self._place)
        read_index(body, self._place)
        listed: list[dict[str, object]] = json.loads(body)["manifests"]
        return listed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out others of us who name an image in the same layout."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _name_of(listed: dict[str, object]) -> object:
    annotations = listed.get("annotations")
    return annotations.get(NAME) if isinstance(annotations, dict) else None
