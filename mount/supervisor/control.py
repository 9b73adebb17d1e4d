"""What others do with the supervisor: start or adopt one, ask it, end it. All calls block."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mount.device.places import MountPlaces
from mount.supervisor.process_state import has_ended

START_SECONDS = 60.0
"""How long a supervisor may take until its mount answers."""

_CALL_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.02
_MAX_MESSAGE = 65536
_MAX_LOG_BYTES = 4 << 20
_started: list[subprocess.Popen[bytes]] = []
"""Supervisors that this process has started: they outlive it, but their ends are its to collect."""

_SERVICE_VARIABLES = (
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
)


class SupervisorError(Exception):
    """The supervisor cannot do what it was asked to; ``str()`` is one line with the remedy."""


class NotRunning(SupervisorError):
    """No supervisor runs at this root."""


class DevicesInUse(SupervisorError):
    """Something is mounted from the device files: containers would lose their files."""


def ensure(
    root: Path,
    fill_socket: Path,
    read_deadline_seconds: float,
    *,
    tuning: Sequence[float] = (),
) -> None:
    """Start a supervisor at ``root`` (``mount.root``) or adopt the one that runs there.

    Returns when the device files can be used. A running one goes on with these settings: where
    they differ a new daemon takes over, unnoticed by readers. ``tuning`` are the supervisor's
    further arguments (watchdog, healthy seconds). Raises :class:`SupervisorError` or OSError.
    """
    places = MountPlaces(root)
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    while True:
        try:
            known = status(root)
        except NotRunning:
            if process is None:
                process = _start(places, fill_socket, read_deadline_seconds, tuning)
            elif process.poll() not in (None, 3):  # 3: another one was quicker
                raise SupervisorError(_how_it_ended(places, process.returncode)) from None
        else:
            wanted = str(fill_socket), read_deadline_seconds
            if (known["fill_socket"], known["read_deadline_seconds"]) != wanted:
                upgrade(root, fill_socket, read_deadline_seconds)
            elif known["answering"]:
                return
        if time.monotonic() > deadline:
            raise SupervisorError(
                f"{places.device_files} did not answer within {START_SECONDS:g} s; see {places.log}"
            )
        time.sleep(_LOOK_EVERY_SECONDS)


def _start(
    places: MountPlaces,
    fill_socket: Path,
    read_deadline_seconds: float,
    tuning: Sequence[float],
) -> subprocess.Popen[bytes]:
    """A supervisor in a session of its own, with a log of its own."""
    places.run.mkdir(parents=True, exist_ok=True, mode=0o750)
    if places.log.exists() and places.log.stat().st_size > _MAX_LOG_BYTES:
        places.log.rename(places.log.with_suffix(".log.1"))
    arguments = [str(places.root), str(fill_socket), str(read_deadline_seconds)]
    with places.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mount.supervisor", *arguments, *map(str, tuning)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={
                name: value for name, value in os.environ.items() if name not in _SERVICE_VARIABLES
            },
        )
    _started[:] = [earlier for earlier in _started if earlier.poll() is None]
    _started.append(process)
    return process


def _how_it_ended(places: MountPlaces, exit_status: int) -> str:
    """What a supervisor that did not come up has said last."""
    lines = places.log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1] if lines else "it said nothing"
    return f"the mount's supervisor ended with status {exit_status} ({places.log}): {last}"


def status(root: Path) -> dict[str, object]:
    """What the supervisor says of itself and its daemon. Raises :class:`NotRunning`."""
    return _call(root, {"call": "ping"})


def upgrade(root: Path, fill_socket: Path, read_deadline_seconds: float) -> None:
    """Let a new daemon (the code as it is installed now) take over.

    Readers notice nothing. Raises :class:`SupervisorError`; the present one goes on then.
    """
    answer = _call(
        root,
        {
            "call": "upgrade",
            "fill_socket": str(fill_socket),
            "read_deadline_seconds": read_deadline_seconds,
        },
        START_SECONDS,
    )
    if "failed" in answer:
        raise SupervisorError(f"the new mount daemon did not take over: {answer['failed']}")


def stop(root: Path, *, force: bool = False) -> None:
    """Unmount the device files and end supervisor and daemon; nothing happens when none runs.

    Who has unmounted everything calls this: while anything reads from the device files it raises
    :class:`DevicesInUse` and nothing ends. ``force`` ends it all the same; what is mounted answers
    errors then. Raises :class:`SupervisorError`.
    """
    try:
        pid = status(root)["pid"]
        answer = _call(root, {"call": "stop", "force": force})
    except NotRunning:
        return
    if "failed" in answer:
        raise DevicesInUse(f"{MountPlaces(root).device_files}: {answer['failed']}")
    deadline = time.monotonic() + _STOP_SECONDS
    while isinstance(pid, int) and not has_ended(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_SECONDS)


def _call(
    root: Path, request: dict[str, object], seconds: float = _CALL_SECONDS
) -> dict[str, object]:
    path = MountPlaces(root).socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(os.fspath(path))
            connection.send(json.dumps(request).encode())
            received = connection.recv(_MAX_MESSAGE)
        except TimeoutError:
            raise SupervisorError(f"{path}: no answer within {seconds:g} s") from None
        except (FileNotFoundError, ConnectionError) as error:
            raise NotRunning(f"{path}: {error.strerror}") from error
    if not received:
        raise NotRunning(f"{path}: it has ended")
    answer: dict[str, object] = json.loads(received)
    return answer
