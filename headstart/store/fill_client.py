"""The client of ``fill.sock``: opens objects, says what is wanted, waits for bytes to arrive.

It runs on anyio, so that the mirror (asyncio) and the mount (trio) share it. When the connection
breaks it reconnects with back-off and replays every open handle and outstanding want: all of
them are idempotent, and that is the whole of surviving a restart of the filler.
"""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio.abc import ByteStream

from headstart.content.digest import Digest
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.known_layer import KnownChain, KnownLayer
from headstart.store.open_blob import OpenBlob
from headstart.store.open_layer import OpenLayer
from headstart.store.open_object import OpenObject, Want
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, WireError, encode

logger = logging.getLogger(__name__)

BACK_OFF_SECONDS = (*[0.05] * 20, 0.1, 0.2, 0.4, 0.8)
"""A filler that is started again is there within a second, and somebody may wait for its bytes: to
ask for its socket costs a fraction of a millisecond."""


class FillClient:
    """One connection to the filler, kept up. Use as an async context manager."""

    def __init__(self, socket_path: Path, role: str) -> None:
        """``role`` is ``mirror``, ``mount``, ``snapshotter`` or ``command``."""
        self._path = socket_path
        self._role = role
        self._numbers = itertools.count(1)
        self._pending: dict[int, Callable[[Message], None]] = {}
        self._requests: dict[int, Message] = {}
        self._handles: set[OpenObject] = set()
        self._remote: dict[int, OpenObject] = {}
        self._outgoing: list[bytes] = []
        self._wake = anyio.Event()
        self._connected = anyio.Event()
        self._tasks = anyio.create_task_group()
        self.refusal: str | None = None

    async def __aenter__(self) -> "FillClient":
        """Start to connect; calls wait for the connection."""
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect and close all handles."""
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        for handle in list(self._handles):
            self.close(handle)

    @property
    def connected(self) -> bool:
        """Whether the filler has greeted us on the present connection."""
        return self._connected.is_set()

    # --- what callers use ---

    async def open(
        self,
        *,
        upstream: str,
        repository: str,
        digest: Digest,
        size: int | None = None,
        first: tuple[int, int | None] | None = None,
        authorization: str | None = None,
        timeout_seconds: float = 60.0,
    ) -> OpenBlob:
        """Open a blob; returns when its size is known.

        ``size`` is what a manifest says, if one is known; ``first`` (offset, length or None) is
        what will be wanted first, so that the first range can bring the size along. Raises
        :class:`FillFailed` or :class:`FillerUnreachable`.
        """
        message: Message = {
            "type": "open",
            "key": "blob",
            "upstream": upstream,
            "repository": repository,
            "digest": str(digest),
        }
        if size is not None:
            message["size"] = size
        if first is not None:
            message["first"] = list(first)
        if authorization is not None:
            message["authorization"] = authorization
        with anyio.move_on_after(timeout_seconds):
            handle = await self._open_ready(message)
            if handle.gone:
                # Evicted between the filler's answer and our opening of its files.
                self.close(handle)
                handle = await self._open_ready(message)
            failure = handle.failure
            if failure is not None:
                self.close(handle)
                raise failure
            return handle
        raise self._unreachable(timeout_seconds)

    async def _open_ready(self, message: Message) -> OpenBlob:
        """A handle whose files are open, or that says why they are not."""
        handle = OpenBlob(self, message)
        self._handles.add(handle)
        self._post_open(handle)
        try:
            await handle.ready.wait()
        except BaseException:
            self.close(handle)
            raise
        return handle

    async def chain(
        self, chain: Digest, *, manifest: Digest | None = None, image_ref: str | None = None
    ) -> KnownChain | None:
        """The layer that a chain ID ends with; None when no image with it has been seen.

        ``manifest`` and ``image_ref`` are what the asker knows of the image. Raises
        :class:`FillFailed` (``refused``: the layer must be pulled the ordinary way) or
        :class:`FillerUnreachable`.
        """
        message: Message = {"type": "chain", "chain": str(chain)}
        if manifest is not None:
            message["manifest"] = str(manifest)
        if image_ref is not None:
            message["image_ref"] = image_ref
        answer = await self.call(message)
        return KnownChain.from_message(answer) if answer.get("type") == "layer" else None

    async def open_layer(self, layer: KnownLayer, *, timeout_seconds: float = 60.0) -> OpenLayer:
        """Open a layer image; returns as soon as the filler knows of it, in any state.

        Raises :class:`FillFailed` or :class:`FillerUnreachable`.
        """
        message: Message = {"type": "open", "key": "layer", **layer.as_message()}
        handle = OpenLayer(self, message, layer)
        self._handles.add(handle)
        self._post_open(handle)
        try:
            with anyio.move_on_after(timeout_seconds):
                await handle.known.wait()
                if handle.failure is not None:
                    raise handle.failure
                return handle
            raise self._unreachable(timeout_seconds)
        except BaseException:
            self.close(handle)
            raise

    async def call(self, message: Message, timeout_seconds: float = 30.0) -> Message:
        """Send any other request and wait for its answer; replayed after a reconnect.

        Raises :class:`FillFailed` or :class:`FillerUnreachable`.
        """
        answered = anyio.Event()
        answers: list[Message] = []

        def answer(received: Message) -> None:
            answers.append(received)
            answered.set()

        number = next(self._numbers)
        request: Message = {**message, "id": number}
        self._pending[number] = answer
        self._requests[number] = request
        self._post(request)
        try:
            with anyio.move_on_after(timeout_seconds):
                await answered.wait()
                if answers[0].get("type") == "failed":
                    raise FillFailed.from_message(answers[0])
                return answers[0]
        finally:
            self._pending.pop(number, None)
            self._requests.pop(number, None)
        raise self._unreachable(timeout_seconds)

    def close(self, handle: OpenObject) -> None:
        """Close a handle; its files are closed at once, and whoever still waits on it fails."""
        if handle not in self._handles:
            return
        self._handles.discard(handle)
        if handle.remote is not None:
            self._remote.pop(handle.remote, None)
            self._post({"type": "close", "handle": handle.remote})
            # On another connection the number may mean another blob.
            handle.remote = None
        handle.fail(FillFailed("protocol", "it was closed by its reader"))
        handle.close_files()

    def follow(self, handle: OpenObject) -> None:
        """Ask for ``arrived`` notices; counted, see :meth:`unfollow`."""
        handle.followers += 1
        if handle.followers == 1 and handle.remote is not None:
            self._post({"type": "follow", "handle": handle.remote})

    def unfollow(self, handle: OpenObject) -> None:
        """Give back one :meth:`follow`."""
        handle.followers -= 1
        if handle.followers == 0 and handle.remote is not None:
            self._post({"type": "unfollow", "handle": handle.remote})

    def touch(self, handle: OpenObject) -> None:
        """Count the object as used now."""
        if handle.remote is not None:
            self._post({"type": "touch", "handle": handle.remote})

    def suspect(self, handle: OpenObject) -> None:
        """Say that bytes which should be here cannot be read: the filler checks all of them.

        New readers open the blob again.
        """
        handle.stale = True
        if handle.remote is not None:
            self._post({"type": "suspect", "handle": handle.remote})

    # --- what handles use ---

    def post_want(self, handle: OpenObject, want: Want) -> int:
        """Send a want; its answer settles ``want``."""
        number = next(self._numbers)
        handle.wants[number] = want
        if handle.follows:
            self.follow(handle)
        want.failure = handle.failure
        self._send_want(handle, number, want)
        return number

    def _send_want(self, handle: OpenObject, number: int, want: Want) -> None:
        """Ask, and ask again on a new connection: what was done may have been lost since."""
        if handle.remote is None or want.failure is not None:
            return
        want.done = False

        def answer(received: Message) -> None:
            if received.get("type") == "failed":
                want.failure = FillFailed.from_message(received)
            else:
                want.done = True
            want.event.set()

        self._pending[number] = answer
        self._post({**want.message, "id": number, "handle": handle.remote})

    def drop_want(self, handle: OpenObject, number: int) -> None:
        """Forget a want and tell the filler, unless it has been answered."""
        want = handle.wants.pop(number)
        self._pending.pop(number, None)
        if not want.done and want.failure is None and handle.remote is not None:
            self._post({"type": "cancel", "id": number})
        if handle.follows:
            self.unfollow(handle)

    # --- the connection ---

    def _unreachable(self, seconds: float) -> FillerUnreachable:
        reason = self.refusal or "no answer"
        return FillerUnreachable(f"{self._path}: {reason} within {seconds:g} s")

    def _post(self, message: Message) -> None:
        if self._connected.is_set():
            self._outgoing.append(encode(message))
            self._wake.set()

    def _post_open(self, handle: OpenObject) -> None:
        if handle.opening is not None:
            self._pending.pop(handle.opening, None)
        number = handle.opening = next(self._numbers)

        def answer(received: Message) -> None:
            self._opened(handle, received)

        self._pending[number] = answer
        self._post({**handle.message, "id": number})

    def _opened(self, handle: OpenObject, received: Message) -> None:
        if handle not in self._handles:
            if isinstance(received.get("handle"), int):
                self._post({"type": "close", "handle": received["handle"]})
            return
        if received.get("type") == "failed":
            handle.fail(FillFailed.from_message(received))
            return
        remote = received.get("handle")
        if not isinstance(remote, int):
            raise WireError("`opened` without a handle")
        handle.remote = remote
        self._remote[remote] = handle
        if received.get("state") == "refused":
            handle.fail(FillFailed.from_message(received))
            return
        handle.take(received)
        if handle.followers:
            self._post({"type": "follow", "handle": remote})
        for number, want in handle.wants.items():
            self._send_want(handle, number, want)

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                async with await anyio.connect_unix(self._path) as stream:
                    await self._greet(stream)
                    if attempt > len(BACK_OFF_SECONDS):
                        logger.info("filler: %s: it answers again", self._path)
                    attempt = 0
                    await self._converse(stream)
            except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, WireError) as error:
                if attempt == len(BACK_OFF_SECONDS):
                    logger.warning("filler: %s: %s; still trying", self._path, error)
            finally:
                self._disconnect()
            await anyio.sleep(BACK_OFF_SECONDS[min(attempt, len(BACK_OFF_SECONDS) - 1)])
            attempt += 1

    def _disconnect(self) -> None:
        self._connected = anyio.Event()
        self._outgoing.clear()
        self._remote.clear()
        # Nobody answers the rest on another connection: handles and wants are asked for anew.
        self._pending = {
            number: answer for number, answer in self._pending.items() if number in self._requests
        }
        for handle in self._handles:
            handle.remote = None

    async def _greet(self, stream: ByteStream) -> None:
        hello: Message = {"type": "hello", "id": 0, "version": PROTOCOL_VERSION, "role": self._role}
        await stream.send(encode(hello))
        decoder = Decoder()
        with anyio.fail_after(10):
            while True:
                messages = decoder.feed(await stream.receive())
                if messages:
                    break
        if messages[0].get("type") != "hello":
            self.refusal = str(messages[0].get("text", "refused"))
            raise WireError(self.refusal)
        self.refusal = None
        self._connected.set()
        for number in list(self._pending):
            if number in self._requests:
                self._post(self._requests[number])
        for handle in self._handles:
            if handle.failure is None:
                self._post_open(handle)

    async def _converse(self, stream: ByteStream) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, stream)
            decoder = Decoder()
            try:
                while True:
                    for message in decoder.feed(await stream.receive()):
                        self._receive(message)
            except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, WireError) as error:
                logger.debug("filler connection ended: %s", error)
                tasks.cancel_scope.cancel()

    async def _send(self, stream: ByteStream) -> None:
        while True:
            if self._outgoing:
                waiting, self._outgoing = b"".join(self._outgoing), []
                try:
                    await stream.send(waiting)
                except (OSError, anyio.BrokenResourceError):
                    return
            else:
                self._wake = anyio.Event()
                if not self._outgoing:
                    await self._wake.wait()

    def _receive(self, message: Message) -> None:
        number = message.get("id")
        if isinstance(number, int):
            answer = self._pending.pop(number, None)
            if answer is not None:
                answer(message)
            return
        remote = message.get("handle")
        handle = self._remote.get(remote) if isinstance(remote, int) else None
        if handle is None:
            return
        match message.get("type"):
            case "arrived":
                handle.arrived()
            case "state":
                match message.get("state"):
                    case "refused":
                        handle.fail(FillFailed.from_message(message))
                        handle.tell_stale()
                    case "evicted":
                        handle.stale = True
                        handle.tell_stale()
                    case _:
                        handle.take(message)
