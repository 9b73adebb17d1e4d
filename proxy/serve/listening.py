"""Listening sockets, bound before anything else so that a port in use is said in one line."""

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from headstart.command.values import TcpAddress, UnixAddress

SOCKET_MODE = 0o660

_BACKLOG = 2048


class CannotListen(Exception):
    """An address that cannot be listened on; the message is one line with the remedy."""


def listen_all(addresses: Iterable[TcpAddress | UnixAddress]) -> list[socket.socket]:
    """Listen on ``mirror.listen``. Raises :class:`CannotListen`; nothing stays open then."""
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            if isinstance(address, UnixAddress):
                listeners.append(listen_unix(address.path, "mirror.listen"))
            else:
                listeners += _listen_tcp(address)
    except CannotListen:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def listen_unix(path: Path, key: str) -> socket.socket:
    """Listen on a Unix socket of mode 0660, in place of one that nobody listens on any more.

    ``key`` is the configuration's name for the path. Raises :class:`CannotListen`.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        if _somebody_listens(path):
            raise CannotListen(
                f"{key}: {path} is in use by another process; stop it or write another path"
            )
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise CannotListen(
            f"{key}: cannot listen on {path}: {reason}; write a path of at most 107 bytes in a "
            "directory that this user may write"
        ) from error
    except CannotListen:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _somebody_listens(path: Path) -> bool:
    if not path.is_socket():
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except TimeoutError:
            return True
    return True


def _listen_tcp(address: TcpAddress) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise CannotListen(
            f"mirror.listen: {address}: the name is not known ({error.strerror}); "
            "write an address of this machine"
        ) from error
    listeners: list[socket.socket] = []
    for family, kind, protocol, _, place in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        listeners.append(listener)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # So that 0.0.0.0 and [::] can stand beside each other in the list.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError as error:
            for opened in listeners:
                opened.close()
            raise CannotListen(_tcp_problem(address, error)) from error
    return listeners


def _tcp_problem(address: TcpAddress, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            problem, remedy = "is in use by another process", "stop it or write another port"
        case errno.EADDRNOTAVAIL:
            problem, remedy = "is no address of this machine", "write 127.0.0.1 or 0.0.0.0"
        case errno.EACCES:
            problem, remedy = "is a port for root only", "write a port from 1024 on"
        case _:
            problem = f"cannot be listened on: {error.strerror or error}"
            remedy = "write another address"
    return f"mirror.listen: {address} {problem}; {remedy}"
