"""A tar stream, piece by piece: entries, and the bytes of regular files. No I/O.

Read are the forms that layers have: old (V7), ustar, GNU with long names, PAX with extended
headers; all as Go's archive/tar reads them, since that is what containerd unpacks with. So a
global PAX header changes nothing (containerd passes it over), only regular files have contents
whatever another header's size says, and what follows the archive's end is not looked at.

Sparse files are refused: the programs that make layers (BuildKit, Docker, containerd, kaniko: Go's
archive/tar; buildah) do not write them, and containerd itself cannot unpack GNU's form.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import shown
from headstart.content.layer.pax import SPARSE, XATTR, parse_records, pax_nanoseconds, pax_number
from headstart.content.layer.tar_header import BLOCK_SIZE, TarHeader, parse_header, until_nul

_KINDS = {
    b"\0": EntryKind.REGULAR,
    b"0": EntryKind.REGULAR,
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER,
    b"4": EntryKind.BLOCK,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
    # A contiguous file, where there is such a thing.
    b"7": EntryKind.REGULAR,
}
_OLD_REGULAR = b"\0"
_GNU_SPARSE = b"S"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_EXTENSIONS = frozenset((_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL))

_LINKS = (EntryKind.SYMLINK, EntryKind.HARD_LINK)
_DEVICES = (EntryKind.CHARACTER, EntryKind.BLOCK)

_NONE: Mapping[bytes, bytes] = MappingProxyType({})
_NANOSECONDS = 1_000_000_000


class TarParser:
    """Sans-I/O: give it pieces of an uncompressed tar stream, get entries and payload pieces.

    Memory stays bounded by ``caps.extension_bytes``, whatever it is given. After a LayerRefused the
    parser is of no use.
    """

    def __init__(self, caps: LayerCaps = DEFAULT_CAPS) -> None:
        self.position = 0
        """After an Entry: how many bytes of the stream come before its contents."""
        self.headers_size = 0
        """The size of the last Entry's headers, with its extension headers but no global ones; they
        end at :attr:`position`, and nothing lies between them."""
        self._caps = caps
        self._fed = 0
        self._entries = 0
        self._header = bytearray()
        self._payload = 0
        self._padding = 0
        self._zero_block = False
        self._ended = False
        # An extension header whose payload is not whole yet.
        self._extension = b""
        self._extension_left = 0
        self._extension_payload = bytearray()
        # What extension headers say of the next file, and their bytes.
        self._extended = False
        self._extensions_size = 0
        self._records = _NONE
        self._long_name = b""
        self._long_link = b""

    def feed(self, piece: memoryview) -> Iterator[Entry | memoryview]:
        """What the next bytes of the stream hold; exhaust it before the next piece is given.

        Payload pieces are views into ``piece``, never empty, and belong to the last regular Entry.
        Raises LayerRefused.
        """
        position, stop = 0, len(piece)
        before = self._fed
        self._fed += stop
        while position < stop:
            if self._payload:
                start = position
                position = min(stop, start + self._payload)
                self._payload -= position - start
                yield piece[start:position]
            elif self._extension_left:
                start = position
                position = min(stop, start + self._extension_left)
                self._extension_left -= position - start
                self._extension_payload += piece[start:position]
                if not self._extension_left:
                    self._extend()
            elif self._padding:
                skipped = min(stop - position, self._padding)
                self._padding -= skipped
                position += skipped
            elif self._ended:
                return
            else:
                missing = BLOCK_SIZE - len(self._header)
                if missing < BLOCK_SIZE or stop - position < BLOCK_SIZE:
                    self._header += piece[position : position + missing]
                    position += missing
                    if len(self._header) < BLOCK_SIZE:
                        return
                    block = memoryview(bytes(self._header))
                    self._header.clear()
                else:
                    block = piece[position : position + BLOCK_SIZE]
                    position += BLOCK_SIZE
                entry = self._read(block)
                if entry is not None:
                    self.position = before + position
                    yield entry

    def close(self) -> None:
        """Say that the stream has ended. Raises LayerRefused when the archive has not.

        The two zero blocks at the end, and the last file's padding, may be missing.
        """
        if self._payload or self._header or self._extension_left or self._extended:
            raise LayerRefused("the tar archive ends in the middle")

    def _read(self, block: memoryview) -> Entry | None:
        header = parse_header(block)
        if header is None:
            self._ended = self._zero_block
            self._zero_block = True
            return None
        if self._zero_block:
            raise LayerRefused("a tar header follows a zero block")
        typeflag = header.typeflag
        if typeflag in _EXTENSIONS:
            self._begin_extension(header)
            return None
        kind = _KINDS.get(typeflag)
        if kind is None:
            if typeflag == _GNU_SPARSE:
                raise LayerRefused(f"{shown(header.name)} is a sparse file (GNU)")
            raise LayerRefused(f"{shown(header.name)} has the unknown type {typeflag!r}")
        self._entries += 1
        if self._entries > self._caps.entries:
            raise LayerRefused(f"it has more than {self._caps.entries} files")
        name, _, uid, gid, size, mtime, _, target, _ = header
        mtime_ns = mtime * _NANOSECONDS
        xattrs = _NONE
        self.headers_size = self._extensions_size + BLOCK_SIZE
        if self._extended:
            records = self._records
            # An empty value stands for what the header block says.
            name = self._long_name or records.get(b"path") or name
            target = self._long_link or records.get(b"linkpath") or target
            if records:
                uid = _either(records, b"uid", uid)
                gid = _either(records, b"gid", gid)
                size = _either(records, b"size", size)
                if records.get(b"mtime"):
                    mtime_ns = pax_nanoseconds(records[b"mtime"])
                xattrs = _xattrs(records)
            self._extended = False
            self._extensions_size = 0
            self._records, self._long_name, self._long_link = _NONE, b"", b""
        if typeflag == _OLD_REGULAR and name[-1:] == b"/":
            kind = EntryKind.DIRECTORY
        if uid < 0 or gid < 0:
            raise LayerRefused(f"{shown(name)} has a negative owner")
        if kind is EntryKind.REGULAR:
            if not 0 <= size <= self._caps.total_bytes:
                raise LayerRefused(f"{shown(name)} has {size} bytes, over {self._caps.total_bytes}")
            self._payload = size
            self._padding = -size % BLOCK_SIZE
        else:
            size = 0
        return Entry(
            name,
            kind,
            header.mode & 0o7777,
            uid,
            gid,
            mtime_ns,
            size,
            target if kind in _LINKS else b"",
            header.device if kind in _DEVICES else (0, 0),
            xattrs,
        )

    def _begin_extension(self, header: TarHeader) -> None:
        if not 0 <= header.size <= self._caps.extension_bytes:
            raise LayerRefused(
                f"an extended tar header has {header.size} bytes, over {self._caps.extension_bytes}"
            )
        self._extension = header.typeflag
        self._extension_left = header.size
        self._padding = -header.size % BLOCK_SIZE
        if self._extension != _PAX_GLOBAL:
            self._extensions_size += BLOCK_SIZE + header.size + self._padding
        elif self._extended:
            # Go forgets those before it, others do not.
            raise LayerRefused("a global PAX header lies between the headers of a file")
        if not header.size:
            self._extend()

    def _extend(self) -> None:
        """Take in what an extension header says of the next file."""
        payload = bytes(self._extension_payload)
        self._extension_payload = bytearray()
        if self._extension == _PAX_GLOBAL:
            parse_records(payload)
            return
        self._extended = True
        if self._extension == _PAX:
            self._records = parse_records(payload)
            if any(keyword.startswith(SPARSE) for keyword in self._records):
                raise LayerRefused("it has a sparse file (PAX)")
        elif self._extension == _LONG_NAME:
            self._long_name = until_nul(payload)
        else:
            self._long_link = until_nul(payload)


def _either(records: Mapping[bytes, bytes], keyword: bytes, otherwise: int) -> int:
    value = records.get(keyword)
    return pax_number(value) if value else otherwise


def _xattrs(records: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    found = {
        keyword[len(XATTR) :]: value
        for keyword, value in records.items()
        if keyword.startswith(XATTR)
    }
    return found or _NONE
