"""Puts the parts together that the configuration describes: mode, mounts, device files."""

from pathlib import Path

from headstart.store.layout import Layout
from mount.device.places import MountPlaces
from mount.mounting.layer_mounts import LayerMounts
from mount.mounting.modes import TreeMode
from mount.mounting.probe import choose_mode
from mount.mounting.supervised_devices import SupervisedDevices


def layer_mounts(
    root: Path,
    mode: str,
    layout: Layout,
    read_deadline_seconds: float,
) -> LayerMounts:
    """The mounts below ``mount.root``, in the mode that ``mount.mode`` names or that works.

    Blocks for some milliseconds; for seconds where nothing but a FUSE tree works. Raises
    ModeUnavailable, OSError.
    """
    places = MountPlaces(root)
    # Only the filler makes the cache's directories; before its first start there is nothing to try.
    runs = [stripe / "run" for stripe in layout.stripes]
    stores = runs if all(run.is_dir() for run in runs) else []
    devices = SupervisedDevices(root, layout.fill_socket, read_deadline_seconds)
    chosen = choose_mode(mode, places.run, stores, tree=TreeMode(root, devices)).mode
    return LayerMounts(root, chosen, devices)
