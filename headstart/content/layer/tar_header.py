"""The 512 bytes before each file of a tar archive.

Field positions and the forms of numbers: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar,
src/tar.h, and its manual, "Basic Tar Format". Read as Go's archive/tar does, which is what
containerd reads layers with.
"""

import struct
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from headstart.content.layer.errors import LayerRefused

BLOCK_SIZE = 512

_FIELDS = struct.Struct("100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 64x 8s 8s 155s 8x 4s")

_USTAR = b"ustar\0"
_GNU = b"ustar  \0"
_STAR_TRAILER = b"tar\0"
_STAR_PREFIX_BYTES = 131
_GNU_TIME_BYTES = 12
_CHECKSUM = slice(148, 156)
_SPACES = 8 * ord(" ")
_LARGEST = (1 << 63) - 1


class TarHeader(NamedTuple):
    """The fields of one header block, before extension headers change them; times in seconds."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    typeflag: bytes
    link_name: bytes
    device_fields: tuple[bytes, bytes] | None

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number; an old archive has none. Raises LayerRefused."""
        if self.device_fields is None:
            return 0, 0
        return number(self.device_fields[0]), number(self.device_fields[1])


def parse_header(block: memoryview) -> TarHeader | None:
    """Read :data:`BLOCK_SIZE` bytes; None when all are zero. Raises LayerRefused."""
    (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        checksum,
        typeflag,
        link_name,
        magic,
        major,
        minor,
        prefix,
        trailer,
    ) = _FIELDS.unpack(block)
    # Each half's Adler-32 has the plain sum of its bytes, plus one, in the lower 16 bits: 256 bytes
    # cannot reach its modulus, 65521.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    if total == 0:
        return None
    if _field(checksum) != total - sum(checksum) + _SPACES:
        _check_signed(block, _field(checksum))
    name = until_nul(name)
    devices: tuple[bytes, bytes] | None = (major, minor)
    if magic[:6] == _USTAR:
        if prefix[0]:
            if trailer == _STAR_TRAILER:
                prefix = prefix[:_STAR_PREFIX_BYTES]
            name = until_nul(prefix) + b"/" + name
    elif magic == _GNU:
        if prefix[0]:
            name = _gnu_prefix(prefix) + name
    else:
        devices = None
    return TarHeader(
        name,
        _field(mode),
        _field(uid),
        _field(gid),
        number(size),
        _field(mtime),
        typeflag,
        until_nul(link_name) if link_name[0] else b"",
        devices,
    )


def number(field: bytes) -> int:
    """The number in a field: octal digits, or base 256 where the first bit is set.

    Raises LayerRefused for neither, and for more than 63 bits.
    """
    first = field[0]
    if first & 0x80:
        # Two's complement; the first bit is the mark, the second the sign.
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if first & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -_LARGEST - 1 <= value <= _LARGEST:
            raise LayerRefused("a tar header has a number of more than 63 bits")
        return value
    digits = until_nul(field.strip(b" \0"))
    if not digits:
        return 0
    # int() would also take signs, underscores and a prefix.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise LayerRefused(f"a tar header has {digits!r} for a number")


_field = lru_cache(maxsize=4096)(number)
"""The same for fields of which a layer has few values."""


def until_nul(field: bytes) -> bytes:
    """A string field without what follows its first NUL."""
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _check_signed(block: memoryview, expected: int) -> None:
    """Old programs added the bytes up as signed ones."""
    content = bytearray(block)
    content[_CHECKSUM] = b" " * 8
    if sum(memoryview(content).cast("b")) != expected:
        raise LayerRefused("a tar header's checksum is wrong")


def _gnu_prefix(field: bytes) -> bytes:
    """GNU archives have times where others have a prefix, unless Go before 1.8 wrote them."""
    try:
        number(field[:_GNU_TIME_BYTES])
        if field[_GNU_TIME_BYTES]:
            number(field[_GNU_TIME_BYTES : 2 * _GNU_TIME_BYTES])
    except LayerRefused:
        prefix = until_nul(field)
        return prefix + b"/" if prefix.isascii() else b""
    return b""
