"""A TOC's JSON, read entry by entry: no more than one of them is held as objects.

A document parsed whole takes 25 times its size if it is made for that (``{},{},{},…``). Refused
are duplicate keys, of which each reader would believe another one, and nesting as deep as would
exhaust the stack.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import NoReturn

from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.layer.errors import LayerRefused

VERSION = 1
"""Of the TOC (stargz-snapshotter, docs/estargz.md): there is no other."""

_GAP = re.compile(r"[ \t\n\r]*")
_PIECE_SIZE = 1 << 20

Members = dict[str, object]


def read_entries(content: bytes | bytearray, caps: TocCaps = DEFAULT_TOC_CAPS) -> Iterator[Members]:
    """The objects in ``entries``, in order; what else the TOC has but its version is passed over.

    Raises LayerRefused, for what follows the entries only after the last one.
    """
    if len(content) > caps.json_bytes:
        raise LayerRefused(f"its TOC has {len(content)} bytes, over {caps.json_bytes}")
    text = _Text(content, caps.entry_bytes)
    seen: set[object] = set()
    version: object = None
    text.take("{")
    more = not text.took("}")
    while more:
        key = text.value()
        if not isinstance(key, str) or key in seen:
            raise LayerRefused("its TOC has a key twice")
        seen.add(key)
        text.take(":")
        if key == "entries" and text.took("["):
            yield from _elements(text)
        else:
            value = text.value()
            if key == "version":
                version = value
            elif key == "entries" and value is not None:
                raise LayerRefused("the entries of its TOC are no array")
        more = text.took(",")
        if not more:
            text.take("}")
    text.end()
    if type(version) is not int or version != VERSION or "entries" not in seen:
        raise LayerRefused(f"its TOC has no entries, or not the version {VERSION}")


def _elements(text: "_Text") -> Iterator[Members]:
    if text.took("]"):
        return
    while True:
        element = text.value()
        if not isinstance(element, dict):
            raise LayerRefused("an entry of its TOC is no object")
        yield element
        if not text.took(","):
            text.take("]")
            return


class _Text:
    """A window that moves over a JSON document."""

    def __init__(self, content: bytes | bytearray, value_bytes: int) -> None:
        self._rest = memoryview(content)
        self._value_bytes = value_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(
            object_pairs_hook=_unique, parse_constant=_refuse_constant
        ).raw_decode
        self._text = ""
        self._position = 0

    def took(self, character: str) -> bool:
        """Go past ``character`` if it comes next."""
        self._skip_gap()
        found = self._text.startswith(character, self._position)
        self._position += found
        return found

    def take(self, character: str) -> None:
        """Go past ``character``, which has to come next."""
        if not self.took(character):
            raise LayerRefused(f"its TOC is not the JSON it should be: no {character!r}")

    def value(self) -> object:
        """The value that comes next."""
        self._skip_gap()
        while True:
            try:
                value, stop = self._scan(self._text, self._position)
            except RecursionError as error:
                raise LayerRefused("its TOC is nested too deep") from error
            except ValueError as error:
                # Cut by the window's end, perhaps.
                if len(self._text) - self._position > self._value_bytes or not self._more():
                    raise LayerRefused(f"its TOC is not the JSON it should be: {error}") from error
            else:
                # A number there may go on.
                if stop < len(self._text) or not self._more():
                    if stop - self._position > self._value_bytes:
                        raise LayerRefused(f"an entry of its TOC is over {self._value_bytes} bytes")
                    self._position = stop
                    return value

    def end(self) -> None:
        """Find nothing but the end."""
        self._skip_gap()
        if self._position < len(self._text):
            raise LayerRefused("something follows the JSON of its TOC")

    def _skip_gap(self) -> None:
        while True:
            found = _GAP.match(self._text, self._position)
            if found:
                self._position = found.end()
            if self._position < len(self._text) or not self._more():
                return

    def _more(self) -> bool:
        """Move the window; False at the end of the document."""
        if not self._rest:
            return False
        piece, self._rest = self._rest[:_PIECE_SIZE], self._rest[_PIECE_SIZE:]
        try:
            decoded = self._utf8.decode(piece, final=not self._rest)
        except UnicodeDecodeError as error:
            raise LayerRefused("its TOC is not UTF-8") from error
        self._text = self._text[self._position :] + decoded
        self._position = 0
        return True


def _unique(pairs: list[tuple[str, object]]) -> Members:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise LayerRefused("an entry of its TOC has a key twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise LayerRefused(f"its TOC has {name} for a number")
