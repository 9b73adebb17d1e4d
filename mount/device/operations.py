"""The device files as FUSE sees them.

Whatever a request handler raises becomes an error number here; pyfuse3 would end the whole daemon.
"""

import errno
import logging
import stat
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import pyfuse3

from mount.device.device_files import DeviceFiles
from mount.device.errors import NoSuchDevice, ReadFailed
from mount.device.naming import ROOT_INODE
from mount.device.served_pages import ServedPages
from mount.device.table import TableDamaged

logger = logging.getLogger(__name__)

ERROR_NUMBERS: dict[type[Exception], int] = {
    NoSuchDevice: errno.ENOENT,
    ReadFailed: errno.EIO,
    TableDamaged: errno.EIO,
    OSError: errno.EIO,
}
"""Error numbers of what the device files raise; anything else is a mistake of ours, and EIO."""

OPTIONS = frozenset({"fsname=headstart"})
"""For libfuse's session; the options of the mount itself are the supervisor's."""

MOST_REQUESTS = 4096
"""Requests that may wait at the same time; above it none are read. 256 are in the background (read-
ahead), each of the others has a process that sleeps in it."""

IDLE_TASKS = 64
"""Tasks that are kept for the next requests: starting one costs as much as a small request."""

FOREVER_SECONDS = 1e9
"""How long the kernel may keep what never changes."""

_BLOCK_SIZE = 4096

_P = ParamSpec("_P")
_R = TypeVar("_R")


def answering(
    numbers: Mapping[type[Exception], int],
) -> Callable[
    [Callable[_P, Coroutine[object, object, _R]]], Callable[_P, Coroutine[object, object, _R]]
]:
    """Turn whatever a handler raises into an error number, by a table such as ERROR_NUMBERS."""

    def decorate(
        method: Callable[_P, Coroutine[object, object, _R]],
    ) -> Callable[_P, Coroutine[object, object, _R]]:
        @wraps(method)
        async def handler(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                return await method(*args, **kwargs)
            except pyfuse3.FUSEError:
                raise
            except Exception as error:
                raise pyfuse3.FUSEError(error_number(error, numbers)) from error

        return handler

    return decorate


def error_number(error: Exception, numbers: Mapping[type[Exception], int] = ERROR_NUMBERS) -> int:
    """What the kernel is told; what is not in the table is logged with its traceback."""
    for kind, number in numbers.items():
        if isinstance(error, kind):
            # A missing file is no news, and a failed read has been logged.
            if number != errno.ENOENT and not isinstance(error, ReadFailed):
                logger.error("a request failed: %s", error)
            return number
    logger.error("a request failed", exc_info=error)
    return errno.EIO


_answering = answering(ERROR_NUMBERS)


class DeviceOperations(pyfuse3.Operations):
    """Request handlers. File handles are inode numbers: a new daemon knows those of a dead one."""

    def __init__(self, files: DeviceFiles, served: ServedPages) -> None:
        """``files`` answers, ``served`` is told what was answered."""
        super().__init__()
        self._files = files
        self._served = served

    @_answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a device file. One that is not there is not remembered by the kernel."""
        if parent_inode != ROOT_INODE:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        if name in (b".", b".."):
            return directory_attributes(ROOT_INODE)
        return _file(*self._files.find(name))

    @_answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes, which never change."""
        return (
            directory_attributes(ROOT_INODE)
            if inode == ROOT_INODE
            else _file(inode, self._files.size(inode))
        )

    @_answering
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open the directory."""
        if inode != ROOT_INODE:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return inode

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the device files; an inode number is the position behind its entry."""
        for name, inode, size in self._files.listed():
            if inode > start_id and not pyfuse3.readdir_reply(
                token, name, _file(inode, size), inode
            ):
                return

    @_answering
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a device file; pages that the kernel has stay valid."""
        if inode == ROOT_INODE:
            raise pyfuse3.FUSEError(errno.EISDIR)
        self._files.size(inode)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Answer exactly what was asked for, or EIO."""
        # pyfuse3 takes any buffer, and hands it to the kernel before anything else runs.
        here = cast("bytes | None", self._files.read_at_once(fh, off, size))
        content = await self._files.read(fh, off, size) if here is None else here
        self._served.note(fh, off, len(content))
        return content

    @_answering
    async def release(self, fh: int) -> None:
        """Nothing is kept for an open file."""

    @_answering
    async def forget(self, inode_list: object) -> None:
        """Nothing is kept for an inode."""

    @_answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Answer at once: the supervisor asks this to see whether the daemon lives."""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = _BLOCK_SIZE
        answer.f_namemax = 255
        return answer


def begin(operations: DeviceOperations, mount_point: str) -> None:
    """Make pyfuse3's session; ``mount_point`` is ``/dev/fd/N``. Raises RuntimeError."""
    pyfuse3.init(operations, mount_point, set(OPTIONS))


async def serve() -> None:
    """Answer requests until :func:`finish`, or until the file system is unmounted."""
    await pyfuse3.main(min_tasks=IDLE_TASKS, max_tasks=MOST_REQUESTS)


def finish() -> None:
    """Read no more requests; :func:`serve` returns when those that were read are answered."""
    pyfuse3.terminate()


def directory_attributes(inode: int) -> pyfuse3.EntryAttributes:
    """Of a directory that is none of a layer's."""
    return _attributes(inode, stat.S_IFDIR | 0o500, 0)


def _file(inode: int, size: int) -> pyfuse3.EntryAttributes:
    return _attributes(inode, stat.S_IFREG | 0o400, size)


def _attributes(inode: int, mode: int, size: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = mode
    entry.st_size = size
    entry.st_blocks = -(-size // 512)
    entry.st_nlink = 1
    entry.entry_timeout = entry.attr_timeout = FOREVER_SECONDS
    return entry
