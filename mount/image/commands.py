"""What ``headstart mount``, ``umount``, ``ls`` and ``cat`` do; all of it needs root."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from headstart.command.configuration import Configuration
from headstart.command.invocation import CommandFailed
from headstart.command.output import Output
from headstart.command.platform import own_platform
from headstart.content.manifest import Platform
from headstart.content.reference import ImageReference
from headstart.content.sizes import show_size
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.layout import Layout
from mount.image.errors import DirectoryUnusable, ImageError
from mount.image.filler_process import connected_filler
from mount.image.inside import copy_file, listing
from mount.image.mounted_image import ImageMounts, Wanted
from mount.image.records import ImageRecord, ImageRecords
from mount.image.resolve import ResolvedImage, resolve_image
from mount.mounting import system_calls
from mount.mounting.errors import MountError
from mount.mounting.layer_mounts import LayerMounts
from mount.mounting.setting import layer_mounts
from mount.supervisor.control import SupervisorError
from mount.supervisor.control import stop as stop_supervising

INTERRUPTED = 130
"""128 and SIGINT, as shells have it."""

_CLEAN_UP_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Setting:
    """What all of these commands have in common."""

    configuration: Configuration
    config_file: Path | None
    output: Output

    @property
    def root(self) -> Path:
        """``mount.root``."""
        return self.configuration.mount.root


def mount_image(
    setting: Setting,
    name: str,
    wanted: Wanted,
    platform: str | None,
    announce: Callable[[ImageRecord], None],
) -> int:
    """Mount an image and keep it until it is unmounted, or until Ctrl-C or SIGTERM.

    ``announce`` is called once it is mounted. Returns the exit status. Raises CommandFailed,
    InvalidInput, RegistryError.
    """
    image, wanted_platform = _read(name, platform)
    _check_directory(wanted.directory)

    mounted = False

    async def work() -> None:
        nonlocal mounted
        async with (
            _resolved(setting, image, wanted_platform) as (images, resolved),
            _stopped_by_signals(),
            images.mounted(resolved, wanted) as record,
        ):
            mounted = True
            announce(record)
            await images.until_unmounted(record)

    status = _run(work)
    return status if mounted else status or INTERRUPTED


def unmount_image(setting: Setting, directory: Path, *, lazy: bool) -> int:
    """Unmount an image; returns when nothing is left of it. Raises CommandFailed."""
    _check_root()
    records = ImageRecords(setting.root)
    record = records.at(directory)
    if record is None:
        known = ", ".join(str(each.directory) for each in records.all() if each.mounted())
        raise CommandFailed(
            f"{directory}: no image is mounted here; mounted are: {known or 'none'}"
        )

    async def work() -> None:
        async with _images(setting) as images:
            await images.clean_up(record)

    with _failures():
        _unmount(directory, lazy=lazy)
    # Who mounted it cleans up. Where nobody does, it is left to us.
    end = time.monotonic() + _CLEAN_UP_SECONDS
    while records.attended(record) and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_SECONDS)
    left = not records.attended(record) and record in records.all()
    status = _run(work) if left else 0
    setting.output.show(record.as_json(), f"unmounted {record.image} from {directory}")
    return status


def list_path(setting: Setting, name: str, path: str, platform: str | None) -> int:
    """Print what a directory of an image has. Raises as :func:`mount_image`."""

    async def look(mounted: Path) -> None:
        found = await anyio.to_thread.run_sync(listing, mounted, path)
        if setting.output.as_json:
            setting.output.show([each.as_json() for each in found], "")
        else:
            print(*found, sep="\n", end="\n" if found else "", file=setting.output.stream)

    return _look(setting, name, platform, look)


def print_file(setting: Setting, name: str, path: str, platform: str | None) -> int:
    """Print a file of an image. Raises as :func:`mount_image`."""

    async def look(mounted: Path) -> None:
        await anyio.to_thread.run_sync(copy_file, mounted, path, sys.stdout.buffer)

    return _look(setting, name, platform, look)


def _look(
    setting: Setting, name: str, platform: str | None, look: Callable[[Path], Awaitable[None]]
) -> int:
    """Do something with an image that is mounted where nobody else looks, for as long."""
    image, wanted_platform = _read(name, platform)

    async def work() -> None:
        async with (
            _resolved(setting, image, wanted_platform) as (images, resolved),
            _stopped_by_signals(),
        ):
            with _temporary(setting.root) as place:
                async with images.mounted(resolved, Wanted(place)) as record:
                    await look(record.directory)

    return _run(work)


@contextmanager
def _temporary(root: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="look-", dir=root / "mounts"))
    try:
        yield place
    finally:
        place.rmdir()


@asynccontextmanager
async def _resolved(
    setting: Setting, image: ImageReference, platform: Platform
) -> AsyncIterator[tuple[ImageMounts, ResolvedImage]]:
    resolved = await resolve_image(image, setting.configuration.upstreams(), platform)
    if sys.stderr.isatty():
        count, size = len(resolved.layers), show_size(resolved.size)
        print(f"{image}: {count} layers, {size}", file=sys.stderr, flush=True)
    async with _images(setting) as images:
        yield images, resolved


@asynccontextmanager
async def _images(setting: Setting) -> AsyncIterator[ImageMounts]:
    """Everything that mounting needs, and nothing left over of who was killed before."""
    configuration, root = setting.configuration, setting.root
    layout = Layout(tuple(stripe.path for stripe in configuration.cache.stripes))
    log = root / "run" / "filler.log"
    async with connected_filler(layout, setting.config_file, log) as client:
        keys = configuration.mount
        mounts = await anyio.to_thread.run_sync(
            layer_mounts, root, keys.mode, layout, keys.read_deadline
        )
        images = ImageMounts(root, mounts, client)
        await images.clean_up_abandoned()
        try:
            yield images
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end_unused_supervisor, root, mounts)


def _end_unused_supervisor(root: Path, mounts: LayerMounts) -> None:
    """The mount daemon ends with the last layer; whoever needs it next starts it again."""
    if not mounts.devices():
        with suppress(SupervisorError):
            stop_supervising(root)


@asynccontextmanager
async def _stopped_by_signals() -> AsyncIterator[None]:
    """SIGINT and SIGTERM end what is in the context, as if it had come to its end.

    The connection to the filler lies outside of it: who cleans up needs that.
    """

    async def watch(received: AsyncIterator[signal.Signals]) -> None:
        async for _ in received:
            tasks.cancel_scope.cancel()

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, received)
            yield
            tasks.cancel_scope.cancel()


def _run(work: Callable[[], Awaitable[None]]) -> int:
    """Run to the end; Ctrl-C before it is an exit status of its own."""
    with _failures():
        try:
            anyio.run(work)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


@contextmanager
def _failures() -> Iterator[None]:
    """What goes wrong, as one line for a person."""
    expected = (ImageError, MountError, FillFailed, FillerUnreachable, OSError)
    try:
        yield
    except (*expected, BaseExceptionGroup) as error:
        # Not by `except*`: before Python 3.11.4 what is raised there comes out as a group.
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = (first.subgroup(expected) or first).exceptions[0]
        if not isinstance(first, expected):
            raise
        raise CommandFailed(str(first)) from first


def _read(name: str, platform: str | None) -> tuple[ImageReference, Platform]:
    """Raises InvalidInput, CommandFailed."""
    image = ImageReference.parse(name)
    wanted = own_platform() if platform is None else Platform.parse(platform)
    _check_root()
    return image, wanted


def _check_root() -> None:
    if os.geteuid() != 0:
        raise CommandFailed(f"mounting needs root, and this is user id {os.geteuid()}; use sudo")


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise CommandFailed(f"{directory}: is no directory; make it first")


def _unmount(directory: Path, *, lazy: bool) -> None:
    """Raises DirectoryUnusable."""
    try:
        system_calls.unmount(directory, system_calls.MNT_DETACH if lazy else 0)
    except OSError as error:
        raise DirectoryUnusable(
            f"{directory}: {os.strerror(error.errno or 0).lower()}; end what uses it, "
            "or add --lazy, and it goes with its last user"
        ) from error
