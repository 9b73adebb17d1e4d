"""Reads the metadata images that this package writes, one inode at a time.

Nothing is parsed ahead, so an image may be mapped instead of read. Images of other writers are
refused: of the format only what :mod:`headstart.content.erofs.image` uses is known here. Source of
the structures: linux/fs/erofs/erofs_fs.h.

No image makes a call run long or fail other than by :class:`ImageDamaged`.
"""

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from headstart.content.erofs import format as fmt
from headstart.content.erofs.crc32c import crc32c
from headstart.content.erofs.directory_block import DirectoryBlock
from headstart.content.erofs.read_errors import ImageDamaged

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["DirectoryEntry", "ErofsReader", "FileRecord", "ImageDamaged", "StripeRun"]

_FEATURES = fmt.INCOMPAT_CHUNKED_FILE | fmt.INCOMPAT_DEVICE_TABLE
_DEVICE_BLOCKS_OFFSET = 64
_CHUNK_BITS = 0x1F
_HOLE = (1 << 32) - 1
_NANOSECONDS = 1_000_000_000
_XATTR_SHARED_COUNT_OFFSET = 4
_XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_XATTR_WHOLE_NAMES = (2, 3)
_LAYOUTS = {
    stat.S_IFREG: (fmt.FORMAT_CHUNKS, fmt.FORMAT_PLAIN),
    stat.S_IFDIR: (fmt.FORMAT_INLINE, fmt.FORMAT_PLAIN),
    stat.S_IFLNK: (fmt.FORMAT_INLINE, fmt.FORMAT_PLAIN),
    stat.S_IFCHR: (fmt.FORMAT_PLAIN,),
    stat.S_IFBLK: (fmt.FORMAT_PLAIN,),
    stat.S_IFIFO: (fmt.FORMAT_PLAIN,),
}
_POSITIONS = 512
"""Positions in a directory that a block has: it holds 341 names at most (13 bytes each)."""


class FileRecord(NamedTuple):
    """One inode: what stat(2) tells, and where the rest of it lies in the image."""

    nid: int
    mode: int
    """With the file type (stat.S_IFMT)."""
    size: int
    uid: int
    gid: int
    mtime_ns: int
    links: int
    union: int
    layout: int
    xattrs_start: int
    xattrs_stop: int

    @property
    def device(self) -> int:
        """Of a device node: 12 bits of major, 20 of minor, as linux/kdev_t.h encodes them."""
        return self.union if stat.S_IFMT(self.mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0


class DirectoryEntry(NamedTuple):
    """A name in a directory; ``position`` is where a listing goes on behind it."""

    position: int
    name: bytes
    nid: int


class StripeRun(NamedTuple):
    """Bytes that lie together in one stripe's file."""

    stripe: int
    offset: int
    length: int


class ErofsReader:
    """One metadata image; usable from any thread."""

    def __init__(self, image: "bytes | mmap") -> None:
        """Look at superblock and device table. Raises :class:`ImageDamaged`."""
        self._image = image
        self._size = len(image)
        if self._size < fmt.BLOCK_SIZE or self._size % fmt.BLOCK_SIZE:
            raise ImageDamaged(f"{self._size} bytes are no metadata image")
        fields = fmt.SUPERBLOCK.unpack_from(image, fmt.SUPERBLOCK_OFFSET)
        magic, checksum, _, block_bits, slots, root, self.inodes = fields[:7]
        blocks, inodes_block, xattrs_block = fields[9:12]
        incompatible, compression, devices, table_slot, directory_bits = fields[14:19]
        if magic != fmt.MAGIC:
            raise ImageDamaged("this is no EROFS image")
        expected = (fmt.BLOCK_BITS, 0, 0, 0, _FEATURES, 0, 0)
        if expected != (
            block_bits,
            slots,
            inodes_block,
            xattrs_block,
            incompatible,
            compression,
            directory_bits,
        ):
            raise ImageDamaged("this EROFS image is not one of ours")
        checked = bytearray(image[fmt.SUPERBLOCK_OFFSET : fmt.BLOCK_SIZE])
        start = fmt.CHECKSUM_OFFSET - fmt.SUPERBLOCK_OFFSET
        checked[start : start + 4] = bytes(4)
        if crc32c(checked) != checksum:
            raise ImageDamaged("the superblock's checksum is another one")
        if blocks * fmt.BLOCK_SIZE != self._size:
            raise ImageDamaged(f"{self._size} bytes are here of {blocks} blocks")
        self.root: int = root
        """nid of the root directory."""
        self.device_blocks = self._devices(table_slot * fmt.DEVICE_SLOT.size, devices)
        """Blocks of each stripe's file."""

    def _devices(self, start: int, count: int) -> tuple[int, ...]:
        if not count or start + count * fmt.DEVICE_SLOT.size > self._size:
            raise ImageDamaged(f"its table of {count} devices is not in the image")
        slots = range(start, start + count * fmt.DEVICE_SLOT.size, fmt.DEVICE_SLOT.size)
        return tuple(fmt.DEVICE_SLOT.unpack_from(self._image, slot)[1] for slot in slots)

    # --- inodes ---

    def file(self, nid: int) -> FileRecord:
        """The inode with a number. Raises :class:`ImageDamaged`."""
        start = nid * fmt.INODE_SLOT
        if nid < 0 or start + fmt.INODE.size > self._size:
            raise ImageDamaged(f"inode {nid} is not in the image")
        layout, xattr_count, mode, _, size, union, _, uid, gid, seconds, nanoseconds, links = (
            fmt.INODE.unpack_from(self._image, start)
        )
        if layout not in _LAYOUTS.get(stat.S_IFMT(mode), ()) or nanoseconds >= _NANOSECONDS:
            raise ImageDamaged(f"inode {nid} is none: mode {mode:o}, format {layout:#x}")
        after = start + fmt.INODE.size
        stop = after
        if xattr_count:
            stop += fmt.XATTR_HEADER_SIZE + (xattr_count - 1) * fmt.XATTR_UNIT
            if stop > self._size:
                raise ImageDamaged(f"the xattrs of inode {nid} are not in the image")
        return FileRecord(
            nid,
            mode,
            size,
            uid,
            gid,
            seconds * _NANOSECONDS + nanoseconds,
            links,
            union,
            layout,
            after,
            stop,
        )

    def target(self, link: FileRecord) -> bytes:
        """Where a symlink leads. Raises :class:`ImageDamaged`."""
        if not stat.S_ISLNK(link.mode) or not 0 < link.size <= fmt.LONGEST_TARGET:
            raise ImageDamaged(f"inode {link.nid} is no symlink")
        start, stop = self._stored(link, 0)
        target = self._image[start:stop]
        if b"\0" in target:
            raise ImageDamaged(f"the target of inode {link.nid} has a zero")
        return target

    def xattrs(self, file: FileRecord) -> dict[bytes, bytes]:
        """All extended attributes. Raises :class:`ImageDamaged`."""
        found: dict[bytes, bytes] = {}
        if file.xattrs_start == file.xattrs_stop:
            return found
        area = self._image[file.xattrs_start : file.xattrs_stop]
        if area[_XATTR_SHARED_COUNT_OFFSET]:
            raise ImageDamaged(f"inode {file.nid} shares xattrs")
        position = fmt.XATTR_HEADER_SIZE
        while position < len(area):
            name_length, prefix, value_length = fmt.XATTR_ENTRY.unpack_from(area, position)
            middle = position + fmt.XATTR_ENTRY.size + name_length
            stop = middle + value_length
            whole = prefix in _XATTR_WHOLE_NAMES
            if prefix not in _XATTR_PREFIXES or whole == bool(name_length) or stop > len(area):
                raise ImageDamaged(f"inode {file.nid} has an xattr that is none")
            rest = area[position + fmt.XATTR_ENTRY.size : middle]
            if b"\0" in rest:
                raise ImageDamaged(f"inode {file.nid} has an xattr with a zero in its name")
            found[_XATTR_PREFIXES[prefix] + rest] = area[middle:stop]
            position = stop + -stop % fmt.XATTR_UNIT
        return found

    # --- directories ---

    def find(self, directory: FileRecord, name: bytes) -> int | None:
        """The nid behind a name, which may be ``.`` or ``..``; None where there is none.

        Looks at a number of blocks that grows with the logarithm of the directory's size. Raises
        :class:`ImageDamaged`.
        """
        low, high = 0, self._directory_blocks(directory)
        while high - low > 1:
            middle = (low + high) // 2
            if self._directory_block(directory, middle).name(0) <= name:
                low = middle
            else:
                high = middle
        return self._directory_block(directory, low).find(name)

    def entries(self, directory: FileRecord, position: int = 0) -> Iterator[DirectoryEntry]:
        """The names of a directory with ``.`` and ``..``, in the order of their bytes.

        ``position`` is that of the entry behind which the listing goes on; any other number begins
        somewhere, or ends at once. Raises :class:`ImageDamaged`.
        """
        block, index = divmod(position, _POSITIONS)
        for number in range(block, self._directory_blocks(directory)):
            names = self._directory_block(directory, number)
            for name, nid in names.entries(index):
                index += 1
                yield DirectoryEntry(number * _POSITIONS + index, name, nid)
            index = 0

    def _directory_blocks(self, directory: FileRecord) -> int:
        """How many blocks it has; at least one."""
        if not stat.S_ISDIR(directory.mode) or not 0 < directory.size <= self._size:
            raise ImageDamaged(f"inode {directory.nid} is no directory")
        return -(-directory.size // fmt.BLOCK_SIZE)

    def _directory_block(self, directory: FileRecord, number: int) -> DirectoryBlock:
        start, stop = self._stored(directory, number)
        return DirectoryBlock(self._image, start, stop)

    def _stored(self, file: FileRecord, block: int) -> tuple[int, int]:
        """Where one block of what the image itself holds of a file begins and ends."""
        whole, rest = divmod(file.size, fmt.BLOCK_SIZE)
        start = (file.union + block) * fmt.BLOCK_SIZE
        stop = start + (fmt.BLOCK_SIZE if block < whole else rest)
        if file.layout == fmt.FORMAT_INLINE and block == whole:
            start = file.xattrs_stop
            stop = start + rest
            if start // fmt.BLOCK_SIZE != (stop - 1) // fmt.BLOCK_SIZE:
                raise ImageDamaged(f"what is inline of inode {file.nid} crosses a block's border")
        if stop > self._size or start >= stop:
            raise ImageDamaged(f"block {block} of inode {file.nid} is not in the image")
        return start, stop

    # --- contents ---

    def runs(self, file: FileRecord, start: int, stop: int) -> Iterator[StripeRun]:
        """Where the bytes ``start`` to ``stop`` of a regular file lie, in order and joined.

        ``stop`` is at most the file's size. Raises :class:`ImageDamaged`.
        """
        if not stat.S_ISREG(file.mode):
            raise ImageDamaged(f"inode {file.nid} is no regular file")
        if start >= stop:
            return
        indexes, chunk_size = self._chunks(file)
        pending: StripeRun | None = None
        while start < stop:
            number, within = divmod(start, chunk_size)
            length = min(stop - start, chunk_size - within)
            _, device, block = fmt.CHUNK_INDEX.unpack_from(
                self._image, indexes + number * fmt.CHUNK_INDEX.size
            )
            offset = block * fmt.BLOCK_SIZE + within
            if (
                block == _HOLE
                or not 0 < device <= len(self.device_blocks)
                or offset + length > self.device_blocks[device - 1] * fmt.BLOCK_SIZE
            ):
                raise ImageDamaged(f"chunk {number} of inode {file.nid} is on no device")
            if (
                pending is not None
                and pending.stripe == device - 1
                and pending.offset + pending.length == offset
            ):
                pending = StripeRun(pending.stripe, pending.offset, pending.length + length)
            else:
                if pending is not None:
                    yield pending
                pending = StripeRun(device - 1, offset, length)
            start += length
        if pending is not None:
            yield pending

    def _chunks(self, file: FileRecord) -> tuple[int, int]:
        """Where the chunk indexes of a non-empty file begin, and bytes of a chunk."""
        bits = file.union & _CHUNK_BITS
        if file.layout != fmt.FORMAT_CHUNKS or file.union != bits | fmt.CHUNK_FORMAT_INDEXES:
            raise ImageDamaged(f"the contents of inode {file.nid} are not in chunks")
        chunk_size = fmt.BLOCK_SIZE << bits
        start = file.xattrs_stop + -file.xattrs_stop % fmt.CHUNK_INDEX.size
        if start + -(-file.size // chunk_size) * fmt.CHUNK_INDEX.size > self._size:
            raise ImageDamaged(f"the chunk indexes of inode {file.nid} are not in the image")
        return start, chunk_size
