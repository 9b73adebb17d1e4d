"""Archives as ``docker save`` writes them since 25.0: an OCI layout and manifest.json in a tar.

``docker load`` and ``podman load`` read manifest.json, ``ctr images import`` and skopeo's
oci-archive index.json. Equal images written in the same order give equal bytes.
"""

import asyncio
import json
import tarfile
from contextlib import aclosing
from pathlib import PurePosixPath

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Index, Manifest, read_manifest
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.checking import CheckedBlob
from headstart.convert.places.docker_form import MANIFEST_FILE, SavedImage, saved_entry
from headstart.convert.places.files import NewFile, gathered
from headstart.convert.places.naming import ArchivePlace
from headstart.convert.places.place import Blob, Document
from headstart.convert.places.root import INDEX_FILE, LAYOUT, LAYOUT_FILE, entry

_BLOCK = tarfile.BLOCKSIZE


class ArchiveTarget:
    """Writes an archive of one image. Close it at the end: without a commit nothing is left."""

    def __init__(self, place: ArchivePlace) -> None:
        """Writes nothing yet."""
        self._place = place
        self._file: NewFile | None = None
        self._written: set[Digest] = set()
        self._directories: set[str] = set()
        self._manifests: dict[Digest, Manifest] = {}
        self._turn = asyncio.Lock()
        self._spoiled = False

    def close(self) -> None:
        """Remove what is not committed."""
        if self._file is not None:
            self._file.discard()

    async def has(self, digest: Digest) -> bool:
        """See :class:`Target`."""
        return digest in self._written

    async def put_blob(self, blob: Blob) -> None:
        """See :class:`Target`. A blob that breaks off spoils the whole archive."""
        async with self._turn:
            if blob.digest in self._written:
                return
            # The size stands before the bytes: it has to be right, and CheckedBlob sees to that.
            await asyncio.to_thread(self._begin, _path(blob.digest), blob.size)
            self._spoiled = True
            async with (
                CheckedBlob(blob, self._place).open_at(0) as pieces,
                aclosing(gathered(pieces)) as large,
            ):
                async for piece in large:
                    await asyncio.to_thread(self._write, piece)
            await asyncio.to_thread(self._write, bytes(-blob.size % _BLOCK))
            self._spoiled = False
            self._written.add(blob.digest)

    async def put_manifest(self, document: Document) -> None:
        """See :class:`Target`."""
        async with self._turn:
            if document.digest not in self._written:
                await asyncio.to_thread(self._put, _path(document.digest), document.body)
                self._written.add(document.digest)
        read = self._read(document)
        if isinstance(read, Manifest):
            self._manifests[document.digest] = read

    async def commit(self, root: Document) -> None:
        """See :class:`Target`. manifest.json names the first image of an index."""
        await self.put_manifest(root)
        await asyncio.to_thread(self._finish, root)

    def _finish(self, root: Document) -> None:
        image = self._place.image
        name = image.tag if image is not None else None
        index = {"schemaVersion": 2, "manifests": [entry(root, name, self._full_name())]}
        saved = [saved_entry(found) for found in self._saved(root)]
        self._put(INDEX_FILE, json.dumps(index, separators=(",", ":")).encode())
        self._put(MANIFEST_FILE, json.dumps(saved, separators=(",", ":")).encode())
        self._put(LAYOUT_FILE, LAYOUT)
        self._write(bytes(2 * _BLOCK))
        assert self._file is not None
        self._file.settle()

    def _saved(self, root: Document) -> list[SavedImage]:
        name = self._full_name()
        names = (name,) if name is not None else ()
        for manifest in self._images(root):
            if manifest.config is not None:
                layers = tuple(_path(layer.digest) for layer in manifest.layers)
                return [SavedImage(names, _path(manifest.config.digest), layers)]
        return []

    def _full_name(self) -> str | None:
        """Without a digest, which docker takes for no name."""
        image = self._place.image
        if image is None or image.tag is None:
            return None
        return f"{image.registry}/{image.repository}:{image.tag}"

    def _images(self, root: Document) -> list[Manifest]:
        read = self._read(root)
        if isinstance(read, Manifest):
            return [read]
        return [
            self._manifests[listed.digest]
            for listed in read.manifests
            if listed.digest in self._manifests
        ]

    def _read(self, document: Document) -> Manifest | Index:
        try:
            return read_manifest(document.body, document.media_type)
        except InvalidInput as error:
            raise PlaceUnusable(
                self._place, f"is not given an image: {error}", "name another source"
            ) from error

    def _begin(self, name: str, size: int) -> None:
        """Write the header of a file, after those of the directories that it is the first in."""
        if self._spoiled:
            raise PlaceUnusable(self._place, "is spoiled by a blob that broke off", "begin anew")
        if self._file is None:
            if self._place.file.is_dir():
                raise PlaceUnusable(self._place, "is a directory", "name a file")
            self._file = NewFile(self._place.file, self._place)
        for parent in reversed(PurePosixPath(name).parents):
            directory = str(parent)
            if directory != "." and directory not in self._directories:
                self._directories.add(directory)
                self._write(_header(directory, 0, tarfile.DIRTYPE))
        self._write(_header(name, size, tarfile.REGTYPE))

    def _put(self, name: str, body: bytes) -> None:
        self._begin(name, len(body))
        self._write(body + bytes(-len(body) % _BLOCK))

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _header(name: str, size: int, kind: bytes) -> bytes:
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, size
    found.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    # The size of more than 8 GiB goes into the header itself, in base 256.
    return found.tobuf(tarfile.GNU_FORMAT)
