"""Directory blocks, read back by the format's rules."""

import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.erofs.directory import Listing
from headstart.content.erofs.errors import Inexpressible
from tests.content.erofs.planting import BLOCK
from tests.content.erofs.random_trees import NAMES


def read_block(block: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, nid, file type) of each dirent."""
    (first_name,) = struct.unpack_from("<H", block, 8)
    starts = [struct.unpack_from("<H", block, at + 8)[0] for at in range(0, first_name, 12)]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(block)], strict=True)):
        nid, _, file_type = struct.unpack_from("<QHB", block, 12 * number)
        yield block[start:stop], nid, file_type


@given(
    st.one_of(
        st.sets(NAMES, max_size=60),
        st.integers(0, 600).map(lambda count: {b"%04d" % number for number in range(count)}),
    )
)
def test_blocks_hold_all_names_in_order(children: set[bytes]) -> None:
    listing = Listing(children)
    nids = [number * 7 + (1 << 33) for number in range(len(listing.names))]
    types = [number % 8 for number in range(len(listing.names))]
    blocks = listing.encode(nids, types)
    assert len(blocks) == listing.blocks
    assert all(len(block) <= BLOCK for block in blocks)
    assert listing.size == BLOCK * (len(blocks) - 1) + len(blocks[-1])
    assert listing.last_size == len(blocks[-1])
    read = [entry for block in blocks for entry in read_block(block)]
    assert [name for name, _, _ in read] == sorted({*children, b".", b".."})
    assert [nid for _, nid, _ in read] == nids
    assert [file_type for _, _, file_type in read] == types
    for block, following in pairwise(blocks):
        next_name = next(read_block(following))[0]
        assert len(block) + 12 + len(next_name) > BLOCK


def test_a_block_is_filled_to_its_last_byte() -> None:
    # 12 bytes and a name of 4: 256 of them are one block.
    listing = Listing([b"%04d" % number for number in range(600)])
    sizes = [len(block) for block in listing.encode(range(602), bytes(602))]
    assert sizes[1] == BLOCK


def test_dots_have_no_place_of_their_own() -> None:
    assert Listing([b"!", b"...", b"a", b"\xff"]).names == [
        b"!",
        b".",
        b"..",
        b"...",
        b"a",
        b"\xff",
    ]


@pytest.mark.parametrize("name", [b"", b"a/b", b"/", b"a\0", b"n" * 256])
def test_a_name_that_no_directory_can_have(name: bytes) -> None:
    with pytest.raises(Inexpressible, match="name"):
        Listing([b"fine", name])
