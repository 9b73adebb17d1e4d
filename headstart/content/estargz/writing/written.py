"""What has been written: how the layer is named in a manifest, and what became of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.estargz.announced import TOC_DIGEST
from headstart.content.estargz.writing.file_class import FileClass, file_class

UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""For containers/storage (stargz-snapshotter, docs/estargz.md and its Stargz Store)."""


@dataclass(frozen=True, slots=True)
class ContentRow:
    """Files of one class whose beginning was stored, or compressed.

    ``size`` are their bytes before, ``written_size`` after, with the tar headers that are behind
    them in the same members; all chunks of a file count where its first one does.
    """

    file_class: FileClass
    is_stored: bool
    files: int
    size: int
    written_size: int


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """Of a blob: ``digest`` and ``size``; of the tar in it: ``diff_id`` and ``uncompressed_size``.

    ``toc_digest`` is of the JSON. The first ``prefetch_size`` bytes of the blob are wanted at
    start. ``contents`` has no empty rows, and is in the order of the classes.
    """

    digest: Digest
    size: int
    diff_id: Digest
    uncompressed_size: int
    toc_digest: Digest
    prefetch_size: int
    contents: Sequence[ContentRow]

    @property
    def annotations(self) -> Mapping[str, str]:
        """What the layer's descriptor has to say."""
        return {
            TOC_DIGEST: str(self.toc_digest),
            UNCOMPRESSED_SIZE: str(self.uncompressed_size),
        }


class ContentTally:
    """Counts files, chunk by chunk."""

    def __init__(self) -> None:
        self._counts: dict[tuple[FileClass, bool], list[int]] = {}
        self._row = [0, 0, 0]

    def begin_file(self, name: bytes, is_stored: bool) -> None:
        """The chunks from now on are of this file."""
        self._row = self._counts.setdefault((file_class(name), is_stored), [0, 0, 0])
        self._row[0] += 1

    def add_chunk(self, size: int, written_size: int) -> None:
        """Another chunk, and how many bytes of the blob it takes."""
        self._row[1] += size
        self._row[2] += written_size

    def rows(self) -> tuple[ContentRow, ...]:
        """All counts."""
        return tuple(
            ContentRow(kind, is_stored, *self._counts[kind, is_stored])
            for kind in FileClass
            for is_stored in (True, False)
            if (kind, is_stored) in self._counts
        )
