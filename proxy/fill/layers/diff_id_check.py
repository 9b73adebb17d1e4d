"""Whether an eStargz layer is what its diff ID says, and its TOC says what its tar says.

One pass over framing and data device gives the tar stream again: its digest must be the diff ID,
and the tree that its headers make must be the one that the TOC has given, with the same bytes of
the device for the same files. In slices, so that it can wait for whatever is more urgent.
"""

from collections.abc import Iterator
from typing import NamedTuple

from headstart.content.digest import Digest
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.inode import Inode
from headstart.content.layer.names import shown
from headstart.content.layer.tar import TarParser
from headstart.content.layer.tree import LayerTree
from headstart.store.geometry import MIB
from proxy.fill.layers.members import MemberWriter

PIECE_SIZE = MIB
SLICE_SIZE = 16 * MIB

UNLISTED = frozenset((b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"))
"""Files in the root of an eStargz layer's tar that are no files of the layer (estargz.md)."""


class _Piece(NamedTuple):
    """A piece of the tar stream; ``device_offset`` is negative where it is framing."""

    content: memoryview
    device_offset: int


class DiffIdCheck:
    """One pass; advanced by one thread at a time."""

    def __init__(
        self,
        writer: MemberWriter,
        root: Inode,
        diff_id: Digest,
        caps: LayerCaps = DEFAULT_CAPS,
    ) -> None:
        """``root`` is of the tree that the TOC has given."""
        self._writer = writer
        self._root = root
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._replay = _Replay(caps)
        self.region = 0
        """The regions before this one have been read."""
        self._reading: Iterator[_Piece] | None = None

    def advance(self, slice_size: int = SLICE_SIZE) -> bool:
        """Read about ``slice_size`` bytes more; True when all was right and is marked verified.

        False: call it again, at once or when the region :attr:`region` is done. Blocks. Raises
        LayerRefused when the layer is not what its diff ID says, or its TOC lies; OSError.
        """
        regions = self._writer.regions.regions
        left = slice_size
        while left > 0 and self.region < len(regions):
            if self._reading is None:
                if not self._writer.done(self.region):
                    return False
                self._reading = self._pieces(self.region)
            piece = next(self._reading, None)
            if piece is None:
                self._reading = None
                self.region += 1
                continue
            self._hasher.update(piece.content)
            self._replay.take(piece)
            left -= len(piece.content)
        if self.region < len(regions):
            return False
        self._end()
        return True

    def waits(self) -> bool:
        """Whether it cannot go on before more regions are done."""
        regions = self._writer.regions.regions
        return (
            self._reading is None
            and self.region < len(regions)
            and not self._writer.done(self.region)
        )

    def _end(self) -> None:
        found = f"{self._diff_id.algorithm}:{self._hasher.hexdigest()}"
        if found != str(self._diff_id):
            raise LayerRefused(f"its tar has the digest {found}, not the diff ID {self._diff_id}")
        compare_trees(self._root, self._replay.finish())
        self._writer.files.mark_verified()

    def _pieces(self, number: int) -> Iterator[_Piece]:
        """What a region inflates to, out of the framing and the device."""
        frame, chunks = self._writer.frame, self._writer.regions.chunks
        inner = framed = 0
        for index in self._writer.regions.regions[number].chunks:
            chunk = chunks[index]
            stop = framed + chunk.inner_offset - inner
            yield from self._framing(number, framed, stop)
            framed = stop
            yield from self._payload(chunk.device_offset, chunk.size)
            inner = chunk.inner_offset + chunk.size
        yield from self._framing(number, framed, frame.length(number))

    def _framing(self, number: int, start: int, stop: int) -> Iterator[_Piece]:
        while start < stop:
            content = self._writer.frame.read(number, start, min(PIECE_SIZE, stop - start))
            if not content:
                raise LayerRefused("its framing has not what its TOC says")
            yield _Piece(memoryview(content), -1)
            start += len(content)

    def _payload(self, offset: int, size: int) -> Iterator[_Piece]:
        while size:
            buffer = memoryview(bytearray(min(PIECE_SIZE, size)))
            count = self._writer.files.read_into(offset, buffer)
            if count == 0:
                raise OSError(f"the data device ends before byte {offset}")
            yield _Piece(buffer[:count], offset)
            offset += count
            size -= count


class _Replay:
    """The tree that the tar stream makes, its files at the places where the device has them."""

    def __init__(self, caps: LayerCaps) -> None:
        self._parser = TarParser(caps)
        self._tree = LayerTree(caps)
        self._pending: Entry | None = None
        self._expected = -1
        self._unlisted = False

    def take(self, piece: _Piece) -> None:
        """Parse on. Raises LayerRefused."""
        payload = 0
        for found in self._parser.feed(piece.content):
            if isinstance(found, Entry):
                self._begin(found)
            else:
                position = -1 if piece.device_offset < 0 else piece.device_offset + payload
                self._place(position)
                payload += len(found)
                if position >= 0:
                    self._expected = position + len(found)
        if piece.device_offset >= 0 and payload != len(piece.content):
            raise LayerRefused("its TOC takes for contents what its tar does not")

    def _begin(self, entry: Entry) -> None:
        self._unlisted = _in_root(entry.name) in UNLISTED
        if entry.kind is EntryKind.REGULAR and entry.size and not self._unlisted:
            # Where its contents lie the next piece says.
            self._pending = entry
        elif not self._unlisted:
            self._tree.add(entry)

    def _place(self, position: int) -> None:
        """Contents of the last file come from this place of the device."""
        if self._unlisted:
            return
        if position < 0:
            raise LayerRefused("its tar has contents of files that its TOC has not")
        if self._pending is not None:
            self._tree.add(self._pending, position)
            self._pending = None
        elif position != self._expected:
            raise LayerRefused("its TOC has the contents of a file in another order than its tar")

    def finish(self) -> Inode:
        """The root of the finished tree. Raises LayerRefused."""
        self._parser.close()
        self._tree.finish()
        return self._tree.root


def _in_root(name: bytes) -> bytes:
    return name.removeprefix(b"./").strip(b"/")


def compare_trees(toc: Inode, tar: Inode) -> None:
    """Raises LayerRefused when two trees differ in more than fractions of seconds."""
    twins: dict[Inode, Inode] = {}
    waiting = [(b"", toc, tar)]
    while waiting:
        path, mine, other = waiting.pop()
        if twins.setdefault(mine, other) is not other:
            raise LayerRefused(f"its TOC and its tar differ: {shown(path)} is another hard link")
        told, found = _said(mine), _said(other)
        if told != found:
            what = next(name for name in told if told[name] != found[name])
            raise LayerRefused(
                f"its TOC and its tar differ: the {what} of {shown(path or b'/')} is"
                f" {told[what]!r:.60}, not {found[what]!r:.60}"
            )
        names = _names(mine, root=mine is toc)
        others = _names(other, root=mine is toc)
        if names != others:
            name = min(names ^ others)
            raise LayerRefused(
                f"its TOC and its tar differ: only one of them has {shown(path + b'/' + name)}"
            )
        waiting.extend(
            (path + b"/" + name, mine.children[name], other.children[name]) for name in names
        )


def _names(directory: Inode, *, root: bool) -> set[bytes]:
    names = set(directory.children)
    return names - UNLISTED if root else names


def _said(inode: Inode) -> dict[str, object]:
    """What is compared of a file, by the words of messages."""
    return {
        "kind": inode.kind.value,
        "mode": oct(inode.mode),
        "owner": (inode.uid, inode.gid),
        "time": inode.mtime_ns // 1_000_000_000,
        "size": inode.size,
        "place": inode.offset if inode.size else 0,
        "target": inode.target,
        "device": inode.device,
        "xattrs": inode.xattrs,
        "links": inode.links,
        "implied": inode.implied,
    }
