"""Whether an eStargz layer is what its diff ID says, and its TOC says what its tar says.

One pass over framing and data device gives the tar stream again, in slices, so that it can wait
for whatever is more urgent.
"""

from collections.abc import Iterator

from headstart.content.digest import Digest
from headstart.content.estargz.whole_layer import WholeLayer
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.errors import LayerRefused
from headstart.store.geometry import MIB
from proxy.fill.layers.members import MemberWriter

PIECE_SIZE = MIB
SLICE_SIZE = 16 * MIB


class DiffIdCheck:
    """One pass; advanced by one thread at a time."""

    def __init__(
        self, writer: MemberWriter, diff_id: Digest, caps: LayerCaps = DEFAULT_CAPS
    ) -> None:
        """Of the layer that ``writer`` writes."""
        self._writer = writer
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._whole = WholeLayer(writer.toc, caps)
        self.member = 0
        """The members before this one have been read."""
        self._reading: Iterator[memoryview] | None = None

    def advance(self, slice_size: int = SLICE_SIZE) -> bool:
        """Read about ``slice_size`` bytes more; True when all was right and is marked verified.

        False: call it again, at once or, when it :meth:`waits`, once :attr:`member` is done.
        Blocks. Raises LayerRefused when the layer is not what its diff ID says, or its TOC says
        something else than its tar; OSError.
        """
        members = self._writer.chunks.members
        left = slice_size
        while left > 0 and self.member < members:
            if self._reading is None:
                if not self._writer.done(self.member):
                    return False
                self._reading = self._pieces(self.member)
            piece = next(self._reading, None)
            if piece is None:
                self._reading = None
                self.member += 1
                continue
            self._hasher.update(piece)
            self._whole.feed(self.member, piece)
            left -= len(piece)
        if self.member < members:
            return False
        self._end()
        return True

    def waits(self) -> bool:
        """Whether it cannot go on before :attr:`member` is done."""
        return (
            self._reading is None
            and self.member < self._writer.chunks.members
            and not self._writer.done(self.member)
        )

    def _end(self) -> None:
        found = f"{self._diff_id.algorithm}:{self._hasher.hexdigest()}"
        if found != str(self._diff_id):
            raise LayerRefused(f"its tar has the digest {found}, not the diff ID {self._diff_id}")
        self._whole.close()
        self._writer.files.mark_verified()

    def _pieces(self, member: int) -> Iterator[memoryview]:
        """What a member inflates to, out of the framing and the device."""
        frame, chunks = self._writer.frame, self._writer.chunks
        framed = 0
        for span in chunks.spans(member):
            if span.chunk is not None:
                chunk = chunks.chunk(span.chunk)
                yield from self._payload(chunk.device_offset, chunk.size)
                continue
            stop = frame.length(member) if span.stop is None else framed + span.stop - span.start
            while framed < stop:
                piece = frame.read(member, framed, min(PIECE_SIZE, stop - framed))
                if not piece:
                    raise OSError(f"{self._writer.files.frame_path} has not all of its framing")
                framed += len(piece)
                yield memoryview(piece)

    def _payload(self, offset: int, size: int) -> Iterator[memoryview]:
        while size:
            buffer = memoryview(bytearray(min(PIECE_SIZE, size)))
            count = self._writer.files.read_into(offset, buffer)
            if count == 0:
                raise OSError(f"the data device ends before byte {offset}")
            yield buffer[:count]
            offset += count
            size -= count
