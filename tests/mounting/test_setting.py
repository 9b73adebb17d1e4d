"""Mode and mounts from the configuration; the device file system behind them."""

from pathlib import Path

import pytest

from headstart.store.layout import Layout
from mount.mounting import supervised_devices
from mount.mounting.errors import ModeUnavailable, MountRefused
from mount.mounting.setting import layer_mounts
from mount.mounting.supervised_devices import SupervisedDevices
from mount.supervisor.control import SupervisorError


def test_the_mode_is_tried_where_the_cache_is(root: Path) -> None:
    stripes = [root / "one", root / "other"]
    layout = Layout(tuple(stripes))
    assert layer_mounts(root, "loop", layout, 1.0).mode.name == "loop"
    assert not any(stripe.exists() for stripe in stripes)
    for stripe in stripes:
        (stripe / "run").mkdir(parents=True)
    with pytest.raises(ModeUnavailable, match="2 stripes"):
        layer_mounts(root, "loop", layout, 1.0)
    assert not [path for stripe in stripes for path in (stripe / "run").iterdir()]


def test_the_device_file_system_is_brought_up_with_the_configurations_values(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path, float]] = []
    monkeypatch.setattr(supervised_devices, "ensure", lambda *values: asked.append(values))
    devices = SupervisedDevices(root, root / "fill.sock", 300.0)
    assert devices() == root / "devices-fs"
    assert asked == [(root, root / "fill.sock", 300.0)]


def test_a_supervisor_that_fails_is_a_refused_mount(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SupervisorError("it ended; see its log")

    monkeypatch.setattr(supervised_devices, "ensure", fail)
    with pytest.raises(MountRefused, match="it ended; see its log"):
        SupervisedDevices(root, root / "fill.sock", 300.0)()
