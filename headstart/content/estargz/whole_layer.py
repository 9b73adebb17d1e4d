"""Whether a whole layer is what its TOC has said: the same tree, the same contents.

The right diff ID alone does not say so: a TOC may give other names, modes or owners than the tar,
and may let a file's chunks be another file's, or bytes of a header. So the tar is parsed along the
chunks: each byte that is a file's has to be in the chunk that the TOC has for that file and place,
each other byte outside of all chunks, and the tree of the tar has to be the TOC's.
"""

from collections.abc import Iterator

from headstart.content.estargz.chunks import Span
from headstart.content.estargz.same_view import same_view
from headstart.content.estargz.toc import Toc
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree


class WholeLayer:
    """Takes the inflated members in order; the diff ID of the same bytes is the caller's to check.

    What lies in a chunk has to be the bytes of the data device, or checked against the chunk's
    digest: that is not done here.
    """

    def __init__(self, toc: Toc, caps: LayerCaps = DEFAULT_CAPS) -> None:
        self._toc = toc
        self._parser = TarParser(caps)
        self._tree = LayerTree(caps)
        self._member = -1
        self._spans: Iterator[Span] = iter(())
        self._span = Span(0, None, None)
        self._position = 0
        # A file whose header was read and whose first chunk has not come.
        self._waiting: Entry | None = None
        # Where on the data device the file in the middle of which the tar is goes on.
        self._device_offset = 0

    def feed(self, member: int, piece: memoryview) -> None:
        """The next inflated bytes of ``member``; those of the one before are over.

        A member that inflates to nothing may be left out. Raises LayerRefused; ValueError for a
        member that is over.
        """
        if member < self._member:
            raise ValueError(f"member {member} is over: {self._member} has begun")
        while member != self._member:
            self._end_member()
            self._member += 1
            self._spans = self._toc.chunks.spans(self._member)
            self._span = next(self._spans)
            self._position = 0
        while piece:
            stop = self._span.stop
            here = piece if stop is None else piece[: stop - self._position]
            if self._span.chunk is None:
                self._take_framing(here)
            else:
                self._take_chunk(here, self._span.chunk, self._position == self._span.start)
            self._position += len(here)
            piece = piece[len(here) :]
            if self._position == stop:
                self._span = next(self._spans)

    def close(self) -> None:
        """Say that the last member is over. Raises LayerRefused for the first difference."""
        self._end_member()
        chunks = self._toc.chunks
        if len(chunks) and self._member < chunks.member_of(len(chunks) - 1):
            raise LayerRefused("its members end before its last chunk")
        self._parser.close()
        self._tree.finish()
        difference = same_view(self._tree.root, self._toc.tree.root)
        if difference is not None:
            raise LayerRefused(f"its tar and its TOC differ: {difference}")

    def _end_member(self) -> None:
        if self._span.stop is not None:
            raise LayerRefused(
                f"member {self._member} ends in or before a chunk that it should have"
            )

    def _take_framing(self, piece: memoryview) -> None:
        for given in self._parser.feed(piece):
            if isinstance(given, memoryview):
                raise LayerRefused("its tar has bytes of a file where its TOC has no chunk")
            if given.kind is EntryKind.REGULAR and given.size:
                self._waiting = given
            else:
                self._tree.add(given)

    def _take_chunk(self, piece: memoryview, number: int, first: bool) -> None:
        if first:
            chunk = self._toc.chunks.chunk(number)
            if self._waiting is not None:
                self._tree.add(self._waiting, chunk.device_offset)
                self._waiting = None
            elif chunk.device_offset != self._device_offset:
                raise LayerRefused("its TOC has a chunk where another file's bytes go on")
            self._device_offset = chunk.device_offset
        taken = 0
        for given in self._parser.feed(piece):
            if isinstance(given, Entry):
                raise LayerRefused("its tar has a header where its TOC has a chunk")
            taken += len(given)
        if taken != len(piece):
            raise LayerRefused("its TOC has a chunk where its tar has no file")
        self._device_offset += taken
