"""A TOC: the layer's tree and its chunks, known before the layer's contents are here.

What is believed of it: names, attributes and digests are those that the manifest's author has
announced, under the digest of the whole TOC. That they are also what the layer's tar says, and so
what an ordinary pull would show, is known only when the tar is whole (:mod:`.whole_layer`).

The tree is what an ordinary unpack of the same blob shows, landmarks included: stargz-snapshotter
hides those. An eStargz tar may go on to the TOC's own file, ``stargz.index.json``, which an
ordinary unpack shows then; the TOC does not say whether it does (:mod:`.index_entry`).

Times have whole seconds, rounded, in TOCs of eStargz.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from headstart.content.digest import Digest
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.chunks import ChunkTable
from headstart.content.estargz.file_chunks import FileChunks
from headstart.content.estargz.footer import TocLocation
from headstart.content.estargz.toc_entry import layer_entry, number
from headstart.content.estargz.toc_file import TocFile
from headstart.content.estargz.toc_json import read_entries
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import clean
from headstart.content.layer.placement import Placement
from headstart.content.layer.tar_header import BLOCK_SIZE
from headstart.content.layer.tree import LayerTree

PREFETCH_LANDMARK = b".prefetch.landmark"
NO_PREFETCH_LANDMARK = b".no.prefetch.landmark"
"""Files of one byte in the layer's root (stargz-snapshotter, docs/estargz.md)."""


class Tail(NamedTuple):
    """What has to be inflated to see whether the tar ends before the TOC's own file.

    Bytes ``start`` to ``stop`` of the blob; the first ``skip`` of them inflated are the last file
    and its padding.
    """

    start: int
    stop: int
    skip: int


@dataclass(slots=True)
class Toc:
    """``tree`` is finished. ``placement`` has given every file its place on the data device.

    ``landmark_offset``: members that begin before this offset of the blob are wanted at start;
    None when no landmark says so. ``no_prefetch``: a landmark says that none are.
    """

    tree: LayerTree
    chunks: ChunkTable
    location: TocLocation
    placement: Placement
    landmark_offset: int | None
    no_prefetch: bool
    tail: Tail | None
    """None where the TOC is no part of the tar: in zstd:chunked."""

    @property
    def device_size(self) -> int:
        """Bytes of the data device."""
        return self.placement.device_size

    def show_index(self, entry: Entry, file: TocFile) -> None:
        """Add the TOC's own file to the tree, with the TOC as its one chunk. Raises LayerRefused.

        ``entry`` is what ``index_entry`` has found.
        """
        offset = self.placement.place(entry.size)
        self.tree.add(entry, offset)
        self.tree.finish()
        self.chunks.append(offset, entry.size, len(file.head), sha256(file.json).digest())


def parse_toc(
    content: bytes | bytearray,
    expected: Digest | None,
    location: TocLocation,
    placement: Placement,
    caps: LayerCaps = DEFAULT_CAPS,
    toc_caps: TocCaps = DEFAULT_TOC_CAPS,
) -> Toc:
    """Read a TOC's JSON, after its digest; None only where ``read_toc`` has checked another one.

    ``placement`` gives files their places in the order of the TOC. Raises LayerRefused.
    """
    if expected is not None:
        hasher = expected.hasher()
        hasher.update(content)
        if hasher.hexdigest() != expected.hex:
            raise LayerRefused(f"its TOC has not the digest {expected}")
    tree = LayerTree(caps)
    files = FileChunks(location, toc_caps)
    limit = caps.expanded_limit(location.blob_size)
    total = 0
    landmark_offset: int | None = None
    no_prefetch = False
    for members in read_entries(content, toc_caps):
        if members.get("type") == "chunk":
            files.go_on(members)
            continue
        entry = layer_entry(members)
        if entry.kind is not EntryKind.REGULAR or not entry.size:
            files.end()
            tree.add(entry)
            continue
        total += entry.size
        if total > limit:
            raise LayerRefused(f"its TOC has more than {limit} bytes in a blob of its size")
        offset = placement.place(entry.size)
        tree.add(entry, offset)
        files.begin(members, entry.name, entry.size, offset)
        if entry.name.endswith(b".landmark"):
            path = clean(entry.name, caps)
            if path == PREFETCH_LANDMARK:
                # A member that it shares with files before it is wanted too.
                shared = number(members, "innerOffset") > 0
                landmark_offset = number(members, "offset") + shared
            elif path == NO_PREFETCH_LANDMARK:
                no_prefetch = True
    tree.finish()
    chunks = files.finish()
    return Toc(
        tree,
        chunks,
        location,
        placement,
        None if no_prefetch else landmark_offset,
        no_prefetch,
        _tail(chunks, location, files.last_size) if location.compression == "gzip" else None,
    )


def _tail(chunks: ChunkTable, location: TocLocation, last_size: int) -> Tail:
    padding = -last_size % BLOCK_SIZE
    # The last member is the TOC's.
    number = chunks.members - 2
    if number < 0:
        return Tail(0, 0, 0)
    start, stop, numbers = chunks.member(number)
    if not numbers:
        return Tail(start, stop, padding)
    last = chunks.chunk(numbers[-1])
    return Tail(start, stop, last.inner_offset + last.size + padding)
