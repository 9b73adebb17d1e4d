"""Layer images as directories: ``<mount.root>/layers/NUMBER``.

A layer that is whole and verified is mounted from the store's own files; before that its devices
are files of our FUSE file system, which another process answers. In mode ``tree`` it is a directory
of that file system before and after. All calls block, so they are made
in threads; any number of threads and processes may make them at once. What is mounted survives
this process, and the next one goes on with it.
"""

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.geometry import Geometry
from headstart.store.known_layer import KnownLayer
from mount.device.places import MountPlaces
from mount.device.table import DataDevice, DeviceTable, TableDamaged
from mount.mounting import system_calls
from mount.mounting.errors import FilesMissing, MountRefused
from mount.mounting.layer_users import LayerUsers
from mount.mounting.locks import TABLE, NumberLocks
from mount.mounting.modes import LayerFiles, Mode
from mount.mounting.mount_table import mounted_at, mounted_below
from mount.mounting.mounted_from import MountedFrom, MountRecords

logger = logging.getLogger(__name__)

LAYERS = "layers"
"""The directory of the mount points, below ``mount.root``."""
STAGED = ".new"
"""Ends the name of a mount point that is put in another's place."""


@dataclass(frozen=True, slots=True)
class LayerImage:
    """A layer image as the filler has announced it; ``verified``: whole, by its diff ID."""

    layer: KnownLayer
    meta: Path
    devices: tuple[Path, ...]
    geometry: Geometry
    verified: bool


@dataclass(frozen=True, slots=True)
class MountedLayer:
    """A layer that is mounted; ``direct``: whole and verified, so nothing has to come any more."""

    number: int
    path: Path
    direct: bool


class LayerMounts:
    """All layers that are mounted below one ``mount.root``."""

    def __init__(self, root: Path, mode: Mode, device_files: Callable[[], Path]) -> None:
        """``device_files`` brings up the FUSE file system of data devices and says where it is.

        It blocks, and raises OSError or MountError.

        Raises OSError when directories below ``root`` cannot be made.
        """
        self.mode = mode
        self._layers = root / LAYERS
        self._device_files = device_files
        self._table = DeviceTable(root)
        self._users = LayerUsers(root / "users")
        places = MountPlaces(root)
        self._records = MountRecords(places.mount_records)
        self._locks = NumberLocks(places.run / "layers.lock")
        self._numbers: dict[Digest, int] = {}
        """Where to look first: a number never comes to mean another layer."""
        self._layers.mkdir(parents=True, exist_ok=True, mode=0o700)

    # --- mount and unmount ---

    def mount(self, image: LayerImage, user: str) -> MountedLayer:
        """Mount a layer image for ``user``; where it is mounted already, that will do.

        One that is mounted through FUSE and has been verified since is replaced at its mount point
        by one without; who uses the old one keeps it. Raises MountRefused.
        """
        number = self.enter(image, user)
        with self._locks.held(number):
            try:
                record = self._mount(number, image)
            except OSError as error:
                raise _refused(image.layer, error) from error
        return MountedLayer(number, self.path(number), record.direct)

    def enter(self, image: LayerImage, user: str) -> int:
        """Give the layer its number, and note that ``user`` uses it. Raises MountRefused."""
        geometry = image.geometry
        shape = geometry.size, geometry.extent_size, geometry.stripes
        try:
            with self._locks.held(TABLE):
                known = self.find(image.layer)
                if known is not None and known.geometry != geometry:
                    self._drop_stale(known)
                    known = None
                number = known.number if known else self._table.add(image.layer, *shape)
                self._users.add(number, user)
        except (OSError, ValueError, TableDamaged) as error:
            raise _refused(image.layer, error) from error
        self._numbers[image.layer.digest] = number
        return number

    def use(self, layer: KnownLayer, user: str) -> int | None:
        """Note that ``user`` uses a layer that has a number; None when it has none.

        Raises MountRefused.
        """
        try:
            with self._locks.held(TABLE):
                known = self.find(layer)
                if known is None:
                    return None
                self._users.add(known.number, user)
        except OSError as error:
            raise _refused(layer, error) from error
        return known.number

    def restore(self, number: int) -> MountedLayer:
        """Make sure that a layer is mounted; one that has vanished is mounted as it was.

        Raises FilesMissing where the filler has to say again which files it has, MountRefused.
        """
        device = self.device(number)
        if device is None:
            raise FilesMissing(f"layer {number} has no entry in the device table")
        with self._locks.held(number):
            record = self._records.read(number)
            if record is None:
                raise FilesMissing(f"{device.layer.digest}: its files have to be looked at first")
            try:
                if not self._sound(number, record):
                    self._mount_from(number, self._renewed(number, record))
            except FileNotFoundError as error:
                raise FilesMissing(f"{device.layer.digest}: {error}") from error
            except OSError as error:
                raise _refused(device.layer, error) from error
        return MountedLayer(number, self.path(number), record.direct)

    def unmount(self, number: int, user: str | None) -> bool:
        """``user`` is done with a layer; True when nobody else uses it, and it is gone.

        None: nobody is known to use it.

        Raises MountRefused.
        """
        try:
            with self._locks.held(number):
                if user is not None:
                    self._users.remove(number, user)
                if self._users.of(number):
                    return False
                self._unmount_all(number)
                self._records.remove(number)
            with self._locks.held(TABLE):
                # Somebody may have entered it again in between.
                if self._users.of(number):
                    return False
                self._table.remove(number)
                self._users.forget(number)
        except OSError as error:
            raise MountRefused(f"layer {number}: {error.strerror or error}") from error
        return True

    def adopt(self) -> list[DataDevice]:
        """What earlier processes have left: layers with users stay, others are unmounted.

        Returns the layers that stay. Raises MountRefused.
        """
        mounted: set[int] = set()
        for point in mounted_below(self._layers):
            name = point.path.name
            if name.isdecimal():
                mounted.add(int(name))
            elif name.endswith(STAGED):
                self._clear_staged(point.path)
        for number in mounted | set(self._table.numbers()):
            if not self._users.of(number):
                logger.info("mount: layer %d is used by nobody any more", number)
                self.unmount(number, None)
        return self.devices()

    def _clear_staged(self, staged: Path) -> None:
        """Unmount what a process that was killed has not put in its place. Raises MountRefused."""
        try:
            with self._locks.held(int(staged.name.removesuffix(STAGED))):
                for _ in mounted_at(staged):
                    system_calls.unmount(staged, system_calls.MNT_DETACH)
                staged.rmdir()
        except FileNotFoundError:
            pass  # its process lives, and has done so
        except OSError as error:
            raise MountRefused(f"{staged}: {error.strerror or error}") from error

    # --- what is mounted ---

    def path(self, number: int) -> Path:
        """Where a layer is mounted."""
        return self._layers / str(number)

    def mounted(self, number: int) -> bool:
        """Whether a layer is mounted and can be read; asks the kernel, not our memory."""
        record = self._records.read(number)
        return record is not None and self._sound(number, record)

    def find(self, layer: KnownLayer) -> DataDevice | None:
        """A layer's entry in the device table."""
        number = self._numbers.get(layer.digest)
        device = None if number is None else self.device(number)
        if device is None:
            # Entered by another process, or not at all.
            listed = {each.layer.digest: each for each in self.devices()}
            self._numbers = {digest: each.number for digest, each in listed.items()}
            device = listed.get(layer.digest)
        return device

    def through_fuse(self, number: int) -> bool:
        """Whether a layer was mounted before it was whole."""
        record = self._records.read(number)
        return record is not None and not record.direct

    def devices(self) -> list[DataDevice]:
        """All layers of the device table; what cannot be read of it is logged."""
        found = (self.device(number) for number in self._table.numbers())
        return [device for device in found if device is not None]

    def device(self, number: int) -> DataDevice | None:
        """What a number stands for; None when nothing, or nothing that can be read."""
        try:
            return self._table.get(number)
        except TableDamaged as error:
            logger.error("mount: layer %d: %s", number, error)
            return None

    def used_by(self, user: str) -> list[int]:
        """The numbers of the layers that somebody uses."""
        return self._users.used_by(user)

    # --- with the layer's lock held ---

    def _mount(self, number: int, image: LayerImage) -> MountedFrom:
        record = self._records.read(number)
        sound = record is not None and self._sound(number, record)
        if record is not None and sound and (record.direct or not image.verified):
            return record
        if image.verified and not self.mode.through_fuse:
            files = LayerFiles(image.meta, image.devices, number)
            wanted = MountedFrom(files, direct=True)
        else:
            wanted = self._through_fuse(number, image.meta, len(image.devices), image.verified)
        if record is not None and sound:
            return self._replace(number, record, wanted)
        self._mount_from(number, wanted)
        return wanted

    def _through_fuse(self, number: int, meta: Path, stripes: int, whole: bool) -> MountedFrom:
        shown = self._device_files()
        files = LayerFiles(meta, tuple(self._table.device_paths(number, stripes)), number)
        # Where the mode has nothing better, a whole layer needs no other mount later.
        direct = whole and self.mode.through_fuse
        return MountedFrom(files, direct, shown.stat().st_dev)

    def _renewed(self, number: int, record: MountedFrom) -> MountedFrom:
        """The same files again, on the FUSE file system that there is now."""
        if not record.device_file_system and not self.mode.through_fuse:
            return record
        files = record.files
        return self._through_fuse(number, files.meta, len(files.devices), record.direct)

    def _sound(self, number: int, record: MountedFrom) -> bool:
        """Whether it is mounted, and on a FUSE file system that still answers."""
        try:
            if system_calls.file_system_type(self.path(number)) != self.mode.magic:
                return False
            expected = record.device_file_system
            return not expected or self._device_files().stat().st_dev == expected
        except OSError:
            return False

    def _mount_from(self, number: int, record: MountedFrom) -> None:
        """Raises OSError."""
        self._unmount_all(number)
        target = self.path(number)
        target.mkdir(exist_ok=True, mode=0o700)
        # Noted first: a mount that nobody knows the files of would have to be made again.
        self._records.write(record)
        self.mode.mount(record.files, target)

    def _replace(self, number: int, old: MountedFrom, new: MountedFrom) -> MountedFrom:
        """Put a mount in the place of another, with no moment between; the old one if we cannot."""
        if self.mode.through_fuse:
            self._records.write(new)  # the mount is the same
            return new
        staged = self._layers / f"{number}{STAGED}"
        try:
            staged.mkdir(exist_ok=True, mode=0o700)
            self.mode.mount(new.files, staged)
            try:
                system_calls.move_beneath(staged, self.path(number))
            except OSError:
                with suppress(OSError):
                    system_calls.unmount(staged, system_calls.MNT_DETACH)
                raise
            # In this order: killed in between, it is only replaced once more.
            system_calls.unmount(self.path(number), system_calls.MNT_DETACH)
            self._records.write(new)
        except OSError as error:
            logger.info("mount: layer %d stays as it was mounted: %s", number, error)
            return old
        finally:
            with suppress(OSError):
                staged.rmdir()
        return new

    def _unmount_all(self, number: int) -> None:
        """Unmount whatever is at a layer's mount point, and remove that. Raises OSError."""
        target = self.path(number)
        for _ in mounted_at(target):
            try:
                system_calls.unmount(target)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                logger.info("mount: %s is in use; it goes with its last user", target)
                system_calls.unmount(target, system_calls.MNT_DETACH)
        with suppress(FileNotFoundError):
            target.rmdir()

    # --- with the table's lock held ---

    def _drop_stale(self, device: DataDevice) -> None:
        """Forget a number whose layer image has been made anew in another geometry.

        Raises ValueError while it is in use.
        """
        if self._users.of(device.number):
            raise ValueError(
                f"it is in use as layer {device.number} with {device.geometry}; "
                "end its containers first"
            )
        self._table.remove(device.number)


def _refused(layer: KnownLayer, error: Exception) -> MountRefused:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return MountRefused(f"layer {layer.digest} of {layer.repository} cannot be mounted: {reason}")
