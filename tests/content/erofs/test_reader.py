"""What the reader shows, against the trees that images were made of, and with damaged images."""

import os
import random
import stat
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.erofs import format as fmt
from headstart.content.erofs.crc32c import crc32c
from headstart.content.erofs.reader import (
    DirectoryEntry,
    ErofsReader,
    FileRecord,
    ImageDamaged,
)
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.store.geometry import FileRun, Geometry
from tests.content.erofs.comparing import FORMATS
from tests.content.erofs.planting import BLOCK, EXTENT, Planting
from tests.content.erofs.random_trees import plantings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def read_all(reader: ErofsReader) -> dict[bytes, FileRecord]:
    """Every path once; a directory that was seen is not gone into again."""
    found = {b"": reader.file(reader.root)}
    pending = [b""]
    seen = {reader.root}
    while pending:
        path = pending.pop()
        for entry in reader.entries(found[path]):
            if entry.name in (b".", b".."):
                continue
            below = path + b"/" + entry.name
            found[below] = reader.file(entry.nid)
            if stat.S_ISDIR(found[below].mode) and entry.nid not in seen:
                seen.add(entry.nid)
                pending.append(below)
    return found


def paths_of(root: Inode) -> dict[bytes, Inode]:
    found = {b"": root}
    pending = [(b"", root)]
    while pending:
        path, directory = pending.pop()
        for name, inode in directory.children.items():
            found[path + b"/" + name] = inode
            if inode.kind is EntryKind.DIRECTORY:
                pending.append((path + b"/" + name, inode))
    return found


def assert_file(reader: ErofsReader, found: FileRecord, inode: Inode, device: Geometry) -> None:
    assert found.mode == FORMATS[inode.kind] | inode.mode
    assert (found.uid, found.gid) == (inode.uid, inode.gid)
    assert (found.mtime_ns, found.links) == (inode.mtime_ns, inode.links)
    assert reader.xattrs(found) == inode.xattrs
    if inode.kind is EntryKind.SYMLINK:
        assert reader.target(found) == inode.target
        assert found.size == len(inode.target)
    if inode.kind in (EntryKind.CHARACTER, EntryKind.BLOCK):
        assert (os.major(found.device), os.minor(found.device)) == inode.device
    if inode.kind is EntryKind.REGULAR:
        assert found.size == inode.size
        runs = list(device.runs(inode.offset, inode.offset + inode.size))
        assert [FileRun(*run) for run in reader.runs(found, 0, inode.size)] == runs


@settings(max_examples=80, deadline=None, suppress_health_check=SLOW)
@given(plantings())
def test_any_tree_reads_as_it_was_said(planting: Planting) -> None:
    reader = ErofsReader(planting.image())
    said = planting.geometry
    device = Geometry(said.size, said.extent_size, said.stripes)
    expected = paths_of(planting.root)
    found = read_all(reader)
    assert found.keys() == expected.keys()
    numbers: dict[Inode, int] = {}
    for path, inode in expected.items():
        assert_file(reader, found[path], inode, device)
        assert numbers.setdefault(inode, found[path].nid) == found[path].nid, "hard links"
        above, _, name = path.rpartition(b"/")
        if path:
            assert reader.find(found[above], name) == found[path].nid
            assert reader.find(found[above], name + b"+") == numbers_of(
                found, above + b"/" + name + b"+"
            )
        if inode.kind is EntryKind.DIRECTORY:
            assert reader.find(found[path], b".") == found[path].nid
            assert reader.find(found[path], b"..") == found[above].nid
    assert len(set(numbers.values())) == len(numbers) == reader.inodes


def numbers_of(found: Mapping[bytes, FileRecord], path: bytes) -> int | None:
    return found[path].nid if path in found else None


def test_any_range_of_a_file_lies_where_the_store_has_it() -> None:
    planting = Planting(stripes=3)
    planting.regular(planting.root, b"before", bytes(BLOCK))
    big = planting.regular(planting.root, b"big", bytes(5 * EXTENT + 7))
    reader = ErofsReader(planting.image())
    nid = reader.find(reader.file(reader.root), b"big")
    assert nid is not None
    file = reader.file(nid)
    device = Geometry(planting.geometry.size, EXTENT, 3)
    chance = random.Random(1)
    for _ in range(200):
        start, stop = sorted(chance.randrange(big.size + 1) for _ in range(2))
        expected = list(device.runs(big.offset + start, big.offset + stop))
        assert [FileRun(*run) for run in reader.runs(file, start, stop)] == expected


def crowd(count: int) -> tuple[ErofsReader, FileRecord]:
    planting = Planting()
    for number in range(count):
        planting.regular(planting.root, b"%06d" % number * 4, b"")
    reader = ErofsReader(planting.image())
    return reader, reader.file(reader.root)


@pytest.mark.parametrize("count", [0, 1, 100, 3000])
def test_a_listing_goes_on_behind_any_entry(count: int) -> None:
    reader, root = crowd(count)
    whole = list(reader.entries(root))
    assert [entry.name for entry in whole] == sorted(entry.name for entry in whole)
    assert len(whole) == count + 2
    assert all(entry.position > 0 for entry in whole)
    for index in range(0, len(whole), 37):
        assert list(reader.entries(root, whole[index].position)) == whole[index + 1 :]
    assert list(reader.entries(root, 1 << 62)) == []


def test_a_name_is_found_without_reading_the_directory() -> None:
    class Counting(bytes):
        read = 0

        def __getitem__(self, key: Any) -> Any:
            Counting.read += 1
            return super().__getitem__(key)

    planting = Planting()
    for number in range(20_000):
        planting.regular(planting.root, b"%032d" % number, b"")
    reader = ErofsReader(Counting(planting.image()))
    root = reader.file(reader.root)
    assert root.size > 200 * BLOCK
    Counting.read = 0
    assert reader.find(root, b"%032d" % 12_345) is not None
    assert reader.find(root, b"%032d" % 20_000) is None
    assert Counting.read < 40


def image() -> bytes:
    """A small image with something of everything."""
    planting = Planting(stripes=2)
    many = planting.directory(planting.root, b"many")
    for number in range(300):
        planting.regular(many, b"%03d" % number * 5, b"")
    planting.regular(planting.root, b"big", bytes(3 * EXTENT))
    named = planting.regular(planting.root, b"named", b"x")
    named.xattrs = {b"user.a": b"b", b"trusted.overlay.opaque": b"y"}
    planting.put(planting.root, b"link", Inode(EntryKind.SYMLINK, 0o777, target=b"many/000"))
    planting.put(planting.root, b"far", Inode(EntryKind.SYMLINK, 0o777, target=b"t" * 4095))
    planting.put(planting.root, b"null", Inode(EntryKind.CHARACTER, 0o666, device=(1, 3)))
    return planting.image()


IMAGE = image()


def read_everything(damaged: bytes) -> int:
    """All that can be asked; how many files were shown."""
    reader = ErofsReader(damaged)
    files = read_all(reader)
    for path, file in files.items():
        reader.xattrs(file)
        if stat.S_ISLNK(file.mode):
            reader.target(file)
        elif stat.S_ISDIR(file.mode):
            reader.find(file, b"000")
            reader.find(file, path.rpartition(b"/")[2])
        elif stat.S_ISREG(file.mode):
            list(reader.runs(file, 0, min(file.size, 1 << 20)))
    return len(files)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1152, len(IMAGE) - 8), st.integers(0, (1 << 64) - 1)), min_size=1
    ),
    st.sampled_from([1, 2, 4, 8]),
)
def test_a_damaged_image_is_an_error_or_a_bounded_tree(
    changes: list[tuple[int, int]], width: int
) -> None:
    damaged = bytearray(IMAGE)
    for position, value in changes:
        damaged[position : position + width] = value.to_bytes(8, "little")[:width]
    _repair_checksum(damaged)
    try:
        assert read_everything(bytes(damaged)) >= 1
    except ImageDamaged as error:
        assert "\n" not in str(error) and str(error)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3 * BLOCK), st.integers(0, len(IMAGE)))
def test_bytes_that_are_no_image_are_an_error(content: bytes, length: int) -> None:
    with pytest.raises(ImageDamaged):
        ErofsReader(content)
    if length != len(IMAGE):
        with pytest.raises(ImageDamaged):
            ErofsReader(IMAGE[:length])


def _repair_checksum(damaged: bytearray) -> None:
    damaged[fmt.CHECKSUM_OFFSET : fmt.CHECKSUM_OFFSET + 4] = bytes(4)
    checksum = crc32c(memoryview(damaged)[fmt.SUPERBLOCK_OFFSET : fmt.BLOCK_SIZE])
    damaged[fmt.CHECKSUM_OFFSET : fmt.CHECKSUM_OFFSET + 4] = checksum.to_bytes(4, "little")


def test_a_superblock_with_another_checksum_is_refused() -> None:
    damaged = bytearray(IMAGE)
    damaged[fmt.UUID_OFFSET] ^= 1
    with pytest.raises(ImageDamaged, match="checksum"):
        ErofsReader(bytes(damaged))


@pytest.mark.parametrize(
    ("offset", "value"), [(12, 9), (13, 1), (40, 1), (44, 1), (80, 0x1C), (84, 1), (90, 1)]
)
def test_an_image_of_another_writer_is_refused(offset: int, value: int) -> None:
    """Block size, slots, first blocks, features, compression, directory blocks."""
    damaged = bytearray(IMAGE)
    damaged[fmt.SUPERBLOCK_OFFSET + offset] = value
    _repair_checksum(damaged)
    with pytest.raises(ImageDamaged, match="not one of ours"):
        ErofsReader(bytes(damaged))


def _asked(what: str) -> Callable[[ErofsReader, FileRecord], object]:
    return {
        "target": lambda reader, file: reader.target(file),
        "runs": lambda reader, file: list(reader.runs(file, 0, 1)),
        "find": lambda reader, file: reader.find(file, b"name"),
        "entries": lambda reader, file: list[DirectoryEntry](reader.entries(file)),
    }[what]


@pytest.mark.parametrize("what", ["target", "runs", "find", "entries"])
def test_a_fifo_has_nothing_of_all_this(what: str) -> None:
    root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
    root.children[b"fifo"] = Inode(EntryKind.FIFO, 0o600)
    reader = ErofsReader(build(root, DeviceGeometry(0, EXTENT, 1)))
    nid = reader.find(reader.file(reader.root), b"fifo")
    assert nid is not None
    with pytest.raises(ImageDamaged):
        _asked(what)(reader, reader.file(nid))
