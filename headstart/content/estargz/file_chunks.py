"""The chunks of one file after the other, from the entries of a TOC."""

import re

from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.chunks import ChunkTable, ChunkTableBuilder
from headstart.content.estargz.footer import TocLocation
from headstart.content.estargz.toc_entry import Members, number, text
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import shown

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


class FileChunks:
    """Checks that the chunks of a file are all of it, and gives them to the table.

    A file of one chunk may have its digest under ``digest`` only: containers/storage writes no
    ``chunkDigest`` there, and both are of the same bytes.
    """

    def __init__(self, location: TocLocation, caps: TocCaps) -> None:
        self.last_size = 0
        """Bytes of the last file; 0 when there is none."""
        self._builder = ChunkTableBuilder(location)
        self._tar_stop = location.tar_stop
        self._caps = caps
        self._chunks = 0
        self._name = b""
        self._device_offset = 0
        self._position = 0
        self._end_offset = 0

    def begin(self, members: Members, name: bytes, size: int, device_offset: int) -> None:
        """A non-empty regular file and its first chunk."""
        self.end()
        self._name = name
        self.last_size = size
        self._position = 0
        self._device_offset = device_offset
        self._end_offset = number(members, "endOffset")
        self._add(members)

    def go_on(self, members: Members) -> None:
        """Another chunk of that file."""
        if self._position >= self.last_size or text(members, "name") not in (self._name, b""):
            raise LayerRefused("its TOC has a chunk where no file goes on")
        self._add(members)

    def end(self) -> None:
        """No chunk of that file follows."""
        if self._position < self.last_size:
            raise LayerRefused(
                f"its TOC has {self._position} bytes of {shown(self._name)}, not {self.last_size}"
            )
        if self._end_offset and self._end_offset != self._tar_stop:
            self._builder.begin_member(self._end_offset)
        self._end_offset = 0

    def finish(self) -> ChunkTable:
        """All chunks, after the last file."""
        self.end()
        return self._builder.finish()

    def _add(self, members: Members) -> None:
        left = self.last_size - self._position
        size = number(members, "chunkSize") or left
        if number(members, "chunkOffset") != self._position or size > left:
            raise LayerRefused(f"the chunks of {shown(self._name)} leave gaps, or overlap")
        if size > self._caps.chunk_bytes:
            raise LayerRefused(
                f"a chunk of {shown(self._name)} has {size} bytes, over {self._caps.chunk_bytes}"
            )
        self._chunks += 1
        if self._chunks > self._caps.chunks:
            raise LayerRefused(f"it has more than {self._caps.chunks} chunks")
        digest = members.get("chunkDigest")
        if not digest and size == self.last_size:
            digest = members.get("digest")
        found = _SHA256.fullmatch(digest) if isinstance(digest, str) else None
        if found is None:
            raise LayerRefused(f"a chunk of {shown(self._name)} has no sha256")
        self._builder.add(
            self._device_offset + self._position,
            size,
            number(members, "offset"),
            number(members, "innerOffset"),
            bytes.fromhex(found[1]),
        )
        self._position += size
