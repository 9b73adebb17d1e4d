"""An eStargz layer, member by member, as stargz-snapshotter's ``Build`` makes it.

The entries of the tar with a landmark among them, without the tar's end; then a member with the
TOC, which is the last file of the tar; then the footer (:mod:`headstart.content.estargz.footer`).
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, TypeVar

from headstart.content.digest import Digest
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.toc import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from headstart.content.estargz.toc_file import INDEX_NAME
from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.gzip_member import GzipMember, gzip_member
from headstart.content.estargz.writing.member_plan import (
    MemberPlan,
    PlannedEntry,
    WrittenEntry,
    of_tar,
    plan_members,
)
from headstart.content.estargz.writing.options import DEFAULT_OPTIONS, WritingOptions
from headstart.content.estargz.writing.order import written_order
from headstart.content.estargz.writing.owner_names import owner_names
from headstart.content.estargz.writing.scan import TarScan
from headstart.content.estargz.writing.toc_writer import TocWriter
from headstart.content.estargz.writing.written import ContentTally, WrittenLayer
from headstart.content.layer.caps import MIB
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.tar_header import BLOCK_SIZE

_AT_ONCE = 1 * MIB
"""Uncompressed bytes of members that are one item of ``map_ordered``, or more: by itself each of
100,000 small files would cost more for its way between threads than for its compression."""

_LANDMARK_CONTENT = b"\x0f"
_END = bytes(2 * BLOCK_SIZE)

_USTAR = struct.Struct("100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 247x")
_CHECKSUM = slice(148, 156)

Given = TypeVar("Given")
Made = TypeVar("Made")

Read = Callable[[int, int], bytes]
"""``read(offset, length)``: bytes of the uncompressed tar, exactly as many; in any thread."""


class MapOrdered(Protocol):
    """What ``map`` promises, perhaps in threads.

    The results come in the order of the items, and an exception where its result would. Items are
    taken by one thread at a time, and at most a bounded number ahead of the results: each result
    holds a chunk and up to 2 MiB more, compressed and not. ``function`` may run in any thread,
    several at once; for large files it does most of its work without the GIL, for small ones not.
    """

    def __call__(
        self, function: Callable[[Given], Made], items: Iterable[Given], /
    ) -> Iterator[Made]:
        """Give ``function(item)`` for each item."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A member as it goes out, and what has to be known of what is in it."""

    plan: MemberPlan
    content: bytes
    chunk_digests: Sequence[str]
    member: GzipMember


class EStargzWriter:
    """Makes one layer; :attr:`result` is there once all pieces of :meth:`write` were taken."""

    def __init__(
        self,
        scan: TarScan,
        order: Sequence[bytes] = (),
        options: WritingOptions = DEFAULT_OPTIONS,
        caps: TocCaps = DEFAULT_TOC_CAPS,
    ) -> None:
        """``order``: names of what a start reads, in order; those not in this layer do not matter.

        ``caps``: a layer of which readers here would not take the TOC is not written.
        """
        self._order = written_order(scan.entries, order)
        self._options = options
        self._caps = caps
        self._result: WrittenLayer | None = None

    @property
    def result(self) -> WrittenLayer:
        """What was written. Raises ValueError before the end of it."""
        if self._result is None:
            raise ValueError("the layer is not written yet: take all pieces of write() first")
        return self._result

    def write(self, read: Read, map_ordered: MapOrdered = map) -> Iterator[bytes]:
        """The blob, in pieces of one or more members.

        Raises NotConvertible when the TOC gets too large, ValueError when ``read`` gives less than
        it is asked for, and what ``read`` raises; then there is no result.
        """
        self._result = None
        out = _Output(TocWriter(self._caps))

        def pack(plans: Sequence[MemberPlan]) -> list[_Packed]:
            return [_pack(plan, read, self._options) for plan in plans]

        for several in map_ordered(pack, _batches(plan_members(self._entries(), self._options))):
            for packed in several:
                out.add(packed)
            yield b"".join(packed.member.content for packed in several)
        content = out.toc.finish()
        toc_digest = Digest("sha256", sha256(content).hexdigest())
        # It may be as large as all that is held beside it: no copy is made.
        size = len(content)
        content[:0] = _ustar_header(INDEX_NAME, size)
        content += bytes(-size % BLOCK_SIZE) + _END
        # All of it is to be compressed.
        member = gzip_member(content, 0, self._options).content
        if len(member) > self._caps.compressed_bytes:
            raise NotConvertible(
                f"its TOC would have {len(member)} bytes, over {self._caps.compressed_bytes}"
            )
        footer = _footer(out.size)
        out.note(content, member)
        yield member
        out.note(b"", footer)
        yield footer
        self._result = out.result(toc_digest)

    def _entries(self) -> Iterator[WrittenEntry]:
        for scanned in self._order.first:
            yield of_tar(scanned)
        name = PREFETCH_LANDMARK if self._order.first else NO_PREFETCH_LANDMARK
        size = len(_LANDMARK_CONTENT)
        landmark = Entry(name, EntryKind.REGULAR, mode=0, size=size)
        yield WrittenEntry(landmark, _ustar_header(name, size), _LANDMARK_CONTENT)
        for scanned in self._order.rest:
            yield of_tar(scanned)


def _batches(plans: Iterator[MemberPlan]) -> Iterator[list[MemberPlan]]:
    batch: list[MemberPlan] = []
    size = 0
    for plan in plans:
        batch.append(plan)
        size += plan.size
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pack(plan: MemberPlan, read: Read, options: WritingOptions) -> _Packed:
    content = plan.content(read)
    view = memoryview(content)
    digests = [
        sha256(view[item.inner_offset : item.inner_offset + item.size]).hexdigest()
        for item in plan.items
        if not isinstance(item, PlannedEntry)
    ]
    return _Packed(plan, content, digests, gzip_member(content, plan.files_size, options))


class _Output:
    """All that is to be known of the members that have gone out, in their order."""

    def __init__(self, toc: TocWriter) -> None:
        self.toc = toc
        self.size = 0
        self._uncompressed_size = 0
        self._digest = sha256()
        self._diff_id = sha256()
        self._prefetch_size = 0
        self._entry = Entry(b"", EntryKind.DIRECTORY)
        self._tally = ContentTally()

    def add(self, packed: _Packed) -> None:
        """The next member."""
        view = memoryview(packed.content)
        digests = iter(packed.chunk_digests)
        files_left = sum(
            item.size for item in packed.plan.items if not isinstance(item, PlannedEntry)
        )
        written_left = len(packed.member.content)
        for item in packed.plan.items:
            if isinstance(item, PlannedEntry):
                self._entry = item.entry
                self.toc.add_entry(item.entry, owner_names(view[item.start : item.stop]))
                continue
            chunk_offset, inner_offset, size = item
            content = view[inner_offset : inner_offset + size]
            self.toc.add_chunk(content, next(digests), chunk_offset, self.size, inner_offset)
            if not chunk_offset:
                self._tally.begin_file(self._entry.name, packed.member.is_stored)
                if self._entry.name == PREFETCH_LANDMARK:
                    self._prefetch_size = self.size
            # Files that share a member share its bytes by their sizes.
            written = written_left * size // files_left
            self._tally.add_chunk(size, written)
            files_left -= size
            written_left -= written
        self.note(packed.content, packed.member.content)

    def note(self, content: bytes | bytearray, written: bytes) -> None:
        """Bytes of the tar, and those of the blob that they have become."""
        self._diff_id.update(content)
        self._uncompressed_size += len(content)
        self._digest.update(written)
        self.size += len(written)

    def result(self, toc_digest: Digest) -> WrittenLayer:
        """All of it, after the footer."""
        return WrittenLayer(
            Digest("sha256", self._digest.hexdigest()),
            self.size,
            Digest("sha256", self._diff_id.hexdigest()),
            self._uncompressed_size,
            toc_digest,
            self._prefetch_size,
            self._tally.rows(),
        )


def _ustar_header(name: bytes, size: int) -> bytes:
    """The header of a regular file, its mode, owner and time 0 as stargz-snapshotter has them."""
    numbers = (b"%07o" % 0, b"%07o" % 0, b"%07o" % 0, b"%011o" % size, b"%011o" % 0)
    header = bytearray(_USTAR.pack(name, *numbers, b" " * 8, b"0", b"", b"ustar\00000"))
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


def _footer(toc_offset: int) -> bytes:
    """The last 51 bytes, byte by byte in :mod:`headstart.content.estargz.footer`."""
    return b"".join(
        (
            b"\x1f\x8b\x08\x04\0\0\0\0\0\xff",
            b"\x1a\0SG\x16\0%016xSTARGZ" % toc_offset,
            b"\x01\0\0\xff\xff" + bytes(8),
        )
    )
