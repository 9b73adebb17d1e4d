"""Archives of ``docker save``, plain or gzipped, of the old form and of the new one.

The new form is an OCI layout in a tar and has descriptors; of the old one a manifest is made.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import BinaryIO, cast

from isal import igzip, igzip_lib

from headstart.content.config import MOST_BYTES, read_diff_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Descriptor
from headstart.convert.errors import ContentDamaged, PlaceUnusable
from headstart.convert.places.checking import checked_document
from headstart.convert.places.docker_form import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MANIFEST_FILE,
    FoundBlob,
    SavedImage,
    describe,
    layer_type,
    read_saved,
    select_saved,
)
from headstart.convert.places.files import open_regular, pieces
from headstart.convert.places.members import Member, Members
from headstart.convert.places.naming import ArchivePlace
from headstart.convert.places.place import MOST_DOCUMENT, PIECE, Blob, Document
from headstart.convert.places.root import (
    INDEX_FILE,
    LAYOUT_FILE,
    check_layout,
    read_index,
    select,
)

# The library has no types.
_open_inflating = cast(Callable[[BinaryIO, str], BinaryIO], igzip.open)
_DAMAGED = cast(type[Exception], igzip_lib.IsalError)
_GZIP = b"\x1f\x8b"
_NAMED_BY_DIGEST = re.compile(r"([0-9a-f]{64})(?:\.json)?")
_REMEDY = "make the archive anew"


class ArchiveSource:
    """Reads an image of an archive. Close it at the end."""

    def __init__(self, place: ArchivePlace) -> None:
        """Opens nothing yet."""
        self._place = place
        self._descriptor: int | None = None
        self._members = Members(place)
        self._found: dict[Digest, Member] = {}
        """Where the blobs of an old archive are, whose names are not their digests."""

    def close(self) -> None:
        """Close the archive, and remove what was inflated of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def root(self) -> Document:
        """See :class:`Source`; reads all layers once where the archive has no descriptors."""
        return await asyncio.to_thread(self._read_root)

    async def manifest(self, descriptor: Descriptor) -> Document:
        """See :class:`Source`."""
        return await asyncio.to_thread(self._read_manifest, descriptor)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See :class:`Source`."""

        @asynccontextmanager
        async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            member = self._member(descriptor.digest)
            first, stop = member.offset + start, member.offset + member.size
            async with aclosing(pieces(self._opened(), first, stop, self._place)) as read:
                yield read

        return Blob(descriptor.digest, descriptor.size, open_at)

    def _opened(self) -> int:
        if self._descriptor is None:
            raise ValueError("root() comes first")
        return self._descriptor

    def _read_root(self) -> Document:
        self.close()
        self._descriptor = self._open()
        self._members = members = Members.read(self._descriptor, self._place)
        if LAYOUT_FILE in members and INDEX_FILE in members:
            check_layout(self._read(LAYOUT_FILE, MOST_DOCUMENT), self._place)
            images = read_index(self._read(INDEX_FILE, MOST_DOCUMENT), self._place)
            return self._read_manifest(select(images, self._place.image, self._place))
        if MANIFEST_FILE in members:
            saved = read_saved(self._read(MANIFEST_FILE, MOST_DOCUMENT), self._place)
            return self._describe(select_saved(saved, self._place.image, self._place))
        raise PlaceUnusable(
            self._place,
            f"holds neither {MANIFEST_FILE} nor {LAYOUT_FILE} and {INDEX_FILE}",
            "name what docker save or podman save has made",
        )

    def _open(self) -> int:
        """A descriptor of the plain tar; a gzipped one is inflated to a file without a name."""
        descriptor = open_regular(self._place.file, self._place)
        try:
            if os.pread(descriptor, len(_GZIP), 0) == _GZIP:
                return self._inflated(descriptor)
            return os.dup(descriptor)
        finally:
            os.close(descriptor)

    def _inflated(self, descriptor: int) -> int:
        try:
            with (
                open(descriptor, "rb", closefd=False) as packed,
                _open_inflating(packed, "rb") as plain,
                tempfile.TemporaryFile() as file,
            ):
                while piece := plain.read(PIECE):
                    file.write(piece)
                file.flush()
                return os.dup(file.fileno())
        except (OSError, EOFError, _DAMAGED) as error:
            raise PlaceUnusable(
                self._place,
                f"cannot be inflated to {tempfile.gettempdir()}: {error}",
                "inflate it with gunzip, or set TMPDIR to a directory with room",
            ) from error

    def _member(self, digest: Digest) -> Member:
        if digest in self._found:
            return self._found[digest]
        return self._members.find(f"blobs/{digest.algorithm}/{digest.hex}")

    def _read_manifest(self, descriptor: Descriptor) -> Document:
        digest = descriptor.digest
        body = self._read(f"blobs/{digest.algorithm}/{digest.hex}", MOST_DOCUMENT)
        return checked_document(body, descriptor.media_type, digest, descriptor.size, self._place)

    def _read(self, name: str, most: int) -> bytes:
        member = self._members.find(name)
        if member.size > most:
            raise PlaceUnusable(
                self._place, f"has a {name} of {member.size} bytes", "name an ordinary image"
            )
        return os.pread(self._opened(), member.size, member.offset)

    # --- the old form ---

    def _describe(self, saved: SavedImage) -> Document:
        body = self._read(saved.config, MOST_BYTES)
        config = FoundBlob(Digest.of(body), len(body), CONFIG_TYPE)
        named = _NAMED_BY_DIGEST.fullmatch(saved.config.rpartition("/")[2])
        if named is not None and named[1] != config.digest.hex:
            raise self._damaged(saved.config, f"sha256:{named[1]}", config.digest)
        try:
            diff_ids = read_diff_ids(body)
        except InvalidInput as error:
            raise PlaceUnusable(self._place, f"is unusable: {error}", _REMEDY) from error
        if len(diff_ids) != len(saved.layers):
            raise PlaceUnusable(
                self._place, f"has {len(saved.layers)} layers and {len(diff_ids)} diff IDs", _REMEDY
            )
        self._found = {config.digest: self._members.find(saved.config)}
        layers = [
            self._find_layer(name, diff_id)
            for name, diff_id in zip(saved.layers, diff_ids, strict=True)
        ]
        return describe(config, layers)

    def _find_layer(self, name: str, diff_id: Digest) -> FoundBlob:
        member = self._members.find(name)
        hasher = diff_id.hasher()
        start, stop = member.offset, member.offset + member.size
        beginning = os.pread(self._opened(), min(4, member.size), start)
        while start < stop:
            piece = os.pread(self._opened(), min(PIECE, stop - start), start)
            if not piece:
                raise PlaceUnusable(self._place, f"ends within {name}", _REMEDY)
            hasher.update(piece)
            start += len(piece)
        found = FoundBlob(
            Digest(diff_id.algorithm, hasher.hexdigest()), member.size, layer_type(beginning)
        )
        if found.media_type == LAYER_TYPE and found.digest != diff_id:
            raise self._damaged(name, str(diff_id), found.digest)
        self._found[found.digest] = member
        return found

    def _damaged(self, name: str, expected: str, found: Digest) -> ContentDamaged:
        return ContentDamaged(
            self._place, f"is damaged: {name} should be {expected} and is {found}", _REMEDY
        )
