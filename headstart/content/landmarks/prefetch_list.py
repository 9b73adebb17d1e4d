"""A prefetch list, and the one form that it has as bytes.

It says what a start of an image reads, the first file first. It can only change the order in which
bytes are fetched, never a byte; so it is believed as far as it can be read.

The JSON (:data:`MEDIA_TYPE`) is ``{"files": […], "mediaType": …, "version": 1}``. A file has
``path``, or ``pathBase64`` where the path is not UTF-8, and may have ``layer`` (a number, the base
is 0, or the digest of the layer's blob), ``digest`` (of the file's content), ``ranges``
(``[[offset, length], …]`` in bytes, in the order of reading) and ``seconds`` since the start.
Written are sorted keys, no white space, UTF-8: the same list is always the same bytes.
"""

import json
import reprlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS, ListCaps
from headstart.content.landmarks.paths import cleaned_path
from headstart.content.landmarks.range_set import LARGEST, Range
from headstart.content.manifest import MOST_DESCRIPTORS

MEDIA_TYPE = "application/vnd.headstart.prefetch.v1+json"
VERSION = 1
MOST_LAYERS = MOST_DESCRIPTORS

_HEAD = b'{"files":['
_END = f'],"mediaType":"{MEDIA_TYPE}","version":{VERSION}}}'.encode()
_SEPARATORS = b",[{"
_MEMBERS = frozenset(("files", "mediaType", "version"))
_FILE_MEMBERS = frozenset(("path", "pathBase64", "layer", "digest", "ranges", "seconds"))
_MOST_SECONDS = 86_400.0
"""A start that takes longer than a day is not waited for."""

Layer = int | Digest
"""Which layer of an image: its number, the base's is 0, or its blob's digest."""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that a start reads.

    ``path`` is from the layer's root, cleaned as in :mod:`headstart.content.layer.names`.
    ``layer`` is None where only the path is known: it is the uppermost one that has it.
    ``digest`` is of the content; by it the entry holds for other images too.
    ``ranges`` are in the order of reading; empty for the whole file.
    ``seconds`` are from the start of the container to the first read.
    """

    path: bytes
    layer: Layer | None = None
    digest: Digest | None = None
    ranges: tuple[Range, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PrefetchList:
    """Files in the order in which a start reads them; one may be there several times."""

    files: tuple[ListedFile, ...]

    def of_layer(self, number: int, digest: Digest) -> Iterator[ListedFile]:
        """The files that are said to be in this layer."""
        return (file for file in self.files if file.layer in (number, digest))

    def encode(self) -> bytes:
        """The list as JSON."""
        return _HEAD + b",".join(map(_encoded, self.files)) + _END


def parse_prefetch_list(body: bytes, caps: ListCaps = DEFAULT_LIST_CAPS) -> PrefetchList:
    """Read a list's JSON, in any layout. Raises InvalidInput, which names field and value."""
    if len(body) > caps.json_bytes or _separators(body) > caps.separators:
        remedy = f"write at most {caps.json_bytes} bytes and {caps.files} files"
        raise InvalidInput("prefetch list", f"{len(body)} bytes", remedy)
    try:
        document = parse_json(body.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidInput("prefetch list", _shown(body), f"write JSON: {error!s:.100}") from error
    members = _object(document, "prefetch list", _MEMBERS)
    version, media_type, files = (members.get(key) for key in ("version", "mediaType", "files"))
    if type(version) is not int or version != VERSION:
        raise _invalid("version", version, f"write {VERSION}")
    if media_type != MEDIA_TYPE:
        raise _invalid("mediaType", media_type, f"write {MEDIA_TYPE}")
    if not isinstance(files, list) or len(files) > caps.files:
        raise _invalid("files", files, f"write an array of at most {caps.files} files")
    return PrefetchList(
        tuple(_file(file, f"files[{number}]", caps) for number, file in enumerate(files))
    )


def within_caps(files: Iterable[ListedFile], caps: ListCaps = DEFAULT_LIST_CAPS) -> PrefetchList:
    """A list of the first of these files, as many as the caps allow to be read again.

    None of them may have more ranges than the caps allow.
    """
    kept: list[ListedFile] = []
    size, separators = len(_HEAD) + len(_END), _separators(_HEAD + _END)
    for file in files:
        encoded = _encoded(file)
        size += len(encoded) + 1
        separators += _separators(encoded) + 1
        over = size > caps.json_bytes or separators > caps.separators
        if over or len(kept) == caps.files:
            break
        kept.append(file)
    return PrefetchList(tuple(kept))


def _encoded(file: ListedFile) -> bytes:
    members: dict[str, object] = {}
    try:
        members["path"] = file.path.decode()
    except UnicodeDecodeError:
        members["pathBase64"] = b64encode(file.path).decode()
    if file.layer is not None:
        members["layer"] = file.layer if isinstance(file.layer, int) else str(file.layer)
    if file.digest is not None:
        members["digest"] = str(file.digest)
    if file.ranges:
        members["ranges"] = file.ranges
    if file.seconds is not None:
        members["seconds"] = file.seconds
    return canonical_json(members)


def canonical_json(members: Mapping[str, object]) -> bytes:
    """An object in JSON without white space and with sorted keys."""
    text = json.dumps(members, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def parse_digest(text: str, field: str) -> Digest:
    """A digest. Raises InvalidInput, which names ``field``."""
    try:
        return Digest.parse(text)
    except InvalidInput as error:
        raise InvalidInput(field, error.value, error.remedy) from error


def parse_json(text: str | bytes) -> object:
    """A JSON document of which no key stands twice. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _separators(encoded: bytes) -> int:
    return sum(encoded.count(sign) for sign in _SEPARATORS)


def _file(given: object, place: str, caps: ListCaps) -> ListedFile:
    members = _object(given, place, _FILE_MEMBERS)
    layer, digest, ranges, seconds = (
        members.get(key) for key in ("layer", "digest", "ranges", "seconds")
    )
    return ListedFile(
        _path(members, place),
        None if layer is None else _layer(layer, f"{place}.layer"),
        None
        if digest is None
        else parse_digest(_text(digest, f"{place}.digest"), f"{place}.digest"),
        () if ranges is None else _ranges(ranges, f"{place}.ranges", caps),
        None if seconds is None else _seconds(seconds, f"{place}.seconds"),
    )


def _path(members: dict[str, object], place: str) -> bytes:
    text, encoded = members.get("path"), members.get("pathBase64")
    if (text is None) == (encoded is None):
        raise _invalid(place, members, "write path, or pathBase64 where the path is not UTF-8")
    if encoded is None:
        field = f"{place}.path"
        try:
            return cleaned_path(_text(text, field).encode(), field)
        except UnicodeEncodeError as error:
            raise _invalid(field, ascii(text), "write whole characters") from error
    field = f"{place}.pathBase64"
    try:
        path = b64decode(_text(encoded, field), validate=True)
    except ValueError as error:
        raise _invalid(field, encoded, "write base64") from error
    try:
        path.decode()
    except UnicodeDecodeError:
        return cleaned_path(path, field)
    raise _invalid(field, encoded, "write path, since this one is UTF-8")


def _layer(given: object, field: str) -> Layer:
    if type(given) is int and 0 <= given < MOST_LAYERS:
        return given
    if isinstance(given, str):
        return parse_digest(_text(given, field), field)
    raise _invalid(field, given, "write the layer's digest, or its number, the base's is 0")


def _ranges(given: object, field: str, caps: ListCaps) -> tuple[Range, ...]:
    if not isinstance(given, list) or not 0 < len(given) <= caps.ranges:
        remedy = f"write 1 to {caps.ranges} ranges, or leave it out for the whole file"
        raise _invalid(field, given, remedy)
    return tuple(_range(pair, f"{field}[{number}]") for number, pair in enumerate(given))


def _range(given: object, field: str) -> Range:
    match given:
        case [int(offset), int(length)] if bool not in (type(offset), type(length)):
            if 0 <= offset <= LARGEST - length < LARGEST:
                return Range(offset, length)
    raise _invalid(field, given, "write [offset, length] in bytes, the length not 0")


def _seconds(given: object, field: str) -> float:
    if isinstance(given, int | float) and type(given) is not bool and 0 <= given <= _MOST_SECONDS:
        return given + 0.0  # which makes 0.0 of -0.0
    raise _invalid(field, given, f"write seconds from 0 to {_MOST_SECONDS:.0f}")


def _object(given: object, place: str, known: frozenset[str]) -> dict[str, object]:
    if not isinstance(given, dict):
        raise _invalid(place, given, "write an object")
    unknown = sorted(given.keys() - known)
    if unknown:
        raise _invalid(place, unknown[0], f"write only {', '.join(sorted(known))}")
    return given


def _text(given: object, field: str) -> str:
    if not isinstance(given, str):
        raise _invalid(field, given, "write text")
    return given


def _invalid(field: str, given: object, remedy: str) -> InvalidInput:
    return InvalidInput(field, given if isinstance(given, str) else reprlib.repr(given), remedy)


def _shown(body: bytes) -> str:
    return body[:200].decode("utf-8", "backslashreplace")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
