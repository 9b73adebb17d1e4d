"""Layers in chunks, as eStargz and zstd:chunked have them, cut by hand from a tar."""

import gzip
import io
import tarfile
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

import zstandard

from headstart.content.digest import Digest
from headstart.content.erofs import DeviceGeometry, build
from headstart.content.estargz.chunks import Chunk, ChunkTable
from headstart.content.estargz.footer import FRAME_HEADER_SIZE, TocLocation
from headstart.content.estargz.toc import Toc
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.placement import Placement
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree
from headstart.store.geometry import UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.layers.diff_id_check import DiffIdCheck
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles, Room
from proxy.fill.layers.members import MemberWriter
from tests.fill.layers.making import Arriving

CHUNK_SIZE = 100_000
TOC_MEMBER = b"what a TOC's own member inflates to, beyond the archive's end"

Compression = Literal["gzip", "zstd"]


@dataclass(slots=True)
class ChunkedLayer:
    """A blob, and all that a TOC says of it; ``starts`` are of its members."""

    blob: bytes
    tar: bytes
    starts: list[int]
    chunks: list[Chunk]
    tree: LayerTree
    placement: Placement
    location: TocLocation
    stripes: int
    extent_size: int

    @property
    def digest(self) -> Digest:
        return Digest.of(self.blob)

    @property
    def diff_id(self) -> Digest:
        return Digest.of(self.tar)

    def toc(self) -> Toc:
        """As it is read from the blob."""
        table = table_of(self.starts, self.location.tar_stop, self.chunks)
        if self.location.compression == "gzip":
            table.begin_member(self.location.offset)
            table.end(self.location.stop)
        return Toc(self.tree, table, self.location, self.placement, None, False, None)

    def create(self, layout: Layout, room: Room = NO_ACCOUNT) -> LayerFiles:
        """Its files, mountable, nothing here yet."""
        size = self.placement.device_size
        files = LayerFiles.create(layout, self.digest, size, self.extent_size, room)
        geometry = DeviceGeometry(size, self.extent_size, self.stripes)
        files.write_meta(build(self.tree.root, geometry))
        return files

    def with_last_member(self, stored: bytes) -> "ChunkedLayer":
        """The same with other compressed bytes for the last member that has a file."""
        start, stop = self.starts[-1], self.location.tar_stop
        blob = self.blob[:start] + stored + self.blob[stop:]
        moved = len(blob) - len(self.blob)
        location = replace(self.location, offset=self.location.offset + moved, blob_size=len(blob))
        return replace(self, blob=blob, location=location)

    def writer(self, files: LayerFiles, source: Arriving | None = None) -> MemberWriter:
        return MemberWriter(source or Arriving(self.blob), self.toc(), files)


def table_of(starts: list[int], stop: int, chunks: list[Chunk]) -> ChunkTable:
    """A table of these chunks, not checked at all."""
    table = ChunkTable()
    waiting = iter(chunks)
    chunk = next(waiting, None)
    for start in starts:
        table.begin_member(start)
        while chunk is not None and chunk.start == start:
            table.append(chunk.device_offset, chunk.size, chunk.inner_offset, chunk.digest)
            chunk = next(waiting, None)
    assert chunk is None
    table.end(stop)
    return table


def chunked(
    tar: bytes,
    *,
    compression: Compression = "gzip",
    stripes: int = 1,
    extent_size: int = 4 * UNIT_SIZE,
    chunk_size: int = CHUNK_SIZE,
    pack: int = 0,
) -> ChunkedLayer:
    """Each chunk a member of its own, with what follows it; up to ``pack`` bytes share one."""
    placement = Placement(extent_size, stripes)
    tree = LayerTree()
    # Every chunk: its position in the tar, its size, its place on the device.
    pieces: list[tuple[int, int, int]] = []
    contents = iter(_contents(tar))
    for found in TarParser().feed(memoryview(tar)):
        if isinstance(found, Entry):
            regular = found.kind is EntryKind.REGULAR and found.size > 0
            offset = placement.place(found.size) if regular else 0
            tree.add(found, offset)
            if regular:
                start = next(contents)
                pieces += [
                    (start + inner, min(chunk_size, found.size - inner), offset + inner)
                    for inner in range(0, found.size, chunk_size)
                ]
    tree.finish()
    groups: list[list[tuple[int, int, int]]] = []
    for piece in pieces:
        if groups and piece[0] + piece[1] - groups[-1][0][0] <= pack:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    compress = _gzip if compression == "gzip" else zstandard.compress
    blob = io.BytesIO()
    begins = [group[0][0] for group in groups] + [len(tar)]
    blob.write(compress(tar[: begins[0]]))
    starts, chunks = [0], []
    for number, group in enumerate(groups):
        begin, end = begins[number : number + 2]
        starts.append(blob.tell())
        blob.write(compress(tar[begin:end]))
        for position, length, device_offset in group:
            digest = sha256(tar[position : position + length]).digest()
            place = starts[-1], blob.tell(), position - begin
            chunks.append(Chunk(device_offset, length, *place, digest))
    offset = blob.tell()
    toc = compress(TOC_MEMBER)
    if compression == "gzip":
        tar += TOC_MEMBER
    else:
        offset += FRAME_HEADER_SIZE
        blob.write(b"\x50\x2a\x4d\x18" + len(toc).to_bytes(4, "little"))
    blob.write(toc)
    blob.write(b"footer")
    content = blob.getvalue()
    location = TocLocation(compression, offset, len(toc), len(content))
    return ChunkedLayer(
        content, tar, starts, chunks, tree, placement, location, stripes, extent_size
    )


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def _contents(tar: bytes) -> list[int]:
    """Where the contents of the files that have any begin."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [one.offset_data for one in archive if one.isreg() and one.size]


def check_of(
    layer: ChunkedLayer, writer: MemberWriter, diff_id: Digest | None = None
) -> DiffIdCheck:
    """The check of a layer against its diff ID, or another."""
    return DiffIdCheck(writer, diff_id or layer.diff_id)


def run(check: DiffIdCheck) -> None:
    """Advance to the end, a little at a time."""
    while not check.advance(200_000):
        assert not check.waits()


def brought(layer: ChunkedLayer, layout: Layout) -> tuple[LayerFiles, MemberWriter]:
    """All of it written, in order."""
    files = layer.create(layout)
    writer = layer.writer(files)
    for member in list(writer.missing()):
        writer.write(member)
    return files, writer
