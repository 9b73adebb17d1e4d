"""What was answered is dropped from the kernel's lower copy, in as few calls as possible."""

import ctypes
import itertools
import mmap
import os
import time
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headstart.store.geometry import MIB
from headstart.store.layer_map import BLOCK_SIZE
from mount.device.served_pages import (
    LEAST_SECONDS,
    MOST_KEPT,
    MOST_SECONDS,
    ServedPages,
    joined,
)
from tests.device.layer_filler import wait_until
from tests.device.layers import StoredLayer, stored_layer
from tests.device.mounted import mounted

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair)))
)


@given(RANGES)
def test_joined_ranges_are_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    result = joined(ranges)
    assert {byte for start, stop in result for byte in range(start, stop)} == {
        byte for start, stop in ranges for byte in range(start, stop)
    }
    for (_, stop), (start, _) in itertools.pairwise(result):
        assert stop < start


def test_little_stays_for_seconds_and_goes_then(tmp_path: Path) -> None:
    pages = ServedPages(tmp_path)
    began = time.monotonic()
    pages.note(66, 0, 10)
    pages.note(67, 5, 1)
    pages.note(66, 10, 10)
    assert pages.take_due(began + MOST_SECONDS - 0.01) == {}
    assert pages.take_due(time.monotonic() + MOST_SECONDS) == {66: [(0, 20)], 67: [(5, 6)]}
    assert pages.take_due(time.monotonic() + 2 * MOST_SECONDS) == {}


def test_of_much_the_oldest_goes_and_the_newest_stays(tmp_path: Path) -> None:
    pages = ServedPages(tmp_path)
    pages.note(66, 0, MIB)
    pages.note(67, 0, MOST_KEPT)
    soon = time.monotonic() + LEAST_SECONDS
    assert pages.take_due(soon) == {66: [(0, MIB)]}
    assert pages.take_due(soon) == {}
    pages.note(68, 0, 1)
    assert pages.take_due(time.monotonic() + LEAST_SECONDS) == {67: [(0, MOST_KEPT)]}


def test_what_was_answered_just_now_stays_however_much_it_is(tmp_path: Path) -> None:
    """Its reader may not have copied it up, and would ask again."""
    pages = ServedPages(tmp_path)
    began = time.monotonic()
    for number in range(3):
        pages.note(66, number * MOST_KEPT, MOST_KEPT)
    assert pages.take_due(began + LEAST_SECONDS - 0.01) == {}
    assert pages.take_due(time.monotonic() + LEAST_SECONDS) == {66: [(0, 2 * MOST_KEPT)]}


def _resident_pages(path: Path, size: int) -> int:
    """How many pages of a file are in the page cache (mincore(2)); reads none of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    integer = ctypes.c_int
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        integer,
        integer,
        integer,
        ctypes.c_long,
    ]
    descriptor = os.open(path, os.O_RDONLY)
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    os.close(descriptor)
    vector = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) == 0
    assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    return sum(page & 1 for page in vector)


def test_the_lower_copy_goes_once_it_was_read(tmp_path: Path) -> None:
    size = 8 * MIB
    with mounted(tmp_path) as mount, stored_layer(tmp_path / "layer", size) as stored:
        stored.complete()
        mount.ensure()
        path = mount.add(stored)[0]
        assert path.read_bytes() == stored.content
        assert _resident_pages(path, size) > 0
        wait_until(lambda: _resident_pages(path, size) == 0)
        assert path.read_bytes() == stored.content


def test_a_long_read_leaves_no_second_copy_of_it(tmp_path: Path) -> None:
    size = 3 * MOST_KEPT
    stored = StoredLayer(tmp_path / "zeros", size, extent_size=8 * MIB, content=b"")
    with mounted(tmp_path) as mount, closing(stored):
        for extent in range(stored.geometry.extents):
            stripe_map, record = stored.map.locate(extent)
            stripe_map.set_blocks(record, 0, 8 * MIB // BLOCK_SIZE)
        mount.ensure()
        path = mount.add(stored)[0]
        with path.open("rb", buffering=0) as device:
            while device.read(MIB):
                pass
            seen = [size]

            def little() -> bool:
                seen.append(_resident_pages(path, size) * mmap.PAGESIZE)
                return seen[-1] <= MOST_KEPT

            wait_until(little)
    # Not by time, which leaves nothing.
    assert seen[-1] > 0
