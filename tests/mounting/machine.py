"""What a test looks at and takes away: loop devices, descriptors, mounts, a double of FUSE."""

import os
import shutil
import time
from pathlib import Path

from mount.mounting import system_calls
from mount.mounting.layer_mounts import LayerImage


def loop_devices() -> set[str]:
    """Names of the loop devices that have a file."""
    return {path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/backing_file")}


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def assert_descriptors(count: int) -> None:
    """As many are open as before; a thread that nobody waits for any more may be at its end."""
    end = time.monotonic() + 10.0
    while open_descriptors() != count and time.monotonic() < end:
        time.sleep(0.01)
    assert open_descriptors() == count


def hide(path: Path) -> None:
    """Unmount behind everybody's back, whoever uses it."""
    system_calls.unmount(path, system_calls.MNT_DETACH)


class DeviceFiles:
    """Stands for the FUSE file system: a tmpfs with a copy of every data device."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked = 0
        directory.mkdir()
        self.start()

    def __call__(self) -> Path:
        self.asked += 1
        return self.directory

    def start(self) -> None:
        """A new file system, on top of the old one."""
        system_calls.mount("none", self.directory, "tmpfs", 0, "")

    def show(self, number: int, image: LayerImage) -> None:
        """Show a layer's data device."""
        for stripe, device in enumerate(image.devices):
            shutil.copy(device, self.directory / f"{number}.{stripe}")
