"""Files that blobs are read from, and files that nobody sees before they are whole."""

import asyncio
import os
import secrets
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

from headstart.content.digest import Digest
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.place import PIECE, Blob
from headstart.registry.feed import OpenAt


def open_regular(path: Path, place: object) -> int:
    """A descriptor of a regular file, to be closed. Raises PlaceUnusable."""
    try:
        # A pipe of that name must not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PlaceUnusable(
            place, f"cannot be read: {path}: {error.strerror}", "name what is there and readable"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PlaceUnusable(place, f"cannot be read: {path} is no regular file", "name a file")
    return descriptor


def read_document(path: Path, most: int, place: object) -> bytes:
    """The bytes of a small file. Raises PlaceUnusable, above ``most`` bytes too."""
    descriptor = open_regular(path, place)
    with os.fdopen(descriptor, "rb") as file:
        body = file.read(most + 1)
    if len(body) > most:
        raise PlaceUnusable(
            place, f"has a {path.name} of more than {most} bytes", "name an ordinary image"
        )
    return body


def open_at_of(path: Path, place: object) -> OpenAt:
    """Gives the bytes of a file from an offset."""

    @asynccontextmanager
    async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        descriptor = await asyncio.to_thread(open_regular, path, place)
        try:
            size = os.fstat(descriptor).st_size
            async with aclosing(pieces(descriptor, start, size, place)) as read:
                yield read
        finally:
            os.close(descriptor)

    return open_at


def file_blob(path: Path, digest: Digest, size: int) -> Blob:
    """The blob that a file is."""
    return Blob(digest, size, open_at_of(path, path))


async def pieces(
    descriptor: int, start: int, stop: int, place: object
) -> AsyncGenerator[bytes, None]:
    """The bytes from ``start`` to ``stop``, or to the file's end where that comes first."""
    while start < stop:
        try:
            piece = await asyncio.to_thread(os.pread, descriptor, min(PIECE, stop - start), start)
        except OSError as error:
            raise PlaceUnusable(
                place, f"cannot be read: {error.strerror}", "look at its disk"
            ) from error
        if not piece:
            return
        start += len(piece)
        yield piece


async def gathered(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Small pieces as large ones: each write costs a way to a thread and back."""
    waiting, size = [], 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


class NewFile:
    """A file beside ``path`` that takes its place when it is whole.

    A thread may still write while who began it has been cancelled and discards the file.
    """

    def __init__(self, path: Path, place: object) -> None:
        """Create it. Raises PlaceUnusable."""
        self._path = path
        self._place = place
        self._lock = threading.Lock()
        self._temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor: int | None = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise self._unusable(error) from error

    def write(self, content: bytes) -> None:
        """Append. Raises PlaceUnusable."""
        left = memoryview(content)
        with self._lock:
            descriptor = self._open()
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError as error:
                raise self._unusable(error) from error

    def settle(self) -> None:
        """Have it on the disk, and under its name. Raises PlaceUnusable."""
        with self._lock:
            try:
                os.fsync(self._open())
                self._close()
                self._temporary.replace(self._path)
                sync_directory(self._path.parent)
            except OSError as error:
                raise self._unusable(error) from error

    def discard(self) -> None:
        """Remove it, unless it is settled."""
        with self._lock:
            self._close()
            with suppress(OSError):
                self._temporary.unlink()

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path} is written no more")
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unusable(self, error: OSError) -> PlaceUnusable:
        return PlaceUnusable(
            self._place,
            f"cannot be written: {self._path}: {error.strerror}",
            "name a place with room and the right to write",
        )


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
