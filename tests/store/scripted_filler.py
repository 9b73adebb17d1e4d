"""A filler on a real Unix socket that does what a test tells it, and a blob that it serves.

Correct by default: it greets, opens one blob for everybody and keeps wants unanswered until the
test answers them. ``answers["open"]`` and the like replace what it does with one kind of request::

    async with ScriptedFiller(directory) as filler, FillClient(filler.path, "mirror") as client:
        ...
        await filler.until("want")
        filler.blob.bring(MIB)
        filler.notify({"type": "arrived"})
"""

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.extent_map import STATE_UNCHECKED
from headstart.store.geometry import MIB, Geometry
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode
from tests.store.stored_objects import create_maps, pattern

SIZE = 3 * MIB + 77
DIGEST = Digest.of(b"any")

Answer = Callable[[Message], Message | None]


class ServedBlob:
    """Files and map of one blob; the bytes come when the test says so."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.geometry = Geometry(SIZE, MIB, 1)
        self.path = directory / "blob"
        self.maps = create_maps(directory, self.geometry)
        self.map_path = directory / "0.map"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def bring(self, stop: int, start: int = 0) -> None:
        """Write and publish the bytes up to ``stop``."""
        os.pwrite(self._file, pattern(start, stop - start), start)
        for extent in range(self.geometry.extents):
            base = extent * MIB
            stripe, record = self.maps.locate(extent)
            reached = min(max(stop - base, 0), self.geometry.extent_length(extent))
            stripe.set_progress(record, max(stripe.watermark(record), reached), 0)

    def distrust(self) -> None:
        """Make every extent unchecked, as the filler does with a file changed behind its back."""
        for extent in range(self.geometry.extents):
            stripe, record = self.maps.locate(extent)
            stripe.set_state(record, STATE_UNCHECKED)

    def trust(self) -> None:
        """Believe them again."""
        for extent in range(self.geometry.extents):
            stripe, record = self.maps.locate(extent)
            stripe.set_state(record, 0)

    def close(self) -> None:
        """Close the filler's side of it."""
        os.close(self._file)
        self.maps.close()


class ScriptedFiller:
    """The server; one client at a time."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fill.sock"
        self.blob = ServedBlob(directory / "stored")
        self.received: list[Message] = []
        """Every request after the greeting, in order, over all connections."""
        self.connections = 0
        self.answers: dict[str, Answer] = {
            "hello": self._hello,
            "open": self.opened,
        }
        self.pieces: int | None = None
        """Send everything in pieces of so many bytes."""
        self._handles = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.blob.close()

    async def start(self) -> None:
        """Listen, in place of an earlier socket."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Stop to listen and break every connection, as SIGKILL does."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.drop()
            await asyncio.sleep(0)

    def drop(self) -> None:
        """Break every connection where it stands."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def restart(self) -> None:
        """Another filler takes over: its handles count from elsewhere."""
        await self.stop()
        self._handles = itertools.count(next(self._handles) + 100)
        await self.start()

    # --- requests ---

    def requests(self, kind: str) -> list[Message]:
        """The requests of one type."""
        return [message for message in self.received if message.get("type") == kind]

    async def until(self, kind: str, count: int = 1) -> Message:
        """Wait for the ``count``-th request of a type."""
        while len(self.requests(kind)) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.requests(kind)[count - 1]

    async def until_connected(self, count: int) -> None:
        """Wait for the ``count``-th connection."""
        while self.connections < count:
            self._changed.clear()
            await self._changed.wait()

    # --- answers ---

    def send(self, message: Message) -> None:
        """Send a message to the client."""
        self.send_raw(encode(message))

    def send_raw(self, payload: bytes) -> None:
        """Send any bytes to the client."""
        for writer in self._writers:
            for start in range(0, len(payload), self.pieces or len(payload)):
                writer.write(payload[start : start + (self.pieces or len(payload))])

    def answer(self, request: Message, message: Message) -> None:
        """Answer a request."""
        self.send({**message, "id": request["id"]})

    def fail(self, request: Message, failure: FillFailed) -> None:
        """Answer a request with a failure."""
        self.answer(request, {"type": "failed", **failure.as_message()})

    def notify(self, message: Message, opening: int = -1) -> None:
        """Say something of the handle that the ``opening``-th ``open`` was given."""
        self.send({"handle": self.requests("open")[opening]["handle"], **message})

    def opened(self, request: Message, **changed: object) -> Message:
        """The answer to ``open``, with a new handle; noted in the request too."""
        request["handle"] = next(self._handles)
        return {
            "type": "opened",
            "handle": request["handle"],
            "size": SIZE,
            "state": "streaming",
            **self.files(),
            **changed,
        }

    def files(self) -> Message:
        """The fields that name the blob's files."""
        return {"paths": [str(self.blob.path)], "map": [str(self.blob.map_path)]}

    @staticmethod
    def _hello(_: Message) -> Message:
        return {"type": "hello", "version": PROTOCOL_VERSION, "store": "x", "boot": "y"}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        decoder = Decoder()
        try:
            while received := await reader.read(1 << 16):
                for message in decoder.feed(received):
                    self._take(message)
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _take(self, message: Message) -> None:
        kind = str(message["type"])
        if kind != "hello":
            self.received.append(message)
        answer = self.answers.get(kind)
        answered = answer(message) if answer is not None else None
        if answered is not None:
            self.answer(message, answered)
        self._changed.set()
