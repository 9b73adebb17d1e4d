"""``headstart snapshotter``: containerd's plugin, with filler and mount daemon behind it."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from headstart.command.configuration import Configuration
from headstart.command.invocation import CommandFailed
from headstart.store.fill_client import FillClient
from headstart.store.layout import STAMP, Layout
from mount.layers import FilledLayers
from mount.mounting.errors import MountError
from mount.mounting.layer_mounts import LayerMounts
from mount.mounting.setting import layer_mounts
from mount.snapshotter.errors import StartFailed
from mount.snapshotter.server import serve
from mount.supervisor.control import SupervisorError, ensure
from mount.supervisor.control import stop as stop_supervising

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(configuration: Configuration) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. Raises CommandFailed."""
    _check_root()
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    keys = configuration.mount
    layout = Layout(tuple(stripe.path for stripe in configuration.cache.stripes))
    tell_unused(layout)
    try:
        ensure(keys.root, layout.fill_socket, keys.read_deadline)
        mounts = layer_mounts(keys.root, keys.mode, layout, keys.read_deadline)
        asyncio.run(_serve(configuration, mounts, layout.fill_socket))
    except (SupervisorError, MountError, StartFailed, OSError) as error:
        raise CommandFailed(str(error)) from error
    return 0


def stop_supervisor(configuration: Configuration) -> int:
    """End the supervisor and its daemon; return the exit status. Raises CommandFailed."""
    _check_root()
    try:
        stop_supervising(configuration.mount.root)
    except (SupervisorError, OSError) as error:
        raise CommandFailed(str(error)) from error
    return 0


async def _serve(configuration: Configuration, mounts: LayerMounts, fill_socket: Path) -> None:
    keys = configuration.mount
    async with (
        FillClient(fill_socket, "snapshotter") as client,
        FilledLayers(client, mounts) as layers,
    ):
        await serve(keys.socket, keys.root, layers, keys.repositories)


def tell_unused(layout: Layout) -> None:
    """~ is root's here: a mirror that runs as another user has its cache elsewhere."""
    first = layout.stripes[0]
    if not (first / STAMP).exists():
        logger.warning(
            "cache: no mirror has used %s yet, and without it every layer is unpacked; if the "
            "mirror's cache is another one, name it: HEADSTART_CACHE__STRIPES=DIRECTORY",
            first,
        )


def _check_root() -> None:
    if os.geteuid() != 0:
        raise CommandFailed(f"mounting needs root, and this is user id {os.geteuid()}; use sudo")
