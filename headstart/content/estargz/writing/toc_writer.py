"""A TOC, written while the members are: as JSON without needless spaces.

What each field means: stargz-snapshotter, docs/estargz.md, "TOCEntries". A user's name is with the
first entry of each owner only, as stargz-snapshotter has it (estargz/types.go), and its reader
fills it in; a group's too.
"""

import json
from hashlib import sha256

from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.owner_names import OwnerNames
from headstart.content.estargz.writing.toc_fields import Fields, entry_fields
from headstart.content.layer.entry import Entry, EntryKind

_BEGIN = b'{"version":1,"entries":['
_END = b"]}"
_EMPTY = sha256().hexdigest()

_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class TocWriter:
    """Takes entries and chunks in the order of the tar.

    Raises NotConvertible when the TOC gets larger than readers here would take.
    """

    def __init__(self, caps: TocCaps) -> None:
        self._caps = caps
        self._json = bytearray(_BEGIN)
        self._chunks = 0
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        # Of the file whose chunks come: its fields, which wait for its digest, and its later
        # chunks.
        self._entry = Entry(b"", EntryKind.DIRECTORY)
        self._fields: Fields = {}
        self._left = 0
        self._digest = sha256()
        self._later_chunks = bytearray()

    def add_entry(self, entry: Entry, names: OwnerNames) -> None:
        """The next entry; the chunks of a file with contents follow."""
        fields = entry_fields(entry)
        if names.user and self._users.get(entry.uid) != names.user:
            self._users[entry.uid] = fields["userName"] = names.user
        if names.group and self._groups.get(entry.gid) != names.group:
            self._groups[entry.gid] = fields["groupName"] = names.group
        self._entry = entry
        self._fields = fields
        self._left = entry.size
        if not entry.size:
            if entry.kind is EntryKind.REGULAR:
                fields["digest"] = f"sha256:{_EMPTY}"
            self._append(fields)

    def add_chunk(
        self,
        content: memoryview,
        digest: str,
        chunk_offset: int,
        offset: int,
        inner_offset: int,
    ) -> None:
        """The next chunk of the last entry; ``digest`` is the hexadecimal sha256 of ``content``.

        It is at ``inner_offset`` of what the member at ``offset`` of the blob inflates to.
        """
        self._chunks += 1
        if self._chunks > self._caps.chunks:
            raise NotConvertible(
                f"it would have more than {self._caps.chunks} chunks: write larger ones"
            )
        fields = self._fields
        if chunk_offset:
            fields = {"name": fields["name"], "type": "chunk", "chunkOffset": chunk_offset}
        fields["offset"] = offset
        if inner_offset:
            fields["innerOffset"] = inner_offset
        self._left -= len(content)
        if self._left:
            # The last one has none, nor has the only one.
            fields["chunkSize"] = len(content)
        fields["chunkDigest"] = f"sha256:{digest}"
        file_digest = digest
        if len(content) < self._entry.size:
            if not chunk_offset:
                self._digest = sha256()
            self._digest.update(content)
            file_digest = self._digest.hexdigest()
        if chunk_offset:
            self._later_chunks += b"," + self._checked(fields)
        if not self._left:
            self._fields["digest"] = f"sha256:{file_digest}"
            self._append(self._fields)
            self._json += self._later_chunks
            self._later_chunks.clear()

    def finish(self) -> bytearray:
        """The whole JSON, after the last chunk; it is the caller's then."""
        self._json += _END
        self._check_size(len(self._json))
        return self._json

    def _append(self, fields: Fields) -> None:
        if len(self._json) > len(_BEGIN):
            self._json += b","
        self._json += self._checked(fields)

    def _checked(self, fields: Fields) -> bytes:
        content = _encoded(fields).encode()
        if len(content) > self._caps.entry_bytes:
            raise NotConvertible(
                f"an entry of its TOC would have {len(content)} bytes,"
                f" over {self._caps.entry_bytes}"
            )
        self._check_size(len(self._json) + len(self._later_chunks) + len(content))
        return content

    def _check_size(self, size: int) -> None:
        if size > self._caps.json_bytes:
            raise NotConvertible(f"its TOC would have more than {self._caps.json_bytes} bytes")
