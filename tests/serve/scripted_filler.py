"""A filler that does what a test tells it: real files and maps, a real ``fill.sock``, no upstream.

It runs in a thread of its own. What is wanted is only recorded, unless :attr:`brings` says that
wants are to be met at once::

    with ScriptedFiller(directory) as filler:
        digest = filler.add_blob(payload)
        filler.bring(digest, 100_000)       # the first bytes are here now
        filler.bring(digest); filler.verify(digest)
"""

import asyncio
import itertools
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.extent_map import BlobMap, StripeMap
from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry
from headstart.store.layout import Layout
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode

PATIENCE = 10.0


@dataclass(slots=True, eq=False)
class _Object:
    digest: Digest
    payload: bytes
    paths: list[Path]
    map: BlobMap
    geometry: Geometry
    handles: dict[int, "_Talk"] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Talk:
    writer: asyncio.StreamWriter
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: Message) -> None:
        if not self.writer.is_closing():
            self.writer.write(encode(message))


class ScriptedFiller:
    """One directory is its cache. Use it as a context manager."""

    def __init__(
        self, directory: Path, *, stripes: int = 1, extent_size: int = EXTENT_SIZE
    ) -> None:
        """Nothing is listened on yet."""
        self.layout = Layout(tuple(directory / str(number) for number in range(stripes)))
        self.layout.prepare()
        self.extent_size = extent_size
        self.brings = False
        """Whether every want brings the whole blob and verifies it."""
        self.hurries = False
        """Whether the whole blob is here, and verified, before an open is told its files."""
        self.received: list[Message] = []
        """All messages but greetings, in their order."""
        self._objects: dict[str, _Object] = {}
        self._refusals: dict[str, FillFailed] = {}
        self._wants: dict[int, tuple[_Object, _Talk]] = {}
        self._numbers = itertools.count(1)
        self._talks: set[_Talk] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted filler")
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        for stored in self._objects.values():
            stored.map.close()

    # --- the script ---

    def start(self) -> None:
        """Listen; also after :meth:`stop`."""

        async def listen() -> None:
            self._server = await asyncio.start_unix_server(self._talk, self.layout.fill_socket)

        self._run(listen())

    def stop(self) -> None:
        """Leave, as a filler that dies; its files stay. Clients have been greeted by then."""

        async def leave() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for talk in list(self._talks):
                talk.writer.close()
                await talk.ended.wait()
            self._wants.clear()
            for stored in self._objects.values():
                stored.handles.clear()

        self._run(leave())
        self.layout.fill_socket.unlink(missing_ok=True)

    def add_blob(self, payload: bytes, *, digest: str | None = None) -> str:
        """A blob of which nothing is here yet; ``digest`` to lie about it."""
        name = Digest.parse(digest) if digest else Digest.of(payload)
        geometry = Geometry(len(payload), self.extent_size, len(self.layout.stripes))
        paths = self.layout.blob_paths(name, geometry.stripes)
        maps = []
        for stripe, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.truncate(geometry.stripe_length(stripe))
            created = StripeMap.create(path.with_name(path.name + ".map"), geometry, stripe)
            maps.append(created)
        self._objects[str(name)] = _Object(name, payload, paths, BlobMap(maps), geometry)
        return str(name)

    def bring(self, digest: str, stop: int | None = None, *, start: int = 0) -> None:
        """Bytes ``start`` (on a unit's border) to ``stop`` are here from now on."""
        stored = self._objects[digest]
        self._run(self._bring(stored, start, len(stored.payload) if stop is None else stop))

    def verify(self, digest: str) -> None:
        """The digest has passed."""
        self._run(self._verify(self._objects[digest]))

    def refuse(self, digest: str, failure: FillFailed) -> None:
        """Whoever opens the blob is refused."""
        self._refusals[digest] = failure

    def fail(self, digest: str, failure: FillFailed) -> None:
        """The wants that are open for the blob fail."""

        async def fail() -> None:
            for number, (stored, talk) in list(self._wants.items()):
                if str(stored.digest) == digest:
                    del self._wants[number]
                    talk.send({"type": "failed", "id": number, **failure.as_message()})

        self._run(fail())

    def tell(self, digest: str, state: str, failure: FillFailed | None = None) -> None:
        """Send a ``state`` to everybody who has the blob open."""

        async def tell() -> None:
            rest = failure.as_message() if failure else {}
            for handle, talk in self._objects[digest].handles.items():
                talk.send({"type": "state", "handle": handle, "state": state, **rest})

        self._run(tell())

    def messages(self, kind: str) -> list[Message]:
        """The messages of a kind, in their order."""
        return [message for message in list(self.received) if message["type"] == kind]

    def open_wants(self) -> int:
        """Wants that have neither been met nor cancelled."""
        return len(self._wants)

    # --- fill.sock ---

    def _run(self, work: Any) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(PATIENCE)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = _Talk(writer)
        self._talks.add(talk)
        decoder = Decoder()
        try:
            while received := await reader.read(65536):
                for message in decoder.feed(received):
                    await self._receive(talk, message)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._talks.discard(talk)
            talk.ended.set()

    async def _receive(self, talk: _Talk, message: Message) -> None:
        number = message.get("id")
        if message["type"] == "hello":
            talk.send({"type": "hello", "id": number, "version": PROTOCOL_VERSION})
            return
        self.received.append(message)
        match message["type"]:
            case "open":
                await self._open(talk, message)
            case "want":
                await self._want(talk, message)
            case "cancel":
                self._wants.pop(int(str(number)), None)
            case "close":
                for stored in self._objects.values():
                    stored.handles.pop(int(str(message["handle"])), None)
            case "follow" | "unfollow" | "touch" | "suspect":
                pass
            case _:
                talk.send({"type": "ok", "id": number})

    async def _open(self, talk: _Talk, message: Message) -> None:
        digest = str(message["digest"])
        failure = self._refusals.get(digest)
        if failure is None and digest not in self._objects:
            failure = FillFailed("missing", "the upstream does not have it")
        if failure is not None:
            talk.send({"type": "failed", "id": message["id"], **failure.as_message()})
            return
        stored = self._objects[digest]
        handle = next(self._numbers)
        stored.handles[handle] = talk
        opened: Message = {"type": "opened", "id": message["id"], "handle": handle}
        files: Message = {
            "state": "streaming",
            "paths": [str(path) for path in stored.paths],
            "map": [str(path.with_name(path.name + ".map")) for path in stored.paths],
        }
        if self.hurries and not stored.map.verified:
            talk.send({**opened, "state": "planning", "empty": True})
            del stored.handles[handle]
            await self._bring(stored, 0, len(stored.payload))
            await self._verify(stored)
            stored.handles[handle] = talk
            talk.send({"type": "state", "handle": handle, **files})
            return
        talk.send({**opened, **files})

    async def _want(self, talk: _Talk, message: Message) -> None:
        number, handle = int(str(message["id"])), int(str(message["handle"]))
        stored = next(given for given in self._objects.values() if handle in given.handles)
        self._wants[number] = (stored, talk)
        if self.brings:
            await self._bring(stored, 0, len(stored.payload))
            await self._verify(stored)

    async def _bring(self, stored: _Object, start: int, stop: int) -> None:
        assert start % UNIT_SIZE == 0
        position = start
        for stripe, offset, length in stored.geometry.runs(start, stop):
            with stored.paths[stripe].open("r+b") as file:
                os.pwrite(file.fileno(), stored.payload[position : position + length], offset)
            position += length
        for extent in range(stored.geometry.extents):
            self._publish(stored, extent, start, stop)
        self._announce(stored)

    @staticmethod
    def _publish(stored: _Object, extent: int, start: int, stop: int) -> None:
        first = extent * stored.geometry.extent_size
        length = stored.geometry.extent_length(extent)
        low, high = max(0, start - first), min(length, stop - first)
        if low >= high:
            return
        stripe, record = stored.map.locate(extent)
        bits, watermark = stripe.bits(record), stripe.watermark(record)
        for unit in range(low // UNIT_SIZE, stored.geometry.extent_units(extent)):
            if min((unit + 1) * UNIT_SIZE, length) <= high:
                bits |= 1 << unit
        if low <= watermark:
            watermark = max(watermark, high)
        stripe.set_progress(record, watermark, bits)

    async def _verify(self, stored: _Object) -> None:
        stored.map.set_verified(True)
        for number, (wanted, talk) in list(self._wants.items()):
            if wanted is stored:
                del self._wants[number]
                talk.send({"type": "done", "id": number})
        for handle, talk in stored.handles.items():
            talk.send({"type": "state", "handle": handle, "state": "complete"})

    def _announce(self, stored: _Object) -> None:
        for handle, talk in stored.handles.items():
            talk.send({"type": "arrived", "handle": handle})
