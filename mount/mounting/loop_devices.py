"""Loop devices: a file as a read-only block device, gone by itself with its last user.

Numbers and structures: linux/loop.h. LOOP_CONFIGURE is there since Linux 5.8, before the EROFS
device table (5.16) without which no layer image can be mounted.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY_AUTOCLEAR = 1 | 4  # without LO_FLAGS_DIRECT_IO: reads come from the page cache
_BLOCK_SIZE = 512
"""A data device's length is a multiple of it; EROFS asks for its own block size by itself."""

_CONTROL = Path("/dev/loop-control")
_ATTEMPTS = 64
"""Another process may take the device that was free a moment ago."""

# struct loop_config: fd, block_size, struct loop_info64 (device, inode, rdevice, offset, sizelimit,
# number, encrypt_type, encrypt_key_size, flags, file_name, crypt_name, encrypt_key, init),
# reserved[8].
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 64x")


@contextmanager
def attached(file: Path) -> Iterator[Path]:
    """A loop device for ``file`` while the context lasts, and for as long as a mount uses it.

    Raises OSError.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, descriptor = _attach(backing, file)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        # The kernel lets go of the file when the last opener (this one, or the mount) has gone.
        os.close(descriptor)


def _attach(backing: int, file: Path) -> tuple[Path, int]:
    name = os.fsencode(file)[:63]
    config = _CONFIG.pack(
        backing, _BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY_AUTOCLEAR, name, b"", b"", 0, 0
    )
    for _ in range(_ATTEMPTS):
        device = _free_device()
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:  # removed since
                continue
            raise
        try:
            fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EBUSY, errno.EAGAIN):
                continue
            raise OSError(
                error.errno, f"ioctl({device}, LOOP_CONFIGURE, {file}): {error.strerror}"
            ) from error
        return device, descriptor
    raise OSError(errno.EBUSY, f"ioctl({_CONTROL}): no loop device stayed free for {file}")


def _free_device() -> Path:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        raise OSError(
            error.errno, f"ioctl({_CONTROL}, LOOP_CTL_GET_FREE): {error.strerror}"
        ) from error
    finally:
        os.close(control)
    return Path(f"/dev/loop{number}")
