"""Images that persons have mounted: ``<mount.root>/mounts/ID.json``, locked while its process runs.

A process that was killed leaves its record; whoever comes next cleans up after it.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from headstart.store.known_layer import KnownLayer
from headstart.store.wire import WireError
from mount.mounting.mount_table import mounted_at

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One mounted image; ``device`` is the MAJOR:MINOR of what is mounted at ``directory``."""

    id: str
    directory: Path
    image: str
    writable: bool
    device: tuple[int, int]
    layers: tuple[KnownLayer, ...]

    @property
    def user(self) -> str:
        """What :class:`mount.mounting.layer_users.LayerUsers` calls it."""
        return f"mount-{self.id}"

    def mounted(self) -> bool:
        """Whether it is still there, on top or below another mount."""
        return any(point.device == self.device for point in mounted_at(self.directory))

    def as_json(self) -> dict[str, object]:
        """For a person's programs."""
        return {
            "directory": str(self.directory),
            "image": self.image,
            "writable": self.writable,
            "layers": len(self.layers),
        }


class ImageRecords:
    """All images that are mounted below one ``mount.root``."""

    def __init__(self, root: Path) -> None:
        """Raises OSError when the directory cannot be made."""
        self._directory = root / "mounts"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_id(self) -> str:
        """A name for an image that is about to be mounted."""
        return secrets.token_hex(4)

    def scratch(self, id: str) -> Path:
        """A directory for what an image needs while it is mounted."""
        return self._directory / id

    @contextmanager
    def kept(self, record: ImageRecord) -> Iterator[None]:
        """Keep a record, locked; it is still there afterwards. Raises OSError."""
        path = self._directory / f"{record.id}.json"
        written = {
            **asdict(record),
            "version": _FORMAT,
            "directory": str(record.directory),
            "layers": [layer.as_message() for layer in record.layers],
        }
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, json.dumps(written).encode())
            yield
        finally:
            os.close(descriptor)

    def all(self) -> list[ImageRecord]:
        """The records that can be read."""
        found = (self._read(path) for path in sorted(self._directory.glob("*.json")))
        return [record for record in found if record is not None]

    def at(self, directory: Path) -> ImageRecord | None:
        """The image that is mounted at a directory."""
        matching = (each for each in self.all() if each.directory == directory and each.mounted())
        return next(matching, None)

    def attended(self, record: ImageRecord) -> bool:
        """Whether the process that mounted it still runs: it cleans up by itself."""
        try:
            descriptor = os.open(self._directory / f"{record.id}.json", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remove(self, id: str) -> None:
        """Forget an image, and what was written into it. Raises OSError."""
        shutil.rmtree(self.scratch(id), ignore_errors=True)
        (self._directory / f"{id}.json").unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> ImageRecord | None:
        with suppress(OSError, ValueError, KeyError, TypeError, WireError):
            read = json.loads(path.read_bytes())
            if read["version"] == _FORMAT:
                major, minor = read["device"]
                return ImageRecord(
                    path.stem,
                    Path(read["directory"]),
                    str(read["image"]),
                    bool(read["writable"]),
                    (int(major), int(minor)),
                    tuple(map(KnownLayer.from_message, read["layers"])),
                )
        return None
