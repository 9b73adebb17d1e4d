"""The metadata image of a layer: superblock, device table, inodes, directories."""

import struct

from blake3 import blake3

from headstart.content.erofs import format as fmt
from headstart.content.erofs.crc32c import crc32c
from headstart.content.erofs.device_geometry import DeviceGeometry
from headstart.content.erofs.inode_table import InodeTable
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode


def build(root: Inode, geometry: DeviceGeometry) -> bytes:
    """The EROFS image of the tree below ``root``, without the contents of its regular files.

    Whole blocks of 4 KiB; the same tree and geometry make the same bytes, whatever the order of
    ``children`` and ``xattrs``. It is mounted with one ``device=`` for each stripe's file, in
    order, also for stripes that have no bytes. Raises LayerRefused for what EROFS cannot express,
    and ValueError for contents that are not on the data device.
    """
    slots = [geometry.stripe_length(stripe) for stripe in range(geometry.stripes)]
    blocks = [-(-length // fmt.BLOCK_SIZE) for length in slots]
    table_start = _round_up(fmt.SUPERBLOCK_OFFSET + fmt.SUPERBLOCK.size, fmt.DEVICE_SLOT.size)
    reserved = table_start + len(slots) * fmt.DEVICE_SLOT.size
    if max(blocks) > fmt.LAST_BLOCK:
        raise LayerRefused(f"EROFS has no numbers for the blocks of {geometry.size} bytes")
    if reserved // fmt.INODE_SLOT > fmt.LAST_ROOT_NID:
        raise LayerRefused(f"EROFS has no room for {geometry.stripes} devices")

    table = InodeTable(geometry, reserved)
    root_nid = table.add_tree(root)
    table.close()
    image = table.inodes
    image += table.blocks
    if len(image) // fmt.BLOCK_SIZE > fmt.LAST_BLOCK:
        raise LayerRefused(f"EROFS has no numbers for {len(image)} bytes of metadata")

    for number, count in enumerate(blocks):
        fmt.DEVICE_SLOT.pack_into(image, table_start + number * fmt.DEVICE_SLOT.size, b"", count, 0)
    _write_superblock(image, root_nid, table.count, len(slots), table_start)
    return bytes(image)


def _write_superblock(
    image: bytearray, root_nid: int, inodes: int, devices: int, table_start: int
) -> None:
    """Write the superblock of an otherwise finished image."""
    fmt.SUPERBLOCK.pack_into(
        image,
        fmt.SUPERBLOCK_OFFSET,
        fmt.MAGIC,
        0,  # checksum
        fmt.COMPAT_SUPERBLOCK_CHECKSUM | fmt.COMPAT_MTIME,
        fmt.BLOCK_BITS,
        0,  # extra slots
        root_nid,
        inodes,
        0,  # build time
        0,  # its nanoseconds
        len(image) // fmt.BLOCK_SIZE,
        0,  # inodes are counted from the first block
        0,  # no shared xattrs
        b"",  # UUID
        b"",  # volume name
        fmt.INCOMPAT_CHUNKED_FILE | fmt.INCOMPAT_DEVICE_TABLE,
        0,  # compression
        devices,
        table_start // fmt.DEVICE_SLOT.size,
        0,  # a directory's blocks are as large as all others
        0,  # no long xattr prefixes
        0,  # their start
        0,  # packed nid
        0,  # xattr filter
    )
    uuid = _uuid_of(image)
    image[fmt.UUID_OFFSET : fmt.UUID_OFFSET + fmt.UUID_SIZE] = uuid
    checksum = crc32c(memoryview(image)[fmt.SUPERBLOCK_OFFSET : fmt.BLOCK_SIZE])
    struct.pack_into("<I", image, fmt.CHECKSUM_OFFSET, checksum)


def _uuid_of(image: bytearray) -> bytes:
    """A UUID of version 8 (RFC 9562: vendor's own) made from the image's BLAKE3."""
    uuid = bytearray(blake3(image).digest(fmt.UUID_SIZE))
    uuid[6] = uuid[6] & 0x0F | 0x80
    uuid[8] = uuid[8] & 0x3F | 0x80
    return bytes(uuid)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
