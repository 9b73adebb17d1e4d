"""Layers in chunks, as eStargz and zstd:chunked have them, cut by hand from a tar."""

import gzip
import io
import tarfile
from dataclasses import dataclass, field

import zstandard

from headstart.content.digest import Digest
from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.placement import Placement
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree
from headstart.store.geometry import UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles, Room
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.regions import Chunk, Regions
from tests.fill.layers.making import Arriving

CHUNK_SIZE = 100_000


@dataclass(slots=True)
class ChunkedLayer:
    """A blob, and all that a TOC says of it."""

    blob: bytes
    tar: bytes
    chunks: list[Chunk]
    tree: LayerTree
    device_size: int
    compression: str
    stripes: int
    extent_size: int
    diff_id: Digest = field(init=False)

    def __post_init__(self) -> None:
        self.diff_id = Digest.of(self.tar)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.blob)

    @property
    def regions(self) -> Regions:
        return Regions(self.chunks, len(self.blob))

    def meta(self) -> bytes:
        geometry = DeviceGeometry(self.device_size, self.extent_size, self.stripes)
        return build(self.tree.root, geometry)

    def create(self, layout: Layout, room: Room = NO_ACCOUNT) -> LayerFiles:
        """Its files, mountable, nothing here yet."""
        files = LayerFiles.create(layout, self.digest, self.device_size, self.extent_size, room)
        files.write_meta(self.meta())
        return files

    def writer(self, files: LayerFiles, source: Arriving | None = None) -> MemberWriter:
        source = source or Arriving(self.blob)
        return MemberWriter(source, self.regions, self.compression, files)


def chunked(
    tar: bytes,
    *,
    compression: str = "gzip",
    stripes: int = 1,
    extent_size: int = 4 * UNIT_SIZE,
    chunk_size: int = CHUNK_SIZE,
    pack: int = 0,
) -> ChunkedLayer:
    """Each chunk a member of its own, with what follows it; up to ``pack`` bytes share one."""
    placement = Placement(extent_size, stripes)
    tree = LayerTree()
    parser = TarParser()
    # Cut points of the stream: (position, size, device offset) of every chunk.
    pieces: list[tuple[int, int, int]] = []
    stream = memoryview(tar)
    size = 0
    for found in parser.feed(stream):
        if isinstance(found, Entry):
            regular = found.kind is EntryKind.REGULAR and found.size > 0
            size = placement.place(found.size) if regular else 0
            tree.add(found, size)
            continue
        start = _position(found, stream)
        for inner in range(0, len(found), chunk_size):
            pieces.append((start + inner, min(chunk_size, len(found) - inner), size + inner))
    parser.close()
    tree.finish()
    compress = _gzip if compression == "gzip" else zstandard.compress
    blob = io.BytesIO()
    chunks: list[Chunk] = []
    groups: list[list[tuple[int, int, int]]] = []
    for piece in pieces:
        if groups and piece[0] + piece[1] - groups[-1][0][0] <= pack:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    first = groups[0][0][0] if groups else len(tar)
    blob.write(compress(tar[:first]))
    for number, group in enumerate(groups):
        begin = group[0][0]
        end = groups[number + 1][0][0] if number + 1 < len(groups) else len(tar)
        start = blob.tell()
        blob.write(compress(tar[begin:end]))
        for position, length, device_offset in group:
            digest = str(Digest.of(tar[position : position + length]))
            chunks.append(
                Chunk(device_offset, length, start, blob.tell(), position - begin, digest)
            )
    if compression == "gzip":
        # As the footer: a member without contents.
        blob.write(compress(b""))
    return ChunkedLayer(
        blob.getvalue(),
        tar,
        chunks,
        tree,
        placement.device_size,
        compression,
        stripes,
        extent_size,
    )


def _position(view: memoryview, whole: memoryview) -> int:
    import ctypes

    def address(of: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(of))

    raise NotImplementedError(address, view, whole)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def entries_changed(tar: bytes) -> list[tarfile.TarInfo]:
    """The headers of an archive."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmembers()
