"""In which order entries are written: first those that a start reads.

What moves to the front takes with it what has to come before it, and changes nothing:

- the directories above it, and the marks that hide what lower layers have in them;
- of the names that share its file (hard links) all that the tar has before it, since a link needs
  its target, and the attributes of the last link are the file's.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from headstart.content.estargz.writing.scan import OPAQUE_MARKER, ScannedEntry
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import clean


class WrittenOrder(NamedTuple):
    """``first`` is before the landmark; nothing of what is to be there is in the layer if empty."""

    first: list[ScannedEntry]
    rest: list[ScannedEntry]


def written_order(
    entries: Sequence[ScannedEntry], wanted: Sequence[bytes], caps: LayerCaps = DEFAULT_CAPS
) -> WrittenOrder:
    """Put the entries of ``wanted`` names first, in its order; names of nothing are passed over.

    ``/usr/x``, ``usr/x`` and ``./usr/x`` are the same name.
    """
    if not wanted:
        return WrittenOrder([], list(entries))
    moving = _Moving(entries, caps)
    for name in wanted:
        try:
            path = clean(name, caps)
        except LayerRefused:
            # No entry can have that name.
            continue
        moving.move(path)
    return WrittenOrder(
        [entries[number] for number in moving.moved], [entries[number] for number in moving.left()]
    )


class _Moving:
    def __init__(self, entries: Sequence[ScannedEntry], caps: LayerCaps) -> None:
        self.moved: list[int] = []
        self._entries = entries
        self._numbers = {scanned.path: number for number, scanned in enumerate(entries)}
        self._is_moved = bytearray(len(entries))
        self._ready: set[bytes] = set()
        # Under the number of each name that shares a file: all of its names that are not moved.
        self._sharing: dict[int, deque[int]] = {}
        for number, (entry, _, _, _) in enumerate(entries):
            if entry.kind is EntryKind.HARD_LINK:
                target = self._numbers[clean(entry.target, caps)]
                names = self._sharing.setdefault(target, deque((target,)))
                names.append(number)
                self._sharing[number] = names

    def left(self) -> Iterator[int]:
        """The numbers of those that were not moved."""
        return (number for number, moved in enumerate(self._is_moved) if not moved)

    def move(self, path: bytes) -> None:
        """Move the entry of a path, if there is one, and what has to come before it."""
        number = self._numbers.get(path)
        if number is None or self._is_moved[number]:
            return
        names = self._sharing.get(number) or deque((number,))
        while names and names[0] <= number:
            name = self._entries[names.popleft()].path
            self._make_ready(name.rpartition(b"/")[0])
            self._move_one(name)

    def _make_ready(self, directory: bytes) -> None:
        """Move the entries of a directory and of those above it."""
        waiting = []
        while directory not in self._ready:
            waiting.append(directory)
            self._ready.add(directory)
            directory = directory.rpartition(b"/")[0]
        for path in reversed(waiting):
            self._move_one(path)
            self._move_one(path + b"/" + OPAQUE_MARKER if path else OPAQUE_MARKER)

    def _move_one(self, path: bytes) -> None:
        number = self._numbers.get(path)
        if number is not None and not self._is_moved[number]:
            self._is_moved[number] = 1
            self.moved.append(number)
