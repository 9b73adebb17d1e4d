"""Looks into a mounted image without leaving it: no symlink leads to this machine's own files."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mount.image.errors import PathMissing
from mount.mounting.system_calls import open_in_root

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """One name: ``mode`` as of stat(2), ``mtime`` seconds since the epoch, ``target`` of a link."""

    name: str
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    mtime: float
    target: str | None = None

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.mtime))
        arrow = "" if self.target is None else f" -> {_printable(self.target)}"
        owner = f"{self.uid}:{self.gid}"
        kind = stat.filemode(self.mode)
        return f"{kind} {owner:>11} {self.size:>12} {when} {_printable(self.name)}{arrow}"

    def as_json(self) -> dict[str, object]:
        """For programs; bytes of names that are no UTF-8 are escaped."""
        return {
            "name": _printable(self.name),
            "mode": stat.filemode(self.mode),
            "links": self.links,
            "uid": self.uid,
            "gid": self.gid,
            "size": self.size,
            "mtime": self.mtime,
            "target": None if self.target is None else _printable(self.target),
        }


def listing(root: Path, path: str) -> list[Listed]:
    """What a directory of the image has, by name; of anything else the thing itself.

    Raises PathMissing.
    """
    with _opened(root, path, os.O_PATH | os.O_NOFOLLOW) as found:
        if stat.S_ISLNK(os.fstat(found).st_mode) and not path.endswith("/"):
            return [_listed(path, found, "")]
    with _opened(root, path, os.O_PATH) as found:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            return [_listed(path, found, "")]
        directory = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [_listed(name, directory, name) for name in sorted(os.listdir(directory))]
        finally:
            os.close(directory)


def copy_file(root: Path, path: str, output: BinaryIO) -> None:
    """Write a regular file of the image to ``output``. Raises PathMissing, OSError."""
    with _opened(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as found:
        kind = os.fstat(found).st_mode
        if not stat.S_ISREG(kind):
            what = "a directory" if stat.S_ISDIR(kind) else "no regular file"
            raise PathMissing(f"{path}: is {what}; name a file")
        while piece := os.read(found, _PIECE):
            output.write(piece)
    output.flush()


@contextmanager
def _opened(root: Path, path: str, flags: int) -> Iterator[int]:
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Relative to the root either way, but an empty path is none.
        found = open_in_root(directory, path.lstrip("/") or ".", flags)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENXIO):
            raise PathMissing(f"{path}: is no regular file; name a file") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            reason = os.strerror(error.errno).lower()
            raise PathMissing(f"{path}: {reason} in the image; headstart ls shows it") from error
        raise
    finally:
        os.close(directory)
    try:
        yield found
    finally:
        os.close(found)


def _listed(name: str, directory: int, below: str) -> Listed:
    """``below`` in a directory, or with an empty one what ``directory`` is itself."""
    if below:
        status = os.stat(below, dir_fd=directory, follow_symlinks=False)
    else:
        status = os.fstat(directory)
    target = os.readlink(below, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None
    return Listed(
        name,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_mtime,
        target,
    )


def _printable(name: str) -> str:
    """Names may hold anything; a terminal must not be steered by them."""
    escaped = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in escaped
    )
