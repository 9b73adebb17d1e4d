"""A filler on a real Unix socket that does with layer images what a test tells it.

It runs in threads of its own, so that the test may block in a read. Correct by default: it opens
the layers that were added, and brings what is wanted at once.
"""

import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from headstart.store.errors import FillFailed
from headstart.store.wire import PROTOCOL_VERSION, Decoder, Message, encode
from tests.device.layers import StoredLayer

DEADLINE_SECONDS = 30.0

OnWant = Callable[[StoredLayer, Message], FillFailed | bool | None]


def bring(stored: StoredLayer, want: Message) -> bool:
    """Bring what is wanted, and say that it is done."""
    offset, length = want["offset"], want["length"]
    assert isinstance(offset, int)
    assert isinstance(length, int)
    stored.bring(offset, length)
    return True


def hold(_: StoredLayer, __: Message) -> None:
    """Leave the want unanswered."""


class LayerFiller:
    """The server. ``on_want`` answers: True is done, a failure is that, None is no answer yet."""

    def __init__(self, path: Path) -> None:
        """Listens at ``path`` in its context."""
        self.path = path
        self.on_want: OnWant = bring
        self.refusal: FillFailed | None = None
        """Answer to every ``open``, if set."""
        self.received: list[Message] = []
        """Every request, in order."""
        self.held: list[tuple[socket.socket, StoredLayer, Message]] = []
        """Wants that were not answered."""
        self._layers: dict[str, StoredLayer] = {}
        self._handles: dict[int, StoredLayer] = {}
        self._numbers = itertools.count(1)
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, in place of an earlier socket."""
        self.path.unlink(missing_ok=True)
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Break every connection, as SIGKILL does."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._changed:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, DEADLINE_SECONDS)
            self.held.clear()

    def add(self, stored: StoredLayer) -> None:
        """Know a layer, or its newer image."""
        self._layers[str(stored.layer.digest)] = stored

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until something is so; looked at again after every request."""
        with self._changed:
            assert self._changed.wait_for(ready, DEADLINE_SECONDS)

    def until_held(self, count: int) -> None:
        """Wait until so many wants are unanswered."""
        self.until(lambda: len(self.held) >= count)

    def requests(self, kind: str) -> list[Message]:
        """The requests of one type."""
        return [message for message in self.received if message["type"] == kind]

    def release(self) -> None:
        """Bring all that was held."""
        with self._changed:
            held, self.held = self.held, []
            for connection, stored, want in held:
                bring(stored, want)
                connection.sendall(encode({"type": "done", "id": want["id"]}))

    def evict(self) -> None:
        """Say of every open layer image that it was dropped."""
        with self._changed:
            for handle in self._handles:
                for connection in self._connections:
                    connection.sendall(
                        encode({"type": "state", "handle": handle, "state": "evicted"})
                    )
            self._handles.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        decoder = Decoder()
        try:
            while received := connection.recv(1 << 16):
                for message in decoder.feed(received):
                    with self._changed:
                        self._take(connection, message)
                        self._changed.notify_all()
        except OSError:
            pass
        finally:
            with self._changed:
                self._connections.discard(connection)
                connection.close()
                self._changed.notify_all()

    def _take(self, connection: socket.socket, message: Message) -> None:
        self.received.append(message)
        answer: Message | None = None
        match message["type"]:
            case "hello":
                answer = {"type": "hello", "version": PROTOCOL_VERSION, "store": "", "boot": ""}
            case "open":
                answer = self._open(message)
            case "want":
                answer = self._want(connection, message)
        if answer is not None:
            connection.sendall(encode({**answer, "id": message["id"]}))

    def _open(self, message: Message) -> Message:
        if self.refusal is not None:
            return {"type": "failed", **self.refusal.as_message()}
        stored = self._layers[str(message["digest"])]
        handle = next(self._numbers)
        self._handles[handle] = stored
        return {
            "type": "opened",
            "handle": handle,
            "state": "complete" if stored.map.verified else "mountable",
            "meta": str(stored.meta),
            "paths": [str(path) for path in stored.devices],
            "map": [str(path) for path in stored.maps],
            "device_size": stored.geometry.size,
        }

    def _want(self, connection: socket.socket, message: Message) -> Message | None:
        handle = message["handle"]
        assert isinstance(handle, int)
        stored = self._handles.get(handle)
        if stored is None:
            # Asked before the news of its eviction had come.
            failure = FillFailed("protocol", "no such handle is open")
            return {"type": "failed", **failure.as_message()}
        answer = self.on_want(stored, message)
        if isinstance(answer, FillFailed):
            return {"type": "failed", **answer.as_message()}
        if answer:
            return {"type": "done"}
        self.held.append((connection, stored, message))
        return None


def wait_until(ready: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Look again and again."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.01)
