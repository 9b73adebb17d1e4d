"""CRC-32C (Castagnoli), as EROFS uses it for its superblock: without the final inversion."""

from collections.abc import Iterable

_REFLECTED_POLYNOMIAL = 0x82F63B78


def _table() -> tuple[int, ...]:
    table = []
    for register in range(256):
        for _ in range(8):
            register = register >> 1 ^ (_REFLECTED_POLYNOMIAL if register & 1 else 0)
        table.append(register)
    return tuple(table)


_TABLE = _table()


def crc32c(content: Iterable[int]) -> int:
    """The register after ``content``, begun with all ones. For a few KiB: it goes byte by byte."""
    register = 0xFFFFFFFF
    for byte in content:
        register = register >> 8 ^ _TABLE[(register ^ byte) & 0xFF]
    return register
