"""The ranges of a layer's data device that a list asks for, in the list's order.

All is in whole blocks of the device: a file begins on one, and what the last has behind the file
is nobody's. So small files that lie side by side are one range.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from headstart.content.landmarks.prefetch_list import ListedFile
from headstart.content.landmarks.range_set import Range, RangeSet
from headstart.content.layer.placement import BLOCK_SIZE

SMALLEST_KEPT_GAP = 64 * 1024
"""Bytes: to fetch a smaller gap with the ranges around it takes less than another request (at
100 MB/s less than a millisecond)."""

_BRIDGED_PARTS = 10
"""All such gaps together are at most this part, a tenth, of what is listed."""

Places = Mapping[bytes, Sequence[Range]]
"""Where the contents of a layer's files are on its data device, piece by piece."""


def plan(files: Iterable[ListedFile], places: Places, request_size: int) -> list[Range]:
    """The ranges of the device to ask for, the first wanted one first.

    ``files`` are those of the layer. Passed over are files that have no place, and what is behind
    the end of one. No range has a byte of another one. Ranges are joined, over small gaps too, up
    to ``request_size`` bytes; a larger one that is listed as such stays whole. A gap is bridged in
    the order of the list while the tenth lasts, even if it is listed later: a byte may come sooner
    than its turn, never later.
    """
    listed = RangeSet()
    wanted = [
        fresh
        for file in files
        for part in _on_device(file.ranges, places.get(file.path, ()))
        for fresh in listed.add(_whole_blocks(part))
    ]
    left = sum(part.length for part in wanted) // _BRIDGED_PARTS
    planned = RangeSet()
    found: list[Range] = []
    for part in wanted:
        for fresh in planned.add(part):
            last = found[-1] if found else Range(0, 0)
            gap = Range.between(last.stop, fresh.offset)
            joins = (
                bool(found)
                and 0 <= gap.length < SMALLEST_KEPT_GAP
                and gap.length <= left
                and fresh.stop - last.offset <= request_size
                and not planned.has_any(gap)
            )
            if joins:
                planned.add(gap)
                left -= gap.length
                found[-1] = Range.between(last.offset, fresh.stop)
            else:
                found.append(fresh)
    return found


def _on_device(ranges: Sequence[Range], pieces: Sequence[Range]) -> Iterator[Range]:
    """Where ranges of a file are, in their order; without any all of it."""
    if not ranges:
        yield from pieces
    for wanted in ranges:
        position = 0
        for piece in pieces:
            start = max(wanted.offset, position)
            stop = min(wanted.stop, position + piece.length)
            if start < stop:
                yield Range(piece.offset + start - position, stop - start)
            position += piece.length


def _whole_blocks(part: Range) -> Range:
    start = part.offset // BLOCK_SIZE * BLOCK_SIZE
    return Range.between(start, -(-part.stop // BLOCK_SIZE) * BLOCK_SIZE)
