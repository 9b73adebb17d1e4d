"""The supervisor as a systemd service: the descriptor is kept outside of all of its processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.store.geometry import MIB
from mount.supervisor import control
from tests.device.layer_filler import wait_until
from tests.device.layers import stored_layer
from tests.device.mounted import Mounted, mounted


class ServiceManager:
    """As much of systemd as a service's descriptor store needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: int | None = None
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def until_said(self, text: str) -> None:
        """Receive messages until one has this line; a descriptor that comes is kept."""
        while not self.said or text not in self.said[-1].splitlines():
            message, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 1)
            self.said.append(message.decode())
            if descriptors:
                self.drop()
                self.kept = descriptors[0]

    def drop(self) -> None:
        if self.kept is not None:
            os.close(self.kept)
            self.kept = None

    def start(self, mount: Mounted) -> "subprocess.Popen[bytes]":
        """Run the supervisor in the foreground, with the descriptor when there is one."""
        arguments = ["-m", "mount.supervisor", str(mount.root), str(mount.filler.path), "60"]
        program = (
            "import os, sys\n"
            "if sys.argv[1] != '-1':\n"
            "    os.dup2(int(sys.argv[1]), 3)\n"
            "    os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.argv[2], sys.argv[2:])\n"
        )
        kept = -1 if self.kept is None else self.kept
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.path),
            "LISTEN_FDNAMES": "headstart-fuse",
        }
        with mount.places.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", program, str(kept), sys.executable, *arguments],
                env=environment,
                pass_fds=() if self.kept is None else (self.kept,),
                stderr=log,
            )

    def close(self) -> None:
        self.drop()
        self._socket.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as running:
        running.places.run.mkdir()
        yield running


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    running = ServiceManager(tmp_path / "notify")
    yield running
    running.close()


def test_supervisor_and_daemon_may_both_be_killed(
    mount: Mounted, manager: ServiceManager, tmp_path: Path
) -> None:
    with stored_layer(tmp_path / "service", MIB) as stored:
        path = mount.add(stored)[0]
        service = manager.start(mount)
        manager.until_said("READY=1")
        assert manager.kept is not None
        wait_until(lambda: bool(control.status(mount.root)["answering"]))
        connection = control.status(mount.root)["device"]
        with path.open("rb", buffering=0) as file:
            assert file.read(4096) == stored.content[:4096]
            daemon = mount.status("daemon")
            service.kill()
            os.kill(daemon, signal.SIGKILL)
            service.wait()
            with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
                service = manager.start(mount)
                assert reader.communicate(timeout=60)[0] == stored.content
            assert os.pread(file.fileno(), 4096, 8192) == stored.content[8192 : 8192 + 4096]
        assert control.status(mount.root)["device"] == connection
        control.stop(mount.root)
        assert service.wait(30) == 0
        manager.until_said("FDNAME=headstart-fuse")
        while "FDSTOREREMOVE=1" not in manager.said[-1]:
            manager.said.append("")
            manager.until_said("FDNAME=headstart-fuse")


def test_a_daemon_does_not_speak_to_the_service_manager(
    mount: Mounted, manager: ServiceManager
) -> None:
    service = manager.start(mount)
    manager.until_said("READY=1")
    wait_until(lambda: bool(control.status(mount.root)["answering"]))
    environment = Path(f"/proc/{mount.status('daemon')}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environment
    assert b"LISTEN_" not in environment
    control.stop(mount.root)
    assert service.wait(30) == 0
