"""A blob's bytes on their way to one client: framed, counted, timed."""

import asyncio
from collections.abc import Iterator

from headstart.content.digest import Digest
from headstart.store.cached_blob import CachedBlob, DescriptorRun
from headstart.store.open_blob import OpenBlob
from proxy.serve.delivery import Delivery
from proxy.serve.request import Fields, Request
from proxy.serve.services import BlobWatch

PIECE_BYTES = 32 * 1024 * 1024
"""What is handed to the kernel in one message; the book of pulls is told after each."""


def pieces(blob: CachedBlob, start: int, stop: int) -> Iterator[DescriptorRun]:
    """Bytes ``start`` to ``stop`` as runs of files, of at most :data:`PIECE_BYTES`."""
    for descriptor, offset, length in blob.runs(start, stop):
        while length > PIECE_BYTES:
            yield DescriptorRun(descriptor, offset, PIECE_BYTES)
            offset += PIECE_BYTES
            length -= PIECE_BYTES
        yield DescriptorRun(descriptor, offset, length)


class Presence:
    """Which bytes of an answer were here when it began: to the extent where it matters.

    What is here from the start of each part on is counted to the byte, further on whole extents.
    """

    def __init__(self, handle: OpenBlob, delivery: Delivery) -> None:
        """Look at the map once; not at all where the handle was opened for this very answer."""
        blob = handle.blob
        self._extent_size = blob.geometry.extent_size
        self._prefixes: list[tuple[int, int]] = []
        self._whole: set[int] = set()
        self.bytes = 0
        self.complete = False
        if handle.opened_empty:
            handle.opened_empty = False
            return
        for start, stop in delivery.parts:
            reached = start + blob.available(start, stop - start)
            self._prefixes.append((start, reached))
            if reached < stop:
                for extent in range(
                    reached // self._extent_size + 1, -(-stop // self._extent_size)
                ):
                    if blob.map.whole(extent):
                        self._whole.add(extent)
            self.bytes += self.count(start, stop)
        self.complete = self.bytes == sum(part.length for part in delivery.parts)

    def count(self, start: int, stop: int) -> int:
        """How many of the bytes ``start`` to ``stop`` were here."""
        found = 0
        for first, reached in self._prefixes:
            if first <= start < reached:
                found = min(stop, reached) - start
                break
        position = start + found
        while position < stop:
            extent = position // self._extent_size
            border = min(stop, (extent + 1) * self._extent_size)
            if extent in self._whole:
                found += border - position
            position = border
        return found

    def word(self) -> bytes:
        """The value of X-Headstart-Cache."""
        if self.complete:
            return b"hit"
        return b"partial" if self.bytes else b"miss"


def blob_fields(digest: Digest, cache: bytes) -> Fields:
    """The header fields of every answer about a blob."""
    name = str(digest).encode("ascii")
    return [
        (b"docker-content-digest", name),
        (b"etag", b'"%s"' % name),
        (b"accept-ranges", b"bytes"),
        (b"x-headstart-cache", cache),
    ]


class Transmission:
    """One answer; ``position`` is the next byte of the part ``number``, None before its prelude."""

    def __init__(
        self, request: Request, digest: Digest, delivery: Delivery, watch: BlobWatch
    ) -> None:
        """Nothing is sent yet."""
        self.delivery = delivery
        self.started = False
        self.number = 0
        self.position: int | None = None
        self.sent = 0
        self._request = request
        self._digest = digest
        self._watch = watch

    @property
    def part_start(self) -> int:
        """The next byte of the blob that is due."""
        if self.position is not None:
            return self.position
        return self.delivery.parts[self.number].start

    async def start(self, cache: bytes, verified: bool) -> None:
        """Send the head; ``verified`` is whether the blob's digest has passed."""
        fields = blob_fields(self._digest, cache) + self.delivery.fields()
        if not verified and not self.delivery.to_the_end:
            fields.append((b"x-headstart-verified", b"false"))
        self.started = True
        await self._request.start(self.delivery.status, fields)

    async def enter(self) -> None:
        """Begin a part, unless it has begun."""
        if self.position is None:
            self.position = self.delivery.parts[self.number].start
            if self.delivery.preludes:
                await self._send_memory(self.delivery.preludes[self.number])

    def leave(self) -> None:
        """The part has been sent."""
        self.number += 1
        self.position = None

    async def send_cached(self, blob: CachedBlob, count: int, from_cache: int) -> None:
        """Send ``count`` bytes of the part from the files; ``from_cache`` of them were here."""
        start = self.part_start
        for descriptor, offset, length in pieces(blob, start, start + count):
            await self._send_run(descriptor, offset, length, more_body=True)
            self._count(min(length, from_cache), True)
            self._count(length - min(length, from_cache), False)
            from_cache -= min(length, from_cache)

    async def send_passing(self, piece: bytes) -> None:
        """Send bytes of the part that are not kept."""
        if piece:
            began = asyncio.get_running_loop().time()
            await self._send_memory(piece)
            self._watch.waited_for_client(asyncio.get_running_loop().time() - began)
            self._count(len(piece), False)

    async def end(self) -> None:
        """End the answer."""
        await self._request.send(
            {"type": "http.response.body", "body": self.delivery.epilogue, "more_body": False}
        )

    async def send_all(self, blob: CachedBlob) -> None:
        """Send everything, all of which is here."""
        last = len(self.delivery.parts) - 1
        for number, part in enumerate(self.delivery.parts):
            await self.enter()
            for descriptor, offset, length in pieces(blob, part.start, part.stop):
                final = number == last and self.position == part.stop - length
                more_body = not final or bool(self.delivery.epilogue)
                await self._send_run(descriptor, offset, length, more_body)
                self._count(length, True)
            self.leave()
        if self.delivery.epilogue or not self.sent:
            await self.end()

    async def _send_run(self, descriptor: int, offset: int, length: int, more_body: bool) -> None:
        time = asyncio.get_running_loop().time
        began = time()
        await self._request.send(
            {
                "type": "http.response.zerocopysend",
                "file": descriptor,
                "offset": offset,
                "count": length,
                "more_body": more_body,
            }
        )
        self._watch.waited_for_client(time() - began)

    async def _send_memory(self, content: bytes) -> None:
        await self._request.send({"type": "http.response.body", "body": content, "more_body": True})

    def _count(self, count: int, from_cache: bool) -> None:
        if count:
            self.sent += count
            self.position = self.part_start + count
            self._watch.sent(count, from_cache)
