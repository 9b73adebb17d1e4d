"""The files in an archive by their names, found by reading headers only. Nothing is extracted.

Names, links and sizes are hostile input: a name is only ever compared with one that we look for,
a link only ever leads to another name. Extension headers are read as ``headstart.content.layer``
reads them.
"""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.pax import parse_records, pax_number
from headstart.content.layer.tar_header import BLOCK_SIZE, TarHeader, parse_header, until_nul
from headstart.convert.errors import PlaceUnusable

MOST_MEMBERS = 100_000
MOST_EXTENSION = 64 * 1024
"""Bytes of an extension header; those of archives hold a name or a size."""
MOST_LINKS = 8
_LONGEST_NAME = 4096

_REGULAR = frozenset((b"0", b"\0", b"7"))
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_LONG_LINK, _LONG_NAME = b"K", b"L"
_PAX, _GLOBAL_PAX = b"x", b"g"
_SPARSE = b"S"

_REMEDY = "make the archive anew"


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file's bytes lie in the archive."""

    offset: int
    size: int


@dataclass(slots=True)
class _Extensions:
    """What extension headers say of the next header."""

    name: bytes | None = None
    link: bytes | None = None
    size: int | None = None


class Members:
    """The table of an archive's files and links."""

    def __init__(self, place: object) -> None:
        """Empty; :meth:`read` makes one of an archive."""
        self._place = place
        self._files: dict[bytes, Member] = {}
        self._links: dict[bytes, bytes] = {}
        self._twice: set[bytes] = set()

    @classmethod
    def read(cls, descriptor: int, place: object) -> Self:
        """Read all headers. Raises PlaceUnusable; ``place`` is named then."""
        members = cls(place)
        try:
            for header, extensions, offset, size in _headers(descriptor, place):
                members._add(header, extensions, Member(offset, size))
        except LayerRefused as error:
            raise PlaceUnusable(place, f"is no good tar archive: {error}", _REMEDY) from error
        return members

    def __contains__(self, name: str) -> bool:
        found = name.encode()
        return found in self._files or found in self._links

    def find(self, name: str) -> Member:
        """The file of this name, links followed. Raises PlaceUnusable."""
        # A name of JSON may hold what no name of a tar does; it is not found then.
        found = _clean(name.encode(errors="surrogatepass"))
        for _ in range(MOST_LINKS + 1):
            if found in self._twice:
                raise self._unusable(name, "is there twice")
            if found in self._files:
                return self._files[found]
            if found not in self._links:
                raise self._unusable(name, "is not there")
            found = self._links[found]
        raise self._unusable(name, f"is behind more than {MOST_LINKS} links")

    def _add(self, header: TarHeader, extensions: _Extensions, member: Member) -> None:
        name = _clean(header.name if extensions.name is None else extensions.name)
        link = header.link_name if extensions.link is None else extensions.link
        if header.typeflag in _REGULAR:
            if name in self._files or name in self._links:
                self._twice.add(name)
            self._files[name] = member
        elif header.typeflag in (_HARD_LINK, _SYMBOLIC_LINK):
            if name in self._files or name in self._links:
                self._twice.add(name)
            if header.typeflag == _SYMBOLIC_LINK:
                link = posixpath.join(posixpath.dirname(name), link)
            self._links[name] = _clean(link)
        if len(name) > _LONGEST_NAME or len(link) > _LONGEST_NAME:
            raise LayerRefused(f"a name has more than {_LONGEST_NAME} bytes")

    def _unusable(self, name: str, problem: str) -> PlaceUnusable:
        return PlaceUnusable(self._place, f"is unusable: in it {name!r:.200} {problem}", _REMEDY)


def _clean(name: bytes) -> bytes:
    """One spelling of a name; what leads out of the archive stays unlike every name in it."""
    return posixpath.normpath(name) if name else b""


def _headers(descriptor: int, place: object) -> Iterator[tuple[TarHeader, _Extensions, int, int]]:
    """Each header with its extensions, where its content begins, and the content's size."""
    end = os.fstat(descriptor).st_size
    position, count, extensions = 0, 0, _Extensions()
    while position + BLOCK_SIZE <= end:
        header = parse_header(memoryview(os.pread(descriptor, BLOCK_SIZE, position)))
        position += BLOCK_SIZE
        if header is None:
            return
        count += 1
        if count > MOST_MEMBERS:
            raise LayerRefused(f"it has more than {MOST_MEMBERS} entries")
        if header.typeflag == _SPARSE:
            raise LayerRefused("it has a sparse file")
        extends = header.typeflag in (_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK)
        # A PAX size is that of the file, not of the extension headers before it.
        own = extensions.size is None or extends
        size = header.size if own else extensions.size or 0
        if not 0 <= size <= end - position:
            raise LayerRefused(f"it ends within the {size} bytes of an entry")
        if extends:
            if size > MOST_EXTENSION:
                raise LayerRefused(f"an extension header has {size} bytes")
            _extend(extensions, header.typeflag, os.pread(descriptor, size, position))
        else:
            yield header, extensions, position, size
            extensions = _Extensions()
        position += -(-size // BLOCK_SIZE) * BLOCK_SIZE
    if not count:
        raise PlaceUnusable(
            place, "is neither a tar archive nor a gzipped one", "name what docker save has made"
        )


def _extend(extensions: _Extensions, typeflag: bytes, content: bytes) -> None:
    if typeflag == _LONG_NAME:
        extensions.name = until_nul(content)
    elif typeflag == _LONG_LINK:
        extensions.link = until_nul(content)
    elif typeflag == _PAX:
        records = parse_records(content)
        extensions.name = records.get(b"path", extensions.name)
        extensions.link = records.get(b"linkpath", extensions.link)
        if b"size" in records:
            extensions.size = pax_number(records[b"size"])
