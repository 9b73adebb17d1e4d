"""Everything read is compared with the digest by which it was asked for."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from headstart.content.digest import Digest
from headstart.convert.errors import ContentDamaged
from headstart.convert.places.place import Blob, Document

_REMEDY = "get the image once more from where it came"


class CheckedBlob:
    """A blob whose last piece is given out only when all of it has its digest and size.

    It may be opened again, at an offset that has been read before: what an upload needs that goes
    on after a break.
    """

    def __init__(self, blob: Blob, place: object) -> None:
        """``place`` is named in errors."""
        self._blob = blob
        self._place = place
        self._hasher = blob.digest.hasher()
        self._hashed = 0

    @asynccontextmanager
    async def open_at(self, start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes from ``start`` to the end. Raises ContentDamaged."""
        if start > self._hashed:
            raise ValueError(f"{start} is behind the {self._hashed} bytes that were read")
        async with (
            self._blob.open_at(start) as pieces,
            aclosing(self._checked(start, pieces)) as checked,
        ):
            yield checked

    async def _checked(
        self, start: int, pieces: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        position, size = start, self._blob.size
        async for piece in pieces:
            position += len(piece)
            if position > size:
                raise self._damaged(f"has more than the {size} bytes that it should have")
            if position > self._hashed:
                self._hasher.update(memoryview(piece)[self._hashed - position :])
                self._hashed = position
            if position == size:
                self._compare()
            yield piece
        if position < size:
            raise self._damaged(f"has {position} bytes of the {size} that it should have")
        self._compare()

    def _compare(self) -> None:
        found = self._hasher.hexdigest()
        if found != self._blob.digest.hex:
            raise self._damaged(f"has bytes of the digest {self._blob.digest.algorithm}:{found}")

    def _damaged(self, problem: str) -> ContentDamaged:
        return ContentDamaged(self._place, f"is damaged: {self._blob.digest} {problem}", _REMEDY)


def checked_document(
    body: bytes, media_type: str, digest: Digest, size: int, place: object
) -> Document:
    """The document with these bytes. Raises ContentDamaged."""
    found = Digest.of(body, digest.algorithm)
    if found != digest or len(body) != size:
        raise ContentDamaged(
            place,
            f"is damaged: the manifest {digest} of {size} bytes has {len(body)} bytes of the "
            f"digest {found}",
            _REMEDY,
        )
    return Document(body, media_type, digest)
