"""The FUSE file system of data devices, brought up where it is not."""

from pathlib import Path

from mount.device.places import MountPlaces
from mount.mounting.errors import MountRefused
from mount.supervisor.control import SupervisorError, ensure


class SupervisedDevices:
    """Calling it makes sure that a supervisor runs, and says where the device files are."""

    def __init__(self, root: Path, fill_socket: Path, read_deadline_seconds: float) -> None:
        """``root`` is ``mount.root``. Nothing is started yet."""
        self._places = MountPlaces(root)
        self._fill_socket = fill_socket
        self._read_deadline_seconds = read_deadline_seconds

    def __call__(self) -> Path:
        """Blocks until the device files can be used. Raises MountRefused, OSError."""
        try:
            ensure(self._places.root, self._fill_socket, self._read_deadline_seconds)
        except SupervisorError as error:
            raise MountRefused(str(error)) from error
        return self._places.device_files
