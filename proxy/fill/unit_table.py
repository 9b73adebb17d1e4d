"""Which units of an object are here, on their way or missing. Pure; kept by the scheduler."""

from collections.abc import Iterator

from headstart.store.extent_map import BlobMap
from headstart.store.geometry import UNIT_SIZE, Geometry


class UnitTable:
    """Presence and claims of every unit, as one integer of bits an extent."""

    def __init__(self, geometry: Geometry) -> None:
        """Everything missing."""
        self.geometry = geometry
        self._full = [
            (1 << geometry.extent_units(extent)) - 1 for extent in range(geometry.extents)
        ]
        self._present = [0] * geometry.extents
        self._claimed = [0] * geometry.extents
        self._resume: dict[int, int] = {}

    def load(self, blob_map: BlobMap) -> list[int]:
        """Take over what the map says; the extents that are unchecked are claimed and returned."""
        unchecked: list[int] = []
        for extent in range(self.geometry.extents):
            if blob_map.unchecked(extent):
                self._claimed[extent] = self._full[extent]
                unchecked.append(extent)
                continue
            self.load_extent(blob_map, extent)
        return unchecked

    def load_extent(self, blob_map: BlobMap, extent: int) -> None:
        """Take over what the map says of one extent, and drop its claims."""
        stripe, record = blob_map.locate(extent)
        watermark = stripe.watermark(record)
        length = self.geometry.extent_length(extent)
        whole = self._full[extent] if watermark >= length else (1 << watermark // UNIT_SIZE) - 1
        self.forget(extent)
        self._present[extent] = (whole | stripe.bits(record)) & self._full[extent]
        base = extent * self.geometry.extent_size
        if watermark % UNIT_SIZE and watermark < length:
            self._resume[(base + watermark) // UNIT_SIZE] = base + watermark

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(extent, mask) of the units ``start`` to ``stop``, given in units."""
        per = self.geometry.units_per_extent
        while start < stop:
            extent, first = divmod(start, per)
            count = min(per - first, stop - start)
            yield extent, ((1 << count) - 1) << first
            start += count

    def _units(self, start: int, stop: int) -> tuple[int, int]:
        """The units that cover bytes ``start`` to ``stop``."""
        return start // UNIT_SIZE, min(self.geometry.units, -(-stop // UNIT_SIZE))

    def claim(self, start: int, stop: int) -> None:
        """A fetch will bring the units that cover these bytes."""
        for extent, mask in self._pieces(*self._units(start, stop)):
            self._claimed[extent] |= mask

    def release(self, start: int, stop: int) -> None:
        """A fetch has ended: the units from that of byte ``start`` on are free again."""
        for extent, mask in self._pieces(*self._units(start, stop)):
            self._claimed[extent] &= ~mask
        if start % UNIT_SIZE and start < stop:
            self._resume[start // UNIT_SIZE] = start

    def arrived(self, origin: int, stop: int) -> None:
        """Bytes from ``origin`` (a unit border or a resumed byte) to ``stop`` are written."""
        first = origin // UNIT_SIZE
        last = self.geometry.units if stop >= self.geometry.size else stop // UNIT_SIZE
        for extent, mask in self._pieces(first, last):
            self._present[extent] |= mask
            self._claimed[extent] &= ~mask
        if self._resume:
            for unit in [unit for unit in self._resume if first <= unit < last]:
                del self._resume[unit]

    def forget(self, extent: int) -> None:
        """Make an extent a miss, the beginnings of its units too."""
        self._present[extent] = 0
        self._claimed[extent] = 0
        per = self.geometry.units_per_extent
        for unit in [unit for unit in self._resume if unit // per == extent]:
            del self._resume[unit]

    def holds(self, start: int, stop: int) -> bool:
        """Whether every unit that covers these bytes is here."""
        return all(
            self._present[extent] & mask == mask
            for extent, mask in self._pieces(*self._units(start, stop))
        )

    def reached(self, offset: int, stop: int) -> int:
        """The first byte from ``offset`` on whose unit is not here; at least ``stop`` if none."""
        first, last = self._units(offset, stop)
        for extent, mask in self._pieces(first, last):
            missing = mask & ~self._present[extent]
            if missing:
                unit = extent * self.geometry.units_per_extent
                return max(offset, (unit + (missing & -missing).bit_length() - 1) * UNIT_SIZE)
        return max(offset, stop)

    def complete(self) -> bool:
        """Whether every unit is here."""
        return self._present == self._full

    def unclaimed_bytes(self) -> int:
        """Bytes of the units that are neither here nor on their way."""
        free = sum(
            (full & ~(present | claimed)).bit_count()
            for full, present, claimed in zip(self._full, self._present, self._claimed, strict=True)
        )
        return min(self.geometry.size, free * UNIT_SIZE)

    def missing_bytes(self) -> int:
        """Bytes of the units that are not here."""
        missing = sum(
            (full & ~present).bit_count()
            for full, present in zip(self._full, self._present, strict=True)
        )
        return min(self.geometry.size, missing * UNIT_SIZE)

    def is_missing(self, offset: int) -> bool:
        """Whether the unit of this byte is neither here nor on its way."""
        extent, mask = next(self._pieces(offset // UNIT_SIZE, offset // UNIT_SIZE + 1))
        return not (self._present[extent] | self._claimed[extent]) & mask

    def next_missing(self, start: int, stop: int, cell: int) -> tuple[int, int] | None:
        """The first run of bytes to fetch within ``start`` to ``stop``, rounded out to units.

        The run ends at the next multiple of ``cell`` bytes (the grid of bulk work). It begins
        where an earlier range broke off, when one did within its first unit.
        """
        first, last = self._units(start, stop)
        run_start: int | None = None
        run_stop = last
        limit = last
        for extent, mask in self._pieces(first, last):
            base = extent * self.geometry.units_per_extent
            free = mask & ~(self._present[extent] | self._claimed[extent])
            if run_start is None:
                if not free:
                    continue
                low = (free & -free).bit_length() - 1
                run_start = base + low
                limit = min(last, (run_start * UNIT_SIZE // cell + 1) * cell // UNIT_SIZE)
                free >>= low
                run = (~free & free + 1).bit_length() - 1
                run_stop = run_start + run
            else:
                run = (~free & free + 1).bit_length() - 1
                run_stop = base + run
            full_extent = run_stop == base + self.geometry.units_per_extent
            if run_stop >= limit or not full_extent:
                break
        if run_start is None:
            return None
        begin = self._resume.get(run_start, run_start * UNIT_SIZE)
        return begin, min(self.geometry.size, min(run_stop, limit) * UNIT_SIZE)
