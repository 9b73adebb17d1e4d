"""The daemon's process: ``python -m mount.device.daemon ROOT FILL_SOCKET READ_DEADLINE_SECONDS``.

Started by the supervisor with ``/dev/fuse`` and its end of a socket pair as descriptors 3 and 4.
SIGTERM: reads no more requests, answers those that it has, ends. When the supervisor dies it goes
on serving.
"""

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from headstart.store.fill_client import FillClient
from mount.device import operations
from mount.device.channel import CHANNEL_DESCRIPTOR, FUSE_DESCRIPTOR, MAX_MESSAGE, parse, send
from mount.device.device_files import DeviceFiles
from mount.device.open_layers import OpenLayers
from mount.device.places import MountPlaces
from mount.device.served_pages import ServedPages
from mount.device.table import DeviceTable
from mount.device.takeover import Takeover
from mount.device.waiting_reads import WaitingReads
from mount.tree.operations import TreeOperations
from mount.tree.trees import Trees

logger = logging.getLogger(__name__)

_TIDY_EVERY_SECONDS = 60.0


class SupervisorGone(Exception):
    """The supervisor ended before it let this daemon serve."""


async def serve(root: Path, fill_socket: Path, read_deadline_seconds: float) -> None:
    """Take over the connection and answer requests until told to end. Raises SupervisorGone."""
    channel = socket.socket(fileno=CHANNEL_DESCRIPTOR)
    greeting = parse(channel.recv(MAX_MESSAGE))

    async def agree(answer: bytes) -> None:
        send(channel, {"type": "ready", "answer": answer.hex()})
        await trio.lowlevel.wait_readable(channel)
        try:
            parse(channel.recv(MAX_MESSAGE))
        except (EOFError, OSError) as error:
            raise SupervisorGone from error
        send(channel, {"type": "serving"})

    waiting = WaitingReads()
    async with FillClient(fill_socket, "mount") as client, trio.open_nursery() as nursery:
        table = DeviceTable(root)
        files = DeviceFiles(table, OpenLayers(client), waiting, read_deadline_seconds)
        trees = Trees(root, table, files)
        takeover = Takeover(FUSE_DESCRIPTOR, bytes.fromhex(str(greeting["init"])), agree)
        served = ServedPages(MountPlaces(root).device_files)
        operations.begin(TreeOperations(files, served, trees), takeover.mount_point)
        takeover.begin()
        nursery.start_soon(waiting.watch)
        nursery.start_soon(served.drop_on)
        nursery.start_soon(_tidy, files, trees)
        nursery.start_soon(_finish_on_signal)
        await operations.serve()
        nursery.cancel_scope.cancel()


async def _finish_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as received:
        async for _ in received:
            operations.finish()


async def _tidy(files: DeviceFiles, trees: Trees) -> None:
    while True:
        await trio.sleep(_TIDY_EVERY_SECONDS)
        try:
            files.forget_removed()
            trees.forget_removed()
        except OSError as error:
            logger.error("the device table cannot be read: %s", error)


def main(arguments: Sequence[str]) -> int:
    """Serve; 1 when it could not begin or the connection broke."""
    root, fill_socket, read_deadline = arguments
    logging.basicConfig(format="headstart: mount daemon: %(message)s", level=logging.INFO)
    # A layer image that is open holds a descriptor for its metadata and one a stripe.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Ctrl-C in the terminal of whoever started the supervisor is not meant for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 0
    try:
        trio.run(serve, Path(root), Path(fill_socket), float(read_deadline))
    except* SupervisorGone:
        logger.error("the supervisor has gone; nothing was served")
        status = 1
    return status


if __name__ == "__main__":
    _status = main(sys.argv[1:])
    # Without waiting for threads: what one still reads from a disk is of no use to anybody.
    logging.shutdown()
    os._exit(_status)
