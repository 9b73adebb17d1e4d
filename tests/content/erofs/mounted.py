"""Real mounts of images and overlays; unmounted whatever happens."""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)

# linux/include/uapi/linux/mount.h, umount2(2)
_MS_RDONLY = 1
_MNT_DETACH = 2


@contextmanager
def mounted(image: bytes, devices: Sequence[Path], directory: Path) -> Iterator[Path]:
    """The image's tree, mounted from files in ``directory``, which is made."""
    directory.mkdir()
    meta, target = directory / "meta", directory / "tree"
    meta.write_bytes(image)
    target.mkdir()
    options = ",".join(f"device={path}" for path in devices)
    with _mounted(str(meta), target, "erofs", options, flags=_MS_RDONLY):
        yield target


@contextmanager
def overlaid(lowers: Sequence[Path], directory: Path) -> Iterator[Path]:
    """A writable overlay over ``lowers``, the topmost first; ``directory`` is made."""
    directory.mkdir()
    upper, work, target = (directory / name for name in ("upper", "work", "tree"))
    for path in (upper, work, target):
        path.mkdir()
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}"
    with _mounted("overlay", target, "overlay", options):
        yield target


@contextmanager
def _mounted(
    source: str, target: Path, file_system: str, options: str, *, flags: int = 0
) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting has to run as root")
    arguments = [text.encode() for text in (source, str(target), file_system, options)]
    if _LIBC.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]) != 0:
        number = ctypes.get_errno()
        if file_system == "erofs" and number in (errno.ENOTBLK, errno.ENODEV):
            pytest.skip("this kernel does not mount EROFS from files (Linux 6.12 and later do)")
        raise OSError(number, os.strerror(number), str(target))
    try:
        yield
    finally:
        if _LIBC.umount2(arguments[1], 0) != 0:
            # Something still has it open; it must not outlive the test all the same.
            _LIBC.umount2(arguments[1], _MNT_DETACH)
