"""A filler on a real Unix socket that does what a test tells it, with real files and maps."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.extent_map import BlobMap, StripeMap
from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry
from headstart.store.layer_map import BLOCK_SIZE, LayerMap, LayerStripeMap
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode


class ScriptedBlob:
    """A blob whose bytes arrive when the test says so."""

    def __init__(
        self, directory: Path, digest: Digest, size: int, content: bytes | None = None
    ) -> None:
        self.digest = digest
        self.size = size
        self.path = directory / digest.hex
        self.map_path = directory / f"{digest.hex}.map"
        geometry = Geometry(size, EXTENT_SIZE, 1)
        self.path.write_bytes(bytes(size) if content is None else content)
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

    def described(self) -> Message:
        """As ``opened`` says it."""
        return {
            "state": "complete" if self.map.verified else "streaming",
            "paths": [str(self.path)],
            "map": [str(self.map_path)],
            "size": self.size,
        }


class ScriptedLayer:
    """A layer image that becomes what the test says; its data device has :attr:`size` bytes."""

    size = 64 * BLOCK_SIZE

    def __init__(self, directory: Path, digest: Digest) -> None:
        self.digest = digest
        self.state = "planning"
        self.used = 0
        self._paths = [directory / f"layer-{digest.hex}{end}" for end in ("", ".meta", ".map")]
        device, meta, stored = self._paths
        device.write_bytes(bytes(self.size))
        meta.write_bytes(b"")
        geometry = Geometry(self.size, EXTENT_SIZE, 1)
        self._map = LayerMap([LayerStripeMap.create(stored, geometry, 0)])

    def arrive(self, blocks: int) -> None:
        """The first blocks of the data device are here."""
        self._map.stripes[0].set_blocks(0, 0, blocks)

    def described(self) -> Message:
        """As ``opened`` and ``state`` say it."""
        if self.state not in ("mountable", "complete"):
            return {"state": self.state, "used": self.used}
        device, meta, stored = map(str, self._paths)
        files: Message = {
            "meta": meta,
            "paths": [device],
            "map": [stored],
            "device_size": self.size,
        }
        return {"state": self.state, **files}


Scripted = ScriptedBlob | ScriptedLayer


class FillServer:
    """Answers on ``fill.sock`` below a directory; an async context manager.

    ``opens`` and ``wants`` are the messages as they came; ``open_wants`` those that have neither
    been settled nor cancelled. ``refusals`` are by digest of a blob, by diff ID of a layer image.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "fill.sock"
        self.blobs: dict[str, ScriptedBlob] = {}
        self.layers: dict[str, ScriptedLayer] = {}
        self.refusals: dict[str, FillFailed] = {}
        self.answers: dict[str, Message | FillFailed] = {"image": {"type": "ok"}}
        self.calls: list[Message] = []
        self.opens: list[Message] = []
        self.wants: list[Message] = []
        self.cancels: list[int] = []
        self.on_open: Callable[[Message], None] = lambda message: None
        """Called before the answer to an open."""

        self.automatic = False
        """Whether every want is met at once."""

        self._open_wants: dict[int, tuple[Message, Scripted, asyncio.StreamWriter]] = {}
        self._handles: dict[int, tuple[Scripted, asyncio.StreamWriter]] = {}
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

    def put(self, content: bytes) -> Digest:
        """Have a blob of known content; it is here once it is finished."""
        digest = Digest.of(content)
        self.blobs[str(digest)] = ScriptedBlob(self.directory, digest, len(content), content)
        return digest

    def layer(self, digest: Digest) -> ScriptedLayer:
        """The layer image of a digest, made at its first mention."""
        found = self.layers.get(str(digest))
        if found is None:
            found = self.layers[str(digest)] = ScriptedLayer(self.directory, digest)
        return found

    def finish(self, digest: Digest) -> None:
        """All of a blob is here: settle its wants and say so."""
        blob = self.blobs[str(digest)]
        blob.finish()
        self._settle(blob)
        self._tell(blob, {"type": "state", "state": "complete"})

    def enter(self, digest: Digest, state: str) -> None:
        """A layer image goes to another state: say so, and settle its wants when it is complete."""
        layer = self.layer(digest)
        layer.state = state
        self._tell(layer, {"type": "state", **layer.described()})
        if state == "complete":
            self._settle(layer)

    def refuse(self, digest: Digest, failure: FillFailed) -> None:
        """A layer image cannot be made."""
        layer = self.layers.pop(str(digest))
        self._tell(layer, {"type": "state", "state": "refused", **failure.as_message()})
        self._settle(layer, failure)

    def _settle(self, wanted: Scripted, failure: FillFailed | None = None) -> None:
        said = {"type": "done"} if failure is None else {"type": "failed", **failure.as_message()}
        for number, (_, of, writer) in list(self._open_wants.items()):
            if of is wanted:
                del self._open_wants[number]
                self._send(writer, {**said, "id": number})

    def arrive(self, digest: Digest, count: int) -> None:
        """The first bytes of a blob are here: say so."""
        blob = self.blobs[str(digest)]
        blob.arrive(count)
        self._tell(blob, {"type": "arrived"})

    def fail(self, digest: Digest, failure: FillFailed) -> None:
        """Settle the wants of a blob with a reason."""
        self._settle(self.blobs[str(digest)], failure)

    def _tell(self, about: Scripted, message: Message) -> None:
        for handle, (opened, writer) in self._handles.items():
            if opened is about:
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
                wanted, _ = self._handles[message["handle"]]
                self._open_wants[message["id"]] = (message, wanted, writer)
                if self.automatic:
                    self._meet(wanted)
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
        self.on_open(message)
        is_layer, digest = message["key"] == "layer", Digest.parse(message["digest"])
        refusal = self.refusals.get(message["diff_id"] if is_layer else str(digest))
        if refusal is not None:
            return {"type": "failed", **refusal.as_message()}
        size = int(message.get("size", 0))
        opened: Scripted = self.layer(digest) if is_layer else self.blob(digest, size)
        handle = len(self.opens)
        self._handles[handle] = (opened, writer)
        return {"type": "opened", "handle": handle, **opened.described()}

    def _meet(self, wanted: Scripted) -> None:
        if isinstance(wanted, ScriptedBlob):
            self.finish(wanted.digest)
        else:
            self.enter(wanted.digest, "complete")
