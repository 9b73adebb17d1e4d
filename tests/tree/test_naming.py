"""Inode numbers of trees say everything by themselves, and are never those of device files."""

from hypothesis import given
from hypothesis import strategies as st

from mount.device.naming import MAX_STRIPES, ROOT_INODE
from mount.device.naming import inode_of as device_inode_of
from mount.tree.naming import (
    CHECK_BITS,
    MAX_NID,
    MAX_NUMBER,
    TREES_INODE,
    TreeInode,
    check_of,
    inode_of,
    is_tree,
    parse,
    parse_name,
)

NUMBERS = st.integers(0, MAX_NUMBER)
CHECKS = st.integers(0, (1 << CHECK_BITS) - 1)
NIDS = st.integers(0, MAX_NID)


@given(NUMBERS, CHECKS, NIDS)
def test_an_inode_number_says_what_it_was_made_of(number: int, check: int, nid: int) -> None:
    inode = inode_of(number, check, nid)
    assert parse(inode) == TreeInode(number, check, nid)
    assert is_tree(inode)
    assert 0 < inode < 1 << 63


@given(st.integers(1, MAX_NUMBER), st.integers(0, MAX_STRIPES - 1))
def test_device_files_have_other_numbers(number: int, stripe: int) -> None:
    inode = device_inode_of(number, stripe)
    assert not is_tree(inode)
    assert inode not in (TREES_INODE, ROOT_INODE)


@given(st.binary(min_size=32, max_size=32))
def test_the_check_has_its_bits_of_the_fingerprint(fingerprint: bytes) -> None:
    assert 0 <= check_of(fingerprint) < 1 << CHECK_BITS
    assert check_of(fingerprint) & 0xFF == fingerprint[0]


@given(NUMBERS)
def test_a_name_is_its_number(number: int) -> None:
    assert parse_name(str(number).encode()) == number


@given(st.binary(max_size=12))
def test_no_other_name_has_a_number(name: bytes) -> None:
    number = parse_name(name)
    assert number is None or str(number).encode() == name
