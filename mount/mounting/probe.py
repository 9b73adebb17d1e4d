"""Which way of mounting works on this machine: found out by doing it, never by version number."""

import errno
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mount.mounting import probe_image, system_calls
from mount.mounting.errors import ModeUnavailable, MountRefused
from mount.mounting.modes import FileMode, LayerFiles, LoopMode, Mode
from mount.mounting.overlay import mount_overlay

logger = logging.getLogger(__name__)

_PLAIN_WORDS = {
    "file": "EROFS straight from files",
    "loop": "EROFS over loop devices",
    "tree": "a FUSE tree of single files",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The mode to mount with, and why not those that would have been better."""

    mode: Mode
    refused: tuple[tuple[str, str], ...] = ()
    """(name of the mode, reason)."""

    def __str__(self) -> str:
        chosen = f"layers are mounted as {_PLAIN_WORDS[self.mode.name]}"
        if not self.refused:
            return chosen
        reasons = "; ".join(f"{_PLAIN_WORDS[name]}: {reason}" for name, reason in self.refused)
        return f"{chosen}, since others do not work here: {reasons}"


def choose_mode(
    configured: str, directory: Path, stores: Sequence[Path] = (), *, tree: Mode | None = None
) -> Choice:
    """The mode that ``mount.mode`` names, or with ``auto`` the first that works.

    Tried with mount points in a fresh directory below ``directory``, overlays included, and an
    image whose files lie in ``stores``, the first one's metadata and a stripe in each: not every
    file system can hold files that are mounted (tmpfs cannot). Without ``stores`` they lie in
    ``directory``. ``tree`` is the mode for kernels that can mount no layer image; without it there
    is none for them.

    Raises ModeUnavailable with all reasons, OSError when ``directory`` cannot be written.
    """
    modes: Sequence[Mode] = (FileMode(), LoopMode(), *([tree] if tree is not None else []))
    if configured != "auto":
        modes = [mode for mode in modes if mode.name == configured]
    refused: list[tuple[str, str]] = []
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for mode in modes:
        reason = why_not(mode, directory, stores)
        if reason is None:
            choice = Choice(mode, tuple(refused))
            logger.info("mount: %s", choice)
            return choice
        refused.append((mode.name, reason))
    if tree is None and configured in ("auto", "tree"):
        refused.append(("tree", "not at hand"))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    raise ModeUnavailable(f"mount.mode: {configured} does not work on this machine ({reasons})")


def why_not(mode: Mode, directory: Path, stores: Sequence[Path] = ()) -> str | None:
    """Mount a small layer image and two overlays on it; None when all of it reads as it should."""
    with ExitStack() as stack:

        def scratch(parent: Path) -> Path:
            made = Path(tempfile.mkdtemp(prefix="probe-", dir=parent))
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            return made

        try:
            places = [scratch(store) for store in stores or [directory]]
            _try(mode, _write_image(places), scratch(directory), stack)
        except OSError as error:
            return error.strerror or str(error)
        except MountRefused as error:
            return str(error)
    return None


def _try(mode: Mode, files: LayerFiles, scratch: Path, stack: ExitStack) -> None:
    """Raises OSError that says what does not work."""
    layer, below, above, empty = (scratch / name for name in ("layer", "below", "above", "empty"))
    for path in (layer, below, above, empty):
        path.mkdir()
    mode.mount(files, layer)
    stack.enter_context(_unmounted_at_end(layer))
    _check(layer)
    # A container may mount an overlay on its root. Where the kernel counts a file-backed EROFS as
    # one level of the two that may lie on each other, that is one too many.
    for lower, target in ((layer, below), (below, above)):
        mount_overlay(scratch, [lower, empty], target, 0)
        stack.enter_context(_unmounted_at_end(target))
        _check(target)


def _write_image(places: Sequence[Path]) -> LayerFiles:
    """The probe's image, one stripe in each directory."""
    meta = places[0] / "meta"
    meta.write_bytes(probe_image.metadata(len(places)))
    devices = tuple(place / "device" for place in places)
    for device, content in zip(devices, probe_image.stripes(len(places)), strict=True):
        device.write_bytes(content)
    return LayerFiles(meta, devices)


def _check(mounted: Path) -> None:
    file = mounted / probe_image.NAME
    if file.read_bytes() != probe_image.CONTENT:
        raise OSError(errno.EIO, f"{file} reads as other bytes than were written")


@contextmanager
def _unmounted_at_end(target: Path) -> Iterator[None]:
    try:
        yield
    finally:
        system_calls.unmount(target, system_calls.MNT_DETACH)
