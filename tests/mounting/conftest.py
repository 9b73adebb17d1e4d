"""Mounts need root; what a test has mounted below its directory goes at its end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.device.places import MountPlaces
from mount.mounting import system_calls
from mount.mounting.modes import FileMode, LoopMode, Mode
from mount.mounting.mount_table import mount_points
from mount.mounting.probe import why_not


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts need root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An empty ``mount.root``, its device table in memory, where fsync costs nothing."""
    made = tmp_path / "root"
    table = MountPlaces(made).devices
    table.mkdir(parents=True)
    system_calls.mount("none", table, "tmpfs", 0, "mode=0700")
    yield made
    unmount_below(tmp_path)


MODES: dict[str, Mode] = {"file": FileMode(), "loop": LoopMode()}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Mode:
    """Each mode that works on this machine."""
    return usable(str(request.param), tmp_path)


def usable(name: str, directory: Path, stripes: int = 1) -> Mode:
    """A mode; the test is skipped where it does not work."""
    reason = why_not(MODES[name], directory, [directory] * stripes)
    if reason is not None:
        pytest.skip(f"mount.mode {name} does not work here: {reason}")
    return MODES[name]


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, the last one first."""
    for point in reversed(mount_points()):
        if point.path.is_relative_to(directory):
            system_calls.unmount(point.path, system_calls.MNT_DETACH)
