"""The TOC's JSON out of its compressed form, never more of it than a cap allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import zstandard
from isal import igzip_lib

from headstart.content.digest import Digest
from headstart.content.estargz.announced import AnnouncedToc
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.footer import TocLocation
from headstart.content.layer.caps import MIB
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tar_header import BLOCK_SIZE

INDEX_NAME = b"stargz.index.json"

_PIECE_SIZE = MIB
_WINDOW_SIZE = 128 * MIB
"""What ``zstd -d`` allows; Go's encoder asks for 32 MiB at its best level."""

_ZSTD_FEED = 64
"""Bytes given at once: there is no cap on what comes back, but four bytes are at most 128 KiB."""

_TRAILER_BYTES = 16 * 1024
"""Zeros after the JSON: padding and two blocks are what writers make."""

_DAMAGED = cast(type[Exception], igzip_lib.IsalError)
"""An exception class, which isal's type hints call an instance."""


@dataclass(frozen=True, slots=True)
class TocFile:
    """``json`` is the TOC; ``head`` the tar header before it in a gzip member, else empty."""

    json: bytearray
    head: bytes


def read_toc(
    compressed: bytes,
    location: TocLocation,
    announced: AnnouncedToc,
    caps: TocCaps = DEFAULT_TOC_CAPS,
) -> TocFile:
    """Inflate the bytes that lie at ``location``, after their digest if one is announced for them.

    The digest of the JSON is left to ``parse_toc``. Raises LayerRefused.
    """
    if len(compressed) != location.size:
        raise LayerRefused(f"{len(compressed)} bytes came for a TOC of {location.size}")
    expected = announced.compressed_digest
    if expected is not None and Digest.of(compressed, expected.algorithm) != expected:
        raise LayerRefused(f"its compressed TOC has not the digest {expected}")
    if location.compression == "gzip":
        return _read_tar(_gunzip(compressed), caps)
    limit = caps.json_bytes if location.json_size is None else location.json_size
    json = bytearray()
    for piece in _unpack_zstd(compressed):
        json += piece
        if len(json) > limit:
            raise LayerRefused(f"its TOC has more than {limit} bytes")
    if location.json_size is not None and len(json) != location.json_size:
        raise LayerRefused(f"its TOC has {len(json)} bytes, not the {limit} that are announced")
    return TocFile(json, b"")


def _read_tar(pieces: Iterator[bytes], caps: TocCaps) -> TocFile:
    """The tar around a TOC: one header block, the JSON, zeros."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > BLOCK_SIZE + caps.json_bytes + _TRAILER_BYTES:
            raise LayerRefused(f"its TOC has more than {caps.json_bytes} bytes")
    head = bytes(content[:BLOCK_SIZE])
    match list(TarParser().feed(memoryview(head))):
        case [Entry(name=name, kind=EntryKind.REGULAR, size=size)] if name == INDEX_NAME:
            pass
        case _:
            raise LayerRefused(f"there is no {INDEX_NAME.decode()} where its footer points to")
    stop = BLOCK_SIZE + size
    trailer = len(content) - stop
    if trailer < 0 or content.count(0, stop) != trailer:
        raise LayerRefused("its TOC is cut, or another file follows it")
    del content[stop:]
    del content[:BLOCK_SIZE]
    if size > caps.json_bytes:
        raise LayerRefused(f"its TOC has {size} bytes, over {caps.json_bytes}")
    return TocFile(content, head)


def _gunzip(compressed: bytes) -> Iterator[bytes]:
    """What one gzip member holds, which must be all of ``compressed``."""
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    given = compressed
    try:
        while not member.eof:
            piece = member.decompress(given, _PIECE_SIZE)
            given = b""
            if piece:
                yield piece
            elif member.needs_input and not member.eof:
                raise LayerRefused("its compressed TOC ends in the middle")
    except _DAMAGED as error:
        raise LayerRefused(f"its compressed TOC is damaged: {error}") from error
    if member.unused_data:
        raise LayerRefused("something lies between its TOC and its footer")


def _unpack_zstd(compressed: bytes) -> Iterator[bytes]:
    """What one zstd frame holds, which must be all of ``compressed``."""
    frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_SIZE).decompressobj()
    try:
        for start in range(0, len(compressed), _ZSTD_FEED):
            if frame.eof:
                raise LayerRefused("something lies between its TOC and its footer")
            yield frame.decompress(compressed[start : start + _ZSTD_FEED])
    except zstandard.ZstdError as error:
        raise LayerRefused(f"its compressed TOC is damaged: {error}") from error
    if not frame.eof:
        raise LayerRefused("its compressed TOC ends in the middle")
    if frame.unused_data:
        raise LayerRefused("something lies between its TOC and its footer")
