"""Which data devices the FUSE file system shows: durable, so that a new daemon shows the same."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from headstart.store.geometry import UNIT_SIZE, Geometry
from headstart.store.known_layer import KnownLayer
from headstart.store.layer_map import BLOCK_SIZE
from headstart.store.wire import WireError
from mount.device.naming import MAX_STRIPES, name_of
from mount.device.places import MountPlaces

_SUFFIX = ".json"
_FORMAT = 1
_LAST_NUMBER = "last-number"


class TableDamaged(Exception):
    """A record that cannot be read; the message names the file."""


@dataclass(frozen=True, slots=True)
class DataDevice:
    """The data device of one layer image: one device file a stripe."""

    number: int
    layer: KnownLayer
    geometry: Geometry

    def file_size(self, stripe: int) -> int:
        """Bytes of one stripe's device file, whole pages: those of that stripe's file."""
        return self.geometry.stripe_length(stripe)


class DeviceTable:
    """One JSON file a layer: ``ROOT/devices/NUMBER.json``, written whole, never changed.

    A number names one layer for ever: the kernel keeps pages and attributes of a device file by
    its inode, which is made of the number, so a number is not given out a second time even after
    :meth:`remove`. One process adds and removes (the snapshotter); any number of others read.
    """

    def __init__(self, root: Path) -> None:
        """``root`` is ``mount.root``; the table's directory is made in it. Raises OSError."""
        places = MountPlaces(root)
        self._root = places.devices
        self._shown_at = places.device_files
        self._root.mkdir(parents=True, exist_ok=True, mode=0o750)

    def add(self, layer: KnownLayer, size: int, extent_size: int, stripes: int) -> int:
        """The number of a layer's data device of ``size`` bytes; the same one for the same layer.

        ``size`` is a multiple of 4096, as in the layer's map.

        Raises ValueError for a geometry that cannot be shown or differs from the recorded one,
        OSError when the record cannot be written.
        """
        geometry = _checked_geometry(size, extent_size, stripes)
        for number in self.numbers():
            known = self.get(number)
            if known is not None and known.layer.digest == layer.digest:
                if known.geometry != geometry:
                    raise ValueError(
                        f"{layer.digest}: its data device is shown with {known.geometry} "
                        f"and cannot become {geometry}"
                    )
                return number
        number = max([self._last_number(), *self.numbers()]) + 1
        # Noted before the record is there: whatever comes between, it is not given out again.
        self._write(_LAST_NUMBER, {"version": _FORMAT, "number": number})
        self._write(
            f"{number}{_SUFFIX}",
            {
                "version": _FORMAT,
                "layer": layer.as_message(),
                "size": size,
                "extent_size": extent_size,
                "stripes": stripes,
            },
        )
        return number

    def get(self, number: int) -> DataDevice | None:
        """What a number stands for; None when nothing. Raises :class:`TableDamaged`."""
        path = self._root / f"{number}{_SUFFIX}"
        record = _read(path)
        if record is None:
            return None
        try:
            layer = KnownLayer.from_message(record.get("layer"))
            sizes = [record.get(name) for name in ("size", "extent_size", "stripes")]
            geometry = _checked_geometry(*map(_integer, sizes))
        except (WireError, ValueError) as error:
            raise TableDamaged(f"{path}: {error}") from error
        return DataDevice(number, layer, geometry)

    def device_paths(self, number: int, stripes: int) -> list[Path]:
        """Where the FUSE file system shows the device files of ``number``, in stripe order."""
        return [self._shown_at / name_of(number, stripe) for stripe in range(stripes)]

    def remove(self, number: int) -> None:
        """Show it no longer; nothing happens when it is not there. Raises OSError."""
        (self._root / f"{number}{_SUFFIX}").unlink(missing_ok=True)
        self._sync_directory()

    def numbers(self) -> list[int]:
        """All numbers that stand for a data device, ascending. Raises OSError."""
        names = (name.removesuffix(_SUFFIX) for name in os.listdir(self._root))
        found = (name for name in names if name.isascii() and name.isdecimal())
        return sorted(int(name) for name in found)

    def _last_number(self) -> int:
        """The highest number that was ever given out."""
        record = _read(self._root / f"{_LAST_NUMBER}{_SUFFIX}")
        return 0 if record is None else _integer(record.get("number"))

    def _write(self, name: str, record: dict[str, object]) -> None:
        """Write a file whole: fsync, rename, fsync of the directory."""
        path = self._root / name.removesuffix(_SUFFIX)
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path.with_name(path.name + _SUFFIX))
        self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> dict[str, object] | None:
    """One JSON object of this format; None when there is none. Raises :class:`TableDamaged`."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TableDamaged(f"{path}: {error}") from error
    if not isinstance(record, dict) or record.get("version") != _FORMAT:
        raise TableDamaged(f"{path}: not a record of format {_FORMAT}")
    return record


def _integer(field: object) -> int:
    """A JSON number that is a whole one. Raises ValueError."""
    if type(field) is not int:
        raise ValueError(f"{field!r:.40} is no whole number")
    return field


def _checked_geometry(size: int, extent_size: int, stripes: int) -> Geometry:
    """A geometry that device files can have. Raises ValueError."""
    if not 1 <= stripes <= MAX_STRIPES:
        raise ValueError(f"a data device of {stripes} stripes: 1 to {MAX_STRIPES} can be shown")
    if size < 0 or size % BLOCK_SIZE or extent_size < UNIT_SIZE or extent_size % UNIT_SIZE:
        raise ValueError(f"a data device of {size} bytes in extents of {extent_size}")
    return Geometry(size, extent_size, stripes)
