"""Linux calls around mounts that the standard library does not offer; all drop the GIL.

Every failure is an OSError whose text names the call and the path. None of these may be called
from a thread that other work waits for: mounting reads the file at once, and a file of our own
FUSE file system is answered by another process.
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import NoReturn

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
"""Flags of mount(2), linux/mount.h."""

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
"""Flags of umount2(2), linux/fs.h."""

EROFS_MAGIC = 0xE0F5E1E2
OVERLAYFS_MAGIC = 0x794C7630
FUSE_MAGIC = 0x65735546
"""``f_type`` of statfs(2), linux/magic.h."""

MOST_MOUNT_DATA = 4095
"""Bytes of options that mount(2) takes: one page with its closing zero."""

_AT_FDCWD = -100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_BENEATH = 0x200  # Linux 6.5
_RESOLVE_IN_ROOT = 0x10  # linux/openat2.h

# The same numbers on every architecture.
_SYS_OPEN_TREE = 428  # Linux 5.2
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437  # Linux 5.6
_STATFS_WORDS = 32  # struct statfs has at most 120 bytes; f_type is its first word
_CLONE_FS = 0x200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how, linux/openat2.h."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def mount(source: str | Path, target: Path, kind: str, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    encoded = os.fsencode(options)
    if len(encoded) > MOST_MOUNT_DATA:
        text = f"{len(encoded)} bytes of options; at most {MOST_MOUNT_DATA} are possible"
        raise OSError(errno.E2BIG, f"mount({source}, {target}, {kind}): {text}")
    arguments = os.fsencode(source), os.fsencode(target), kind.encode()
    if _libc.mount(*arguments, flags, encoded):
        _fail(f"mount({source}, {target}, {kind})")


def unmount(target: Path, flags: int = 0) -> None:
    """umount2(2); a symlink is not followed. Raises OSError, EINVAL for what is no mount point."""
    if _libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW):
        _fail(f"umount2({target})")


def move_beneath(mounted: Path, target: Path) -> None:
    """Take the mount at ``mounted`` away and put it beneath the one that is at ``target``.

    Unmounting ``target`` then reveals it, so that at no moment nothing is mounted there. Raises
    OSError: EINVAL before Linux 6.5.
    """
    # A mount below a shared one cannot be moved; a clone that is mounted nowhere yet can.
    tree = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(mounted)),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
    )
    if tree < 0:
        _fail(f"open_tree({mounted})")
    try:
        unmount(mounted)
        moved = _libc.syscall(
            ctypes.c_long(_SYS_MOVE_MOUNT),
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_BENEATH),
        )
        if moved:
            _fail(f"move_mount({target})")
    finally:
        os.close(tree)


def file_system_type(path: Path) -> int:
    """``f_type`` of the file system that ``path`` is on. Raises OSError."""
    answer = (ctypes.c_ulong * _STATFS_WORDS)()
    if _libc.statfs(os.fsencode(path), answer):
        _fail(f"statfs({path})")
    return int(answer[0]) & 0xFFFFFFFF


def open_in_root(root: int, path: str | Path, flags: int) -> int:
    """openat2(2) with the directory ``root`` (a descriptor) as the root of every symlink.

    Returns a descriptor. Raises OSError.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    descriptor = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor < 0:
        _fail(f"openat2({path})")
    return int(descriptor)


def separate_working_directory() -> None:
    """Give the calling thread a working directory of its own (unshare(2)). Raises OSError."""
    if _libc.unshare(_CLONE_FS):
        _fail("unshare(CLONE_FS)")


def _fail(call: str) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, f"{call}: {os.strerror(code)}")
