"""Writes the members of an eStargz or zstd:chunked layer as they come, in any order.

Each chunk is held against its chunkDigest; the blocks of which every chunk is verified are
published. What is no file's contents goes to the framing.
"""

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import sha256
from operator import sub
from typing import TYPE_CHECKING

import deflate

from headstart.content.estargz.chunks import Chunk, Member
from headstart.content.estargz.toc import Toc
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from headstart.content.layer.names import shown
from headstart.store.geometry import MIB
from headstart.store.layer_map import BLOCK_SIZE
from proxy.fill.layers.device_writer import DeviceWriter
from proxy.fill.layers.framing import FrameFile, MemberFraming
from proxy.fill.layers.inflating import PIECE_SIZE, inflate
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.ready_blocks import gaps, ready_blocks
from proxy.fill.layers.source import CompressedBytes, SourceFailed

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

LARGEST_AT_ONCE = 8 * MIB
"""Uncompressed bytes of a member that libdeflate may inflate at once; larger ones are streamed."""
_GZIP = b"\x1f\x8b\x08"
_GZIP_TRAILER = 8


class MemberWriter:
    """Brings a layer's members to its files; different members in different threads at once."""

    def __init__(
        self,
        source: CompressedBytes,
        toc: Toc,
        files: LayerFiles,
        *,
        caps: LayerCaps = DEFAULT_CAPS,
    ) -> None:
        """``files`` were created for ``toc.device_size`` bytes.

        Goes on where an earlier one ended on the same files. Raises OSError.
        """
        self.toc = toc
        self.chunks = toc.chunks
        self.files = files
        self._source = source
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._done = bytearray(self.chunks.members)
        self._framing_left = caps.expanded_limit(source.size)
        self._starts = array("Q", (self.chunks.member(n).start for n in range(self.chunks.members)))
        self.largest_member = max(
            map(sub, [*self._starts[1:], self.chunks.stop], self._starts), default=0
        )
        """Compressed bytes of the largest member."""
        self.frame = FrameFile(files.frame_path, self.chunks.members, self._count_framing)
        self._verified = bytearray(len(self.chunks))
        if files.map is not None and files.map.present():
            self._find_verified()
            self._find_done()
        self.left = self._done.count(0)
        """How many members are not done."""
        for start, stop in gaps(self.chunks, files.size):
            self._publish(start, stop)

    # --- what is here ---

    def _find_verified(self) -> None:
        """Which chunks an earlier writer has brought."""
        for number in range(len(self.chunks)):
            # A member's framing comes after its chunks; a block that two of them share may still
            # wait for the other one's, and so be no proof.
            chunk = self.chunks.chunk(number)
            self._verified[number] = (
                self.frame.of_this_boot(self.chunks.member_of(number))
                or self.files.available(chunk.device_offset, chunk.size) >= chunk.size
            )

    def _find_done(self) -> None:
        """The members of which all chunks are published, and the framing is kept."""
        for member in range(self.chunks.members):
            if member in self.frame:
                numbers = self.chunks.member(member).chunks
                verified = self._verified.count(1, numbers.start, numbers.stop)
                self._done[member] = verified == len(numbers)

    def verified(self, chunk: int) -> bool:
        """Whether a chunk has been written and held against its digest."""
        return bool(self._verified[chunk])

    def done(self, member: int) -> bool:
        """Whether all chunks of a member are published, and its framing is kept."""
        return bool(self._done[member])

    def missing(self) -> Iterator[int]:
        """The members that are not done, in the blob's order."""
        return (member for member in range(self.chunks.members) if not self.done(member))

    # A walk over a million members takes seconds: those that follow find a member by one call.

    def next_missing(self, first: int, stop: int | None = None) -> int | None:
        """The first member from ``first`` on, before ``stop``, that is not done."""
        found = self._done.find(0, first, self.chunks.members if stop is None else stop)
        return None if found < 0 else found

    def last_missing(self, first: int, stop: int) -> int | None:
        """The last member from ``first`` on, before ``stop``, that is not done."""
        found = self._done.rfind(0, first, stop)
        return None if found < 0 else found

    def next_done(self, first: int) -> int:
        """The first member from ``first`` on that is done; their number when none is."""
        found = self._done.find(1, first)
        return self.chunks.members if found < 0 else found

    def beginning_before(self, offset: int) -> int:
        """How many members begin before this byte of the blob."""
        return bisect_left(self._starts, offset)

    def members_covering(self, device_start: int, device_stop: int) -> range:
        """The members that these bytes of the data device wait for, and those in between."""
        first = device_start // BLOCK_SIZE * BLOCK_SIZE
        stop = -(-device_stop // BLOCK_SIZE) * BLOCK_SIZE
        numbers = self.chunks.chunks_covering(first, stop)
        if not numbers:
            return range(0)
        return range(self.chunks.member_of(numbers[0]), self.chunks.member_of(numbers[-1]) + 1)

    def members_within(self, start: int, stop: int) -> range:
        """The members that lie whole within bytes ``start`` to ``stop`` of the blob."""
        first = bisect_left(self._starts, start)
        last = bisect_left(self._starts, stop)
        if last > first and self.chunks.member(last - 1).stop > stop:
            last -= 1
        return range(first, last)

    # --- bringing a member ---

    def write(self, member: int, source: CompressedBytes | None = None) -> bool:
        """Inflate, verify and write a member; False when it is done already or another thread's.

        Its bytes are read from ``source`` where they are not to come from the writer's own. Blocks
        until they are here. Raises LayerRefused, SourceFailed, OSError.
        """
        with self._lock:
            if member in self._taken or self.done(member):
                return False
            self._taken.add(member)
        try:
            receiver = _MemberReceiver(self, member)
            for piece in self._inflated(self.chunks.member(member), source or self._source):
                receiver.take(piece)
            receiver.finish()
            with self._lock:
                self._done[member] = 1
                self.left -= 1
        finally:
            with self._lock:
                self._taken.discard(member)
        return True

    def _count_framing(self, length: int) -> None:
        """Bound what the framing of all members takes. Raises LayerRefused, OSError."""
        self._framing_left -= length
        if self._framing_left < 0:
            raise LayerRefused("it expands to more than a layer may")
        self.files.count(length)

    def publish_chunks(self, written: dict[int, Chunk]) -> None:
        """Chunks have been written and verified: show readers the blocks that are ready by them."""
        with self._lock:
            for number in written:
                self._verified[number] = 1
            runs = ready_blocks(self.chunks, written, self._verified)
        for start, stop in runs:
            self._publish(start, stop)

    def _publish(self, start: int, stop: int) -> None:
        for extent in self.files.publish(start, stop):
            self.files.set_blake3(extent, self.files.blake3_of(extent))

    # --- compressed bytes ---

    def _inflated(self, member: Member, source: CompressedBytes) -> Iterator[memoryview]:
        compression = self.toc.location.compression
        if compression == "gzip" and member.stop - member.start <= LARGEST_AT_ONCE:
            compressed = _read(source, member.start, member.stop)
            at_once = inflate_member(compressed, self._least_size(member))
            if at_once is not None:
                return iter((memoryview(at_once),))
            pieces: Iterator[memoryview] = iter((memoryview(compressed),))
        else:
            starts = range(member.start, member.stop, PIECE_SIZE)
            pieces = (
                memoryview(_read(source, start, min(start + PIECE_SIZE, member.stop)))
                for start in starts
            )
        return map(memoryview, inflate(compression, pieces))

    def _least_size(self, member: Member) -> int:
        """Bytes that a member inflates to at least; 0 when no chunk says so."""
        if not member.chunks:
            return 0
        last = self.chunks.chunk(member.chunks[-1])
        return last.inner_offset + last.size

    def close(self) -> None:
        """Close the framing; the files are their owner's."""
        self.frame.close()


def _read(source: CompressedBytes, start: int, stop: int) -> bytearray:
    read = bytearray(stop - start)
    with memoryview(read) as target:
        filled = 0
        while filled < len(target):
            count = source.read_into(start + filled, target[filled:])
            if count <= 0:
                raise SourceFailed(f"the blob ends at byte {start + filled}")
            filled += count
    return read


class _MemberReceiver:
    """Takes what a member inflates to: framing, chunk, framing, chunk ..."""

    def __init__(self, writer: MemberWriter, member: int) -> None:
        self._writer = writer
        self._framing: MemberFraming = writer.frame.begin(member)
        self._device = DeviceWriter(writer.files)
        self._spans = writer.chunks.spans(member)
        self._written: dict[int, Chunk] = {}
        self._position = 0
        self._hasher: Hash | None = None
        self._next()

    def _next(self) -> None:
        """What follows: a chunk that is wanted, one that is here already, or framing."""
        self._span = next(self._spans)
        self._chunk: Chunk | None = None
        number = self._span.chunk
        if number is None:
            return
        if self._writer.verified(number):
            # Nothing may be put between its neighbours.
            self._device.flush()
            return
        self._chunk = self._writer.chunks.chunk(number)
        self._device.begin(self._chunk.device_offset)
        self._hasher = None

    def take(self, piece: memoryview) -> None:
        """The next uncompressed bytes. Raises LayerRefused, OSError."""
        done, length = 0, len(piece)
        while done < length:
            span = self._span
            stop = length
            if span.stop is not None:
                stop = min(length, done + span.stop - self._position)
            given = piece[done:stop]
            if self._chunk is not None:
                if self._hasher is None:
                    # In one call, where all of a chunk is here: what it costs is turns of the
                    # interpreter's lock.
                    self._hasher = sha256(given)
                else:
                    self._hasher.update(given)
                self._device.add(given)
            elif span.chunk is None:
                self._take_framing(given)
            self._position += stop - done
            done = stop
            if self._position == span.stop:
                self._end_span()
        self._device.flush()

    def _take_framing(self, given: memoryview) -> None:
        for start in range(0, len(given), PIECE_SIZE):
            self._framing.add(given[start : start + PIECE_SIZE])

    def _end_span(self) -> None:
        number, chunk = self._span.chunk, self._chunk
        if number is not None and chunk is not None:
            if self._hasher is None or self._hasher.digest() != chunk.digest:
                name = file_at(self._writer.toc.tree.root, chunk.device_offset)
                raise LayerRefused(
                    f"the bytes of {shown(name)} in the member at {chunk.start} of its blob"
                    f" do not have their chunkDigest sha256:{chunk.digest.hex()}"
                )
            self._written[number] = chunk
        self._next()

    def finish(self) -> None:
        """All has come. Raises LayerRefused when a chunk has not, OSError."""
        if self._span.stop is not None:
            raise LayerRefused("a member of its blob ends in or before a chunk that it should have")
        self._writer.publish_chunks(self._written)
        self._framing.finish()


def inflate_member(compressed: bytes | bytearray, least: int = 0) -> bytearray | None:
    """What a single, not too large gzip member inflates to; None: it is to be streamed.

    ``least``: how many bytes that are if it is the only one.
    """
    if len(compressed) < _GZIP_TRAILER:
        return None
    if not least and compressed.find(_GZIP, 1) > 0:
        # It may be two members that are alike, of which libdeflate would tell the first one only.
        return None
    size = int.from_bytes(compressed[-4:], "little")
    if not least <= size <= LARGEST_AT_ONCE:
        return None
    try:
        inflated: bytearray = deflate.gzip_decompress(compressed, size)
    except deflate.DeflateError:
        # Damage, or something at its end: streaming tells.
        return None
    return inflated if len(inflated) == size else None


def file_at(root: Inode, device_offset: int) -> bytes:
    """The path of the file whose contents are at a byte of the data device; for messages."""
    waiting = [(b"", root)]
    while waiting:
        path, inode = waiting.pop()
        if inode.size and inode.offset <= device_offset < inode.offset + inode.size:
            return path.lstrip(b"/")
        waiting.extend((path + b"/" + name, child) for name, child in inode.children.items())
    return b"a file that another one has replaced"
