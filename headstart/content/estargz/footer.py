"""The last bytes of a blob, which say where its TOC is.

eStargz (stargz-snapshotter, docs/estargz.md): an empty gzip member (RFC 1952) of 51 bytes.

- 10: gzip header: 1f 8b, method 8 (deflate), flags 4 (an Extra field, nothing else), then time (4),
  compression (1) and system (1), which say nothing and may be any
- 2: size of the Extra field, little-endian: 26 = 2 + 2 + 22
- 2: ID of its one subfield: ``SG``
- 2: size of that subfield, little-endian: 22 = 16 + 6
- 16: the TOC's offset in the blob, in lower-case hexadecimal digits
- 6: ``STARGZ``
- 5: deflate: one last stored block (01) of size 0 (00 00) and its complement (ff ff)
- 8: gzip trailer: CRC-32 and size of nothing, both 0

stargz (google/crfs), 47 bytes: the same without subfield ID and size, so that the Extra field has
22 bytes. stargz-snapshotter accepts it too, and wrote it before its version 0.2.

zstd:chunked (containers/storage, pkg/chunked; skippable frames: RFC 8878, 3.1.2): a frame with
magic 50 2a 4d 18 and a size of 4 bytes, then little-endian numbers of 8 bytes: offset, compressed
and uncompressed size of the TOC, and its kind, 1. The older form, 40 bytes, ends with ``GnUlInUx``.
The newer one, 64 bytes, goes on with offset, compressed and uncompressed size of the tar-split
data, which only serve to put the tar together again, and ends with ``GNUlInUx``. The TOC and the
tar-split data lie in skippable frames of their own just before it.
"""

import re
import struct
from dataclasses import dataclass
from typing import Literal

from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.layer.errors import LayerRefused

FOOTER_SIZE = 51
LEGACY_FOOTER_SIZE = 47
FRAME_HEADER_SIZE = 8
TAIL_SIZE = 72
"""The longest footer, zstd:chunked's newer one: of a larger blob at least these last bytes."""

Compression = Literal["gzip", "zstd"]

_ESTARGZ = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x1a\0SG\x16\0([0-9a-f]{16})STARGZ\x01\0\0\xff\xff\0{8}", re.DOTALL
)
_LEGACY = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x16\0([0-9a-f]{16})STARGZ\x01\0\0\xff\xff\0{8}", re.DOTALL
)

_SKIPPABLE = b"\x50\x2a\x4d\x18"
_OLD_ZSTD = struct.Struct("<4sI4Q8s")
_NEW_ZSTD = struct.Struct("<4sI7Q8s")
_OLD_MAGIC = b"GnUlInUx"
_NEW_MAGIC = b"GNUlInUx"
_CRFS_KIND = 1


@dataclass(frozen=True, slots=True)
class TocLocation:
    """Where in a blob of ``blob_size`` bytes the compressed TOC lies.

    gzip: one member with a tar in it, which is the last part of the layer's own tar. zstd: the
    payload of a skippable frame, one frame of JSON of ``json_size`` bytes.
    """

    compression: Compression
    offset: int
    size: int
    blob_size: int
    json_size: int | None = None

    @property
    def stop(self) -> int:
        """The offset of what follows the compressed TOC."""
        return self.offset + self.size

    @property
    def tar_stop(self) -> int:
        """Where the members with files and the tar's framing end."""
        return self.offset - (FRAME_HEADER_SIZE if self.compression == "zstd" else 0)


def parse_footer(tail: bytes, blob_size: int, caps: TocCaps = DEFAULT_TOC_CAPS) -> TocLocation:
    """Read a footer; ``tail`` is how the blob ends, :data:`TAIL_SIZE` bytes or more.

    Raises LayerRefused when there is none, or when it points to where no TOC can be.
    """
    if found := _ESTARGZ.fullmatch(tail[-FOOTER_SIZE:]):
        return _gzip_location(int(found[1], 16), blob_size, FOOTER_SIZE, caps)
    if found := _LEGACY.fullmatch(tail[-LEGACY_FOOTER_SIZE:]):
        return _gzip_location(int(found[1], 16), blob_size, LEGACY_FOOTER_SIZE, caps)
    if len(tail) >= _NEW_ZSTD.size and tail.endswith(_NEW_MAGIC):
        frame, size, *numbers, _ = _NEW_ZSTD.unpack(tail[-_NEW_ZSTD.size :])
        if frame == _SKIPPABLE and size == _NEW_ZSTD.size - FRAME_HEADER_SIZE:
            return _zstd_location(numbers, blob_size, blob_size - _NEW_ZSTD.size, caps)
    if len(tail) >= _OLD_ZSTD.size and tail.endswith(_OLD_MAGIC):
        frame, size, *numbers, _ = _OLD_ZSTD.unpack(tail[-_OLD_ZSTD.size :])
        if frame == _SKIPPABLE and size == _OLD_ZSTD.size - FRAME_HEADER_SIZE:
            return _zstd_location(numbers, blob_size, blob_size - _OLD_ZSTD.size, caps)
    raise LayerRefused("it has no footer of eStargz or zstd:chunked")


def zstd_location(
    numbers: list[int], blob_size: int, stop: int, caps: TocCaps = DEFAULT_TOC_CAPS
) -> TocLocation:
    """The place that four numbers say (offset, compressed size, uncompressed size, kind).

    Nothing of the TOC may lie at or after ``stop``. Raises LayerRefused.
    """
    offset, size, json_size, kind = numbers
    if kind != _CRFS_KIND:
        raise LayerRefused(f"its TOC is of the unknown kind {kind}")
    if offset < FRAME_HEADER_SIZE or size == 0 or offset + size > stop:
        raise LayerRefused(f"its TOC would be at {offset}, {size} bytes of a blob of {blob_size}")
    if json_size > caps.json_bytes:
        raise LayerRefused(f"its TOC has {json_size} bytes, over {caps.json_bytes}")
    _check_size(size, caps)
    return TocLocation("zstd", offset, size, blob_size, json_size)


def _zstd_location(numbers: list[int], blob_size: int, footer: int, caps: TocCaps) -> TocLocation:
    """The place that a footer at ``footer`` says; frames may not leave gaps before it."""
    location = zstd_location(numbers[:4], blob_size, footer, caps)
    end = location.stop
    if any(numbers[4:]):
        offset, size, _ = numbers[4:]
        if offset != end + FRAME_HEADER_SIZE:
            raise LayerRefused("its tar-split data does not follow its TOC")
        end = offset + size
    if end != footer:
        raise LayerRefused("its footer does not follow its TOC")
    return location


def _gzip_location(offset: int, blob_size: int, footer_size: int, caps: TocCaps) -> TocLocation:
    size = blob_size - footer_size - offset
    if size <= 0:
        raise LayerRefused(f"its TOC would be at {offset} of a blob of {blob_size}")
    _check_size(size, caps)
    return TocLocation("gzip", offset, size, blob_size)


def _check_size(size: int, caps: TocCaps) -> None:
    if size > caps.compressed_bytes:
        raise LayerRefused(f"its compressed TOC has {size} bytes, over {caps.compressed_bytes}")
