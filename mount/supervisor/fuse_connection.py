"""The kernel's side of the device file system: its mount, its connection, what goes over at first.

Structures: linux/fuse.h (fuse_in_header, fuse_init_in, fuse_out_header, fuse_init_out).
"""

import contextlib
import errno
import json
import os
import select
import struct
import threading
from pathlib import Path

from mount.device.places import MountPlaces
from mount.mounting import mount_table, system_calls

READ_AHEAD_KIB = 1024
"""Read-ahead of the FUSE mount: with less, small files that lie together come one by one."""

MAX_BACKGROUND = 256
"""Read-ahead requests under way at once; with the usual 12 one stalled layer starves the others."""

MAX_READ = 1 << 20
"""Bytes of one request, the most that the kernel allows (256 pages)."""

_READ_BUFFER = MAX_READ + 4096
"""The kernel refuses to read a request into less than 8 KiB."""

_KIND = "fuse.headstart"
_FUSE_INIT = 26
_OPCODE_AT = 4  # fuse_in_header: len u32, opcode u32, unique u64, ...
_UNIQUE_AT = 8
_OUT_HEADER = struct.Struct("<IiQ")  # length, error, unique
_MAX_BACKGROUND_AT = 32  # fuse_init_out behind the header: major, minor, max_readahead, flags
_NOTIFY_RESEND = 7  # Linux 6.9
_REQUEST_STEP = 2
"""Distance of request numbers (FUSE_REQ_ID_STEP); the odd ones are interrupts."""

_MOST_ABANDONED = 1 << 17
"""How many request numbers back an unanswered request is looked for."""


class ConnectionBroken(Exception):
    """The kernel has ended the connection; what is open on it answers errors for good."""


class AnswerDiffers(Exception):
    """A daemon's libfuse wants other options than the kernel has been told."""


class FuseConnection:
    """One mount of the device file system and its descriptor."""

    def __init__(
        self, places: MountPlaces, descriptor: int, device: str, init: bytes, answer: bytes | None
    ) -> None:
        """``device`` is the mount's MAJOR:MINOR, ``answer`` libfuse's to FUSE_INIT if known."""
        self._places = places
        self.descriptor = descriptor
        self.device = device
        self.init = init
        self.answer = answer
        """libfuse's answer to FUSE_INIT, once it is known."""
        self._settled = False

    @classmethod
    def create(cls, places: MountPlaces) -> "FuseConnection":
        """Mount, and read the kernel's FUSE_INIT. Raises OSError."""
        target = places.device_files
        for directory in (target, places.run):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        flags = system_calls.MS_RDONLY | system_calls.MS_NOSUID | system_calls.MS_NODEV
        options = (
            f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,"
            f"allow_other,default_permissions,max_read={MAX_READ}"
        )
        try:
            system_calls.mount("headstart", target, _KIND, flags, options)
            init = os.read(descriptor, _READ_BUFFER)
            (opcode,) = struct.unpack_from("<I", init, _OPCODE_AT)
            if opcode != _FUSE_INIT:
                raise OSError(errno.EPROTO, f"/dev/fuse began with request {opcode}")
            connection = cls(places, descriptor, mounted_device(target) or "", init, None)
            connection.record(None)
            places.tree_mark.unlink(missing_ok=True)
        except BaseException:
            os.close(descriptor)
            detach(target)
            raise
        return connection

    @classmethod
    def resume(cls, places: MountPlaces, descriptor: int) -> "FuseConnection | None":
        """Go on with a connection whose descriptor has been kept; None when it is another one."""
        record = read_record(places)
        if record is None or record["device"] != mounted_device(places.device_files):
            return None
        answer = record.get("answer")
        return cls(
            places,
            descriptor,
            str(record["device"]),
            bytes.fromhex(str(record["init"])),
            bytes.fromhex(str(answer)) if answer else None,
        )

    def settle(self, answer: bytes) -> None:
        """Give the kernel a daemon's answer to FUSE_INIT, once; compare every later one.

        Raises :class:`AnswerDiffers`, :class:`ConnectionBroken` or OSError.
        """
        if self.answer is None:
            self.answer = answer
            self.record(None)
        elif answer != self.answer:
            raise AnswerDiffers(
                f"libfuse answers {answer.hex()} where the kernel was told {self.answer.hex()}"
            )
        if self._settled:
            return
        changed = bytearray(answer)
        background = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
        struct.pack_into("<HH", changed, _MAX_BACKGROUND_AT, *background)
        # ENOENT: an earlier supervisor has given it.
        with contextlib.suppress(FileNotFoundError):
            self._write(bytes(changed))
        self._set_read_ahead()
        self._settled = True

    def resend(self) -> bool:
        """Let requests that a dead daemon had read come again; False before Linux 6.9.

        Raises :class:`ConnectionBroken` or OSError.
        """
        notice = _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0)
        try:
            self._write(notice)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def fail_abandoned(self) -> int:
        """Answer EIO to what a dead daemon had read, where it cannot come again; how many.

        Reads one request that is waiting (and fails it too) to learn how far the numbers have got.
        Raises :class:`ConnectionBroken` or OSError.
        """
        # So that one is waiting; by a thread of its own, since it may wait behind many.
        asking = threading.Thread(target=_ask, args=(self._places.device_files,), daemon=True)
        asking.start()
        try:
            request = os.read(self.descriptor, _READ_BUFFER)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise ConnectionBroken(os.strerror(errno.ENODEV)) from error
            raise
        (last,) = struct.unpack_from("<Q", request, _UNIQUE_AT)
        failed = 0
        for unique in range(last, max(0, last - _MOST_ABANDONED * _REQUEST_STEP), -_REQUEST_STEP):
            with contextlib.suppress(FileNotFoundError):
                self._write(_OUT_HEADER.pack(_OUT_HEADER.size, -errno.EIO, unique))
                failed += 1
        return failed

    def record(self, daemon: int | None) -> None:
        """Note what :meth:`resume` needs, and which process has the descriptor too."""
        answer = None if self.answer is None else self.answer.hex()
        fields = {
            "device": self.device,
            "init": self.init.hex(),
            "answer": answer,
            "daemon": daemon,
        }
        path = self._places.connection_record
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(fields), encoding="utf-8")
        temporary.rename(path)

    def unmount(self, *, detach: bool) -> None:
        """Unmount. Raises OSError: EBUSY while something uses it, unless ``detach``."""
        system_calls.unmount(self._places.device_files, system_calls.MNT_DETACH if detach else 0)
        self._places.connection_record.unlink(missing_ok=True)

    def mounted_elsewhere(self) -> bool:
        """Whether a part of the file system is mounted at another place too: a layer's tree."""
        ours = self._places.device_files
        return any(
            "{}:{}".format(*point.device) == self.device and point.path != ours
            for point in mount_table.mount_points()
        )

    def trees_left(self) -> bool:
        """Whether an overlay may have trees still, of which nothing is mounted any more.

        Unlike EROFS, which has device files open, it does not keep the file system from being
        unmounted. Another process's copy of the mount looks the same, so who has never mounted a
        tree is not asked to care.
        """
        return self._places.tree_mark.exists() and self.alive()

    def alive(self) -> bool:
        """Whether the kernel has the file system still, mounted or only in use."""
        poll = select.poll()
        poll.register(self.descriptor, 0)  # errors are told always
        return not poll.poll(0)

    def close(self) -> None:
        """Close the descriptor; with the last one the kernel ends the connection."""
        os.close(self.descriptor)

    def _write(self, message: bytes) -> None:
        try:
            os.write(self.descriptor, message)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EPERM):  # aborted; not mounted any more
                raise ConnectionBroken(os.strerror(error.errno)) from error
            raise

    def _set_read_ahead(self) -> None:
        """Before any device file is opened: later changes do not reach it."""
        path = Path(f"/sys/class/bdi/{self.device}/read_ahead_kb")
        with contextlib.suppress(OSError):  # no sysfs here, or a read-only one: slower, not wrong
            path.write_text(str(READ_AHEAD_KIB), encoding="ascii")


def _ask(target: Path) -> None:
    with contextlib.suppress(OSError):
        os.statvfs(target)


def mounted_device(target: Path) -> str | None:
    """MAJOR:MINOR of our file system where it is mounted on top at ``target``; asks no daemon."""
    points = mount_table.mounted_at(target)
    if not points or points[-1].kind != _KIND:
        return None
    major, minor = points[-1].device
    return f"{major}:{minor}"


def detach(target: Path) -> int:
    """Take every mount of our file system at ``target`` away; how many there were."""
    count = 0
    while mounted_device(target) is not None:
        system_calls.unmount(target, system_calls.MNT_DETACH)
        count += 1
    return count


def read_record(places: MountPlaces) -> dict[str, object] | None:
    """What :meth:`FuseConnection.record` has noted; None when nothing usable."""
    try:
        record = json.loads(places.connection_record.read_bytes())
        bytes.fromhex(record["init"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if "device" in record else None
