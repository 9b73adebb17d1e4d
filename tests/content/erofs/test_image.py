"""Images without a mount: the same bytes each time, what fsck.erofs says, what is refused."""

import random
import struct
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.erofs.crc32c import crc32c
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from tests.content.erofs.planting import BLOCK, EXTENT, Planting
from tests.content.erofs.random_trees import plantings
from tests.parts.processes import run

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def shuffled(inode: Inode, chance: random.Random, copies: dict[Inode, Inode]) -> Inode:
    """The same tree of other objects, put together in another order."""
    if inode in copies:
        return copies[inode]
    names, xattrs = list(inode.children), list(inode.xattrs.items())
    chance.shuffle(names)
    chance.shuffle(xattrs)
    copies[inode] = Inode(
        inode.kind,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.mtime_ns,
        inode.size,
        inode.target,
        inode.device,
        dict(xattrs),
        inode.offset,
        inode.links,
        {name: shuffled(inode.children[name], chance, copies) for name in names},
    )
    return copies[inode]


@settings(max_examples=60, suppress_health_check=SLOW)
@given(plantings())
def test_the_order_in_which_a_tree_grew_does_not_show(planting: Planting) -> None:
    image = planting.image()
    again = build(shuffled(planting.root, random.Random(1), {}), planting.geometry)
    assert again == image


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(plantings())
def test_fsck_finds_nothing(tmp_path_factory: pytest.TempPathFactory, planting: Planting) -> None:
    image = planting.image()
    assert_fsck_passes(image, planting, tmp_path_factory.mktemp("fsck"))


def assert_fsck_passes(image: bytes, planting: Planting, directory: Path) -> None:
    meta = directory / "meta"
    meta.write_bytes(image)
    devices = [f"--device={path}" for path in planting.write_devices(directory)]
    checked = run(["fsck.erofs", "-d3", *devices, "--extract", str(meta)])
    # Its exit status is 0 for a wrong checksum too.
    assert "No errors found" in checked.stdout + checked.stderr


def test_fsck_notices_a_damaged_image(tmp_path: Path) -> None:
    planting = Planting()
    planting.directory(planting.root, b"a")
    image = bytearray(planting.image())
    image[2000] ^= 0xFF
    with pytest.raises(AssertionError, match="chksum"):
        assert_fsck_passes(bytes(image), planting, tmp_path)


def test_the_superblock_says_what_the_image_is() -> None:
    planting = Planting(stripes=3)
    for number in range(5):
        planting.regular(planting.root, b"%d" % number, bytes(EXTENT))
    image = planting.image()
    assert len(image) % BLOCK == 0
    magic, checksum, compatible, bits, slots, root, inodes = struct.unpack_from(
        "<IIIBBHQ", image, 1024
    )
    assert (magic, bits, slots, inodes) == (0xE0F5E1E2, 12, 0, 6)
    assert compatible == 0x3
    (blocks,) = struct.unpack_from("<I", image, 1024 + 36)
    assert blocks == len(image) // BLOCK
    incompatible, _, devices, slot = struct.unpack_from("<IHHH", image, 1024 + 80)
    assert (incompatible, devices) == (0xC, 3)
    table = [struct.unpack_from("<64sII", image, (slot + at) * 128) for at in range(3)]
    assert table == [(bytes(64), EXTENT // BLOCK * extents, 0) for extents in (2, 2, 1)]
    (mode,) = struct.unpack_from("<H", image, root * 32 + 4)
    assert mode == 0o40755

    cleared = bytearray(image)
    cleared[1028:1032] = bytes(4)
    assert checksum == crc32c(cleared[1024:BLOCK])
    uuid = cleared[1072:1088]
    cleared[1072:1088] = bytes(16)
    content = blake3(cleared).digest(16)
    assert (uuid[6] >> 4, uuid[8] >> 6) == (8, 2)
    assert [uuid[at] for at in range(16) if at not in (6, 8)] == [
        content[at] for at in range(16) if at not in (6, 8)
    ]


def test_small_directories_and_symlinks_take_no_blocks_of_their_own() -> None:
    planting = Planting()
    inodes = 1
    for number in range(300):
        below = planting.directory(planting.root, b"%03d" % number)
        planting.put(below, b"link", special(kind=EntryKind.SYMLINK, target=b"../target"))
        planting.regular(below, b"file", b"x" * 10)
        inodes += 3
    # 96 bytes for a symlink or a file, 160 for such a directory, and the root's own names.
    assert len(planting.image()) < 120 * inodes + 3 * BLOCK


def test_crc32c_of_the_known_word() -> None:
    """The check value of CRC-32C (RFC 3720, B.4 has more), whose last step is an inversion."""
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


def special(**fields: object) -> Inode:
    """A FIFO, or what ``fields`` make of it."""
    kind = fields.pop("kind", EntryKind.FIFO)
    assert isinstance(kind, EntryKind)
    inode = Inode(kind, 0o600)
    for name, value in fields.items():
        setattr(inode, name, value)
    return inode


@pytest.mark.parametrize(
    ("inode", "reason"),
    [
        (special(uid=1 << 32), r"owner, 4294967296, is not"),
        (special(uid=-1), r"owner, -1, is not"),
        (special(gid=1 << 40), r"group, 1099511627776, is not"),
        (special(links=1 << 32), r"links, 4294967296, is not"),
        (special(mtime_ns=1 << 100), r"mtime, \d+ ns, has seconds beyond"),
        (special(kind=EntryKind.SYMLINK), r"0 bytes are no symlink"),
        (special(kind=EntryKind.SYMLINK, target=b"t" * 4096), r"4096 bytes are no symlink"),
        (special(kind=EntryKind.SYMLINK, target=b"a\0b"), r"has a zero"),
        (special(kind=EntryKind.CHARACTER, device=(4096, 0)), r"device 4096:0"),
        (special(kind=EntryKind.BLOCK, device=(0, 1 << 20)), r"device 0:1048576"),
        (special(kind=EntryKind.BLOCK, device=(-1, 0)), r"device -1:0"),
        (special(kind=EntryKind.HARD_LINK), r"hardlink is no inode"),
        (special(xattrs={b"user.": b""}), r"no name after user"),
        (special(kind=EntryKind.DIRECTORY, children={b"..": special()}), r"every directory has"),
        (special(kind=EntryKind.DIRECTORY, children={b"n" * 256: special()}), r"256 bytes"),
    ],
)
def test_what_erofs_cannot_say_is_refused_with_the_name(inode: Inode, reason: str) -> None:
    planting = Planting()
    planting.directory(planting.root, b"a").children[b"the\n\xff"] = inode
    with pytest.raises(LayerRefused, match=reason) as refused:
        planting.image()
    assert r"'the\n\xff'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_root_that_is_no_directory_is_refused() -> None:
    with pytest.raises(LayerRefused, match="root"):
        build(special(), DeviceGeometry(0, EXTENT, 1))


def test_more_data_than_block_numbers_is_refused() -> None:
    most = ((1 << 32) - 2) * BLOCK
    root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
    large = Inode(EntryKind.REGULAR, 0o644, size=most - 5 * BLOCK, offset=5 * BLOCK)
    root.children[b"large"] = large
    build(root, DeviceGeometry(most, EXTENT, 1))
    with pytest.raises(LayerRefused, match=r"'large'.*in chunks of 4096"):
        build(root, DeviceGeometry(most, EXTENT, 2))
    large.size = 1
    build(root, DeviceGeometry(most + 1, EXTENT, 2))
    with pytest.raises(LayerRefused, match="no numbers"):
        build(root, DeviceGeometry(most + 1, EXTENT, 1))
    with pytest.raises(LayerRefused, match="70000 devices"):
        build(root, DeviceGeometry(most, EXTENT, 70000))


@pytest.mark.parametrize(("offset", "size"), [(1, 1), (0, BLOCK + 1), (BLOCK, 1), (-BLOCK, 1)])
def test_contents_beside_the_data_device_are_a_mistake_of_the_caller(
    offset: int, size: int
) -> None:
    root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
    root.children[b"f"] = Inode(EntryKind.REGULAR, 0o644, size=size, offset=offset)
    with pytest.raises(ValueError, match="are not a file of"):
        build(root, DeviceGeometry(BLOCK, EXTENT, 1))
