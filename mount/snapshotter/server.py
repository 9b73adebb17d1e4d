"""The snapshotter as a server: one on each ``mount.root``, on a Unix socket, until SIGTERM."""

import asyncio
import fcntl
import logging
import os
import signal
import socket as sockets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc.aio

from mount.snapshotter.errors import SnapshotError, StartFailed
from mount.snapshotter.layers import Layers
from mount.snapshotter.notify import notify
from mount.snapshotter.service import SnapshotService
from mount.snapshotter.snapshotter import Snapshotter

logger = logging.getLogger(__name__)

LOCK = Path("snapshotter.lock")
"""Below ``mount.root``; holds the pid of who has it."""
LOCK_SECONDS = 5.0
"""A snapshotter that is being replaced has so long to end."""
DRAIN_SECONDS = 10.0
"""Calls that run have so long after SIGTERM; pulls that wait are told at once."""
SWEEP_SECONDS = 600.0
"""Between two cleanups of ours, for what containerd's did not get done."""

_LONGEST_SOCKET = 107
"""Bytes of a path in ``sun_path`` (unix(7)) beside its zero."""


async def serve(socket: Path, root: Path, layers: Layers, repositories: Sequence[str]) -> None:
    """Serve containerd until SIGTERM, SIGINT or cancellation.

    ``root`` (``mount.root``) takes the directories and records of snapshots, ``repositories`` says
    which may be mounted instead of unpacked: patterns on ``UPSTREAM/REPOSITORY``. Raises
    StartFailed.
    """
    async with _told_to_stop() as told, _locked(root):
        snapshotter = Snapshotter(root, layers, repositories)
        try:
            await _reconcile(snapshotter)
            async with _listening(socket, snapshotter), _sweeping(snapshotter):
                notify("READY=1")
                logger.info("snapshotter: serves containerd on %s", socket)
                await told.wait()
                notify("STOPPING=1")
        finally:
            await snapshotter.close()


async def _reconcile(snapshotter: Snapshotter) -> None:
    try:
        await snapshotter.reconcile()
    except SnapshotError as error:
        raise StartFailed(str(error)) from error


@asynccontextmanager
async def _locked(root: Path) -> AsyncIterator[None]:
    """Hold the lock of a ``mount.root``. Raises StartFailed."""
    descriptor = _open_lock(root)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise StartFailed(f"mount.root {root}: in use by process {holder}; end it first")
            await asyncio.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartFailed(f"mount.root {root}: {error.strerror}") from error


def try_lock(descriptor: int) -> bool:
    """Take a lock that nobody has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@asynccontextmanager
async def _listening(socket: Path, snapshotter: Snapshotter) -> AsyncIterator[None]:
    """Answer on ``socket``; at the end calls that run are finished. Raises StartFailed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((SnapshotService(snapshotter).handler(),))
    _bind(server, socket)
    await server.start()
    try:
        yield
    finally:
        snapshotter.stop()
        await server.stop(DRAIN_SECONDS)
        with suppress(FileNotFoundError):
            os.unlink(socket)


def _bind(server: grpc.aio.Server, socket: Path) -> None:
    # gRPC removes the name that it has bound when the server ends, which may be after the next one
    # has come: so it gets a name of its own, which is moved over a stale socket.
    socket = socket.absolute()
    bound = socket.with_name(f"{socket.name}.new")
    if len(os.fsencode(bound)) > _LONGEST_SOCKET:
        raise StartFailed(f"mount.socket {socket}: too long; a shorter path is needed")
    try:
        socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _answers(socket):
            raise StartFailed(f"mount.socket {socket}: another process serves it; end it first")
        server.add_insecure_port(f"unix:{bound}")
        bound.chmod(0o600)
        bound.rename(socket)
    except (OSError, RuntimeError) as error:
        raise StartFailed(f"mount.socket {socket}: {error}") from error


def _answers(socket: Path) -> bool:
    """Whether somebody listens; what is no socket stays and is an OSError."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(socket))
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            if not socket.is_socket():
                raise FileExistsError("it is no socket") from None
            return False
    return True


@asynccontextmanager
async def _sweeping(snapshotter: Snapshotter) -> AsyncIterator[None]:
    task = asyncio.create_task(_sweep(snapshotter), name="sweep snapshots")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _sweep(snapshotter: Snapshotter) -> None:
    while True:
        try:
            await snapshotter.cleanup()
        except Exception:
            logger.exception("snapshotter: what was removed is not all cleaned up")
        await asyncio.sleep(SWEEP_SECONDS)


@asynccontextmanager
async def _told_to_stop() -> AsyncIterator[asyncio.Event]:
    """An event for SIGTERM and SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
