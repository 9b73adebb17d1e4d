"""What was answered is dropped from the kernel's lower copy, in as few calls as possible."""

import ctypes
import itertools
import mmap
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headstart.store.geometry import MIB
from mount.device.served_pages import ServedPages, joined
from tests.device.layer_filler import wait_until
from tests.device.layers import stored_layer
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


def test_what_is_noted_comes_out_two_turns_later(tmp_path: Path) -> None:
    pages = ServedPages(tmp_path)
    pages.note(66, 0, 10)
    pages.note(66, 10, 10)
    pages.note(67, 5, 1)
    assert pages.take_older() == {}
    pages.note(66, 50, 10)
    assert pages.take_older() == {66: [(0, 20)], 67: [(5, 6)]}
    assert pages.take_older() == {66: [(50, 60)]}
    assert pages.take_older() == {}


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
