"""Makes the layer image of an ordinary layer while its blob arrives, in stream order.

Four threads: one inflates, two take the digests of the compressed and of the uncompressed bytes,
the caller's parses the tar and writes. What they do on large pieces drops the interpreter's lock.
"""

import itertools
import threading
from collections.abc import Iterator

from headstart.content.digest import Digest
from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.placement import Placement
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree
from proxy.fill.layers.device_writer import DeviceWriter, ExtentDigests
from proxy.fill.layers.flow import Channel, Flow, Stopped
from proxy.fill.layers.inflating import MAGIC_SIZE, PIECE_SIZE, compression_of, inflate
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.source import (
    CompressedBytes,
    LayerCancelled,
    SourceFailed,
    WrongBytes,
    check_cancelled,
)

__all__ = ["CompressedBytes", "LayerCancelled", "SourceFailed", "WrongBytes", "make_ordinary"]

Piece = bytes | memoryview


def make_ordinary(
    source: CompressedBytes,
    media_type: str,
    digest: Digest | None,
    diff_id: Digest,
    files: LayerFiles,
    *,
    caps: LayerCaps = DEFAULT_CAPS,
    cancelled: threading.Event,
) -> bytes | None:
    """Make the layer image of a blob; it is complete and verified when this returns. Blocks.

    Returns the name of a directory that its tar only implies, if there is one.

    ``files`` were created without a size. ``digest`` of the blob is None when the blob's bytes have
    been held against it already. Raises LayerRefused; SourceFailed, and of that WrongBytes where
    the bytes are not those of ``digest``, which is made sure of before a layer is refused;
    LayerCancelled within a fraction of a second after ``cancelled`` was set; OSError. After any of
    them nothing of it is on disk; to close ``files`` is the caller's.
    """
    try:
        return _Making(source, media_type, digest, diff_id, files, caps, cancelled).run()
    except BaseException:
        files.unlink()
        raise


class _Making:
    """One run of :func:`make_ordinary`."""

    def __init__(
        self,
        source: CompressedBytes,
        media_type: str,
        digest: Digest | None,
        diff_id: Digest,
        files: LayerFiles,
        caps: LayerCaps,
        cancelled: threading.Event,
    ) -> None:
        self._source = source
        self._media_type = media_type
        self._digest = digest
        self._diff_id = diff_id
        self._files = files
        self._caps = caps
        self._cancelled = cancelled
        self._flow = Flow(source.stop)
        self._compressed: Channel[Piece] = self._flow.channel()
        self._hashed: Channel[Piece] = self._flow.channel()
        self._parsed: Channel[Piece] = self._flow.channel()
        self._refusal: LayerRefused | None = None
        self._found: dict[str, str] = {}
        self._implied: bytes | None = None

    def run(self) -> bytes | None:
        """Start the threads, parse and write, and see whether the digests are right."""
        flow = self._flow
        flow.start("layer-inflate", self._inflate)
        flow.start("layer-diff-id", lambda: self._hash(self._hashed, self._diff_id, "diff_id"))
        if self._digest is not None:
            digest = self._digest
            flow.start("layer-digest", lambda: self._hash(self._compressed, digest, "digest"))
        try:
            self._parse_and_write()
        except Stopped:
            pass
        except BaseException as error:
            flow.fail(error)
        flow.join()
        return self._implied

    # --- the threads ---

    def _inflate(self) -> None:
        pieces = self._arriving()
        try:
            self._inflate_pieces(pieces)
        except LayerRefused as refusal:
            self._refuse(refusal)
        if self._refusal is not None:
            # Whether the layer or its bearer is to blame only the blob's digest says.
            for _ in pieces:
                pass
        for channel in (self._compressed, self._hashed, self._parsed):
            channel.end()

    def _inflate_pieces(self, pieces: Iterator[memoryview]) -> None:
        first = next(pieces, memoryview(b""))
        compression = compression_of(self._media_type, bytes(first[:MAGIC_SIZE]))
        limit = self._caps.expanded_limit(self._source.size)
        total = 0
        for inflated in inflate(compression, itertools.chain([first] if first else [], pieces)):
            total += len(inflated)
            if total > limit:
                raise LayerRefused(
                    f"it expands to more than {limit} bytes, from {self._source.size}"
                )
            if self._refusal is not None:
                return
            self._hashed.put(inflated)
            self._parsed.put(inflated)

    def _arriving(self) -> Iterator[memoryview]:
        """The blob's bytes in order, each piece in memory of its own."""
        source, position = self._source, 0
        while position < source.size:
            piece = memoryview(bytearray(min(PIECE_SIZE, source.size - position)))
            filled = 0
            while filled < len(piece):
                count = source.read_into(position + filled, piece[filled:])
                if count <= 0:
                    raise SourceFailed(f"the blob ends at byte {position + filled}")
                filled += count
            position += filled
            source.release(position)
            if self._digest is not None:
                self._compressed.put(piece)
            yield piece

    def _hash(self, channel: Channel[Piece], digest: Digest, name: str) -> None:
        hasher = digest.hasher()
        for piece in channel.items():
            hasher.update(piece)
        self._found[name] = f"{digest.algorithm}:{hasher.hexdigest()}"

    # --- the caller's thread ---

    def _refuse(self, refusal: LayerRefused) -> None:
        if self._digest is None:
            raise refusal
        self._refusal = self._refusal or refusal

    def _parse_and_write(self) -> None:
        tree = LayerTree(self._caps)
        placement = Placement(self._files.extent_size, self._files.stripes)
        digests = ExtentDigests(self._files.extent_size)
        writer = DeviceWriter(self._files, digests)
        parser = TarParser(self._caps)
        pieces = self._parsed.items(lambda: check_cancelled(self._cancelled))
        meta = b""
        try:
            for piece in pieces:
                if self._refusal is None:
                    _parse(piece, parser, tree, placement, writer)
            if self._refusal is None:
                parser.close()
                tree.finish()
                self._implied = tree.implied
                size = placement.device_size
                geometry = DeviceGeometry(size, self._files.extent_size, self._files.stripes)
                meta = build(tree.root, geometry)
        except LayerRefused as refusal:
            self._refuse(refusal)
            for _ in pieces:
                pass
        self._flow.join()
        self._judge()
        self._files.finish(size, digests.finish(size))
        self._files.write_meta(meta)
        self._files.mark_verified()

    def _judge(self) -> None:
        """Raises WrongBytes or LayerRefused unless everything is right."""
        if self._digest is not None and self._found["digest"] != str(self._digest):
            raise WrongBytes(f"{self._digest}: its bytes have the digest {self._found['digest']}")
        if self._refusal is not None:
            raise self._refusal
        if self._found["diff_id"] != str(self._diff_id):
            raise LayerRefused(
                f"its tar has the digest {self._found['diff_id']}, not the diff ID {self._diff_id}"
            )


def _parse(
    piece: Piece,
    parser: TarParser,
    tree: LayerTree,
    placement: Placement,
    writer: DeviceWriter,
) -> None:
    """Take the next piece of the tar; what it holds of contents is written when this returns."""
    for found in parser.feed(memoryview(piece)):
        if type(found) is memoryview:
            writer.add(found)
        elif isinstance(found, Entry):
            offset = 0
            if found.kind is EntryKind.REGULAR and found.size:
                offset = placement.place(found.size)
                writer.begin(offset)
            tree.add(found, offset)
    writer.flush()
