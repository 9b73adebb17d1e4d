"""Which bytes of a tar go into which gzip member.

A member begins with a chunk; what follows it in the tar up to the next one (padding, headers) is
behind it in the same member, as stargz-snapshotter writes it. What comes before the first file with
contents is a member of its own. With ``pack`` small files in a row share one: ``innerOffset`` then
says where in it they begin.

A long row of entries without contents would make a member that hardly fits into memory: it is cut
into members without a chunk, which readers inflate with the one before.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from headstart.content.estargz.writing.options import WritingOptions
from headstart.content.estargz.writing.scan import ScannedEntry
from headstart.content.layer.caps import MIB
from headstart.content.layer.entry import Entry
from headstart.content.layer.tar_header import BLOCK_SIZE

PACKED_SIZE = 256 * 1024
"""A member takes another small file while it has no more uncompressed bytes than this."""

FRAMING_SIZE = 1 * MIB
"""Bytes of headers and padding behind the last chunk of a member.

Members without a chunk have half of it at most. So a reader that inflates only the first one of
several in a row never finds the size that the last one's trailer says.
"""


class Stretch(NamedTuple):
    """Bytes of the tar that is read."""

    offset: int
    size: int


Piece = Stretch | bytes
"""Bytes of the tar, or what is not in it."""


class PlannedEntry(NamedTuple):
    """An entry whose headers are bytes ``start`` to ``stop`` of the member, inflated."""

    entry: Entry
    start: int
    stop: int


class PlannedChunk(NamedTuple):
    """``size`` bytes of the last entry, from ``chunk_offset`` on, at ``inner_offset`` inflated."""

    chunk_offset: int
    inner_offset: int
    size: int


@dataclass(slots=True)
class MemberPlan:
    """A member to be written: what it is put together of, and what is in it in that order.

    The first ``files_size`` of its ``size`` bytes end with its last chunk.
    """

    pieces: list[Piece] = field(default_factory=list)
    items: list[PlannedEntry | PlannedChunk] = field(default_factory=list)
    size: int = 0
    files_size: int = 0

    def add(self, piece: Piece) -> None:
        """Put more bytes behind those that it has."""
        self.pieces.append(piece)
        self.size += piece.size if isinstance(piece, Stretch) else len(piece)

    def content(self, read: Callable[[int, int], bytes]) -> bytes:
        """Its bytes, not compressed. Raises ValueError when the tar has become shorter."""
        found: list[bytes] = []
        for piece in self.pieces:
            if isinstance(piece, Stretch):
                content = read(*piece)
                if len(content) != piece.size:
                    raise ValueError(
                        f"{len(content)} bytes were read at {piece.offset}, not {piece.size}:"
                        " give the tar that was scanned"
                    )
                found.append(content)
            else:
                found.append(piece)
        return b"".join(found)


class WrittenEntry(NamedTuple):
    """An entry with its headers and its contents, of ``entry.size`` bytes."""

    entry: Entry
    headers: Piece
    contents: Piece


def of_tar(scanned: ScannedEntry) -> WrittenEntry:
    """An entry that is as it is in the tar."""
    return WrittenEntry(
        scanned.entry,
        Stretch(scanned.headers_offset, scanned.headers_size),
        Stretch(scanned.content_offset, scanned.entry.size),
    )


def plan_members(entries: Iterable[WrittenEntry], options: WritingOptions) -> Iterator[MemberPlan]:
    """The members of all entries, in order, made while they are asked for.

    An entry whose contents are bytes, and not in the tar, has one chunk, the first of its member.
    """
    member = MemberPlan()
    has_chunk = False
    for entry, headers, contents in entries:
        size = headers.size if isinstance(headers, Stretch) else len(headers)
        if member.size - member.files_size + size > (
            FRAMING_SIZE if has_chunk else FRAMING_SIZE // 2
        ):
            if member.size:
                yield member
            member = MemberPlan()
            has_chunk = False
        member.items.append(PlannedEntry(entry, member.size, member.size + size))
        member.add(headers)
        joins = (
            options.pack
            and has_chunk
            and isinstance(contents, Stretch)
            and entry.size <= options.chunk_size
            and member.size + entry.size <= PACKED_SIZE
        )
        for start in range(0, entry.size, options.chunk_size):
            if not joins:
                yield member
                member = MemberPlan()
                has_chunk = True
            chunk_size = min(options.chunk_size, entry.size - start)
            member.items.append(PlannedChunk(start, member.size, chunk_size))
            member.add(
                Stretch(contents.offset + start, chunk_size)
                if isinstance(contents, Stretch)
                else contents
            )
            member.files_size = member.size
        if entry.size % BLOCK_SIZE:
            member.add(bytes(-entry.size % BLOCK_SIZE))
    yield member
