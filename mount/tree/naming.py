"""Inode numbers of the trees: layer, image and inode of the image in one number, by arithmetic.

::

    bit   63  62  61 .......... 38  37 .......... 28  27 .......... 0
          0   1   number of layer   check of image    nid

Nothing is remembered: a new daemon knows what an inode means that the kernel had from a dead one.
The check is of the image's bytes, so that an inode of one image is not looked up in another one
that has taken its place. Device files have the numbers without bit 62.
"""

from typing import NamedTuple

from mount.device.naming import inode_of as device_inode_of
from mount.mounting.modes import TREES

TREES_NAME = TREES.encode()
"""The directory of the trees, beside the device files."""

TREES_INODE = device_inode_of(0, 1)
"""Layer numbers begin at 1, so no device file has it."""

PROBE_NUMBER = 0
"""A tree that is always there and never listed: see :mod:`mount.mounting.probe_image`."""

MAX_NUMBER = (1 << 24) - 1
CHECK_BITS = 10
MAX_NID = (1 << 28) - 1
"""Of images below 8 GiB."""

_TREE = 1 << 62
_NUMBER_SHIFT = 38
_CHECK_SHIFT = 28


class TreeInode(NamedTuple):
    """What an inode number says."""

    number: int
    check: int
    nid: int


def is_tree(inode: int) -> bool:
    """Whether an inode number is of a file in a tree."""
    return bool(inode & _TREE)


def inode_of(number: int, check: int, nid: int) -> int:
    """The inode number of a file in a tree."""
    return _TREE | number << _NUMBER_SHIFT | check << _CHECK_SHIFT | nid


def parse(inode: int) -> TreeInode:
    """The inverse of :func:`inode_of`."""
    return TreeInode(
        inode >> _NUMBER_SHIFT & MAX_NUMBER,
        inode >> _CHECK_SHIFT & (1 << CHECK_BITS) - 1,
        inode & MAX_NID,
    )


def check_of(fingerprint: bytes) -> int:
    """The check of an image with this BLAKE3."""
    return int.from_bytes(fingerprint[:2], "little") & (1 << CHECK_BITS) - 1


def parse_name(name: bytes) -> int | None:
    """The number that a tree's name says; None for a name that no tree has."""
    if not name.isdigit() or len(name) > 8 or (name.startswith(b"0") and name != b"0"):
        return None
    number = int(name)
    return number if number <= MAX_NUMBER else None
