"""Objects for tests of the store: files over stripes, maps in any state, and a count of leaks."""

import gc
import os
from pathlib import Path

from hypothesis import strategies as st

from headstart.store.extent_map import BlobMap, StripeMap
from headstart.store.geometry import EXTENT_SIZE, UNIT_SIZE, Geometry


def open_descriptors() -> int:
    """How many descriptors and mappings of files this process holds."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(os.listdir("/proc/self/fd")) + maps.count(".map")


@st.composite
def geometries(draw: st.DrawFn, most_extents: int = 8) -> Geometry:
    """Objects of a few extents, small ones and default ones; sizes near every border."""
    units = draw(st.sampled_from([1, 2, 3, 128]))
    extent_size = units * UNIT_SIZE
    border = draw(st.integers(0, most_extents)) * extent_size
    border += draw(st.integers(0, units)) * UNIT_SIZE
    size = max(0, border + draw(st.integers(-2, 2)))
    return Geometry(min(size, most_extents * extent_size), extent_size, draw(st.integers(1, 4)))


def pattern(start: int, length: int) -> bytes:
    """Bytes that differ at every offset of an object, to tell misplaced ones."""
    first = start // 4
    words = range(first, first + length // 4 + 2)
    text = b"".join((word * 2654435761 % (1 << 32)).to_bytes(4, "little") for word in words)
    return text[start % 4 : start % 4 + length]


def map_paths(directory: Path, stripes: int) -> list[Path]:
    """Where the maps of a test's object lie."""
    return [directory / f"{stripe}.map" for stripe in range(stripes)]


def create_maps(directory: Path, geometry: Geometry) -> BlobMap:
    """Empty maps of an object, open for writing."""
    stripes = [
        StripeMap.create(path, geometry, number)
        for number, path in enumerate(map_paths(directory, geometry.stripes))
    ]
    return BlobMap(stripes)


__all__ = ["EXTENT_SIZE", "create_maps", "geometries", "map_paths", "open_descriptors", "pattern"]
