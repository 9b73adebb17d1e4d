"""Learning: what several starts of an image have read becomes one prefetch list.

A **run** is what a start has read of a file from one offset to another with no other file between;
its position is its number among the runs of that start, so it is the same however the reads were
cut. A **piece** is what the starts' borders cut the runs into: within one, the same starts have
seen every byte. What at least half of the starts have seen is listed, by the median of its
positions in them.

So of two pieces that all starts have seen in one order, that is the order of the list, and one odd
start among three or more changes nothing in which the others agree.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS, ListCaps
from headstart.content.landmarks.prefetch_list import (
    Layer,
    ListedFile,
    PrefetchList,
    within_caps,
)
from headstart.content.landmarks.range_set import LARGEST, Range, RangeSet

MOST_STARTS = 8
"""Older starts do not count: what an image reads changes with its configuration."""

_WHOLE = Range(0, LARGEST)


class Read(NamedTuple):
    """A read: ``range`` of a file, None for all of it; ``seconds`` since the start, if known."""

    layer: Layer | None
    path: bytes
    range: Range | None = None
    seconds: float | None = None


_File = tuple[Layer | None, bytes]


class _Run(NamedTuple):
    file: _File
    start: int
    stop: int
    seconds: float | None


class _Piece(NamedTuple):
    file: _File
    start: int
    stop: int
    position: float
    seconds: float | None


def reads_of(listed: PrefetchList) -> Iterator[Read]:
    """A list as the reads of one start: this is how a start is kept until it is merged."""
    for file in listed.files:
        for given in file.ranges or (None,):
            yield Read(file.layer, file.path, given, file.seconds)


def merge(starts: Sequence[Iterable[Read]], caps: ListCaps = DEFAULT_LIST_CAPS) -> PrefetchList:
    """What the last :data:`MOST_STARTS` of ``starts`` agree on, the oldest given first.

    The reads of a start are in order. A single start is its own list: each byte once, where it was
    read first. What is over the caps is left out from the end.
    """
    runs = [_runs(reads) for reads in starts[-MOST_STARTS:]]
    ranks: dict[_File, int] = {}
    for start in reversed(runs):
        for run in start:
            ranks.setdefault(run.file, len(ranks))
    pieces = sorted(
        _common_pieces(runs), key=lambda piece: (piece.position, ranks[piece.file], piece.start)
    )
    return within_caps(_files(_joined(pieces), caps), caps)


def _runs(reads: Iterable[Read]) -> list[_Run]:
    runs: list[_Run] = []
    seen: defaultdict[_File, RangeSet] = defaultdict(RangeSet)
    for layer, path, given, seconds in reads:
        file = (layer, path)
        for fresh in seen[file].add(given or _WHOLE):
            if runs and runs[-1].file == file and runs[-1].stop == fresh.offset:
                runs[-1] = runs[-1]._replace(stop=fresh.stop)
            else:
                runs.append(_Run(file, fresh.offset, fresh.stop, seconds))
    return runs


def _common_pieces(starts: Sequence[Sequence[_Run]]) -> Iterator[_Piece]:
    """What at least half of the starts have seen, file by file."""
    # Offset, whether a run begins there (those that end come first), its start and its position.
    borders: defaultdict[_File, list[tuple[int, bool, int, int]]] = defaultdict(list)
    for number, runs in enumerate(starts):
        for position, run in enumerate(runs):
            borders[run.file] += [
                (run.start, True, number, position),
                (run.stop, False, number, position),
            ]
    for file, found in borders.items():
        found.sort()
        positions: dict[int, int] = {}
        reached = 0
        for offset, begins, number, position in found:
            if offset > reached and positions and 2 * len(positions) >= len(starts):
                times = [starts[at][run].seconds for at, run in positions.items()]
                known = [seconds for seconds in times if seconds is not None]
                seconds = round(median(known), 3) if known else None
                yield _Piece(file, reached, offset, median(positions.values()), seconds)
            reached = offset
            if begins:
                positions[number] = position
            else:
                del positions[number]


def _joined(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Neighbours in the list that are neighbours in their file too as one."""
    last: _Piece | None = None
    for piece in pieces:
        if last is not None and last.file == piece.file and last.stop == piece.start:
            last = last._replace(stop=piece.stop)
        else:
            if last is not None:
                yield last
            last = piece
    if last is not None:
        yield last


def _files(pieces: Iterable[_Piece], caps: ListCaps) -> Iterator[ListedFile]:
    """Pieces of one file in a row as one entry, of as many ranges as it may have."""
    ranges: list[Range] = []
    for (layer, path), row in groupby(pieces, key=lambda piece: piece.file):
        seconds: float | None = None
        for piece in row:
            # What goes to the end has no length: a plan leaves out what was listed before.
            whole = piece.stop == LARGEST
            if ranges and (whole or len(ranges) == caps.ranges):
                yield ListedFile(path, layer, None, tuple(ranges), seconds)
                ranges.clear()
            if not ranges:
                seconds = piece.seconds
            if whole:
                yield ListedFile(path, layer, None, (), seconds)
            else:
                ranges.append(Range.between(piece.start, piece.stop))
        if ranges:
            yield ListedFile(path, layer, None, tuple(ranges), seconds)
            ranges.clear()
