"""Where ``/dev/fuse`` can be found again when a supervisor has died.

A daemon that lives on has it (pidfd_getfd(2), Linux 5.6), and so has systemd when the supervisor
runs as a unit with ``FileDescriptorStoreMax`` (sd_notify(3), FDSTORE; sd_listen_fds(3)).
"""

import array
import contextlib
import ctypes
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from mount.device.channel import FUSE_DESCRIPTOR

_NAME = "headstart-fuse"
_FIRST_LISTENED = 3  # SD_LISTEN_FDS_START
_SYS_PIDFD_GETFD = 438  # on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def of_daemon(pid: int, root: Path) -> int | None:
    """A copy of the descriptor of a daemon of ``root`` that lives; None when ``pid`` is none."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        file = Path(f"/proc/{pid}/fd/{FUSE_DESCRIPTOR}").readlink()
        if os.fsencode(root) not in arguments or file != Path("/dev/fuse"):
            return None
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        copy = _libc.syscall(
            ctypes.c_long(_SYS_PIDFD_GETFD),
            ctypes.c_int(process),
            ctypes.c_int(FUSE_DESCRIPTOR),
            ctypes.c_uint(0),
        )
    finally:
        os.close(process)
    return None if copy < 0 else int(copy)


def of_service(environment: Mapping[str, str]) -> int | None:
    """The descriptor that systemd has kept and given to this process; None when there is none."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for number, name in enumerate(names[: int(environment.get("LISTEN_FDS", "0"))]):
        if name == _NAME:
            descriptor = _FIRST_LISTENED + number
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, True)
            return descriptor
    return None


def keep_in_service(environment: Mapping[str, str], descriptor: int) -> None:
    """Give systemd a copy, and say that we are ready; nothing outside of a service."""
    _notify(environment, f"FDSTORE=1\nFDNAME={_NAME}", descriptor)
    _notify(environment, "READY=1")


def drop_from_service(environment: Mapping[str, str]) -> None:
    """Let systemd close its copy: a wanted end."""
    _notify(environment, f"STOPPING=1\nFDSTOREREMOVE=1\nFDNAME={_NAME}")


def _notify(environment: Mapping[str, str], text: str, descriptor: int | None = None) -> None:
    path = environment.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    passed = []
    if descriptor is not None:
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    # Without systemd's copy all works on, until the supervisor is killed.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.connect(address)
        channel.sendmsg([text.encode()], passed)
