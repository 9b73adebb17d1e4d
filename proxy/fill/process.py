"""The filler's process: lock, index, socket, and an orderly end.

``python -P -m proxy.fill.process [--config FILE]``; exit status 2 with one line on standard error
when the configuration or a cache directory cannot be used.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from headstart.command.configuration import Configuration, ConfigurationError
from headstart.command.output import complain
from headstart.command.values import Percent
from headstart.registry.client import RegistryClient
from headstart.store.errors import StoreError
from headstart.store.extent_map import boot_id
from headstart.store.index import Index
from headstart.store.layout import Layout, StoreLock
from headstart.store.object_key import LayerKey, ObjectKey
from proxy.child import die_with_parent, keep_private, launcher_process_id
from proxy.fill.answers import StoreAnswers
from proxy.fill.conversation import Conversation
from proxy.fill.filler import Filler, FillSettings
from proxy.fill.layers.layers import Layers
from proxy.fill.layers.settings import LayerSettings
from proxy.fill.layers.stored_layers import sweep
from proxy.fill.pool import START_CONNECTIONS
from proxy.fill.quota import Quota, water_marks
from proxy.fill.records import BlobRecords

logger = logging.getLogger("proxy.fill.process")  # __name__ is __main__ here

BAD_CONFIGURATION = 2
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SWEEP_SECONDS = 24 * 3600.0
NICENESS = 5
"""Measured: a fill beside small warm requests costs these less when it is the nicer one."""


def run(configuration: Configuration) -> None:
    """Hold the cache and fill until SIGTERM. Raises StoreError."""
    layout = Layout(tuple(stripe.path for stripe in configuration.cache.stripes))
    lock = StoreLock()
    lock.acquire(layout)
    try:
        layout.prepare()
        sweep(layout)
        index = Index(layout.index)
        try:
            uvloop.run(_serve(configuration, layout, index))
        finally:
            index.close()
    finally:
        lock.release()


async def _serve(configuration: Configuration, layout: Layout, index: Index) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Started with SIGINT ignored, as the launcher does it, the terminal's Ctrl-C is not for us:
        # pulls that drain still need their bytes.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    upstreams = configuration.upstreams()
    clients = {host: RegistryClient(upstream) for host, upstream in upstreams.items()}
    filler, layers = _filler(configuration, layout, index, clients)
    await filler.books.restore_leases()
    answers, boot = StoreAnswers(filler, layers), boot_id().hex()
    talks: set[asyncio.Task[None]] = set()

    def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(Conversation(filler, layers, answers, boot, reader, writer).run())
        talks.add(task)
        task.add_done_callback(talks.discard)

    server = await asyncio.start_unix_server(talk, sock=_bind(layout.fill_socket))
    ticking = asyncio.create_task(filler.run())
    layering = asyncio.create_task(layers.run())
    sweeping = asyncio.create_task(_sweep_daily(index))
    gc.freeze()
    logger.info("filler: ready, cache %s", ", ".join(map(str, layout.stripes)))
    ticking.add_done_callback(lambda _: stop.set())  # nothing would pass a deadline any more
    try:
        await stop.wait()
    finally:
        logger.info("filler: stopping")
        server.close()
        for task in (ticking, layering, sweeping, *talks):
            task.cancel()
        await asyncio.gather(ticking, layering, sweeping, *talks, return_exceptions=True)
        await layers.close()
        await filler.close()
        for client in clients.values():
            await client.aclose()
        with contextlib.suppress(FileNotFoundError):
            layout.fill_socket.unlink()


async def _sweep_daily(index: Index) -> None:
    """Remove the small records that nobody has used for long, once a day."""
    while True:
        removed = await asyncio.to_thread(index.sweep)
        if removed:
            logger.info("index: %d records that nobody asks for any more were removed", removed)
        await asyncio.sleep(SWEEP_SECONDS)


def _filler(
    configuration: Configuration,
    layout: Layout,
    index: Index,
    clients: dict[str, RegistryClient],
) -> tuple[Filler, Layers]:
    cache, fetch = configuration.cache, configuration.fetch
    most = cache.max_size
    high, low = water_marks(
        layout.stripes,
        None if isinstance(most, Percent) else most,
        most.value / 100 if isinstance(most, Percent) else None,
        cache.low_water.value / 100,
    )
    filler: Filler
    layers: Layers

    def remove(key: ObjectKey) -> None:
        if isinstance(key, LayerKey):
            layers.evicted(key.digest)
        else:
            filler.evicted(key)

    filler = Filler(
        layout,
        BlobRecords(index, layout),
        Quota(high, low, remove),
        configuration.upstreams(),
        clients,
        FillSettings(
            request_size=fetch.request_size,
            on_demand_size=fetch.on_demand_size,
            extent_size=cache.extent_size,
            reissue=fetch.reissue == "auto",
        ),
    )
    connections = fetch.max_connections
    layers = Layers(
        filler,
        index,
        LayerSettings(
            keep=cache.keep,
            window=fetch.window,
            connections=connections if isinstance(connections, int) else START_CONNECTIONS,
            extent_size=cache.extent_size,
            policy=configuration.prefetch.policy,
            background=configuration.prefetch.background,
        ),
    )
    return filler, layers


def _bind(path: Path) -> socket.socket:
    """The listening socket of mode 0660. Raises StoreError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)
    try:
        # The lock is ours, so a socket that is there belongs to nobody any more.
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StoreError(
            f"{path}: cannot listen: {error.strerror or error}; use a cache directory with a "
            "shorter path (a socket's has at most 107 bytes)"
        ) from error
    finally:
        os.umask(mask)
    return listener


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the filler; return its exit status."""
    die_with_parent(launcher_process_id())
    keep_private()
    parser = argparse.ArgumentParser(prog="headstart filler")
    parser.add_argument("--config", type=Path)
    named = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        configuration = Configuration.load(named.config)
        _allow_many_files()
        os.nice(NICENESS)
        run(configuration)
    except (ConfigurationError, StoreError) as error:
        complain(str(error))
        return BAD_CONFIGURATION
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
