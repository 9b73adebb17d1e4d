"""From which files a layer was mounted: noted, so that it can be mounted again without asking."""

import json
from dataclasses import dataclass
from pathlib import Path

from headstart.store.extent_map import boot_id
from mount.mounting.modes import LayerFiles

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class MountedFrom:
    """How a layer is mounted.

    ``direct``: it was whole and verified; its devices are the store's own files, unless the mode
    goes through FUSE always. ``device_file_system`` is the device number (st_dev) of the FUSE file
    system that it reads from, 0 for none: the kernel keeps that number for as long as anything is
    open there, so a new file system never has an old one's.
    """

    files: LayerFiles
    direct: bool
    device_file_system: int = 0


class MountRecords:
    """``DIRECTORY/NUMBER.json``; what was noted before the last boot is not believed.

    A store that was not closed in order may have lost bytes: then the filler has to look first.
    """

    def __init__(self, directory: Path) -> None:
        """Raises OSError when the directory cannot be made."""
        self._directory = directory
        self._boot = boot_id().hex()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, record: MountedFrom) -> None:
        """Note how a layer is mounted. Raises OSError."""
        path = self._path(record.files.number)
        temporary = path.with_suffix(".new")
        written = {
            "version": _FORMAT,
            "boot": self._boot,
            "meta": str(record.files.meta),
            "devices": [str(device) for device in record.files.devices],
            "direct": record.direct,
            "device_file_system": record.device_file_system,
        }
        temporary.write_text(json.dumps(written), encoding="utf-8")
        temporary.rename(path)

    def read(self, number: int) -> MountedFrom | None:
        """How a layer was mounted; None when that is not known (any more)."""
        try:
            read = json.loads(self._path(number).read_bytes())
            if read["version"] != _FORMAT or read["boot"] != self._boot:
                return None
            files = LayerFiles(
                Path(read["meta"]), tuple(Path(device) for device in read["devices"]), number
            )
            return MountedFrom(files, bool(read["direct"]), int(read["device_file_system"]))
        except (OSError, ValueError, KeyError, TypeError):
            # Lost or damaged, it costs one question to the filler.
            return None

    def remove(self, number: int) -> None:
        """Forget it. Raises OSError."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.json"
