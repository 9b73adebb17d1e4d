"""What a mounted layer image shows, whichever way it is mounted.

A module of tests takes it over by a subclass with a fixture ``mounted`` that gives a
:class:`MountedTree` of :func:`sample_tree`.
"""

import ctypes
import errno
import mmap
import os
import random
import stat
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.store.geometry import MIB
from tests.mounting.layer_images import EXTENT, Tree

TIME_NS = 1_700_000_000_123_456_789
PLAIN = b"plain contents\n"
BIG = random.Random(5).randbytes(5 * MIB + 123)
MIDDLE = random.Random(6).randbytes(70_000)
MANY = [f"entry-{number:04}" for number in range(700)]
LONG_NAME = b"n" * 255
ODD_NAMES = [b"\xff\xfe", b"line\nbreak", "\u00fc".encode(), b" ", b"back\\slash", LONG_NAME]
LONG_TARGET = "/".join(["directory"] * 90)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""vfs_cap_data of revision 2 with cap_net_raw, effective (linux/capability.h)."""
LARGE_VALUE = bytes(range(256)) * 8
SET_ID_PROGRAM = "/usr/bin/id"


@dataclass(frozen=True, slots=True)
class MountedTree:
    """``path`` is the layer's mount; ``overlay`` has it above a layer of :func:`lower_tree`."""

    path: Path
    overlay: Path


def sample_tree() -> Tree:
    """Something of everything."""
    tree = Tree()
    tree.root.mode, tree.root.uid, tree.root.gid = 0o751, 12, 34
    plain = tree.file("plain", PLAIN, 0o640)
    plain.uid, plain.gid, plain.mtime_ns, plain.links = 1000, 70_000, TIME_NS, 2
    tree.file("empty")
    tree.file("big", BIG)
    tree.file("middle", MIDDLE)
    tree.directory("directory", 0o1777)
    tree.add("directory/hard", plain)
    tree.directory("many")
    for name in MANY:
        tree.file(f"many/{name}", name.encode())
    tree.directory("odd")
    for odd in ODD_NAMES:
        tree.file(b"odd/" + odd, odd)
    tree.directory("deep")
    for depth in range(1, 40):
        tree.directory("/".join(["deep"] * (depth + 1)))
    tree.add("link", Inode(EntryKind.SYMLINK, 0o777, target=b"directory/hard"))
    tree.add("long-link", Inode(EntryKind.SYMLINK, 0o777, target=LONG_TARGET.encode()))
    tree.add("fifo", Inode(EntryKind.FIFO, 0o600))
    tree.add("null", Inode(EntryKind.CHARACTER, 0o666, device=(1, 3)))
    tree.add("disk", Inode(EntryKind.BLOCK, 0o660, device=(259, 300)))
    tree.file("able", b"x", 0o755).xattrs[b"security.capability"] = CAPABILITY
    tree.file("marked", b"y").xattrs.update(
        {b"user.word": b"w", b"trusted.large": LARGE_VALUE, b"user.empty": b""}
    )
    tree.file("set-id", Path(SET_ID_PROGRAM).read_bytes(), 0o4755)
    tree.whiteout("gone")
    opaque = tree.directory("opaque")
    opaque.xattrs[b"trusted.overlay.opaque"] = b"y"
    tree.file("opaque/new", b"new")
    return tree


def lower_tree() -> Tree:
    """What lies below :func:`sample_tree` in the overlay."""
    tree = Tree()
    tree.file("gone", b"to be hidden")
    tree.file("below", b"from below")
    tree.file("plain", b"covered")
    tree.directory("opaque")
    tree.file("opaque/old", b"to be hidden")
    tree.directory("directory")
    tree.file("directory/lower", b"merged")
    return tree


class FilesystemSuite:
    """The tests; each takes the fixture ``mounted``."""

    def test_stat_says_what_the_layer_says(self, mounted: MountedTree) -> None:
        status = (mounted.path / "plain").stat()
        assert stat.S_IFMT(status.st_mode) == stat.S_IFREG
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert (status.st_uid, status.st_gid) == (1000, 70_000)
        assert status.st_mtime_ns == TIME_NS
        assert status.st_size == len(PLAIN)
        root = mounted.path.stat()
        assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o751, 12, 34)
        assert stat.S_IMODE((mounted.path / "directory").stat().st_mode) == 0o1777

    def test_a_directory_counts_the_directories_in_it(self, mounted: MountedTree) -> None:
        assert (mounted.path / "deep").stat().st_nlink == 3
        assert (mounted.path / "many").stat().st_nlink == 2

    def test_hard_links_share_the_inode(self, mounted: MountedTree) -> None:
        one, other = mounted.path / "plain", mounted.path / "directory" / "hard"
        assert one.stat().st_nlink == 2
        assert one.samefile(other)
        assert other.read_bytes() == PLAIN

    def test_a_directory_lists_every_name_once(self, mounted: MountedTree) -> None:
        assert sorted(os.listdir(mounted.path / "many")) == MANY
        assert sorted(os.listdir(os.fsencode(mounted.path / "odd"))) == sorted(ODD_NAMES)
        with os.scandir(mounted.path) as entries:
            kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        assert kinds["directory"] and not kinds["plain"] and not kinds["link"]

    def test_every_listed_file_can_be_read(self, mounted: MountedTree) -> None:
        for name in MANY:
            assert (mounted.path / "many" / name).read_bytes() == name.encode()
        for odd in ODD_NAMES:
            with open(os.fsencode(mounted.path / "odd") + b"/" + odd, "rb") as file:
                assert file.read() == odd

    def test_what_is_not_there_is_missing(self, mounted: MountedTree) -> None:
        for path in ("nothing", "many/entry-9999", "directory/../nothing"):
            with pytest.raises(FileNotFoundError):
                (mounted.path / path).stat()
        with pytest.raises(NotADirectoryError):
            (mounted.path / "plain" / "below").stat()

    def test_directories_nest(self, mounted: MountedTree) -> None:
        deepest = mounted.path.joinpath(*["deep"] * 40)
        assert deepest.is_dir()
        assert not list(deepest.iterdir())
        assert (deepest / ".." / "..").samefile(deepest.parent.parent)

    def test_files_read_as_they_are(self, mounted: MountedTree) -> None:
        assert (mounted.path / "plain").read_bytes() == PLAIN
        assert (mounted.path / "empty").read_bytes() == b""
        assert (mounted.path / "middle").read_bytes() == MIDDLE
        assert (mounted.path / "big").read_bytes() == BIG

    def test_any_range_reads_as_it_is(self, mounted: MountedTree) -> None:
        borders = [0, 1, 4095, 4096, EXTENT - 1, EXTENT, 2 * EXTENT - 4096, len(BIG) - 1]
        with (mounted.path / "big").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for start in borders:
                for length in (1, 4096, 8193, EXTENT + 5):
                    assert os.pread(file.fileno(), length, start) == BIG[start : start + length]
            assert os.pread(file.fileno(), 10, len(BIG)) == b""
            assert os.pread(file.fileno(), 10, len(BIG) + EXTENT) == b""

    def test_a_file_can_be_mapped(self, mounted: MountedTree) -> None:
        with (
            (mounted.path / "big").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            assert mapped[EXTENT - 3 : EXTENT + 3] == BIG[EXTENT - 3 : EXTENT + 3]
            assert mapped[:] == BIG

    def test_zeros_follow_the_last_byte_of_a_mapped_page(self, mounted: MountedTree) -> None:
        with (mounted.path / "plain").open("rb") as file:
            page = _mapped_page(file.fileno())
        assert page == PLAIN.ljust(mmap.PAGESIZE, b"\0")

    def test_a_file_can_be_sent(self, mounted: MountedTree) -> None:
        reader, writer = os.pipe()
        try:
            with (mounted.path / "middle").open("rb") as file:
                assert os.sendfile(writer, file.fileno(), 4090, 100) == 100
            assert os.read(reader, 1000) == MIDDLE[4090:4190]
        finally:
            os.close(reader)
            os.close(writer)

    def test_symbolic_links_lead_where_they_say(self, mounted: MountedTree) -> None:
        assert os.readlink(mounted.path / "link") == "directory/hard"
        assert (mounted.path / "link").read_bytes() == PLAIN
        assert os.readlink(mounted.path / "long-link") == LONG_TARGET
        assert (mounted.path / "long-link").lstat().st_size == len(LONG_TARGET)

    def test_extended_attributes_are_there(self, mounted: MountedTree) -> None:
        marked = mounted.path / "marked"
        assert set(os.listxattr(marked)) >= {"user.word", "trusted.large", "user.empty"}
        assert os.getxattr(marked, "user.word") == b"w"
        assert os.getxattr(marked, "user.empty") == b""
        assert os.getxattr(marked, "trusted.large") == LARGE_VALUE
        with pytest.raises(OSError) as refused:
            os.getxattr(marked, "user.other")
        assert refused.value.errno == errno.ENODATA
        assert not [name for name in os.listxattr(mounted.path / "plain") if "user" in name]

    def test_capabilities_of_files_are_there(self, mounted: MountedTree) -> None:
        for path in (mounted.path, mounted.overlay):
            assert os.getxattr(path / "able", "security.capability") == CAPABILITY

    def test_special_files_are_what_they_are(self, mounted: MountedTree) -> None:
        null, disk = (mounted.path / name for name in ("null", "disk"))
        assert stat.S_ISCHR(null.stat().st_mode) and null.stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISBLK(disk.stat().st_mode) and disk.stat().st_rdev == os.makedev(259, 300)
        assert stat.S_ISFIFO((mounted.path / "fifo").stat().st_mode)

    def test_devices_work_in_a_container_and_not_beside_it(self, mounted: MountedTree) -> None:
        with pytest.raises(PermissionError):
            (mounted.path / "null").read_bytes()
        assert (mounted.overlay / "null").read_bytes() == b""

    def test_set_user_id_works_in_a_container(self, mounted: MountedTree) -> None:
        directory = os.open(mounted.overlay, os.O_PATH)
        try:
            answered = subprocess.run(
                [f"/proc/self/fd/{directory}/set-id", "-u"],
                user=65534,
                group=65534,
                extra_groups=[],
                pass_fds=[directory],
                capture_output=True,
                check=True,
            )
        finally:
            os.close(directory)
        assert answered.stdout == b"0\n"

    def test_whiteouts_hide_what_lies_below(self, mounted: MountedTree) -> None:
        assert not (mounted.overlay / "gone").exists()
        assert "gone" not in os.listdir(mounted.overlay)
        assert (mounted.overlay / "below").read_bytes() == b"from below"
        assert (mounted.overlay / "plain").read_bytes() == PLAIN

    def test_an_opaque_directory_hides_what_lies_below(self, mounted: MountedTree) -> None:
        assert os.listdir(mounted.overlay / "opaque") == ["new"]
        assert sorted(os.listdir(mounted.overlay / "directory")) == ["hard", "lower"]

    def test_direct_io_is_refused_or_right(self, mounted: MountedTree) -> None:
        try:
            descriptor = os.open(mounted.path / "big", os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            assert error.errno == errno.EINVAL
            return
        try:
            with mmap.mmap(-1, EXTENT) as aligned:
                assert os.preadv(descriptor, [aligned], EXTENT) == EXTENT
                assert aligned[:] == BIG[EXTENT : 2 * EXTENT]
        finally:
            os.close(descriptor)

    def test_nothing_can_be_written(self, mounted: MountedTree) -> None:
        plain = mounted.path / "plain"
        attempts: list[Callable[[], object]] = [
            lambda: os.open(plain, os.O_WRONLY),
            lambda: os.open(plain, os.O_RDWR),
            lambda: os.open(mounted.path / "new", os.O_WRONLY | os.O_CREAT, 0o600),
            lambda: os.truncate(plain, 0),
            lambda: os.mkdir(mounted.path / "new"),
            lambda: os.unlink(plain),
            lambda: os.rmdir(mounted.path / "many"),
            lambda: os.rename(plain, mounted.path / "new"),
            lambda: os.link(plain, mounted.path / "new"),
            lambda: os.symlink("x", mounted.path / "new"),
            lambda: os.mknod(mounted.path / "new", stat.S_IFIFO | 0o600),
            lambda: os.chmod(plain, 0o600),
            lambda: os.chown(plain, 0, 0),
            lambda: os.utime(plain),
            lambda: os.setxattr(plain, "user.word", b"v"),
            lambda: os.removexattr(mounted.path / "marked", "user.word"),
        ]
        for number, attempt in enumerate(attempts):
            with pytest.raises(OSError) as refused:
                attempt()
            assert refused.value.errno == errno.EROFS, number
        assert plain.read_bytes() == PLAIN

    def test_the_file_system_says_that_it_is_read_only(self, mounted: MountedTree) -> None:
        status = os.statvfs(mounted.path)
        assert status.f_flag & os.ST_RDONLY
        assert status.f_namemax == 255

    def test_a_whole_tree_can_be_copied(self, mounted: MountedTree, tmp_path: Path) -> None:
        copied = tmp_path / "copy"
        subprocess.run(["cp", "-a", mounted.path, copied], check=True)
        special = (f"--exclude={name}" for name in ("null", "disk", "fifo", "gone"))
        compared = subprocess.run(
            ["diff", "-r", "--no-dereference", *special, mounted.path, copied],
            capture_output=True,
            text=True,
        )
        assert (compared.returncode, compared.stdout, compared.stderr) == (0, "", "")


def _mapped_page(descriptor: int) -> bytes:
    """The first page of a mapping, beyond the end of a shorter file too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    try:
        return ctypes.string_at(address, mmap.PAGESIZE)
    finally:
        libc.munmap(address, mmap.PAGESIZE)
