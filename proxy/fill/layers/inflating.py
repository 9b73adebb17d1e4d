"""The tar inside a layer's blob, inflated in stream order in pieces of bounded size.

Which compression it is, is decided as containerd does it: a media type says whether the layer may
be compressed at all, and the first bytes say how.
"""

import io
from collections.abc import Iterator
from typing import IO, cast

import zstandard
from isal import igzip_lib

from headstart.content.layer.errors import LayerRefused
from headstart.store.geometry import KIB, MIB

PIECE_SIZE = MIB
"""The most bytes that are inflated at once."""
SMALL_PIECE = 128 * KIB
"""Pieces below this are joined: each costs all threads a turn of the interpreter's lock."""
LEAST_FEED = 16 * KIB
WINDOW_SIZE = 128 * MIB
"""Most memory that a zstd frame may ask for: what ``zstd -d`` allows (zstd(1), --memory)."""

_PLAIN = frozenset(
    (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    )
)
_SNIFFED = frozenset(
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    )
)

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
MAGIC_SIZE = 4

_DAMAGED = cast(type[Exception], igzip_lib.IsalError)
"""An exception class, which isal's type hints call an instance."""

Pieces = Iterator[memoryview]


def compression_of(media_type: str, head: bytes) -> str:
    """``gzip``, ``zstd`` or ``plain``, by the first :data:`MAGIC_SIZE` bytes of the blob.

    Raises LayerRefused for a media type that is none of a layer.
    """
    if media_type in _PLAIN:
        return "plain"
    if media_type not in _SNIFFED:
        raise LayerRefused(f"{media_type!r:.100} is no media type of a layer that can be mounted")
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return "zstd"
    return "plain"


def inflate(compression: str, pieces: Pieces) -> Iterator[bytes | memoryview]:
    """The uncompressed stream, in pieces of at most about :data:`PIECE_SIZE` bytes.

    ``pieces`` are the blob's bytes, none empty; each is used up when the next is asked for. What a
    plain layer yields are these themselves. Raises LayerRefused.
    """
    if compression == "plain":
        return pieces
    inflating = _gunzip(pieces) if compression == "gzip" else _unpack_zstd(pieces)
    return _joined(inflating)


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are worth handing over."""
    small: list[bytes] = []
    waiting = 0
    for piece in pieces:
        if not small and len(piece) >= SMALL_PIECE:
            yield piece
            continue
        small.append(piece)
        waiting += len(piece)
        if waiting >= SMALL_PIECE:
            yield b"".join(small)
            small.clear()
            waiting = 0
    if waiting:
        yield b"".join(small)


def _gunzip(pieces: Pieces) -> Iterator[bytes]:
    """All members of a gzip stream, one after the other (RFC 1952)."""
    member: igzip_lib.IgzipDecompressor | None = None
    header = b""
    feed = PIECE_SIZE
    in_member = 0
    padding = False
    for piece in pieces:
        position = 0
        while position < len(piece):
            given = piece[position : position + feed]
            if member is None:
                # A header cut in two is not read right by isal: its own state is lost in between.
                header += given
                if padding or header[0] == 0:
                    # Some programs fill up their last block.
                    padding = True
                    if header.strip(b"\0"):
                        raise LayerRefused("garbage follows the last member of its gzip stream")
                    header = b""
                length = gzip_header_size(header)
                if length is None:
                    position += len(given)
                    continue
                member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
                position -= len(header) - len(given) - length
                header = b""
                in_member = 0
                continue
            position += len(given)
            in_member += len(given)
            try:
                inflated = member.decompress(given, PIECE_SIZE)
                if inflated:
                    yield inflated
                while not member.eof and not member.needs_input:
                    inflated = member.decompress(b"", PIECE_SIZE)
                    if inflated:
                        yield inflated
            except _DAMAGED as error:
                raise LayerRefused(f"its gzip stream is damaged: {error}") from error
            if member.eof:
                unused = len(member.unused_data)
                position -= unused
                # What a member leaves over is copied: short members are fed little at a time.
                feed = min(PIECE_SIZE, max(LEAST_FEED, 2 * (in_member - unused)))
                member = None
            else:
                feed = min(PIECE_SIZE, 2 * feed)
    if member is not None or header:
        raise LayerRefused("its gzip stream ends in the middle")


_FIXED_HEADER = 10
_LONGEST_NAME = 64 * KIB
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 2, 4, 8, 16


def gzip_header_size(start: bytes) -> int | None:
    """Bytes of the gzip member header that ``start`` begins with; None while it is not whole.

    Raises LayerRefused for what is none (RFC 1952, 2.3).
    """
    if not _GZIP.startswith(start[:3]):
        raise LayerRefused("what follows in its gzip stream is no gzip member")
    if len(start) < _FIXED_HEADER:
        return None
    flags = start[3]
    position = _FIXED_HEADER
    if flags & 0xE0:
        raise LayerRefused("a gzip member of it has unknown flags")
    if flags & _FEXTRA:
        position += 2 + int.from_bytes(start[position : position + 2], "little")
        if len(start) < position or len(start) < _FIXED_HEADER + 2:
            return None
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            end = start.find(b"\0", position, position + _LONGEST_NAME)
            if end < 0:
                if len(start) >= position + _LONGEST_NAME:
                    raise LayerRefused("a name in a gzip header of it has no end")
                return None
            position = end + 1
    if flags & _FHCRC:
        position += 2
    return position if len(start) >= position else None


class _Feeder(io.RawIOBase):
    """Pieces as the object that zstandard reads from."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self._pieces = pieces

    def read(self, size: int = -1) -> bytes:
        """The next piece, whatever its size; empty at the end."""
        return bytes(next(self._pieces, b""))


def _unpack_zstd(pieces: Pieces) -> Iterator[bytes]:
    """All frames of a zstd stream; skippable ones are skipped (RFC 8878)."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_SIZE)
    try:
        with decompressor.stream_reader(
            cast(IO[bytes], _Feeder(pieces)), read_size=PIECE_SIZE, read_across_frames=True
        ) as reader:
            while inflated := reader.read(PIECE_SIZE):
                yield inflated
    except zstandard.ZstdError as error:
        raise LayerRefused(f"its zstd stream is damaged: {error}") from error
