"""Reads the filler's trace: which connection fetched what, when, and how busy all of them were.

The filler writes a line of JSON at the start and at the end of every range it fetches, when the
environment variable ``HEADSTART_TRACE`` names a file. Times are its monotonic clock's seconds.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

VARIABLE = "HEADSTART_TRACE"


@dataclass(frozen=True, slots=True)
class Event:
    """The start or end of a range on a connection; ``queued`` ranges wait, ``limit`` may run."""

    at: float
    starts: bool
    connection: int
    digest: str
    start: int
    stop: int
    received: int
    ending: str
    queued: int
    limit: int


@dataclass(frozen=True, slots=True)
class Span:
    """A connection that is busy with a range of ``digest``."""

    connection: int
    digest: str
    begun: float
    ended: float
    received: int


def read(file: Path) -> list[Event]:
    """The events of a trace, oldest first; a line that was cut off by a kill is left out."""
    return sorted(_events(file.read_text().splitlines(keepends=True)), key=lambda event: event.at)


def _events(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        if not line.endswith("\n"):
            continue
        fields = json.loads(line)
        yield Event(
            fields["at"],
            fields["event"] == "start",
            fields["connection"],
            fields["digest"],
            fields["start"],
            fields["stop"],
            fields.get("received") or 0,
            fields.get("ending") or "",
            fields["queued"],
            fields["limit"],
        )


def spans(events: Sequence[Event]) -> list[Span]:
    """When connections were busy; a range without an end lasts until the last event."""
    found: list[Span] = []
    running: dict[int, Event] = {}
    for event in events:
        begun = running.pop(event.connection, None)
        if begun is not None:
            found.append(_span(begun, event.at, event.received))
        if event.starts:
            running[event.connection] = event
    found += [_span(begun, events[-1].at, 0) for begun in running.values()]
    return sorted(found, key=lambda span: span.begun)


def last_handed_out(events: Sequence[Event]) -> float | None:
    """When the last queued range was given to a connection; None when none was ever queued.

    What starts after that are second copies and halves of ranges that run already.
    """
    waiting = [number for number, event in enumerate(events) if event.queued > 0]
    if not waiting:
        return None
    later = (event.at for event in events[waiting[-1] + 1 :] if event.starts)
    return next(later, events[waiting[-1]].at)


def busy_share(events: Sequence[Event]) -> float | None:
    """How much of the connections' time was used, from the first start to the last hand-out.

    0 to 1; None when everything could be handed out at once, so that there was nothing to use.
    """
    until = last_handed_out(events)
    first = next((event.at for event in events if event.starts), None)
    if until is None or first is None or until <= first:
        return None
    busy = sum(max(0.0, min(span.ended, until) - max(span.begun, first)) for span in spans(events))
    possible = sum(
        event.limit * max(0.0, min(after.at, until) - max(event.at, first))
        for event, after in pairwise(events)
    )
    return busy / possible


def _span(begun: Event, ended: float, received: int) -> Span:
    return Span(begun.connection, begun.digest, begun.at, ended, received)
