"""Writes the compressed members of an eStargz or zstd:chunked layer as they come, in any order.

Each chunk is held against its chunkDigest; the blocks of which every chunk is verified are
published. What is no file's contents goes to the framing.
"""

import itertools
import threading
from collections.abc import Callable, Iterator

import deflate

from headstart.content.digest import Digest
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.errors import LayerRefused
from headstart.store.geometry import MIB
from proxy.fill.layers.framing import FrameFile, RegionFraming
from proxy.fill.layers.inflating import PIECE_SIZE, inflate
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.regions import Region, Regions
from proxy.fill.layers.source import CompressedBytes, SourceFailed

LARGEST_AT_ONCE = 8 * MIB
"""Uncompressed bytes of a member that libdeflate may inflate at once; larger ones are streamed."""
_GZIP = b"\x1f\x8b\x08"
_GZIP_TRAILER = 8


class MemberWriter:
    """Brings a layer's regions to its files; different regions in different threads at once."""

    def __init__(
        self,
        source: CompressedBytes,
        regions: Regions,
        compression: str,
        files: LayerFiles,
        *,
        caps: LayerCaps = DEFAULT_CAPS,
        name_of: Callable[[int], str] = "chunk {}".format,
    ) -> None:
        """``compression``: ``gzip`` or ``zstd``; ``name_of`` names a chunk's file in errors.

        Goes on where an earlier one ended on the same files. Raises OSError.
        """
        self.regions = regions
        self.files = files
        self._source = source
        self._compression = compression
        self._name_of = name_of
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._framing_left = caps.expanded_limit(source.size)
        self.frame = FrameFile(files.frame_path, len(regions.regions), files.count)
        chunks = regions.chunks
        self._verified = bytearray(len(chunks))
        begun = files.map is not None and files.map.present() > 0
        for number, chunk in enumerate(chunks if begun else ()):
            here = files.available(chunk.device_offset, chunk.size)
            self._verified[number] = here >= chunk.size
        for start, stop in regions.gaps(files.size):
            self._publish(start, stop)

    # --- what is here ---

    def done(self, region: int) -> bool:
        """Whether all chunks of a region are published, and its framing is kept."""
        return region in self.frame and all(
            self._verified[number] for number in self.regions.regions[region].chunks
        )

    def missing(self) -> Iterator[int]:
        """The regions that are not done, in the blob's order."""
        return (region for region in range(len(self.regions.regions)) if not self.done(region))

    # --- bringing a region ---

    def write(self, region: int) -> bool:
        """Inflate, verify and write a region; False when it is done already or another thread's.

        Blocks until its compressed bytes are here. Raises LayerRefused, SourceFailed, OSError.
        """
        with self._lock:
            if region in self._taken or self.done(region):
                return False
            self._taken.add(region)
        try:
            self._bring(region)
        finally:
            with self._lock:
                self._taken.discard(region)
        return True

    def _bring(self, number: int) -> None:
        region = self.regions.regions[number]
        receiver = _RegionReceiver(self, region, self.frame.begin(number))
        for piece in self._inflated(region):
            receiver.take(piece)
        receiver.finish()

    def verified(self, number: int) -> bool:
        """Whether a chunk has been written and held against its digest."""
        return bool(self._verified[number])

    def name_of(self, number: int) -> str:
        """Which file a chunk belongs to."""
        return self._name_of(number)

    def count_framing(self, length: int) -> None:
        """Bound what the framing of all regions takes. Raises LayerRefused."""
        with self._lock:
            self._framing_left -= length
            if self._framing_left < 0:
                raise LayerRefused("it expands to more than a layer may")

    def publish_chunks(self, numbers: list[int]) -> None:
        """Chunks have been written and verified: show readers the blocks that are whole by them."""
        with self._lock:
            for number in numbers:
                self._verified[number] = 1
            runs = self.regions.ready_blocks(numbers, self._verified)
        for start, stop in runs:
            self._publish(start, stop)

    def _publish(self, start: int, stop: int) -> None:
        for extent in self.files.publish(start, stop):
            self.files.set_blake3(extent, self.files.blake3_of(extent))

    # --- compressed bytes ---

    def _inflated(self, region: Region) -> Iterator[memoryview]:
        if self._compression == "gzip" and region.stop - region.start <= LARGEST_AT_ONCE:
            compressed = self._read(region.start, region.stop)
            at_once = _inflate_member(compressed)
            if at_once is not None:
                return iter((memoryview(at_once),))
            pieces: Iterator[memoryview] = iter((compressed,))
        else:
            starts = range(region.start, region.stop, PIECE_SIZE)
            pieces = (self._read(start, min(start + PIECE_SIZE, region.stop)) for start in starts)
        return map(memoryview, inflate(self._compression, pieces))

    def _read(self, start: int, stop: int) -> memoryview:
        target = memoryview(bytearray(stop - start))
        filled = 0
        while filled < len(target):
            count = self._source.read_into(start + filled, target[filled:])
            if count <= 0:
                raise SourceFailed(f"the blob ends at byte {start + filled}")
            filled += count
        return target

    def close(self) -> None:
        """Close the framing; the files are their owner's."""
        self.frame.close()


class _RegionReceiver:
    """Takes what a region inflates to: framing, chunk, framing, chunk ..."""

    def __init__(self, writer: MemberWriter, region: Region, framing: RegionFraming) -> None:
        self._writer = writer
        self._framing = framing
        self._waiting = itertools.chain(region.chunks)
        self._position = 0
        self._chunk = -1
        self._from = 1 << 62
        self._to = 1 << 62
        self._hasher = Digest.of(b"").hasher()
        self._finished: list[int] = []
        self._next()

    def _next(self) -> None:
        """The next chunk is waited for, or the end."""
        number = next(self._waiting, -1)
        self._chunk = number
        if number < 0:
            self._from = self._to = 1 << 62
            return
        chunk = self._writer.regions.chunks[number]
        self._from = chunk.inner_offset
        self._to = chunk.inner_offset + chunk.size
        self._hasher = Digest.parse(chunk.digest).hasher()

    def take(self, piece: memoryview) -> None:
        """The next uncompressed bytes. Raises LayerRefused, OSError."""
        done, length = 0, len(piece)
        while done < length:
            if self._position < self._from:
                count = min(length - done, self._from - self._position, PIECE_SIZE)
                self._writer.count_framing(count)
                self._framing.add(piece[done : done + count])
            else:
                count = min(length - done, self._to - self._position)
                self._write(piece[done : done + count])
            done += count
            self._position += count
            while self._position == self._to:
                self._end_chunk()

    def _write(self, payload: memoryview) -> None:
        if self._writer.verified(self._chunk):
            return
        self._hasher.update(payload)
        chunk = self._writer.regions.chunks[self._chunk]
        offset = chunk.device_offset + self._position - self._from
        self._writer.files.write(offset, [payload])

    def _end_chunk(self) -> None:
        number = self._chunk
        if not self._writer.verified(number):
            chunk = self._writer.regions.chunks[number]
            algorithm = chunk.digest.partition(":")[0]
            if f"{algorithm}:{self._hasher.hexdigest()}" != chunk.digest:
                raise LayerRefused(
                    f"the bytes of {self._writer.name_of(number)} at {chunk.inner_offset} of the"
                    f" member at {chunk.start} do not have its chunkDigest {chunk.digest}"
                )
            self._finished.append(number)
        self._next()

    def finish(self) -> None:
        """All has come. Raises LayerRefused when a chunk has not, OSError."""
        if self._chunk >= 0:
            raise LayerRefused(
                f"a compressed member ends before the bytes of {self._writer.name_of(self._chunk)}"
            )
        self._writer.publish_chunks(self._finished)
        self._framing.finish()


def _inflate_member(compressed: memoryview) -> bytearray | None:
    """What a single, not too large gzip member inflates to; None: it is to be streamed."""
    stored = bytes(compressed)
    if len(stored) < _GZIP_TRAILER or stored.find(_GZIP, 1) > 0:
        # It may be two members, of which libdeflate would tell the first one only.
        return None
    size = int.from_bytes(stored[-4:], "little")
    if size > LARGEST_AT_ONCE:
        return None
    try:
        inflated: bytearray = deflate.gzip_decompress(stored, size)
    except deflate.DeflateError:
        # Damage, or something at its end: streaming tells.
        return None
    return inflated if len(inflated) == size else None
