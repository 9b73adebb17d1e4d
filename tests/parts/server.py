"""What the real servers have in common: a port, a directory, a log, start and stop."""

import abc
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.parts.ports import accepts, free_port, wait_until_closed
from tests.parts.processes import Process, tail

SHOWN = 20
"""Lines of each log that a failed test shows."""

_open: list["Server"] = []
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server(abc.ABC):
    """A server that can be stopped and started again in the middle of a test.

    ``with Server(...)`` starts it; leaving the block stops it and removes what it stored, but not
    its log. :func:`logs_of_open_servers` is what a failed test shows.
    """

    start_deadline = 20.0
    """Seconds until it has to be ready."""
    stop_grace = 5.0
    """Seconds between SIGTERM and SIGKILL."""

    def __init__(self, directory: Path, name: str) -> None:
        """``directory`` is made; the log is ``directory/NAME.log``."""
        self.directory = directory
        self.name = name
        self.log = directory / f"{name}.log"
        self.process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def running(self) -> Process:
        """The process; RuntimeError while it is stopped."""
        if self.process is None:
            raise RuntimeError(f"{self.name} is stopped")
        return self.process

    @abc.abstractmethod
    def arguments(self) -> Sequence[str | Path]:
        """The command; writes the configuration that it names."""

    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether it serves; asked until true."""

    def environment(self) -> Mapping[str, str]:
        """Added to the inherited environment."""
        return {}

    def stored(self) -> Sequence[Path]:
        """What is removed at the end: absolute paths, or relative ones below ``directory``."""
        return ()

    def start(self) -> None:
        """Start it and wait until it serves."""
        if self.process is not None:
            raise RuntimeError(f"{self.name} is running")
        self.process = Process(self.arguments(), self.log, environment=self.environment())
        try:
            self.process.wait_until(self.ready, self.start_deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and all that it started. Nothing when it is stopped."""
        if self.process is not None:
            self.process.stop(self.stop_grace)
            self.process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        _open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _open.remove(self)
        try:
            self.stop()
        finally:
            self._remove()

    def _remove(self) -> None:
        for path in self.stored():
            shutil.rmtree(self.directory / path, ignore_errors=True)


class TcpServer(Server):
    """A server on a port of 127.0.0.1, the same one after each start."""

    def __init__(self, directory: Path, name: str, scheme: str = "http") -> None:
        super().__init__(directory, name)
        self.scheme = scheme
        self.port = free_port()

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``, which is how image names call it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def ready(self) -> bool:
        return accepts(self.port)

    def stop(self) -> None:
        """Switch it off; connections are refused when this returns."""
        if self.process is not None:
            super().stop()
            wait_until_closed(self.port)


def answers(url: str) -> bool:
    """Whether an HTTP server answers ``url``, with whatever status."""
    try:
        _direct.open(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def logs_of_open_servers() -> Iterator[tuple[str, str]]:
    """Name and last lines of the log of each server whose block is open."""
    for server in _open:
        yield f"{server.name} in {server.directory}", tail(server.log, SHOWN)
