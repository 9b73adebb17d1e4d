"""A relay between the filler and an upstream that slows one busy connection down on demand."""

import contextlib
import socket
import threading
import time
from typing import Self

_BUFFER = 256 * 1024
_SLICE = 0.01


class Relay:
    """Forwards every connection to ``port`` of 127.0.0.1; a context manager.

    Its own buffers are small, so that hardly more is under way on the slow connection than its
    rate says.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._slow_at: float | None = None
        self._slow_rate = 0.0
        self._slow: int | None = None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._acceptor.join()
        self._listener.close()
        for connection in self._sockets:
            _shut(connection)
        for thread in self._threads:
            thread.join()
        for connection in self._sockets:
            connection.close()

    def slow_down(self, at: float, rate: float) -> None:
        """From ``at`` (monotonic seconds) on, the connection that is busy then has ``rate`` B/s."""
        with self._lock:
            self._slow_at, self._slow_rate, self._slow = at, rate, None

    def restore(self) -> bool:
        """Slow nothing down any more; whether a connection was."""
        with self._lock:
            slowed = self._slow is not None
            self._slow_at, self._slow = None, None
        return slowed

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            upstream = socket.socket()
            # Before the connection is made: the window is agreed on then.
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            upstream.connect(("127.0.0.1", self._target))
            for connection in (client, upstream):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, upstream]
            for source, sink, slowed in ((client, upstream, None), (upstream, client, number)):
                thread = threading.Thread(target=self._copy, args=(source, sink, slowed))
                self._threads.append(thread)
                thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        view = memoryview(bytearray(_BUFFER))
        with contextlib.suppress(OSError):
            while count := source.recv_into(view):
                sent = 0
                while sent < count:
                    rate = self._rate(number)
                    if rate is None:
                        sink.sendall(view[sent:count])
                        break
                    piece = max(1, int(rate * _SLICE))
                    sink.sendall(view[sent : min(count, sent + piece)])
                    sent += piece
                    time.sleep(_SLICE)
        _shut(source)
        _shut(sink)

    def _rate(self, number: int | None) -> float | None:
        """Bytes a second of a connection's answers; None: as fast as they come."""
        if number is None or self._slow_at is None:
            return None
        with self._lock:
            if self._slow_at is None or time.monotonic() < self._slow_at:
                return None
            if self._slow is None:
                self._slow = number
            return self._slow_rate if self._slow == number else None


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
