"""Where things lie below ``mount.root``; imports little, for the supervisor's sake."""

from pathlib import Path


class MountPlaces:
    """Paths of the device file system and of its supervisor."""

    def __init__(self, root: Path) -> None:
        """``root`` is ``mount.root`` of the configuration."""
        self.root = root
        self.devices = root / "devices"
        """The device table: one small file a layer."""
        self.device_files = root / "devices-fs"
        """Where the FUSE file system with the device files is mounted."""
        self.run = root / "run"
        self.mount_records = self.run / "layers"
        """From which files each layer is mounted (:mod:`mount.mounting.mounted_from`)."""
        self.tree_mark = self.run / "trees"
        """There when trees of the present file system have been mounted at other places."""
        self.pid_file = self.run / "supervisor.pid"
        """Locked (flock) by the supervisor for as long as it runs."""
        self.socket = self.run / "supervisor.sock"
        self.connection_record = self.run / "connection.json"
        """What a later supervisor needs to go on with the same FUSE connection."""
        self.log = self.run / "supervisor.log"
        """What supervisor and daemon print, when :mod:`mount.supervisor.control` started them."""
