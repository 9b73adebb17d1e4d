"""containerd's filter language, as far as snapshots have fields.

::

    filter   = selector { "," selector }          all of them have to match
    selector = field { "." field } [ ("==" | "!=" | "~=") value ]
    field    = quoted | letters, digits, "_" and "-"
    value    = quoted | anything without space and comma
    quoted   = Go's string syntax between two of " / or |

Of several filters one has to match. A selector without operator asks whether the field is there.
"""

import re
from collections.abc import Callable, Sequence

from mount.snapshotter.errors import InvalidRequest
from mount.snapshotter.snapshot import Snapshot

Filter = Callable[[Snapshot], bool]

_COMMA = re.compile(",")
_DOT = re.compile(r"\.")
_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,.=!~\"/|][^\s,]*")
_QUOTED = re.compile(r'(["/|])((?:\\.|(?!\1)[^\\\n])*)\1')
_ESCAPE = re.compile(
    rb"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|(.))", re.DOTALL
)
_SINGLE = dict(zip(b"abfnrtv\\", b"\a\b\f\n\r\t\v\\", strict=True))
_LARGEST_CODE_POINT = 0x10FFFF


def parse_filters(texts: Sequence[str]) -> Filter:
    """One filter of all; none, or an empty one, matches everything. Raises InvalidRequest."""
    filters = [_Parser(text).filter() for text in texts]
    if not filters:
        return lambda snapshot: True
    return lambda snapshot: any(matches(snapshot) for matches in filters)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> Filter:
        if not self._text:
            return lambda snapshot: True
        selectors = [self._selector()]
        while not self._ended():
            self._expect(_COMMA, "a comma")
            selectors.append(self._selector())
        return lambda snapshot: all(matches(snapshot) for matches in selectors)

    def _selector(self) -> Filter:
        path = [self._field()]
        while self._take(_DOT) is not None:
            path.append(self._field())
        if self._ended() or self._text[self._at] == ",":
            return lambda snapshot: _field_of(snapshot, path) is not None
        operator = self._expect(_OPERATOR, "an operator")[0]
        value = self._value()
        match operator:
            case "==":
                return lambda snapshot: _field_of(snapshot, path) == value
            case "!=":
                return lambda snapshot: (_field_of(snapshot, path) or "") != value
            case "~=":
                pattern = self._pattern(value)
                return lambda snapshot: bool(pattern.search(_field_of(snapshot, path) or ""))
            case _:
                raise self._invalid("one of the operators ==, != and ~=")

    def _field(self) -> str:
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return self._unquoted(quoted)
        return self._expect(_FIELD, "a field")[0]

    def _value(self) -> str:
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return self._unquoted(quoted)
        return self._expect(_VALUE, "a value")[0]

    def _pattern(self, value: str) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except (re.error, RecursionError, OverflowError):
            raise self._invalid("a regular expression") from None

    def _unquoted(self, quoted: re.Match[str]) -> str:
        quote, inner = quoted.groups()

        def escaped(match: re.Match[bytes]) -> bytes:
            byte, short, long, octal, sign = match.groups()
            if sign is not None:
                if sign == quote.encode():
                    return sign
                if sign[0] in _SINGLE:
                    return bytes([_SINGLE[sign[0]]])
                raise self._invalid("an escape of Go's strings")
            if byte is not None or octal is not None:
                code = int(byte, 16) if byte is not None else int(octal, 8)
                if code > 0xFF:
                    raise self._invalid("an octal escape of one byte")
                return bytes([code])
            code = int(short or long, 16)
            if code > _LARGEST_CODE_POINT:
                raise self._invalid("an escape of a code point")
            return chr(code).encode(errors="replace")

        decoded = _ESCAPE.sub(escaped, inner.encode(errors="surrogateescape"))
        return decoded.decode(errors="surrogateescape")

    def _ended(self) -> bool:
        self._at = self._skipped()
        return self._at == len(self._text)

    def _skipped(self) -> int:
        space = _SPACE.match(self._text, self._at)
        return self._at if space is None else space.end()

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._skipped())
        if found is not None:
            self._at = found.end()
        return found

    def _expect(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = self._take(pattern)
        if found is None:
            raise self._invalid(what)
        return found

    def _invalid(self, wanted: str) -> InvalidRequest:
        return InvalidRequest(f"filter {self._text!r}: expected {wanted} at {self._at}")


def _field_of(snapshot: Snapshot, path: Sequence[str]) -> str | None:
    """The value of a field; None where it is not there."""
    match path[0]:
        case "name":
            return snapshot.name
        case "parent":
            return snapshot.parent
        case "kind":
            return snapshot.kind.value
        case "labels":
            return snapshot.labels.get(".".join(path[1:]))
        case _:
            return None
