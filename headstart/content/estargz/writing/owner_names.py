"""The names of an entry's owner and group, which a layer's tree has no use for, but a TOC has."""

from typing import NamedTuple

from headstart.content.layer.pax import parse_records
from headstart.content.layer.tar_header import BLOCK_SIZE, parse_header, until_nul

_PAX = b"x"
_MAGIC = slice(257, 262)
_USTAR = b"ustar"
"""In ustar's and GNU's headers; older ones have no names."""
_USER = slice(265, 297)
_GROUP = slice(297, 329)


class OwnerNames(NamedTuple):
    """Empty where the tar has none, or one that is not UTF-8."""

    user: str
    group: str


def owner_names(headers: memoryview) -> OwnerNames:
    """Read them from an entry's headers, extension headers included, that were parsed before."""
    main = bytes(headers[-BLOCK_SIZE:])
    user, group = b"", b""
    if main[_MAGIC] == _USTAR:
        user, group = until_nul(main[_USER]), until_nul(main[_GROUP])
    position = 0
    while position < len(headers) - BLOCK_SIZE:
        header = parse_header(headers[position : position + BLOCK_SIZE])
        position += BLOCK_SIZE
        if header is None:
            break
        if header.typeflag == _PAX:
            records = parse_records(bytes(headers[position : position + header.size]))
            user = records.get(b"uname") or user
            group = records.get(b"gname") or group
        position += header.size + -header.size % BLOCK_SIZE
    return OwnerNames(_text(user), _text(group))


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return ""
