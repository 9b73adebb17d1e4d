"""The filler that runs, or one of our own for as long as it is needed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio

from headstart.store.fill_client import FillClient
from headstart.store.layout import Layout
from mount.image.errors import FillerMissing

FILLER = "proxy.fill.process"
"""The module of the mirror's program that fills the cache; it is only ever started."""

LAUNCHER_VARIABLE = "HEADSTART_LAUNCHER_PID"
"""In which it reads whose end is its own too."""

_START_SECONDS = 30.0
"""Until a filler answers: it waits 5 s for the cache's lock, and an index may have to be read."""
_LOOK_EVERY_SECONDS = 0.02
_STOP_SECONDS = 10.0


@asynccontextmanager
async def connected_filler(
    layout: Layout, config_file: Path | None, log: Path
) -> AsyncIterator[FillClient]:
    """A client of the filler; where none listens one is started, and ended with the context.

    ``log`` takes what that one prints. Call it in the main thread. Raises FillerMissing.
    """
    async with AsyncExitStack() as stack:
        process: subprocess.Popen[bytes] | None = None
        if not listens(layout.fill_socket):
            process = stack.enter_context(_started(layout, config_file, log))
        client = await stack.enter_async_context(FillClient(layout.fill_socket, "command"))
        with anyio.move_on_after(_START_SECONDS):
            while not client.connected:
                if client.refusal is not None:
                    raise FillerMissing(f"{layout.fill_socket}: {client.refusal}")
                if process is not None and process.poll() is not None:
                    raise FillerMissing(f"the filler did not start: {_last_line(log)}")
                await anyio.sleep(_LOOK_EVERY_SECONDS)
        if not client.connected:
            raise FillerMissing(
                f"no filler answers at {layout.fill_socket}; start one with headstart serve"
            )
        yield client


def listens(path: Path) -> bool:
    """Whether somebody accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def _started(
    layout: Layout, config_file: Path | None, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    options = [] if config_file is None else ["--config", str(config_file.absolute())]
    owner = _owner(layout)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The terminal's Ctrl-C is for us: what is mounted still needs the filler until it is unmounted.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", FILLER, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its life is tied to ours, as it is to the launcher's elsewhere.
                env={**os.environ, LAUNCHER_VARIABLE: str(os.getpid())},
                user=owner and owner[0],
                group=owner and owner[1],
                extra_groups=owner and [],
            )
    except OSError as error:
        raise FillerMissing(f"the filler cannot be started: {error}") from error
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _owner(layout: Layout) -> tuple[int, int] | None:
    """Whose files a cache that is there has: the filler needs no root, and leaves none behind."""
    with suppress(FileNotFoundError):
        found = layout.stripes[0].stat()
        if os.geteuid() == 0 and found.st_uid != 0:
            return found.st_uid, found.st_gid
    return None


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return f"see {log}"
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("headstart: ") if said else f"see {log}"
