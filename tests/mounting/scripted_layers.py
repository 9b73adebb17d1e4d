"""A filler on a real Unix socket whose layer images become mountable when a test says so."""

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from headstart.content.config import chain_ids
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownChain
from headstart.store.layer_map import LayerMap, LayerStripeMap, MetaRecord
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode
from mount.mounting.layer_mounts import LayerImage


class ServedLayer:
    """A layer image, the state that is told of it, and its maps."""

    def __init__(self, image: LayerImage) -> None:
        self.image = image
        self.state = "streaming"
        self.refusal: FillFailed | None = None
        meta = image.meta.read_bytes()
        self.maps = tuple(device.with_name(f"{device.name}.map") for device in image.devices)
        created = LayerMap(
            [
                LayerStripeMap.create(path, image.geometry, stripe)
                for stripe, path in enumerate(self.maps)
            ]
        )
        created.stripes[0].record_meta(MetaRecord(len(meta), 0, hashlib.sha256(meta).digest()))
        created.close()

    def described(self) -> Message:
        """State and files, for ``opened`` and ``state``."""
        if self.refusal is not None:
            return {"state": "refused", **self.refusal.as_message()}
        message: Message = {"state": self.state}
        if self.state in ("mountable", "complete"):
            message["meta"] = str(self.image.meta)
            message["paths"] = [str(device) for device in self.image.devices]
            message["map"] = [str(path) for path in self.maps]
            message["device_size"] = self.image.geometry.size
        return message


class LayerFiller:
    """The server: knows one image of the layers that it is given."""

    def __init__(self, path: Path, images: Sequence[LayerImage]) -> None:
        self.path = path
        self.layers = [ServedLayer(image) for image in images]
        self.received: list[Message] = []
        self.leases: set[str] = set()
        self.chain_refusal: FillFailed | None = None
        self.silent: set[str] = set()
        """Kinds of requests that are not answered."""
        self._open: dict[int, ServedLayer] = {}
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, in place of an earlier socket."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Stop to listen and break every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
            for writer in self._writers:
                writer.transport.abort()
            self._writers.clear()
            await asyncio.sleep(0)

    @property
    def chain(self) -> KnownChain:
        """The image, and its top layer."""
        layers = tuple(served.image.layer for served in self.layers)
        return KnownChain(layers, len(layers) - 1)

    def requests(self, kind: str) -> list[Message]:
        """The requests of one type."""
        return [message for message in self.received if message["type"] == kind]

    def open_layers(self) -> list[ServedLayer]:
        """What clients have open now."""
        return list(self._open.values())

    def priority(self, served: ServedLayer) -> str | None:
        """What the layer was last wanted as."""
        wanted = [
            str(message["priority"])
            for message in self.requests("want")
            if self._open.get(int(str(message["handle"]))) is served
        ]
        return wanted[-1] if wanted else None

    async def until(self, kind: str, count: int = 1) -> Message:
        """Wait for the ``count``-th request of a type."""
        while len(self.requests(kind)) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.requests(kind)[count - 1]

    def tell(self, served: ServedLayer, state: str) -> None:
        """A layer image comes to a state."""
        served.state = state
        self._tell(served)

    def answer(self, request: Message) -> None:
        """Say ok to a request that was left unanswered."""
        for writer in self._writers:
            writer.write(encode({"type": "ok", "id": request["id"]}))

    def refuse(self, served: ServedLayer, failure: FillFailed) -> None:
        """A layer image is refused."""
        served.refusal = failure
        self._tell(served)

    def _tell(self, served: ServedLayer) -> None:
        for handle, opened in self._open.items():
            if opened is served:
                message = {"type": "state", "handle": handle, **served.described()}
                for writer in self._writers:
                    writer.write(encode(message))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        decoder = Decoder()
        try:
            while received := await reader.read(1 << 16):
                for message in decoder.feed(received):
                    answer = self._answer(message)
                    if answer is not None and message["type"] not in self.silent:
                        writer.write(encode({**answer, "id": message["id"]}))
                    self.received.append(message)
                    self._changed.set()
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, message: Message) -> Message | None:
        match message["type"]:
            case "hello":
                return {"type": "hello", "version": PROTOCOL_VERSION, "store": "x", "boot": "y"}
            case "chain":
                return self._answer_chain(message)
            case "open":
                return self._answer_open(message)
            case "close":
                self._open.pop(int(str(message["handle"])), None)
                return None
            case "lease":
                self.leases.add(str(message["key"]))
            case "release":
                self.leases.discard(str(message["key"]))
            case "leases":
                keys = message["keys"]
                assert isinstance(keys, list)
                self.leases = set(map(str, keys))
            case _:
                return None
        return {"type": "ok"}

    def _answer_chain(self, message: Message) -> Message:
        if self.chain_refusal is not None:
            return {"type": "failed", **self.chain_refusal.as_message()}
        chains = chain_ids([layer.diff_id for layer in self.chain.layers])
        for position, chain in enumerate(chains):
            if message["chain"] == str(chain):
                return {"type": "layer", **KnownChain(self.chain.layers, position).as_message()}
        return {"type": "unknown"}

    def _answer_open(self, message: Message) -> Message:
        for served in self.layers:
            if message["digest"] == str(served.image.layer.digest):
                if served.refusal is not None:
                    return {"type": "failed", **served.refusal.as_message()}
                handle = next(self._numbers)
                self._open[handle] = served
                return {"type": "opened", "handle": handle, **served.described()}
        raise AssertionError(f"no such layer: {message}")
