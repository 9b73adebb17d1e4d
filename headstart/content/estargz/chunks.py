"""Where a layer's bytes lie in its blob: members, and the chunks of files in them.

A blob is a row of **members** (of gzip, or frames of zstd), which inflate independently. All of
them inflated, one after the other, are the layer's tar. A **chunk** is a piece of a file in one
member; the rest of the tar, headers and padding, is **framing**: whole members of it before the
first file and (zstd:chunked) between files, and what lies before, between and after the chunks of
a member. ``innerOffset`` says where in a member's inflated bytes a chunk begins: 0 unless framing
or another chunk precedes it there.

Chunks lie on the data device in the order in which they lie in the blob, so both look-ups are
bisections. A chunk costs 48 bytes and a member 12: a million of both 60 MB.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from headstart.content.estargz.footer import Compression, TocLocation
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.tar_header import BLOCK_SIZE

DIGEST_SIZE = 32
"""Bytes of a chunk's digest, which is a sha256."""

_LARGEST_RATIO: Mapping[Compression, int] = {"gzip": 1032, "zstd": 32768}
"""Bytes that one byte can inflate to. Deflate: 258 for two bits (RFC 1951, 3.2.5); zstd: a block of
128 KiB for four bytes (RFC 8878, 3.1.1.2)."""

_LARGEST_INNER = (1 << 32) - 1


class Chunk(NamedTuple):
    """A piece of a file: ``size`` bytes at ``device_offset``, with the sha256 ``digest``.

    They are what the member at ``start`` of the blob holds from ``inner_offset`` on, inflated.
    """

    device_offset: int
    size: int
    start: int
    stop: int
    inner_offset: int
    digest: bytes


class Member(NamedTuple):
    """Bytes ``start`` to ``stop`` of the blob and the numbers of the chunks in them, maybe none.

    They may be several members of gzip or frames of zstd in a row: inflate to ``stop``.
    """

    start: int
    stop: int
    chunks: range


class Span(NamedTuple):
    """A stretch of a member's inflated bytes: a chunk, or framing (``chunk`` is None).

    ``stop`` is None for the last framing, of which only the member itself knows the end.
    """

    start: int
    stop: int | None
    chunk: int | None


class ChunkTable:
    """All chunks of a layer; a chunk's and a member's number is its place in the blob."""

    def __init__(self) -> None:
        self._device_offsets = array("Q")
        self._sizes = array("I")
        self._inner_offsets = array("I")
        self._digests = bytearray()
        self._starts = array("Q")
        self._first_chunks = array("I")
        self._stop = 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def members(self) -> int:
        """How many members there are; together they are the blob without TOC and footer.

        The gzip member that holds the TOC is the last one: it is part of the tar.
        """
        return len(self._starts)

    @property
    def stop(self) -> int:
        """Where the last member ends."""
        return self._stop

    def chunk(self, number: int) -> Chunk:
        """A chunk, and the member that it is in."""
        start, stop, _ = self.member(self.member_of(number))
        return Chunk(
            self._device_offsets[number],
            self._sizes[number],
            start,
            stop,
            self._inner_offsets[number],
            bytes(self._digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]),
        )

    def member(self, number: int) -> Member:
        """A member."""
        last = number + 1 == len(self._starts)
        first = self._first_chunks[number]
        return Member(
            self._starts[number],
            self._stop if last else self._starts[number + 1],
            range(first, len(self._sizes) if last else self._first_chunks[number + 1]),
        )

    def member_of(self, chunk: int) -> int:
        """The number of the member that a chunk is in."""
        # Of members with the same first chunk only the last one has any.
        return bisect_right(self._first_chunks, chunk) - 1

    def chunks_covering(self, device_start: int, device_stop: int) -> range:
        """The chunks that have one of these bytes of the data device.

        None has the padding between files.
        """
        if device_stop <= device_start:
            return range(0)
        first = bisect_right(self._device_offsets, device_start) - 1
        if first < 0 or self._device_offsets[first] + self._sizes[first] <= device_start:
            first += 1
        return range(first, bisect_left(self._device_offsets, device_stop))

    def chunks_before(self, offset: int) -> range:
        """The chunks in members that begin before ``offset`` of the blob: to prefetch."""
        member = bisect_left(self._starts, offset)
        if member == len(self._starts):
            return range(len(self._sizes))
        return range(self._first_chunks[member])

    def spans(self, member: int) -> Iterator[Span]:
        """What a member's inflated bytes are, in order; none is empty but perhaps the last."""
        position = 0
        for number in self.member(member).chunks:
            inner_offset = self._inner_offsets[number]
            if inner_offset > position:
                yield Span(position, inner_offset, None)
            position = inner_offset + self._sizes[number]
            yield Span(inner_offset, position, number)
        yield Span(position, None, None)

    def append(self, device_offset: int, size: int, inner_offset: int, digest: bytes) -> None:
        """Put another chunk into the last member."""
        self._device_offsets.append(device_offset)
        self._sizes.append(size)
        self._inner_offsets.append(inner_offset)
        self._digests += digest

    def begin_member(self, start: int) -> None:
        """Chunks from now on are in a new member, which ends the last one."""
        self._starts.append(start)
        self._first_chunks.append(len(self._sizes))

    def end(self, stop: int) -> None:
        """The last member ends at ``stop``."""
        self._stop = stop


class ChunkTableBuilder:
    """Makes a table of chunks that come in the blob's order, which all writers keep.

    Raises LayerRefused for chunks out of order, one over another, outside of the layer's part of
    the blob, or with more bytes than its member can inflate to.
    """

    def __init__(self, location: TocLocation) -> None:
        self._location = location
        self._largest_ratio = _LARGEST_RATIO[location.compression]
        self._table = ChunkTable()
        self._start = 0
        self._inner_stop = 0
        if location.tar_stop:
            self._table.begin_member(0)

    def add(
        self, device_offset: int, size: int, start: int, inner_offset: int, digest: bytes
    ) -> None:
        """The next chunk: ``size`` bytes from ``inner_offset`` on in the member at ``start``."""
        if start != self._start:
            self.begin_member(start)
        elif start == 0 and (inner_offset < BLOCK_SIZE or not self._location.tar_stop):
            raise LayerRefused("a file of its TOC begins where the first tar header is")
        if inner_offset < self._inner_stop:
            raise LayerRefused(f"chunks of its TOC overlap at {start} of its blob")
        self._inner_stop = inner_offset + size
        if self._inner_stop > _LARGEST_INNER:
            raise LayerRefused(f"the member at {start} of its blob is too long")
        self._table.append(device_offset, size, inner_offset, digest)

    def begin_member(self, start: int) -> None:
        """A member begins at ``start``, whatever is in it."""
        if not self._start < start < self._location.tar_stop:
            raise LayerRefused(
                f"its TOC has something at {start} of its blob,"
                f" not between {self._start} and {self._location.tar_stop}"
            )
        self._end_member(start)
        self._table.begin_member(start)
        self._start = start

    def finish(self) -> ChunkTable:
        """The table, after the last chunk."""
        stop = self._location.tar_stop
        self._end_member(stop)
        if self._location.compression == "gzip":
            self._table.begin_member(self._location.offset)
            stop = self._location.stop
        self._table.end(stop)
        return self._table

    def _end_member(self, stop: int) -> None:
        if self._inner_stop > self._largest_ratio * (stop - self._start):
            raise LayerRefused(
                f"bytes {self._start} to {stop} of its blob cannot be {self._inner_stop} inflated"
            )
        self._inner_stop = 0
