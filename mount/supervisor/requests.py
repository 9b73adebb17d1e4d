"""The control socket: one JSON object asks, one answers, on a SOCK_SEQPACKET connection.

=====================================================  ===========================================
request                                                answer
=====================================================  ===========================================
``{"call": "ping"}``                                   what :meth:`Supervisor.status` says
``{"call": "upgrade", "fill_socket",                   ``{"upgraded": true}`` when a new daemon
"read_deadline_seconds"}``                             serves, or ``{"failed": TEXT}``
``{"call": "stop", "force": BOOL}``                    ``{"stopped": true}`` as its last word, or
                                                       ``{"failed": TEXT}`` while files are in use
=====================================================  ===========================================

It imports little: the supervisor and its clients share it.
"""

import json
import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path

MAX_MESSAGE = 65536

Message = dict[str, object]


class Caller:
    """A connection of somebody who asks; answered once, maybe later."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the connection over."""
        self.connection = connection

    def answer(self, message: Message) -> None:
        """Answer and hang up."""
        try:
            self.connection.send(json.dumps(message).encode())
        except OSError:
            pass  # it has gone
        finally:
            self.connection.close()


class ControlSocket:
    """Listens at a path and passes requests on."""

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        on_request: Callable[[Message, Caller], None],
    ) -> None:
        """Replaces a stale socket; the caller holds the lock. Raises OSError."""
        self._path = path
        self._selector = selector
        self._on_request = on_request
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        mask = os.umask(0o177)
        try:
            self._listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        self._listener.listen(16)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        try:
            request = json.loads(connection.recv(MAX_MESSAGE))
            if not isinstance(request, dict):
                raise ValueError("a request must be a JSON object")
        except (OSError, ValueError):
            connection.close()
            return
        self._on_request(request, Caller(connection))

    def close(self) -> None:
        """Listen no more."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)
