"""Mounts one image at a directory, keeps it until it is unmounted, and cleans up after it."""

import errno
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownLayer
from mount.image.errors import DirectoryUnusable
from mount.image.records import ImageRecord, ImageRecords
from mount.image.resolve import ResolvedImage
from mount.mounting import system_calls
from mount.mounting.errors import MountError
from mount.mounting.layer_mounts import LayerMounts
from mount.mounting.leased_mounts import LeasedMounts
from mount.mounting.mount_table import MountChanges, mounted_at
from mount.mounting.opened_layers import OpenedLayers
from mount.mounting.overlay import distinct, mount_overlay

logger = logging.getLogger(__name__)

_FLAGS = system_calls.MS_NOSUID | system_calls.MS_NODEV
"""Whoever looks at an image need not trust it."""
_LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where an image is wanted, and whether it may be changed there until it is unmounted."""

    directory: Path
    writable: bool = False


class ImageMounts:
    """Mounts images below one ``mount.root``; belongs to one event loop."""

    def __init__(self, root: Path, mounts: LayerMounts, client: FillClient) -> None:
        """Raises OSError when directories below ``root`` cannot be made."""
        self._root = root
        self._mounts = mounts
        self._client = client
        self._opened = OpenedLayers(client)
        self.records = ImageRecords(root)

    @asynccontextmanager
    async def mounted(self, image: ResolvedImage, wanted: Wanted) -> AsyncIterator[ImageRecord]:
        """The image is mounted while the context lasts; it is unmounted whoever still uses it.

        Raises DirectoryUnusable, MountError, FillFailed, FillerUnreachable.
        """
        id = self.records.new_id()
        leased = LeasedMounts(self._mounts, self._client, f"mount-{id}")
        layers = tuple(dict.fromkeys(image.layers))
        directory, device = wanted.directory, None
        with ExitStack() as stack:
            try:
                paths = await self._mount_layers(leased, layers)
                device = await anyio.to_thread.run_sync(self._mount_image, id, paths, wanted)
                record = ImageRecord(
                    id, directory, str(image.image), wanted.writable, device, layers
                )
                # Locked until everything is cleaned up.
                stack.enter_context(self.records.kept(record))
                yield record
            finally:
                with anyio.CancelScope(shield=True):
                    if device is not None:
                        await anyio.to_thread.run_sync(_unmount, directory, device)
                    await self._release(leased, layers)
                    self.records.remove(id)

    async def until_unmounted(self, record: ImageRecord) -> None:
        """Wait until somebody has unmounted it."""
        changes = MountChanges()
        try:
            while record.mounted():
                await anyio.to_thread.run_sync(
                    changes.wait, _LOOK_EVERY_SECONDS, abandon_on_cancel=True
                )
        finally:
            changes.close()

    async def clean_up(self, record: ImageRecord) -> None:
        """Do what the process that mounted the image can do no more. Raises MountError."""
        await anyio.to_thread.run_sync(_unmount, record.directory, record.device)
        leased = LeasedMounts(self._mounts, self._client, record.user)
        await self._release(leased, record.layers)
        self.records.remove(record.id)

    async def clean_up_abandoned(self) -> None:
        """Clean up after every process that has ended without, and whose image is mounted no more.

        Raises MountError.
        """
        for record in self.records.all():
            if not record.mounted() and not self.records.attended(record):
                await self.clean_up(record)

    # --- parts ---

    async def _mount_layers(self, leased: LeasedMounts, layers: Sequence[KnownLayer]) -> list[Path]:
        """The mounted layers, the top one first; all of them stream at once."""
        await self._opened.begin(layers)
        paths: list[Path] = []
        for layer in layers:
            opened = await self._opened.mountable(layer)
            mounted = await leased.mount(opened)
            if mounted.direct:
                self._opened.close(layer)
            paths.append(mounted.path)
        return distinct(paths[::-1])

    def _mount_image(self, id: str, lower: Sequence[Path], wanted: Wanted) -> tuple[int, int]:
        """Mount the layers on each other; MAJOR:MINOR of what is mounted then."""
        target = wanted.directory
        try:
            if wanted.writable:
                upper, work = (self.records.scratch(id) / name for name in ("upper", "work"))
                for path in (upper, work):
                    path.mkdir(parents=True, mode=0o700)
                status = lower[0].stat()
                upper.chmod(status.st_mode & 0o7777)
                os.chown(upper, status.st_uid, status.st_gid)
                mount_overlay(lower[0].parent, lower, target, _FLAGS, upper=upper, work=work)
            elif len(lower) == 1:
                system_calls.mount(lower[0], target, "none", system_calls.MS_BIND)
            else:
                mount_overlay(lower[0].parent, lower, target, _FLAGS)
        except OSError as error:
            raise DirectoryUnusable(f"{target}: {error.strerror or error}") from error
        return mounted_at(target)[-1].device

    async def _release(self, leased: LeasedMounts, layers: Sequence[KnownLayer]) -> None:
        answers = True
        for layer in layers:
            self._opened.close(layer)
            try:
                await leased.unmount(layer, release=answers)
            except (FillFailed, FillerUnreachable) as error:
                # The leases go when the snapshotter starts; nobody waits for them.
                logger.info("lease of %s: %s", layer.digest, error)
                answers = False
            except MountError as error:
                logger.warning("%s", error)


def _unmount(directory: Path, device: tuple[int, int]) -> None:
    """Unmount what we have mounted, if it is there; who uses it keeps it."""
    while (points := mounted_at(directory)) and points[-1].device == device:
        try:
            system_calls.unmount(directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                logger.warning("%s stays mounted: %s", directory, error)
                return
            logger.warning("%s is in use; what uses it keeps it", directory)
            system_calls.unmount(directory, system_calls.MNT_DETACH)
