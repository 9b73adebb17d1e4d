"""Numbers and structures of the EROFS on-disk format.

Source: linux/fs/erofs/erofs_fs.h. Everything is little-endian. Of the format's choices we use 4 KiB
blocks, 64-byte ("extended") inodes, a device table, 8-byte chunk indexes and xattrs beside their
inode.
"""

import struct

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS

SUPERBLOCK_OFFSET = 1024
"""The superblock leaves room for a boot sector."""

MAGIC = 0xE0F5E1E2

COMPAT_SUPERBLOCK_CHECKSUM = 0x1
COMPAT_MTIME = 0x2
"""The one time of an inode is its mtime."""

INCOMPAT_CHUNKED_FILE = 0x4
INCOMPAT_DEVICE_TABLE = 0x8

SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
"""magic, checksum, compatible features, block bits, extra slots, root nid, inodes, build time, its
ns, blocks, first block of inodes, first block of shared xattrs, UUID, volume name, incompatible
features, compression, extra devices, device table's slot, directory block bits, xattr prefixes,
their start, packed nid, xattr filter (128 bytes)."""

CHECKSUM_OFFSET = SUPERBLOCK_OFFSET + 4
UUID_OFFSET = SUPERBLOCK_OFFSET + 48
UUID_SIZE = 16

DEVICE_SLOT = struct.Struct("<64sII56x")
"""tag, blocks, first block in one address space of all devices (0: none)."""

INODE_SLOT = 32
"""A nid counts these from the first block of inodes."""

LAST_ROOT_NID = (1 << 16) - 1

INODE = struct.Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, reserved, size, a union, number, uid, gid, mtime, its ns, links."""

INODE_UNION_OFFSET = 16
"""The union: a first block, a device number or a chunk format."""

FORMAT_PLAIN = 0 << 1 | 1
"""Contents in whole blocks; the lowest bit says that the inode has 64 bytes."""

FORMAT_INLINE = 2 << 1 | 1
"""Whole blocks first; what remains follows the inode and its xattrs, within one block."""

FORMAT_CHUNKS = 4 << 1 | 1
"""Chunk indexes follow the inode and its xattrs, at a multiple of 8 bytes."""

CHUNK_INDEX = struct.Struct("<HHI")
"""advice, device (1: the first of the table), block on that device."""

CHUNK_FORMAT_INDEXES = 0x20
"""Added to log2(blocks of a chunk), which has the lower five bits."""

LARGEST_CHUNK_BITS = 31

LAST_BLOCK = (1 << 32) - 2
"""Block numbers have 32 bits; all ones means a hole."""

DIRENT = struct.Struct("<QHBx")
"""nid, where the name begins in this block, file type. A block has all its dirents first."""

LONGEST_NAME = 255
LONGEST_TARGET = 4095
"""PATH_MAX of linux/limits.h, less the terminating zero."""

XATTR_HEADER_SIZE = 12
XATTR_ENTRY = struct.Struct("<BBH")
"""length of the name without its prefix, number of the prefix, length of the value."""

XATTR_UNIT = 4
LARGEST_XATTR_COUNT = (1 << 16) - 1
LONGEST_XATTR_VALUE = (1 << 16) - 1
