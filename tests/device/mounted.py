"""A real mount of the device files, with the filler that brings their bytes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from mount.device.places import MountPlaces
from mount.device.table import DeviceTable
from mount.mounting import mount_table, system_calls
from mount.supervisor import control
from tests.device.layer_filler import LayerFiller, wait_until
from tests.device.layers import StoredLayer

WATCHDOG_SECONDS = 2.0
HEALTHY_SECONDS = 0.0
"""Every daemon counts as healthy: it is started again without a pause."""


class Mounted:
    """``filler`` serves what was added, and the supervisor runs until the context ends."""

    def __init__(self, directory: Path, filler: LayerFiller) -> None:
        self.root = directory / "root"
        self.places = MountPlaces(self.root)
        self.filler = filler
        self.table = DeviceTable(self.root)

    def ensure(
        self, deadline: float = 60.0, tuning: Sequence[float] = (WATCHDOG_SECONDS, HEALTHY_SECONDS)
    ) -> None:
        """Start or adopt the supervisor."""
        control.ensure(self.root, self.filler.path, deadline, tuning=tuning)

    def add(self, stored: StoredLayer) -> list[Path]:
        """The device files of a layer, in stripe order."""
        self.filler.add(stored)
        geometry = stored.geometry
        number = self.table.add(stored.layer, geometry.size, geometry.extent_size, geometry.stripes)
        return self.table.device_paths(number, geometry.stripes)

    def status(self, name: str) -> int:
        """A number of the supervisor's status."""
        value = control.status(self.root)[name]
        assert isinstance(value, int)
        return value

    def replaced(self, daemon: int) -> bool:
        """Whether another daemon serves."""
        status = control.status(self.root)
        return bool(status["serving"]) and status["daemon"] != daemon

    def kill_daemon(self) -> None:
        """SIGKILL; returns when the next one serves."""
        daemon = self.status("daemon")
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: self.replaced(daemon))

    def log(self) -> str:
        """What supervisor and daemons have said."""
        return self.places.log.read_text(encoding="utf-8")

    def until_logged(self, text: str, count: int = 1) -> None:
        """Wait until a text is in the log so often."""
        wait_until(lambda: self.log().count(text) >= count)

    def processes(self) -> list[int]:
        """Every supervisor and daemon of this root."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    modules = (b"mount.supervisor", b"mount.device.daemon")
                    if os.fsencode(self.root) in line and any(m in line for m in modules):
                        found.append(int(name))
        return found

    def clean(self) -> None:
        """Whatever a test has left: nothing runs and nothing is mounted afterwards."""
        with contextlib.suppress(control.SupervisorError):
            control.stop(self.root, force=True)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until(lambda: not self.processes())
        while mount_table.mounted_at(self.places.device_files):
            system_calls.unmount(self.places.device_files, system_calls.MNT_DETACH)


@contextmanager
def mounted(directory: Path) -> Iterator[Mounted]:
    """A filler, and a root at which nothing runs yet; all is ended with the context.

    Skips the test where it cannot mount.
    """
    if os.geteuid() != 0:
        pytest.skip("a FUSE mount has to be made by root")
    with LayerFiller(directory / "fill.sock") as filler:
        mount = Mounted(directory, filler)
        try:
            yield mount
        finally:
            mount.clean()


class Reader:
    """A :mod:`tests.device.reader` that reads until :meth:`finish`."""

    def __init__(self, device: Path, truth: Path, how: str = "read") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.device.reader", device, truth, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"reading\n"

    def finish(self) -> dict[str, float]:
        """What it has found; no read may have failed or have been wrong."""
        found: dict[str, Any] = json.loads(self._process.communicate(timeout=60)[0])
        assert self._process.returncode == 0
        assert (found["wrong"], found["errors"], found.pop("trouble")) == (0, 0, "")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def fuse_connections() -> Iterator[Path]:
    """Where the kernel shows its FUSE connections; mounted for the time when nobody has."""
    place = Path("/sys/fs/fuse/connections")
    if any(point.kind == "fusectl" for point in mount_table.mounted_at(place)):
        yield place
        return
    system_calls.mount("fusectl", place, "fusectl", 0)
    try:
        yield place
    finally:
        system_calls.unmount(place)
