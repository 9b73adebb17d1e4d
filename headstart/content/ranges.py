"""Byte ranges of HTTP (RFC 9110, sections 14.1 to 14.4): the request's, the answer's."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from headstart.content.errors import InvalidInput

MOST_RANGES = 256
"""Ranges of one request that are answered; more are refused as a whole."""

_LARGEST = 1 << 63
_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")
_CONTENT_RANGE = re.compile(
    r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)", re.IGNORECASE
)


class InvalidContentRange(InvalidInput):
    """A Content-Range field of no known form."""


class ContentRange(NamedTuple):
    """What an answer says that it holds: ``start`` to ``stop`` (exclusive) of ``size`` bytes.

    ``start`` and ``stop`` are equal for an unsatisfied range (416); ``size`` is None for ``*``.
    """

    start: int
    stop: int
    size: int | None


class ByteRange(NamedTuple):
    """Bytes ``start`` to ``stop`` (exclusive)."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """The Content-Range field of an answer that holds this range of ``size`` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


class RangeSpec(NamedTuple):
    """One range as it was asked for: ``first`` None is a suffix, ``last`` None is open-ended."""

    first: int | None
    last: int | None

    def within(self, size: int) -> ByteRange | None:
        """The bytes that this asks for of ``size``; None when there is not one of them."""
        if self.first is None:
            length = min(self.last or 0, size)
            return ByteRange(size - length, size) if length else None
        if self.first >= size:
            return None
        stop = size if self.last is None else min(self.last + 1, size)
        return ByteRange(self.first, stop)


def parse_range(text: str) -> tuple[RangeSpec, ...] | None:
    """The ranges of a Range field; None for another unit than bytes, which is to be ignored.

    Raises InvalidInput for what has no valid form, and for more than :data:`MOST_RANGES`.
    """
    unit, equals, listed = text.strip().partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    remedy = "write bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH"
    parts = [part.strip(" \t") for part in listed.split(",", MOST_RANGES)]
    if len(parts) > MOST_RANGES:
        raise InvalidInput("range", text, f"ask for at most {MOST_RANGES} ranges at once")
    specs: list[RangeSpec] = []
    for part in parts:
        found = _SPEC.fullmatch(part)
        if found is None or not (found[1] or found[2]):
            raise InvalidInput("range", text, remedy)
        spec = RangeSpec(int(found[1]) if found[1] else None, int(found[2]) if found[2] else None)
        if any(end is not None and end >= _LARGEST for end in spec):
            raise InvalidInput("range", text, remedy)
        if spec.first is not None and spec.last is not None and spec.last < spec.first:
            raise InvalidInput("range", text, remedy)
        specs.append(spec)
    return tuple(specs)


def satisfiable(specs: Sequence[RangeSpec], size: int) -> list[ByteRange]:
    """Those of the ranges that the object of ``size`` bytes can satisfy, in the asked order."""
    found = [spec.within(size) for spec in specs]
    return [given for given in found if given is not None]


def parse_content_range(text: str) -> ContentRange:
    """Read a Content-Range field. Raises InvalidContentRange."""
    remedy = "a registry sends bytes FIRST-LAST/SIZE"
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise InvalidContentRange("Content-Range", text, remedy)
    size = None if found[3] == "*" else int(found[3])
    if size is not None and size >= _LARGEST:
        raise InvalidContentRange("Content-Range", text, remedy)
    if found[1] is None:
        if size is None:
            raise InvalidContentRange("Content-Range", text, remedy)
        return ContentRange(0, 0, size)
    start, stop = int(found[1]), int(found[2]) + 1
    if stop <= start or stop > (_LARGEST - 1 if size is None else size):
        raise InvalidContentRange("Content-Range", text, remedy)
    return ContentRange(start, stop, size)
