"""One connection of fill.sock: its handles, its wants, and what it is told.

The messages are those of store.md's table; :mod:`headstart.store.wire` frames them.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeGuard

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from headstart.store.wire import (
    PRIORITIES,
    PROTOCOL_VERSION,
    Decoder,
    Message,
    WireError,
    encode,
)
from proxy.fill.blob_handle import BlobHandle, described
from proxy.fill.fill import Fill
from proxy.fill.filler import Filler
from proxy.fill.layers.layer import PREFETCH
from proxy.fill.layers.layer_handle import LayerHandle
from proxy.fill.layers.layers import Layers
from proxy.fill.parties import BlobSource, Want

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 0.005
"""At most so often a follower hears of bytes that have come."""
FIRST_WANT_SECONDS = 10.0
"""How long after its files are announced an ``open``'s first read is fetched without a want."""
MOST_BUFFERED = 16 * 1024 * 1024
"""Bytes that may wait for a client that does not read; then it is disconnected."""
MOST_HANDLES = 65536


class Answers(Protocol):
    """The calls that concern no single handle."""

    async def answer(self, kind: str, message: Message) -> Message:
        """The answer to a message. Raises FillFailed."""


class Conversation:
    """One client, from its greeting to its end."""

    def __init__(
        self,
        filler: Filler,
        layers: Layers,
        answers: Answers,
        boot: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.filler = filler
        self._layers = layers
        self._answers = answers
        self._boot = boot
        self._reader = reader
        self._writer = writer
        self._handles: dict[int, BlobHandle | LayerHandle] = {}
        self._wanting: dict[int, BlobHandle | LayerHandle] = {}
        self._numbers = itertools.count(1)
        self._orders = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._arrived: set[BlobHandle] = set()
        self._notice: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Talk until the client leaves."""
        decoder = Decoder()
        greeted = False
        try:
            while received := await self._reader.read(65536):
                for message in decoder.feed(received):
                    if not greeted:
                        self._greet(message)
                        greeted = True
                    else:
                        self._receive(message)
        except WireError as error:
            self.send({"type": "failed", "code": "protocol", "text": str(error)})
            logger.warning("fill.sock: %s; disconnected", error)
        except ConnectionError as error:
            logger.debug("fill.sock: %s", error)
        finally:
            self._end()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends with this conversation at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def send(self, message: Message) -> None:
        """Queue a message."""
        if self._writer.is_closing():
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > MOST_BUFFERED:
            logger.warning("fill.sock: a client does not read; disconnected")
            self._writer.transport.abort()

    def note_arrived(self, handle: BlobHandle) -> None:
        """Tell a follower soon that bytes have come."""
        self._arrived.add(handle)
        if self._notice is None:
            loop = asyncio.get_running_loop()
            self._notice = loop.call_later(NOTICE_SECONDS, self._rest)
            self._tell_arrived()

    def _rest(self) -> None:
        self._notice = None
        if self._arrived:
            self._notice = asyncio.get_running_loop().call_later(NOTICE_SECONDS, self._rest)
            self._tell_arrived()

    def _tell_arrived(self) -> None:
        arrived, self._arrived = self._arrived, set()
        for handle in arrived:
            if handle.number in self._handles:
                self.send({"type": "arrived", "handle": handle.number})

    def _end(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._writer.close()
        self.filler.pump()

    # --- messages ---

    def _greet(self, message: Message) -> None:
        if message.get("type") != "hello" or message.get("version") != PROTOCOL_VERSION:
            raise WireError(
                f"this filler speaks version {PROTOCOL_VERSION} of fill.sock, the client "
                f"{message.get('version')!r:.20}; run the programs of one version"
            )
        greeting: Message = {"type": "hello", "version": PROTOCOL_VERSION, "boot": self._boot}
        self.send(
            {**greeting, "id": message.get("id"), "store": str(self.filler.layout.stripes[0])}
        )

    def _receive(self, message: Message) -> None:
        match message.get("type"):
            case "open" if message.get("key") == "layer":
                self.start(self._open_layer(message))
            case "open":
                self.start(self._open(message))
            case "want":
                self._want(message)
            case "cancel":
                self._cancel(message)
            case "close":
                self._close(message)
            case "follow" | "unfollow" | "touch" | "suspect" | "hint":
                self._note(message)
            case _:
                self.start(self._call(message))

    async def _open_layer(self, message: Message) -> None:
        number = message.get("id")
        try:
            if len(self._handles) >= MOST_HANDLES:
                raise FillFailed("refused", f"more than {MOST_HANDLES} objects are open")
            layer = await self._layers.open(KnownLayer.from_message(message))
        except Exception as error:
            self._refuse_open(number, error)
            return
        handle = LayerHandle(self.send, next(self._numbers), layer)
        self._handles[handle.number] = handle
        opened: Message = {"type": "opened", "id": number, "handle": handle.number}
        self.send({**opened, **layer.described()})

    def _refuse_open(self, number: object, error: Exception) -> None:
        """Say why an ``open`` failed: no answer would be the longest of all waits."""
        if isinstance(error, FillFailed):
            failure = error
        elif isinstance(error, WireError):
            failure = FillFailed("protocol", str(error))
        else:
            logger.exception("fill.sock: an open failed by an error of the filler itself")
            failure = FillFailed("upstream", f"it cannot be opened: {type(error).__name__}")
        self.send({"type": "failed", "id": number, **failure.as_message()})

    async def _open(self, message: Message) -> None:
        number = message.get("id")
        try:
            digest, source, size = _opening(message)
            if len(self._handles) >= MOST_HANDLES:
                raise FillFailed("refused", f"more than {MOST_HANDLES} blobs are open")
            fill = await self.filler.open(digest, source, size)
            handle = self._handle(fill, source)
        except Exception as error:
            self._refuse_open(number, error)
            return
        opened: Message = {"type": "opened", "id": number, "handle": handle.number}
        if handle.proven:
            self.send({**opened, **described(fill)})
        else:
            # Whatever of it is here when this arrives has come because of this very open.
            self.send({**opened, "state": "planning", "empty": fill.table is None})
            self._fetch_first(handle, message.get("first"))

    def _handle(self, fill: Fill, source: BlobSource) -> BlobHandle:
        if fill.failure is not None:
            raise fill.failure
        proven = fill.table is not None and self.filler.proven(fill, source)
        handle = BlobHandle(self, next(self._numbers), fill, source, proven)
        self._handles[handle.number] = handle
        fill.listeners.add(handle)
        return handle

    def _fetch_first(self, handle: BlobHandle, first: object) -> None:
        """Fetch what will be wanted first, which brings the size along."""
        fill = handle.fill
        if fill.table is not None:
            handle.notify_files(fill)
            return
        offset, length = 0, None
        if isinstance(first, list) and len(first) == 2 and _is_size(first[0]):
            offset = first[0]
            length = first[1] if _is_size(first[1]) else None
        bulk = length is None or length >= self.filler.settings.request_size
        stop = None if length is None else offset + length
        handle.first = Want(offset, stop, 0, bulk, next(self._orders), lambda failure: None)
        if first is None:
            # Only the size is asked for: HEAD tells it, and nothing is fetched in vain.
            handle.first = None
            self.start(self._ask_size(handle))
            return
        fill.add_want(handle.first)

    def expect_want(self, handle: BlobHandle) -> None:
        """The client can say what it wants from now on: its first read is not fetched for ever."""
        if handle.first is not None and handle.number not in self._timers:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(FIRST_WANT_SECONDS, handle.drop_first)
            self._timers[handle.number] = timer

    async def _ask_size(self, handle: BlobHandle) -> None:
        fill = handle.fill
        try:
            size = await self.filler.prove(fill, handle.source)
            if handle.number not in self._handles:
                return
            if fill.size is None:
                await self.filler.learn_size(fill, size)
            else:
                handle.notify_files(fill)
        except FillFailed as failure:
            handle.notify_refused(fill, failure)
        except OSError as error:
            handle.notify_refused(fill, fill.disk_failure(error))

    async def prove(self, handle: BlobHandle) -> None:
        """Ask the handle's own upstream whether it has the blob, then tell about the files."""
        try:
            await self.filler.prove(handle.fill, handle.source)
        except FillFailed as failure:
            handle.notify_refused(handle.fill, failure)
            return
        if handle.number in self._handles:
            handle.notify_files(handle.fill)

    def _want(self, message: Message) -> None:
        number, handle = message.get("id"), self._handles.get(_number(message, "handle"))
        offset, length = message.get("offset"), message.get("length")
        priority, bulk = message.get("priority", "client"), message.get("bulk")
        if not isinstance(number, int):
            raise WireError("a want without an id")
        if handle is None:
            failure = FillFailed("protocol", "no such handle is open")
            self.send({"type": "failed", "id": number, **failure.as_message()})
            return
        if not (_is_size(offset) and priority in PRIORITIES):
            raise WireError("a want without offset and a known priority")
        self._wanting[number] = handle
        deadline = message.get("deadline_ms")
        if isinstance(deadline, int):
            loop = asyncio.get_running_loop()
            self._timers[-number] = loop.call_later(deadline / 1000, self._late, number, deadline)
        level, order, settle = PRIORITIES.index(priority), next(self._orders), self._settle(number)
        if isinstance(handle, LayerHandle):
            stop = offset + length if _is_size(length) else None
            hint = stop is None and bulk is True and level >= PREFETCH
            handle.add_want(number, offset, stop, level, settle, hint=hint)
        elif _is_size(length):
            urged = bulk if isinstance(bulk, bool) else None
            handle.add_want(number, offset, length, level, urged, order, settle)
        else:
            raise WireError("a want without length")

    def _settle(self, number: int) -> Callable[[FillFailed | None], None]:
        def settle(failure: FillFailed | None) -> None:
            handle = self._settled(number)
            if handle is not None:
                handle.settled(number)
            if failure is None:
                self.send({"type": "done", "id": number})
            else:
                self.send({"type": "failed", "id": number, **failure.as_message()})

        return settle

    def _settled(self, number: int) -> BlobHandle | LayerHandle | None:
        timer = self._timers.pop(-number, None)
        if timer is not None:
            timer.cancel()
        return self._wanting.pop(number, None)

    def _late(self, number: int, deadline_ms: int) -> None:
        handle = self._settled(number)
        if handle is not None:
            limit = f"{deadline_ms} ms"
            failure = FillFailed(
                "deadline",
                f"{handle.missing(number)} did not come within {limit}",
                key="deadline_ms",
                limit=limit,
            )
            handle.drop_want(number)
            self.send({"type": "failed", "id": number, **failure.as_message()})

    def _cancel(self, message: Message) -> None:
        number = _number(message, "id")
        handle = self._settled(number)
        if handle is not None:
            handle.drop_want(number)
            self.filler.pump()

    def _close(self, message: Message) -> None:
        handle = self._handles.pop(_number(message, "handle"), None)
        if handle is not None:
            for number in list(handle.wants):
                self._cancel({"id": number})
            timer = self._timers.pop(handle.number, None)
            if timer is not None:
                timer.cancel()
            handle.close()

    def _note(self, message: Message) -> None:
        handle = self._handles.get(_number(message, "handle"))
        if isinstance(handle, LayerHandle):
            if message.get("type") == "touch":
                self._layers.touch(handle.layer)
            return
        if handle is None:
            return
        match message.get("type"):
            case "follow":
                handle.following = True
                self.note_arrived(handle)
            case "unfollow":
                handle.following = False
            case "touch":
                self.filler.books.touch(handle.fill)
            case "suspect":
                self.filler.suspect(handle.fill)
            case _:
                self._hint(handle, message)

    def _hint(self, handle: BlobHandle, message: Message) -> None:
        """Fetch ranges that somebody will want; nobody waits for them."""
        ranges, priority = message.get("ranges"), message.get("priority", "prefetch")
        if not isinstance(ranges, list) or priority not in PRIORITIES or not handle.proven:
            raise WireError("a hint without ranges and a known priority")
        for given in ranges:
            if not (isinstance(given, list) and len(given) == 2 and all(map(_is_size, given))):
                raise WireError("a hint's range is [offset, length]")
            offset, length = given
            order, level = next(self._orders), PRIORITIES.index(priority)
            want = Want(offset, offset + length, level, True, order, lambda failure: None)
            handle.hints.append(want)
            handle.fill.add_want(want)

    async def _call(self, message: Message) -> None:
        number = message.get("id")
        try:
            answer = await self._answers.answer(str(message.get("type")), message)
        except FillFailed as failure:
            answer = {"type": "failed", **failure.as_message()}
        except InvalidInput as error:
            answer = {"type": "failed", **FillFailed("protocol", str(error)).as_message()}
        except Exception as error:
            logger.exception("fill.sock: a call failed by an error of the filler itself")
            said = FillFailed("upstream", f"the call failed: {type(error).__name__}")
            answer = {"type": "failed", **said.as_message()}
        self.send({**answer, "id": number})


def _opening(message: Message) -> tuple[Digest, BlobSource, int | None]:
    """What an ``open`` names. Raises FillFailed."""
    if message.get("key") != "blob":
        raise FillFailed("protocol", f"open {message.get('key')!r:.20}: only blobs are known here")
    upstream, repository = message.get("upstream"), message.get("repository")
    authorization, size = message.get("authorization"), message.get("size")
    if not isinstance(upstream, str) or not isinstance(repository, str):
        raise FillFailed("protocol", "open without upstream and repository")
    try:
        digest = Digest.parse(str(message.get("digest")))
    except InvalidInput as error:
        raise FillFailed("protocol", str(error)) from None
    passed = authorization if isinstance(authorization, str) else None
    return digest, BlobSource(upstream, repository, passed), size if _is_size(size) else None


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _number(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int):
        raise WireError(f"{message.get('type')!r:.20} without {name}")
    return value
