"""Neighbours are written together, gaps are left alone, and extents have their digests."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.store.geometry import MIB, UNIT_SIZE
from proxy.fill.layers.device_writer import BATCH_SIZE, DeviceWriter, ExtentDigests
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from tests.fill.writing import layout_in
from tests.store.stored_objects import pattern


class Recording(LayerFiles):
    """Remembers what is written."""

    writes: list[tuple[int, int]]

    def write(self, offset: int, pieces: Sequence[memoryview | bytes]) -> None:
        self.writes.append((offset, sum(map(len, pieces))))
        super().write(offset, pieces)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 100, 4095, 4096, 70_000, MIB]), st.integers(1, 400_000)),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from([1000, 65_536, MIB]),
    st.integers(1, 4),
)
def test_what_is_written_lies_where_it_was_said(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[int, int]],
    piece_size: int,
    flush_every: int,
) -> None:
    layout = layout_in(tmp_path_factory.mktemp("cache"), 1)
    extent_size = 2 * UNIT_SIZE
    made = Recording.create(layout, Digest.of(b""), None, extent_size, NO_ACCOUNT)
    assert isinstance(made, Recording)
    made.writes = []
    digests = ExtentDigests(extent_size)
    writer = DeviceWriter(made, digests)
    expected = bytearray()
    for number, (gap, size) in enumerate(files):
        expected += bytes(gap)
        writer.begin(len(expected))
        content = pattern(len(expected), size)
        for start in range(0, size, piece_size):
            writer.add(memoryview(content)[start : start + piece_size])
        expected += content
        if number % flush_every == 0:
            writer.flush()
    writer.flush()
    gaps = sum(gap for gap, _ in files if gap >= 4096)
    assert sum(length for _, length in made.writes) <= len(expected) - gaps
    assert all(length <= BATCH_SIZE for _, length in made.writes)
    expected += bytes(-len(expected) % 4096)
    found = digests.finish(len(expected))
    made.finish(len(expected), found)
    assert Path(made.paths[0]).read_bytes() == expected
    assert found == {
        number: blake3(expected[start : start + extent_size]).digest()
        for number, start in enumerate(range(0, len(expected), extent_size))
    }
    made.close()


def test_bytes_that_go_back_are_a_mistake_of_the_caller() -> None:
    digests = ExtentDigests(UNIT_SIZE)
    digests.wrote(0, [memoryview(b"abc")])
    with pytest.raises(ValueError, match="byte 1"):
        digests.wrote(1, [memoryview(b"x")])


def test_a_device_without_bytes_has_no_digests() -> None:
    assert ExtentDigests(UNIT_SIZE).finish(0) == {}
