"""One gzip member (RFC 1952): compressed, or stored where compressing would save too little.

Stored means stored blocks (RFC 1951, 3.2.4) for the files in the member, 5 bytes for each 65,535;
the tar headers behind them are compressed all the same, as the last block of the same member.
zlib's level 0 does not do that, and takes an eighth more; igzip's makes 124 % of random bytes.
"""

import struct
from typing import NamedTuple

import deflate
from isal import igzip_lib

from headstart.content.estargz.writing.options import WritingOptions

SAMPLE_SIZE = 32 * 1024
"""Bytes of each of the two samples."""

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name and no time; the system it was made on is not said."""
_TRAILER = struct.Struct("<II")

_STORED_BLOCK = struct.Struct("<BHH")
_LARGEST_BLOCK = 0xFFFF


class GzipMember(NamedTuple):
    """The bytes of a member, and whether its files are stored in it."""

    content: bytes
    is_stored: bool


def gzip_member(content: bytes | bytearray, files_size: int, options: WritingOptions) -> GzipMember:
    """Make a member of ``content``, less than 4 GiB, whose first ``files_size`` bytes are sampled.

    They are stored where the samples say so; what follows them never is.
    """
    files = memoryview(content)[:files_size]
    is_stored = _hardly_shrinks(files, options)
    pieces: list[bytes | bytearray | memoryview] = [_HEADER]
    if is_stored:
        for start in range(0, files_size, _LARGEST_BLOCK):
            piece = files[start : start + _LARGEST_BLOCK]
            # Not the last block, and of type 00; the next one begins with a whole byte again.
            pieces += (_STORED_BLOCK.pack(0, len(piece), len(piece) ^ 0xFFFF), piece)
        pieces.append(deflate.deflate_compress(memoryview(content)[files_size:], options.level))
    else:
        pieces.append(deflate.deflate_compress(content, options.level))
    pieces.append(_TRAILER.pack(deflate.crc32(content), len(content)))
    return GzipMember(b"".join(pieces), is_stored)


def _hardly_shrinks(files: memoryview, options: WritingOptions) -> bool:
    """Two samples, around a quarter and three quarters; a file's two ends mislead (zip)."""
    size = len(files)
    if not size:
        return False
    samples = [files]
    if size > 2 * SAMPLE_SIZE:
        # Half a sample on either side: so they never overlap or reach beyond an end.
        starts = (size // 4 - SAMPLE_SIZE // 2, size * 3 // 4 - SAMPLE_SIZE // 2)
        samples = [files[start : start + SAMPLE_SIZE] for start in starts]
    shrunk = sum(len(igzip_lib.compress(sample, options.sample_level)) for sample in samples)
    return shrunk >= options.stored_from * sum(map(len, samples))
