"""Which range comes next, against a model that keeps a state for every unit by itself."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headstart.store.extent_map import STATE_UNCHECKED
from headstart.store.geometry import MIB, UNIT_SIZE, Geometry
from proxy.fill.unit_table import UnitTable
from tests.fill.temporary import TemporaryMaps
from tests.store.stored_objects import create_maps, geometries

ENDLESS = 1 << 62


class Model:
    """Units here, units on their way, and bytes at the head of a unit that are written already."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.here: set[int] = set()
        self.coming: set[int] = set()
        self.begun: dict[int, int] = {}

    def missing(self) -> list[int]:
        free = set(range(self.geometry.units)) - self.here - self.coming
        return sorted(free)

    def first_run(self, start: int, stop: int, cell: int) -> tuple[int, int] | None:
        """The first missing run between two bytes: grown unit by unit."""
        within = [
            unit
            for unit in self.missing()
            if unit * UNIT_SIZE < stop and (unit + 1) * UNIT_SIZE > start
        ]
        if not within:
            return None
        last = first = within[0]
        while last + 1 in within and (last + 1) * UNIT_SIZE % cell:
            last += 1
        begin = first * UNIT_SIZE + self.begun.get(first, 0)
        return begin, min(self.geometry.size, (last + 1) * UNIT_SIZE)


class Scheduling(RuleBasedStateMachine):
    """A scheduler that claims what the table offers, and fetches that end wherever they like."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[tuple[int, int]] = []

    @initialize(geometry=geometries(most_extents=4).filter(lambda drawn: drawn.size > 0))
    def an_object(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.table = UnitTable(geometry)
        self.model = Model(geometry)

    def _units(self, start: int, stop: int) -> set[int]:
        return set(range(start // UNIT_SIZE, -(-stop // UNIT_SIZE)))

    @rule(data=st.data(), cell=st.sampled_from([4, 1, 2, 8, 128]))
    def a_connection_takes_the_next_range(self, data: st.DataObject, cell: int) -> None:
        size = self.geometry.size
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.one_of(st.just(size), st.integers(start + 1, size)))
        cell_size = data.draw(st.sampled_from([cell * UNIT_SIZE, ENDLESS]))
        found = self.table.next_missing(start, stop, cell_size)
        assert found == self.model.first_run(start, stop, cell_size)
        if found is None:
            return
        begin, end = found
        assert 0 <= begin < end <= size
        assert not self._units(begin, end) & (self.model.here | self.model.coming)
        assert begin // cell_size == (end - 1) // cell_size
        self.table.claim(begin, end)
        self.model.coming |= self._units(begin, end)
        self.fetches.append(found)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), ends=st.booleans())
    def a_fetch_brings_bytes(self, data: st.DataObject, ends: bool) -> None:
        number = data.draw(st.integers(0, len(self.fetches) - 1))
        start, stop = self.fetches.pop(number)
        reached = data.draw(st.one_of(st.just(stop), st.integers(start, stop)))
        if reached > start:
            self.table.arrived(start, reached)
            whole = {
                unit
                for unit in self._units(start, reached)
                if reached >= min(self.geometry.size, (unit + 1) * UNIT_SIZE)
            }
            self.model.here |= whole
            self.model.coming -= whole
            for unit in whole:
                self.model.begun.pop(unit, None)
        if ends or reached == stop:
            self.table.release(reached, stop)
            if reached < stop:
                self.model.coming -= self._units(reached, stop)
                if reached % UNIT_SIZE:
                    self.model.begun[reached // UNIT_SIZE] = reached % UNIT_SIZE
        else:
            self.fetches.append((reached, stop))

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def a_fetch_is_divided(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.fetches) - 1))
        start, stop = self.fetches[number]
        borders = [unit * UNIT_SIZE for unit in self._units(start, stop)]
        borders = [border for border in borders if start < border < stop]
        if borders:
            border = data.draw(st.sampled_from(borders))
            self.fetches[number : number + 1] = [(start, border), (border, stop)]

    @precondition(lambda self: self.geometry.extents)
    @rule(data=st.data())
    def an_extent_turns_out_to_be_damaged(self, data: st.DataObject) -> None:
        extent = data.draw(st.integers(0, self.geometry.extents - 1))
        base = extent * self.geometry.extent_size
        units = self._units(base, base + self.geometry.extent_length(extent))
        if units & self.model.coming:
            return  # an extent is only checked while nobody fetches into it
        self.table.forget(extent)
        self.model.here -= units
        for unit in units:
            self.model.begun.pop(unit, None)

    @invariant()
    def the_table_agrees(self) -> None:
        if not hasattr(self, "table"):
            return
        table, model, geometry = self.table, self.model, self.geometry
        free = set(model.missing())
        for unit in range(geometry.units):
            offset, end = unit * UNIT_SIZE, min(geometry.size, (unit + 1) * UNIT_SIZE)
            assert table.holds(offset, end) == (unit in model.here)
            assert table.is_missing(offset) == (unit in free)
        assert table.complete() == (len(model.here) == geometry.units)
        lacking = sum(
            min(geometry.size, (unit + 1) * UNIT_SIZE) - unit * UNIT_SIZE
            for unit in range(geometry.units)
            if unit not in model.here
        )
        assert lacking <= table.missing_bytes() <= min(geometry.size, lacking + UNIT_SIZE)
        assert table.unclaimed_bytes() in range(
            min(geometry.size, max(0, len(free) * UNIT_SIZE - UNIT_SIZE)),
            min(geometry.size, len(free) * UNIT_SIZE) + 1,
        )
        reached = table.reached(0, geometry.size)
        first = min(set(range(geometry.units)) - model.here, default=None)
        assert reached == (geometry.size if first is None else first * UNIT_SIZE)


Scheduling.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestScheduling = Scheduling.TestCase


@given(geometries(most_extents=4).filter(lambda drawn: drawn.size > 0), st.data())
def test_any_bytes_that_are_held_are_held_as_a_whole(
    geometry: Geometry, data: st.DataObject
) -> None:
    table = UnitTable(geometry)
    stop = data.draw(st.integers(0, geometry.size))
    table.arrived(0, stop)
    held = geometry.size if stop == geometry.size else stop // UNIT_SIZE * UNIT_SIZE
    start = data.draw(st.integers(0, geometry.size - 1))
    end = data.draw(st.integers(start + 1, geometry.size))
    assert table.holds(start, end) == (end <= held)
    assert table.reached(start, end) >= min(end, max(start, held))
    assert (table.reached(start, end) >= end) == table.holds(start, end)


def test_a_broken_range_is_resumed_at_its_last_byte() -> None:
    table = UnitTable(Geometry(4 * MIB, MIB, 1))
    table.claim(0, MIB)
    table.arrived(0, UNIT_SIZE + 100)
    table.release(UNIT_SIZE + 100, MIB)
    assert table.next_missing(0, 4 * MIB, MIB) == (UNIT_SIZE + 100, MIB)
    # Asked for from further on, the unit is not resumed but its successor begun.
    assert table.next_missing(2 * UNIT_SIZE, 4 * MIB, MIB) == (2 * UNIT_SIZE, MIB)


def test_a_resumed_unit_that_came_is_not_resumed_again() -> None:
    table = UnitTable(Geometry(2 * UNIT_SIZE, MIB, 1))
    table.release(100, 2 * UNIT_SIZE)
    table.arrived(100, UNIT_SIZE)
    table.forget(0)
    assert table.next_missing(0, 2 * UNIT_SIZE, MIB) == (0, 2 * UNIT_SIZE)


def test_a_forgotten_extent_is_fetched_from_its_first_byte(tmp_path: Path) -> None:
    """The bytes before a resume point are gone with the rest; leaving them out would be wrong."""
    geometry = Geometry(4 * UNIT_SIZE, 2 * UNIT_SIZE, 1)
    maps = create_maps(tmp_path, geometry)
    for lose in (UnitTable.forget, lambda table, extent: table.load_extent(maps, extent)):
        table = UnitTable(geometry)
        table.claim(0, 4 * UNIT_SIZE)
        table.arrived(0, 10)
        table.release(10, 4 * UNIT_SIZE)
        lose(table, 0)
        assert table.next_missing(0, 4 * UNIT_SIZE, MIB) == (0, 4 * UNIT_SIZE)
    maps.close()


# --- what is taken over from the map ---


@settings(max_examples=40)
@given(st.data())
def test_the_table_starts_with_what_the_map_shows_to_readers(data: st.DataObject) -> None:
    geometry = Geometry(data.draw(st.integers(1, 12 * UNIT_SIZE)), 3 * UNIT_SIZE, 2)
    with TemporaryMaps(geometry) as maps:
        for extent in range(geometry.extents):
            stripe, record = maps.locate(extent)
            length = geometry.extent_length(extent)
            watermark = data.draw(st.one_of(st.integers(0, length), st.just(length)))
            stripe.set_progress(record, watermark, data.draw(st.integers(0, 7)))
        table = UnitTable(geometry)
        assert table.load(maps) == []
        for unit in range(geometry.units):
            offset, end = unit * UNIT_SIZE, min(geometry.size, (unit + 1) * UNIT_SIZE)
            assert table.holds(offset, end) == (maps.available(offset) >= end - offset)
            assert table.is_missing(offset) != table.holds(offset, end)
            if table.is_missing(offset):
                begin, _ = table.next_missing(offset, end, MIB) or (-1, -1)
                assert begin == offset + min(maps.available(offset), end - offset)


def test_an_unchecked_extent_is_neither_here_nor_fetched_until_it_is_checked() -> None:
    geometry = Geometry(6 * UNIT_SIZE, 2 * UNIT_SIZE, 1)
    with TemporaryMaps(geometry) as maps:
        stripe, record = maps.locate(1)
        stripe.set_progress(record, 2 * UNIT_SIZE, 3)
        stripe.set_state(record, STATE_UNCHECKED)
        table = UnitTable(geometry)
        assert table.load(maps) == [1]
        assert not table.holds(2 * UNIT_SIZE, 3 * UNIT_SIZE)
        assert table.next_missing(0, 6 * UNIT_SIZE, 64 * MIB) == (0, 2 * UNIT_SIZE)
        assert table.next_missing(2 * UNIT_SIZE, 4 * UNIT_SIZE, MIB) is None
        stripe.set_state(record, 0)
        table.load_extent(maps, 1)
        assert table.holds(2 * UNIT_SIZE, 4 * UNIT_SIZE)
        stripe.clear(record)
        table.load_extent(maps, 1)
        assert table.next_missing(0, 6 * UNIT_SIZE, 64 * MIB) == (0, 6 * UNIT_SIZE)
