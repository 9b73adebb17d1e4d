"""A filler on a real Unix socket that does what a test tells it, with real files and maps."""

import asyncio
from pathlib import Path
from typing import Any, Self

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.extent_map import BlobMap, StripeMap
from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode


class ScriptedBlob:
    """A blob whose bytes arrive when the test says so."""

    def __init__(self, directory: Path, digest: Digest, size: int) -> None:
        self.digest = digest
        self.size = size
        self.path = directory / digest.hex
        self.map_path = directory / f"{digest.hex}.map"
        geometry = Geometry(size, EXTENT_SIZE, 1)
        self.path.write_bytes(bytes(size))
        self.map = BlobMap([StripeMap.create(self.map_path, geometry, 0)])

    def arrive(self, count: int) -> None:
        """The first ``count`` bytes are here."""
        stripe = self.map.stripes[0]
        for extent in range(self.map.geometry.extents):
            length = self.map.geometry.extent_length(extent)
            here = max(0, min(length, count - extent * EXTENT_SIZE))
            whole = here // UNIT_SIZE if here < length else self.map.geometry.extent_units(extent)
            stripe.set_progress(extent, here, (1 << whole) - 1)

    def finish(self) -> None:
        """All is here and verified."""
        self.arrive(self.size)
        self.map.set_verified(True)


class FillServer:
    """Answers on ``fill.sock`` below a directory; an async context manager.

    ``opens`` and ``wants`` are the messages as they came; ``open_wants`` those that have neither
    been settled nor cancelled.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "fill.sock"
        self.blobs: dict[str, ScriptedBlob] = {}
        self.refusals: dict[str, FillFailed] = {}
        self.answers: dict[str, Message | FillFailed] = {}
        self.calls: list[Message] = []
        self.opens: list[Message] = []
        self.wants: list[Message] = []
        self.cancels: list[int] = []
        self.automatic = False
        """Whether every want is met at once."""

        self._open_wants: dict[int, tuple[Message, ScriptedBlob, asyncio.StreamWriter]] = {}
        self._handles: dict[int, tuple[ScriptedBlob, asyncio.StreamWriter]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._talk, self.socket)

    async def stop(self) -> None:
        """Break off, as a filler that is killed."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._handles.clear()
        self._open_wants.clear()
        await asyncio.sleep(0)

    @property
    def open_wants(self) -> list[Message]:
        """What is still waited for."""
        return [want for want, _, _ in self._open_wants.values()]

    def blob(self, digest: Digest, size: int) -> ScriptedBlob:
        """The blob of a digest, made at its first mention."""
        found = self.blobs.get(str(digest))
        if found is None:
            found = self.blobs[str(digest)] = ScriptedBlob(self.directory, digest, size)
        return found

    def finish(self, digest: Digest) -> None:
        """All of a blob is here: settle its wants and say so."""
        blob = self.blobs[str(digest)]
        blob.finish()
        for number, (_, wanted, writer) in list(self._open_wants.items()):
            if wanted is blob:
                del self._open_wants[number]
                self._send(writer, {"type": "done", "id": number})
        self._tell(blob, {"type": "state", "state": "complete"})

    def arrive(self, digest: Digest, count: int) -> None:
        """The first bytes of a blob are here: say so."""
        blob = self.blobs[str(digest)]
        blob.arrive(count)
        self._tell(blob, {"type": "arrived"})

    def fail(self, digest: Digest, failure: FillFailed) -> None:
        """Settle the wants of a blob with a reason."""
        blob = self.blobs[str(digest)]
        for number, (_, wanted, writer) in list(self._open_wants.items()):
            if wanted is blob:
                del self._open_wants[number]
                self._send(writer, {"type": "failed", "id": number, **failure.as_message()})

    def _tell(self, blob: ScriptedBlob, message: Message) -> None:
        for handle, (opened, writer) in self._handles.items():
            if opened is blob:
                self._send(writer, {**message, "handle": handle})

    @staticmethod
    def _send(writer: asyncio.StreamWriter, message: Message) -> None:
        writer.write(encode(message))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        decoder = Decoder()
        try:
            while received := await reader.read(65536):
                for message in decoder.feed(received):
                    self._receive(message, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    def _receive(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = message.get("id")
        match message["type"]:
            case "hello":
                hello: Message = {"type": "hello", "version": PROTOCOL_VERSION, "store": "s"}
                self._send(writer, {**hello, "id": number, "boot": "b"})
            case "open":
                self._send(writer, {**self._opened(message, writer), "id": number})
            case "want":
                self.wants.append(message)
                blob, _ = self._handles[message["handle"]]
                self._open_wants[message["id"]] = (message, blob, writer)
                if self.automatic:
                    self.finish(blob.digest)
            case "cancel":
                self.cancels.append(message["id"])
                self._open_wants.pop(message["id"], None)
            case "close":
                self._handles.pop(message["handle"], None)
            case "follow" | "unfollow" | "touch":
                pass
            case kind:
                self.calls.append(message)
                answer = self.answers.get(kind, FillFailed("protocol", f"{kind} is not scripted"))
                if isinstance(answer, FillFailed):
                    answer = {"type": "failed", **answer.as_message()}
                self._send(writer, {**answer, "id": number})

    def _opened(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> Message:
        self.opens.append(message)
        digest = message["digest"]
        refusal = self.refusals.get(digest)
        if refusal is not None:
            return {"type": "failed", **refusal.as_message()}
        blob = self.blob(Digest.parse(digest), int(message.get("size", 0)))
        handle = len(self.opens)
        self._handles[handle] = (blob, writer)
        return {
            "type": "opened",
            "handle": handle,
            "state": "complete" if blob.map.verified else "streaming",
            "paths": [str(blob.path)],
            "map": [str(blob.map_path)],
            "size": blob.size,
        }
