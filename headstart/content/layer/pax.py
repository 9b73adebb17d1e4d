"""The records of PAX extended headers (POSIX.1-2017, pax, "pax Extended Header")."""

import re

from headstart.content.layer.errors import LayerRefused

XATTR = b"SCHILY.xattr."
"""Before an extended attribute's name: star's keyword, which GNU tar, Go and bsdtar write too."""

SPARSE = b"GNU.sparse."

_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_TIME = re.compile(rb"([+-]?)([0-9]{1,19})(?:\.([0-9]*))?")
_STRINGS = frozenset((b"path", b"linkpath"))
_NANOSECOND_DIGITS = 9
_NANOSECONDS = 1_000_000_000
_LARGEST = (1 << 63) - 1


def parse_records(payload: bytes) -> dict[bytes, bytes]:
    """Keywords and values, ``LENGTH KEYWORD=VALUE\\n`` each; of two alike the second counts.

    Raises LayerRefused.
    """
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(payload):
        found = _LENGTH.match(payload, start)
        stop = start + int(found[1]) if found else 0
        if found is None or not found.end() < stop <= len(payload) or payload[stop - 1] != 0x0A:
            raise LayerRefused("a PAX header is damaged: a record's length is wrong")
        keyword, equals, value = payload[found.end() : stop - 1].partition(b"=")
        if not keyword or not equals or b"\0" in (value if keyword in _STRINGS else keyword):
            raise LayerRefused("a PAX header is damaged: a record has no keyword, or a NUL")
        records[keyword] = value
        start = stop
    return records


def pax_number(value: bytes) -> int:
    """A whole number. Raises LayerRefused for anything else, or more than 63 bits."""
    if _NUMBER.fullmatch(value):
        number = int(value)
        if -_LARGEST - 1 <= number <= _LARGEST:
            return number
    raise LayerRefused(f"a PAX header has {value[:40]!r} for a number")


def pax_nanoseconds(value: bytes) -> int:
    """A time in nanoseconds, exactly; digits after the ninth are cut. Raises LayerRefused."""
    found = _TIME.fullmatch(value)
    if found is None:
        raise LayerRefused(f"a PAX header has {value[:40]!r} for a time")
    fraction = (found[3] or b"")[:_NANOSECOND_DIGITS].ljust(_NANOSECOND_DIGITS, b"0")
    nanoseconds = int(found[2]) * _NANOSECONDS + int(fraction)
    return -nanoseconds if found[1] == b"-" else nanoseconds
