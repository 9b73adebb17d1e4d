"""An HTTP proxy that only tunnels: CONNECT, then bytes both ways."""

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self


class ConnectProxy:
    """Tunnels to wherever ``routes`` sends a ``HOST:PORT``; 403 for every other target."""

    def __init__(self, routes: dict[str, int]) -> None:
        """``routes`` gives the port of 127.0.0.1 for a target."""
        self._routes = routes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heads: list[str] = []
        """The heads of the requests that were received."""
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for connection in [self._listener, *self._open]:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = client.recv(4096)
            if not piece:
                return
            received += piece
        self.heads.append(received.decode("latin-1"))
        method, target, _ = self.heads[-1].split(" ", 2)
        if method != "CONNECT" or target not in self._routes:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        server = socket.create_connection(("127.0.0.1", self._routes[target]), timeout=10)
        self._open.append(server)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, other = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    piece = source.recv(65536)
                    if not piece:
                        for connection in (client, server):
                            connection.shutdown(socket.SHUT_RDWR)
                        return
                    other.sendall(piece)
