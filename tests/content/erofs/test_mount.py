"""Images as the kernel shows them."""

import errno
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from tests.content.erofs.comparing import assert_shows
from tests.content.erofs.mounted import mounted
from tests.content.erofs.planting import ACL, BLOCK, EXTENT, KIB, NEW_YEAR, Planting
from tests.content.erofs.random_trees import plantings

SECOND = 1_000_000_000
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def assert_mounts(planting: Planting, directory: Path) -> None:
    """Mount and compare everything."""
    devices = planting.write_devices(directory)
    with mounted(planting.image(), devices, directory / "mount") as tree:
        assert_shows(tree, planting.root, planting.contents)


def special(kind: EntryKind, **fields: object) -> Inode:
    """An inode without contents."""
    inode = Inode(kind, 0o644, mtime_ns=NEW_YEAR)
    for name, value in fields.items():
        setattr(inode, name, value)
    return inode


def assert_any_tree_mounts(planting: Planting) -> None:
    with tempfile.TemporaryDirectory(prefix="erofs-") as directory:
        assert_mounts(planting, Path(directory))


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(plantings())
def test_any_tree_mounts_as_it_was_said(planting: Planting) -> None:
    assert_any_tree_mounts(planting)


@pytest.mark.soak
@settings(max_examples=3000, deadline=None, suppress_health_check=SLOW)
@given(plantings())
def test_many_trees_mount_as_they_were_said(planting: Planting) -> None:
    assert_any_tree_mounts(planting)


@pytest.mark.parametrize("stripes", [1, 3])
def test_an_empty_layer_mounts_with_all_its_devices(tmp_path: Path, stripes: int) -> None:
    assert_mounts(Planting(stripes=stripes), tmp_path)


@pytest.mark.parametrize("stripes", [1, 3])
@pytest.mark.parametrize("extents", [1, 3])
def test_contents_that_cross_extents(tmp_path: Path, stripes: int, extents: int) -> None:
    planting = Planting(extent_size=extents * EXTENT, stripes=stripes)
    chance = random.Random(stripes)
    for number, size in enumerate([1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * EXTENT, EXTENT, 100]):
        for alignment in (BLOCK, 64 * KIB, EXTENT):
            name = b"%d-%d" % (number, alignment)
            planting.regular(planting.root, name, chance.randbytes(size), alignment=alignment)
    planting.regular(planting.root, b"empty", b"")
    assert_mounts(planting, tmp_path)


def test_a_file_of_gigabytes_is_read_from_its_end(tmp_path: Path) -> None:
    planting = Planting()
    size = (5 << 30) + 1234
    large = special(EntryKind.REGULAR, size=size, offset=6 << 30)
    planting.put(planting.root, b"large", large)
    planting.regular(planting.root, b"small", b"first")
    stripe = tmp_path / "stripe"
    stripe.touch()
    device_size = large.offset + size + BLOCK
    os.truncate(stripe, device_size)
    with stripe.open("r+b") as file:
        file.write(b"first")
        file.seek(large.offset + size - 4)
        file.write(b"last")
    planting.reserve(device_size)
    with (
        mounted(planting.image(), [stripe], tmp_path / "mount") as tree,
        (tree / "large").open("rb") as file,
    ):
        assert os.fstat(file.fileno()).st_size == size
        assert file.read(4) == bytes(4)
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"last"
        assert (tree / "small").read_bytes() == b"first"


@pytest.mark.parametrize("length", [255, 40, 4])
def test_a_directory_of_a_hundred_thousand_names(tmp_path: Path, length: int) -> None:
    count = 100_000 if length == 40 else 10_000
    planting = Planting()
    shared = planting.regular(planting.root, b"shared", b"same")
    crowd = planting.directory(planting.root, b"crowd")
    names = [(b"%04x" % number).ljust(length, b"n") for number in range(count)]
    for name in names:
        planting.put(crowd, name, shared)
    devices = planting.write_devices(tmp_path)
    with mounted(planting.image(), devices, tmp_path / "mount") as tree:
        path = os.fsencode(tree / "crowd")
        assert sorted(os.listdir(path)) == sorted(names)
        number = os.lstat(tree / "shared").st_ino
        for name in (*names[::997], names[-1]):
            assert os.lstat(os.path.join(path, name)).st_ino == number
        for missing in (b"!", b"zzzz", names[500][:-1] + b"m"):
            with pytest.raises(FileNotFoundError):
                os.lstat(os.path.join(path, missing))
        assert os.lstat(tree / "shared").st_nlink == count + 1


def test_hard_links_share_the_inode_across_directories(tmp_path: Path) -> None:
    planting = Planting()
    shared = planting.regular(planting.root, b"first", b"contents")
    fifo = planting.put(planting.root, b"fifo", special(EntryKind.FIFO))
    link = planting.put(planting.root, b"link", special(EntryKind.SYMLINK, target=b"first"))
    for number in range(50):
        below = planting.directory(planting.root, b"d%d" % number)
        for inode in (shared, fifo, link):
            for name in range(67 if inode is shared else 2):
                planting.put(below, b"%d-%d" % (id(inode), name), inode)
    assert (shared.links, fifo.links) == (3351, 101)
    assert_mounts(planting, tmp_path)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    planting = Planting()
    names = [bytes([byte]) * 255 for byte in range(1, 256) if byte != ord("/")]
    names += [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    names += [b"...", b".a", b"..a", b"caf\xe9", b"\xf0\x9f\x98\x80", b"a\nb"]
    for name in names:
        planting.regular(planting.root, name, name)
    assert_mounts(planting, tmp_path)


@pytest.mark.parametrize("length", [1, 60, 3967, 4031, 4032, 4033, 4095])
def test_symlinks_up_to_the_longest(tmp_path: Path, length: int) -> None:
    planting = Planting()
    for number in range(5):
        target = b"%d" % number + b"t" * (length - 1)
        symlink = special(EntryKind.SYMLINK, target=target, mode=0o777)
        planting.put(planting.root, b"plain-%d" % number, symlink)
        described = special(EntryKind.SYMLINK, target=target, mode=0o777)
        described.xattrs[b"trusted.note"] = b"n" * (number * 1000)
        planting.put(planting.root, b"described-%d" % number, described)
    assert_mounts(planting, tmp_path)


def test_devices_whiteouts_and_fifos(tmp_path: Path) -> None:
    planting = Planting()
    largest = (4095, (1 << 20) - 1)
    for number, device in enumerate([(0, 0), (1, 3), (8, 256), (259, 65536), largest]):
        for kind in (EntryKind.CHARACTER, EntryKind.BLOCK):
            name = f"{kind.value}-{number}".encode()
            planting.put(planting.root, name, special(kind, device=device))
    planting.put(planting.root, b"fifo", special(EntryKind.FIFO))
    assert_mounts(planting, tmp_path)


def test_times_before_1970_and_after_2038(tmp_path: Path) -> None:
    planting = Planting()
    for number, time in enumerate(
        [0, -1, -SECOND, -(10**18) - 1, (1 << 31) * SECOND, (1 << 32) * SECOND + 7, 10**20 + 1]
    ):
        planting.put(planting.root, b"%d" % number, special(EntryKind.FIFO, mtime_ns=time))
    assert_mounts(planting, tmp_path)


def test_owners_and_modes(tmp_path: Path) -> None:
    planting = Planting()
    for mode in (0, 0o4755, 0o2755, 0o1777, 0o7777):
        planting.regular(planting.root, b"%o" % mode, b"x").mode = mode
        directory = planting.directory(planting.root, b"d%o" % mode)
        directory.mode, directory.uid, directory.gid = mode, (1 << 32) - 2, 70_000
    assert_mounts(planting, tmp_path)


def xattrs_of(size: int) -> dict[bytes, bytes]:
    return {b"user.large": bytes(range(256)) * (size // 256), b"trusted.t": b"t"}


@pytest.mark.parametrize("size", [0, 256, 3584, 3840, 4096, 8192, 65280])
def test_xattrs_of_any_size_on_files_and_directories(tmp_path: Path, size: int) -> None:
    planting = Planting(stripes=2)
    for number in range(3):
        planting.root.xattrs = xattrs_of(size)
        file = planting.regular(planting.root, b"f%d" % number, bytes(EXTENT + number))
        file.xattrs = xattrs_of(size)
        small = planting.directory(planting.root, b"small%d" % number)
        large = planting.directory(planting.root, b"large%d" % number)
        small.xattrs = large.xattrs = xattrs_of(size)
        for name in range(100):
            planting.put(large, b"%d" % name * 20, special(EntryKind.FIFO))
    assert_mounts(planting, tmp_path)


def test_capabilities_acls_and_unsaid_namespaces(tmp_path: Path) -> None:
    planting = Planting()
    file = planting.regular(planting.root, b"file", b"x")
    file.xattrs = {
        # vfs_cap_data of version 2 (linux/capability.h): cap_net_bind_service, effective.
        b"security.capability": bytes.fromhex("0100000200040000" + "00" * 12),
        b"system.posix_acl_access": ACL,
        b"user.empty": b"",
    }
    directory = planting.directory(planting.root, b"directory")
    directory.xattrs = {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}
    image = planting.image()
    file.xattrs[b"com.apple.provenance"] = b"x"
    assert planting.image() == image
    del file.xattrs[b"com.apple.provenance"]
    assert_mounts(planting, tmp_path)


def test_a_deep_tree(tmp_path: Path) -> None:
    planting = Planting()
    inode = planting.root
    for number in range(1500):
        inode = planting.directory(inode, b"%d" % (number % 10))
    planting.regular(inode, b"f", b"deep")
    assert_mounts(planting, tmp_path)


def test_thousands_of_directories_of_many_sizes(tmp_path: Path) -> None:
    planting = Planting()
    for number in range(400):
        below = planting.directory(planting.root, b"d%d" % number)
        for name in range(number):
            planting.put(below, b"%d" % name, special(EntryKind.FIFO))
    devices = planting.write_devices(tmp_path)
    with mounted(planting.image(), devices, tmp_path / "mount") as tree:
        counted = {name: len(os.listdir(tree / name)) for name in os.listdir(tree)}
    assert counted == {f"d{number}": number for number in range(400)}


@pytest.mark.parametrize(
    "spoil",
    [lambda devices: devices[:1], lambda devices: [*devices, devices[0]]],
    ids=["a device too few", "a device too many"],
)
def test_the_kernel_wants_exactly_the_devices_of_the_table(
    tmp_path: Path, spoil: Callable[[list[Path]], list[Path]]
) -> None:
    planting = Planting(stripes=2)
    devices = planting.write_devices(tmp_path)
    with (
        pytest.raises(OSError) as refused,
        mounted(planting.image(), spoil(devices), tmp_path / "mount"),
    ):
        pass
    assert refused.value.errno == errno.EINVAL
