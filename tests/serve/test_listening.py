"""Listening sockets: what is in the way is said in one line, with the remedy."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.command.values import TcpAddress, UnixAddress
from proxy.serve.listening import CannotListen, listen_all, listen_unix
from tests.serve.running_server import descriptors_return


@contextlib.contextmanager
def listening(*addresses: TcpAddress | UnixAddress) -> Iterator[list[socket.socket]]:
    listeners = listen_all(addresses)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def test_several_addresses(tmp_path: Path) -> None:
    path = tmp_path / "mirror.sock"
    with listening(TcpAddress("127.0.0.1", 0), TcpAddress("::1", 0), UnixAddress(path)) as three:
        for listener in three:
            with socket.socket(listener.family) as caller:
                caller.connect(listener.getsockname())


def test_ipv4_and_ipv6_stand_beside_each_other_on_one_port() -> None:
    with listening(TcpAddress("0.0.0.0", 0)) as (first,):
        listen_all([TcpAddress("::", first.getsockname()[1])])[0].close()


def test_port_in_use(tmp_path: Path) -> None:
    with listening(TcpAddress("127.0.0.1", 0)) as (taken,):
        port = taken.getsockname()[1]
        with descriptors_return(), pytest.raises(CannotListen) as refused:
            listen_all([TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", port)])
    message = str(refused.value)
    assert message.startswith(f"mirror.listen: 127.0.0.1:{port} is in use by another process;")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "no address of this machine"), ("nowhere.invalid", "the name is not known")],
)
def test_foreign_addresses(host: str, words: str) -> None:
    with pytest.raises(CannotListen, match=words):
        listen_all([TcpAddress(host, 0)])


def test_socket_that_nobody_listens_on_any_more_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    listen_unix(path, "control.socket").close()
    assert path.is_socket()
    listener = listen_unix(path, "control.socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    listener.close()


def test_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    listener = listen_unix(path, "control.socket")
    with pytest.raises(CannotListen, match=r"^control\.socket: .* is in use by another process"):
        listen_unix(path, "control.socket")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    listener.close()


@pytest.mark.parametrize("name", ["file", "absent/control.sock", "x" * 120])
def test_path_that_cannot_be_a_socket(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    refused = pytest.raises(CannotListen, match=r"^mirror\.listen: cannot listen on")
    with descriptors_return(), refused:
        listen_unix(tmp_path / name, "mirror.listen")
    assert (tmp_path / "file").read_text() == "precious"


def test_umask_is_as_before(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        listen_unix(tmp_path / "s", "mirror.listen").close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
