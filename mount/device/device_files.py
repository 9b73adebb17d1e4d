"""What the device files are and what a read of one answers; knows nothing of FUSE.

The rules of a read: it answers every byte that was asked for up to the file's end, or fails. The
kernel fills a short answer with zeros and keeps them.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import anyio
from anyio.to_thread import run_sync

from headstart.store.cached_layer import CachedLayer
from headstart.store.errors import FillFailed
from headstart.store.geometry import Geometry
from headstart.store.open_layer import OpenLayer
from mount.device.errors import NoSuchDevice, ReadFailed
from mount.device.naming import PROBE, device_of, inode_of, name_of, parse_name
from mount.device.open_layers import OpenLayers
from mount.device.table import DataDevice, DeviceTable, TableDamaged
from mount.device.waiting_reads import WaitingReads

logger = logging.getLogger(__name__)

FINAL_CODES = frozenset({"denied", "missing", "digest", "refused"})
"""Failures of the filler that no retry can help. Any other may be over before
``mount.read_deadline`` is: a mapped file's reader gets SIGBUS for an error, so nothing is given up
early."""

DISK_THREADS = 16
"""Reads that may wait for disks at once."""

MOST_AT_ONCE = 1 << 20
"""Bytes that are copied from the page cache without a thread: the kernel's largest request. The
way through a thread takes longer (100 us, and two more for the buffer) than to copy that."""

_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_MOST_REMEMBERED = 4096


class ObjectRange(NamedTuple):
    """Bytes of the data device as one address space."""

    offset: int
    length: int


class DeviceFiles:
    """The directory of device files, served from the store's files and by the filler."""

    def __init__(
        self,
        table: DeviceTable,
        layers: OpenLayers,
        waiting: WaitingReads,
        read_deadline_seconds: float,
    ) -> None:
        """``read_deadline_seconds`` 0 lets reads wait for ever."""
        self._table = table
        self._layers = layers
        self._waiting = waiting
        self._deadline = read_deadline_seconds or None
        self._known: dict[int, DataDevice] = {}
        self._checked: dict[int, CachedLayer] = {}
        self._fingerprints: dict[int, bytes] = {}
        self._told: set[tuple[int, str]] = set()
        self._threads = anyio.CapacityLimiter(DISK_THREADS)
        self._buffer = memoryview(bytearray(MOST_AT_ONCE))

    # --- the directory ---

    def find(self, name: bytes) -> tuple[int, int]:
        """Inode and size of a device file. Raises NoSuchDevice or TableDamaged."""
        parsed = parse_name(name)
        if parsed is None:
            raise NoSuchDevice(f"{name!r:.60} is no device file")
        number, stripe = parsed
        if parsed == PROBE:
            return inode_of(*PROBE), 0
        device = self._table.get(number)  # never from memory: it may have been removed
        if device is None or stripe >= device.geometry.stripes:
            raise NoSuchDevice(f"there is no device file {name!r:.60}")
        self._known[number] = device
        return inode_of(number, stripe), device.file_size(stripe)

    def size(self, inode: int) -> int:
        """Bytes of a device file; they never change. Raises NoSuchDevice or TableDamaged."""
        if device_of(inode) == PROBE:
            return 0
        device, stripe = self._device(inode)
        return device.file_size(stripe)

    def listed(self) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode and size of every device file, by number and stripe."""
        for number in self._table.numbers():
            try:
                device = self._table.get(number)
            except TableDamaged as error:
                logger.error("%s", error)
                continue
            if device is not None:  # removed since
                for stripe in range(device.geometry.stripes):
                    name = name_of(number, stripe).encode()
                    yield name, inode_of(number, stripe), device.file_size(stripe)

    def forget_removed(self) -> None:
        """Close the layer images that the table does not have any more. Raises OSError."""
        numbers = set(self._table.numbers())
        self._layers.close_others(numbers)
        for number in self._known.keys() - numbers:
            del self._known[number]
            self._checked.pop(number, None)
            self._fingerprints.pop(number, None)
        self._told = {told for told in self._told if told[0] in numbers}

    def _device(self, inode: int) -> tuple[DataDevice, int]:
        number, stripe = device_of(inode)
        device = self._numbered(number)
        if stripe >= device.geometry.stripes:
            raise NoSuchDevice(f"data device {number} has no stripe {stripe}")
        return device, stripe

    def _numbered(self, number: int) -> DataDevice:
        device = self._known.get(number)
        if device is None:
            device = self._table.get(number)
            if device is None:
                raise NoSuchDevice(f"there is no data device {number}")
            self._known[number] = device
        return device

    # --- reads ---

    def read_at_once(self, inode: int, offset: int, length: int) -> memoryview | None:
        """As :meth:`read`, where nothing has to be waited for; else None.

        The bytes are the caller's until the next call of any method.
        """
        number, stripe = device_of(inode)
        device = self._known.get(number)
        if device is None or stripe >= device.geometry.stripes:
            return None
        stop = min(offset + length, device.file_size(stripe))
        return self.ranges_at_once(number, object_ranges(device.geometry, stripe, offset, stop))

    def ranges_at_once(self, number: int, ranges: Iterable[ObjectRange]) -> memoryview | None:
        """As :meth:`read_ranges`, where nothing has to be waited for; as :meth:`read_at_once`."""
        layer = self._layers.at_hand(number)
        pieces = list(ranges)
        size = sum(piece.length for piece in pieces)
        # Whoever reads first, in the other way, sees whether it is the layer image that is mounted.
        if layer is None or layer.failure is not None or size > MOST_AT_ONCE:
            return None
        if not _here(layer, pieces) or self._checked.get(number) is not layer.cached:
            return None
        position = 0
        for offset, length in pieces:
            into = self._buffer[position : position + length]
            if not layer.cached.read_at_once(offset, into):
                return None
            position += length
        return self._buffer[:size]

    async def read(self, inode: int, offset: int, length: int) -> bytes:
        """Exactly the bytes ``offset`` to ``offset + length``, as far as the file goes.

        Waits until they are here. Raises ReadFailed, NoSuchDevice or TableDamaged.
        """
        device, stripe = self._device(inode)
        stop = min(offset + length, device.file_size(stripe))
        return await self._read(device, list(object_ranges(device.geometry, stripe, offset, stop)))

    async def read_ranges(self, number: int, ranges: list[ObjectRange]) -> bytes:
        """Exactly these bytes of a data device, one range behind the other; as :meth:`read`."""
        return await self._read(self._numbered(number), ranges)

    async def _read(self, device: DataDevice, pieces: list[ObjectRange]) -> bytes:
        if not pieces:
            return b""
        with self._waiting.waiting(device, pieces[0].offset):
            content = await self._read_in_time(device, pieces)
        wanted = sum(piece.length for piece in pieces)
        if len(content) != wanted:
            raise ReadFailed(f"{len(content)} bytes were read where {wanted} are")
        return content

    def expect(self, number: int, fingerprint: bytes) -> None:
        """Only a layer image whose metadata has this BLAKE3 is read as data device ``number``."""
        self._fingerprints[number] = fingerprint
        self._checked.pop(number, None)

    async def _read_in_time(self, device: DataDevice, pieces: list[ObjectRange]) -> bytes:
        with anyio.move_on_after(self._deadline):
            return await self._read_with_retries(device, pieces)
        text = f"bytes have not come within mount.read_deadline ({self._deadline:g} s)"
        self._tell(device, text)
        raise ReadFailed(text)

    async def _read_with_retries(self, device: DataDevice, pieces: list[ObjectRange]) -> bytes:
        dropped: OpenLayer | None = None
        pauses = itertools.chain(_PAUSES_SECONDS, itertools.repeat(_PAUSES_SECONDS[-1]))
        for pause in pauses:
            try:
                return await self._read_once(device, pieces, dropped)
            except _Dropped as error:
                if dropped is None:
                    dropped = error.layer
                    continue
                dropped = error.layer
            except FillFailed as failure:
                self._tell(device, f"{failure.text} ({failure.code})")
                if failure.code in FINAL_CODES:
                    raise ReadFailed(failure.text) from failure
            except OSError as error:
                self._tell(device, f"its files cannot be read: {error}")
                raise ReadFailed(str(error)) from error
            await anyio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def _read_once(
        self, device: DataDevice, pieces: list[ObjectRange], dropped: OpenLayer | None
    ) -> bytes:
        async with self._layers.using(device, dropped) as layer:
            if layer.failure is not None:
                raise _Dropped(layer)
            if not _here(layer, pieces):
                if layer.stale:
                    raise _Dropped(layer)
                await layer.wait_mountable()
                self._check_same(device, layer.cached)
                for offset, length in pieces:
                    await layer.wait(offset, length, "mount", self._deadline)
            cached = layer.cached
            self._check_same(device, cached)
            return await run_sync(_read_pieces, cached, pieces, limiter=self._threads)

    def _check_same(self, device: DataDevice, cached: CachedLayer) -> None:
        """A layer image that was made anew must be the one that is mounted. Raises ReadFailed."""
        if self._checked.get(device.number) is cached:
            return
        fingerprint = cached.map.stripes[0].meta.blake3
        known = self._fingerprints.setdefault(device.number, fingerprint)
        if cached.geometry != device.geometry or fingerprint != known:
            text = f"its layer image was made anew and differs: {cached.geometry}"
            self._tell(device, text)
            raise ReadFailed(text)
        self._checked[device.number] = cached

    def _tell(self, device: DataDevice, text: str) -> None:
        """Log why reads of a layer fail or are delayed, once for each reason."""
        if (device.number, text) in self._told:
            return
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.clear()
        self._told.add((device.number, text))
        layer = device.layer
        logger.error(
            "%s (%s/%s, device %d): %s",
            layer.digest,
            layer.upstream,
            layer.repository,
            device.number,
            text,
        )


def object_ranges(geometry: Geometry, stripe: int, start: int, stop: int) -> Iterator[ObjectRange]:
    """Where bytes ``start`` to ``stop`` of one stripe's file lie on the data device, in order.

    The inverse of :meth:`Geometry.place`; ``stop`` is at most the stripe's length.
    """
    if geometry.stripes == 1:
        if stop > start:
            yield ObjectRange(start, stop - start)
        return
    size = geometry.extent_size
    while start < stop:
        row, within = divmod(start, size)
        length = min(stop - start, size - within)
        yield ObjectRange((row * geometry.stripes + stripe) * size + within, length)
        start += length


class _Dropped(Exception):
    """The filler has dropped an open layer image; it must be opened again."""

    def __init__(self, layer: OpenLayer) -> None:
        super().__init__()
        self.layer = layer


def _here(layer: OpenLayer, pieces: list[ObjectRange]) -> bool:
    """Whether all pieces can be read now."""
    if layer.state not in ("mountable", "complete"):
        return False
    available = layer.cached.available
    return all(available(offset, length) >= length for offset, length in pieces)


def _read_pieces(cached: CachedLayer, pieces: list[ObjectRange]) -> bytes:
    if len(pieces) == 1:
        return cached.read(*pieces[0])
    return b"".join(cached.read(*piece) for piece in pieces)
