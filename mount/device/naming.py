"""Names and inode numbers of device files: ``NUMBER.STRIPE``, both ways by arithmetic alone.

Nothing is remembered: a new daemon knows what an inode means that the kernel had from a dead one.
"""

ROOT_INODE = 1
"""The directory that holds them (FUSE_ROOT_ID, linux/fuse.h)."""

MAX_STRIPES = 64
"""Stripes of one data device that inode numbers leave room for."""

PROBE = (0, 0)
"""An empty file that is always there and never listed: numbers of layers begin at 1."""

_FIRST_INODE = 2


def name_of(number: int, stripe: int) -> str:
    """The name of a device file."""
    return f"{number}.{stripe}"


def parse_name(name: bytes) -> tuple[int, int] | None:
    """Number and stripe; None for a name that :func:`name_of` does not make."""
    first, dot, second = name.partition(b".")
    if not (dot and _is_decimal(first) and _is_decimal(second)):
        return None
    number, stripe = int(first), int(second)
    return (number, stripe) if stripe < MAX_STRIPES else None


def inode_of(number: int, stripe: int) -> int:
    """The inode number of a device file."""
    return number * MAX_STRIPES + stripe + _FIRST_INODE


def device_of(inode: int) -> tuple[int, int]:
    """Number and stripe of a device file's inode."""
    return divmod(inode - _FIRST_INODE, MAX_STRIPES)


def _is_decimal(text: bytes) -> bool:
    """Whether it is a whole number as it is printed: no sign, no zero in front."""
    return text.isdigit() and len(text) <= 18 and (text == b"0" or not text.startswith(b"0"))
