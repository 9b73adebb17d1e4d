"""The trees of all mounted layers, each opened when it is first asked for."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import anyio
from anyio.to_thread import run_sync

from mount.device.device_files import DeviceFiles, ObjectRange
from mount.device.places import MountPlaces
from mount.device.table import DeviceTable
from mount.mounting import probe_image
from mount.mounting.mounted_from import MountRecords
from mount.tree.errors import NoSuchTree
from mount.tree.naming import PROBE_NUMBER, parse
from mount.tree.tree import Tree

logger = logging.getLogger(__name__)


class Trees:
    """Trees by the number of their layer; a new daemon finds the same ones.

    Names, modes and links come from the layer image's metadata, which lies where the record of the
    layer's mount says: they need no filler. Contents are read as those of device files are.
    """

    def __init__(self, root: Path, table: DeviceTable, files: DeviceFiles) -> None:
        """``root`` is ``mount.root``. Raises OSError."""
        self._records = MountRecords(MountPlaces(root).mount_records)
        self._table = table
        self._files = files
        self._trees = {PROBE_NUMBER: Tree.probe()}
        self._opening: dict[int, anyio.Lock] = {}

    async def of(self, inode: int) -> Tree:
        """The tree that an inode number belongs to; raises as :meth:`numbered`."""
        number = parse(inode).number
        return self._trees.get(number) or await self.numbered(number)

    async def numbered(self, number: int) -> Tree:
        """The tree of a layer. Raises NoSuchTree, TreeUnusable, TableDamaged, OSError."""
        async with self._opening.setdefault(number, anyio.Lock()):
            tree = self._trees.get(number)
            if tree is None:
                tree = self._trees[number] = await self._open(number)
            return tree

    async def _open(self, number: int) -> Tree:
        device = self._table.get(number)
        record = self._records.read(number)
        if device is None or record is None:
            self._opening.pop(number, None)
            raise NoSuchTree(f"no layer {number} is mounted")
        try:
            tree = await run_sync(Tree.open, number, record.files.meta, device.geometry)
        except FileNotFoundError as error:
            raise NoSuchTree(f"layer {number}: {record.files.meta} has gone") from error
        self._files.expect(number, tree.fingerprint)
        return tree

    def listed(self) -> Iterator[int]:
        """The numbers of the trees that there are, ascending. Raises OSError."""
        return (number for number in self._table.numbers() if self._records.read(number))

    async def read(self, inode: int, offset: int, length: int) -> bytes:
        """Exactly these bytes of a regular file, as far as it goes; waits until they are here.

        They are the caller's until it waits for anything, as of :meth:`DeviceFiles.read_at_once`.
        Raises as :meth:`of`, :meth:`Tree.ranges` and :meth:`DeviceFiles.read_ranges`.
        """
        tree = await self.of(inode)
        ranges = tree.ranges(inode, offset, length)
        if tree.number == PROBE_NUMBER:
            return b"".join(_read_probe(piece) for piece in ranges)
        here = cast("bytes | None", self._files.ranges_at_once(tree.number, ranges))
        return await self._files.read_ranges(tree.number, ranges) if here is None else here

    def forget_removed(self) -> None:
        """Close the trees of layers that the table does not have any more. Raises OSError."""
        for number in self._trees.keys() - {PROBE_NUMBER, *self._table.numbers()}:
            self._opening.pop(number, None)
            self._trees.pop(number).close()


def _read_probe(piece: ObjectRange) -> bytes:
    return probe_image.CONTENT[piece.offset : piece.offset + piece.length]
