"""A whole reader over the pure parts: opens layers, inflates members, fills a data device."""

import gzip
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from headstart.content.digest import Digest
from headstart.content.estargz.announced import AnnouncedToc, announced_toc
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.chunks import Member
from headstart.content.estargz.footer import TAIL_SIZE, TocLocation, parse_footer
from headstart.content.estargz.index_entry import index_entry
from headstart.content.estargz.toc import Toc, parse_toc
from headstart.content.estargz.toc_file import TocFile, read_toc
from headstart.content.estargz.whole_layer import WholeLayer
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.placement import Placement
from tests.content.estargz.writer import WrittenLayer

EXTENT = 32 << 20


@dataclass
class Opened:
    toc: Toc
    file: TocFile
    layer: WrittenLayer

    def inflated(self, member: Member) -> bytes:
        return inflated(self.layer.blob[member.start : member.stop], self.layer.compression)

    def members(self) -> Iterator[tuple[int, bytes]]:
        """Every member's number and inflated bytes."""
        for number in range(self.toc.chunks.members):
            yield number, self.inflated(self.toc.chunks.member(number))

    def device(self) -> bytearray:
        """The data device, every chunk checked against its digest."""
        device = bytearray(self.toc.device_size)
        table = self.toc.chunks
        for number, content in self.members():
            for index in table.member(number).chunks:
                chunk = table.chunk(index)
                payload = content[chunk.inner_offset : chunk.inner_offset + chunk.size]
                assert len(payload) == chunk.size
                assert hashlib.sha256(payload).digest() == chunk.digest
                device[chunk.device_offset : chunk.device_offset + chunk.size] = payload
        return device

    def verify(self, piece_size: int = 1 << 20) -> None:
        """Raises LayerRefused when the tar is not what the TOC says."""
        whole = WholeLayer(self.toc)
        for number, content in self.members():
            for start in range(0, len(content), piece_size):
                whole.feed(number, memoryview(content)[start : start + piece_size])
        whole.close()


def located(layer: WrittenLayer) -> tuple[TocLocation, AnnouncedToc]:
    announced = announced_toc(layer.annotations, len(layer.blob))
    assert announced is not None
    location = parse_footer(layer.blob[-TAIL_SIZE:], len(layer.blob))
    assert announced.location in (None, location)
    return location, announced


def opened(
    layer: WrittenLayer,
    *,
    caps: LayerCaps = DEFAULT_CAPS,
    toc_caps: TocCaps = DEFAULT_TOC_CAPS,
    stripes: int = 1,
) -> Opened:
    """All the steps up to a tree as an ordinary unpack shows it. Raises LayerRefused."""
    location, announced = located(layer)
    file = read_toc(layer.blob[location.offset : location.stop], location, announced, toc_caps)
    assert file.json == layer.toc
    placement = Placement(EXTENT, stripes)
    toc = parse_toc(file.json, announced.json_digest, location, placement, caps, toc_caps)
    if toc.tail is not None:
        start, stop, skip = toc.tail
        entry = index_entry([inflated(layer.blob[start:stop], "gzip")], skip, file)
        if entry is not None:
            toc.show_index(entry, file)
    return Opened(toc, file, layer)


def parsed(layer: WrittenLayer, caps: TocCaps = DEFAULT_TOC_CAPS) -> Toc:
    """The TOC alone. Raises LayerRefused."""
    location, _ = located(layer)
    expected = Digest.of(layer.toc)
    return parse_toc(layer.toc, expected, location, Placement(EXTENT, 1), toc_caps=caps)


def inflated(content: bytes, compression: str) -> bytes:
    """All members in a row."""
    if compression == "gzip":
        return gzip.decompress(content)
    reader = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(content), read_across_frames=True
    )
    return reader.read()
