"""How many bytes of a blob are here: counted from the map alone, wherever they lie."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from headstart.store.extent_map import STATE_UNCHECKED, BlobMap, StripeMap
from headstart.store.geometry import UNIT_SIZE, Geometry

EXTENT = 4 * UNIT_SIZE


@some.composite
def progress(draw: some.DrawFn) -> tuple[Geometry, list[tuple[int, int]]]:
    """A geometry, and for each extent a watermark and the unit bits that fit it."""
    size = draw(some.integers(0, 5 * EXTENT))
    geometry = Geometry(size, EXTENT, draw(some.integers(1, 3)))
    extents = []
    for extent in range(geometry.extents):
        units = geometry.extent_units(extent)
        length = geometry.extent_length(extent)
        bits = draw(some.integers(0, (1 << units) - 1))
        first_missing = next((unit for unit in range(units) if not bits >> unit & 1), units)
        least = min(first_missing * UNIT_SIZE, length)
        most = max(least, min((first_missing + 1) * UNIT_SIZE, length) - 1)
        extents.append((draw(some.integers(least, most)), bits))
    return geometry, extents


@given(progress(), some.data())
def test_present_bytes_are_those_below_the_watermark_and_those_of_whole_units(
    given_progress: tuple[Geometry, list[tuple[int, int]]], data: some.DataObject
) -> None:
    geometry, extents = given_progress
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, f"{stripe}.map") for stripe in range(geometry.stripes)]
        stripes = [StripeMap.create(path, geometry, stripe) for stripe, path in enumerate(paths)]
        blob = BlobMap(stripes)
        expected = 0
        for extent, (watermark, bits) in enumerate(extents):
            stripe, record = blob.locate(extent)
            stripe.set_progress(record, watermark, bits)
            if data.draw(some.booleans()):
                stripe.set_state(record, STATE_UNCHECKED)
                continue
            expected += _present(geometry, extent, watermark, bits)
        assert blob.present() == expected
        blob.close()


def _present(geometry: Geometry, extent: int, watermark: int, bits: int) -> int:
    """Byte intervals joined, unit by unit."""
    length = geometry.extent_length(extent)
    count = 0
    for unit in range(geometry.extent_units(extent)):
        start, stop = unit * UNIT_SIZE, min((unit + 1) * UNIT_SIZE, length)
        count += stop - start if bits >> unit & 1 else max(0, min(stop, watermark) - start)
    return count
