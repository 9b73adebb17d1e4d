"""One layer image as a tree of files; knows nothing of FUSE."""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple, Self

from blake3 import blake3

from headstart.content.erofs.reader import DirectoryEntry, ErofsReader, FileRecord, ImageDamaged
from headstart.store.geometry import Geometry
from mount.device.device_files import ObjectRange, object_ranges
from mount.mounting import probe_image
from mount.tree.errors import TreeUnusable
from mount.tree.naming import MAX_NID, PROBE_NUMBER, check_of, inode_of, parse

_INODE_SLOT = 32


class TreeFile(NamedTuple):
    """A file of a tree, with the number that the kernel knows it by."""

    inode: int
    record: FileRecord


class Tree:
    """The metadata of one layer image, mapped, and where its contents lie."""

    def __init__(self, number: int, image: bytes | mmap, geometry: Geometry) -> None:
        """Reads all of ``image`` once, so use it in a thread. Raises TreeUnusable."""
        self.number = number
        self.geometry = geometry
        self.fingerprint = blake3(image).digest()
        """BLAKE3 of the metadata."""
        self._image = image
        self._check = check_of(self.fingerprint)
        try:
            self._reader = ErofsReader(image)
        except ImageDamaged as error:
            raise TreeUnusable(f"layer {number}: {error}") from error
        lengths = [geometry.stripe_length(stripe) for stripe in range(geometry.stripes)]
        blocks = [-(-length // 4096) for length in lengths]
        if list(self._reader.device_blocks) != blocks:
            raise TreeUnusable(f"layer {number}: its metadata is of another data device")
        if len(image) // _INODE_SLOT > MAX_NID:
            raise TreeUnusable(f"layer {number}: {len(image)} bytes of metadata are too many")

    @classmethod
    def open(cls, number: int, meta: Path, geometry: Geometry) -> Self:
        """Map a metadata image. Raises OSError or TreeUnusable."""
        with meta.open("rb") as file:
            try:
                image = mmap(file.fileno(), 0, access=ACCESS_READ)
            except ValueError as error:
                raise TreeUnusable(f"layer {number}: {meta} is empty") from error
        try:
            return cls(number, image, geometry)
        except BaseException:
            image.close()
            raise

    @classmethod
    def probe(cls) -> Self:
        """The tree of :mod:`mount.mounting.probe_image`."""
        geometry = Geometry(len(probe_image.CONTENT), probe_image.EXTENT, 1)
        return cls(PROBE_NUMBER, probe_image.metadata(), geometry)

    @property
    def root(self) -> TreeFile:
        """Its root directory. Raises ImageDamaged."""
        return self._file(self._reader.root)

    def file(self, inode: int) -> TreeFile:
        """The file behind an inode number. Raises ImageDamaged, TreeUnusable."""
        _, check, nid = parse(inode)
        if check != self._check:
            raise TreeUnusable(f"layer {self.number}: its metadata was made anew and differs")
        return TreeFile(inode, self._reader.file(nid))

    def find(self, directory: int, name: bytes) -> TreeFile | None:
        """The file with a name in a directory. Raises ImageDamaged, TreeUnusable."""
        nid = self._reader.find(self.file(directory).record, name)
        return None if nid is None else self._file(nid)

    def listed(self, directory: int, position: int) -> Iterator[tuple[DirectoryEntry, TreeFile]]:
        """A directory's entries behind a position. Raises ImageDamaged, TreeUnusable."""
        for entry in self._reader.entries(self.file(directory).record, position):
            yield entry, self._file(entry.nid)

    def target(self, link: int) -> bytes:
        """Where a symlink leads. Raises ImageDamaged, TreeUnusable."""
        return self._reader.target(self.file(link).record)

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """A file's extended attributes. Raises ImageDamaged, TreeUnusable."""
        return self._reader.xattrs(self.file(inode).record)

    def ranges(self, inode: int, offset: int, length: int) -> list[ObjectRange]:
        """Where bytes of a regular file lie on the data device, as far as the file goes.

        Raises ImageDamaged, TreeUnusable.
        """
        record = self.file(inode).record
        joined: list[ObjectRange] = []
        for run in self._reader.runs(record, offset, min(offset + length, record.size)):
            stop = run.offset + run.length
            for piece in object_ranges(self.geometry, run.stripe, run.offset, stop):
                if joined and joined[-1].offset + joined[-1].length == piece.offset:
                    piece = ObjectRange(joined[-1].offset, joined.pop().length + piece.length)
                joined.append(piece)
        return joined

    def close(self) -> None:
        """Unmap; nothing can be asked afterwards."""
        if isinstance(self._image, mmap):
            self._image.close()

    def _file(self, nid: int) -> TreeFile:
        return TreeFile(inode_of(self.number, self._check, nid), self._reader.file(nid))
