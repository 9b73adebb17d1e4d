"""What ``ctr-remote images optimize --record-out`` writes: a line of JSON for each read.

stargz-snapshotter, package recorder: ``path`` from the layer's root, ``manifestDigest`` of the
image that was recorded, ``layerIndex`` from 0, the base; the latter two may be left out. There are
no ranges and no times, and a file has as many lines as there were reads of it. The lines are those
of Go's encoding/json, which writes ``<``, ``>``, ``&`` and the line separators of Unicode as
escapes, and has lost what is not UTF-8 in a path.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS, ListCaps
from headstart.content.landmarks.paths import clean_path
from headstart.content.landmarks.prefetch_list import (
    MOST_LAYERS,
    ListedFile,
    parse_digest,
    parse_json,
)
from headstart.content.layer.names import shown

_ESCAPED = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


@dataclass(frozen=True, slots=True)
class RecordedRead:
    """One line."""

    path: bytes
    manifest: Digest | None = None
    layer: int | None = None


def read_record_out(body: bytes, caps: ListCaps = DEFAULT_LIST_CAPS) -> tuple[RecordedRead, ...]:
    """All lines in order; members that are not known are left out, empty lines passed over.

    Raises InvalidInput with the number of a line that is none of ctr-remote's.
    """
    if len(body) > caps.record_bytes:
        remedy = f"record at most {caps.record_bytes} bytes"
        raise InvalidInput("record-out file", f"{len(body)} bytes", remedy)
    reads: list[RecordedRead] = []
    # A file has the same line for each read, which are many if it is large.
    known: dict[bytes, RecordedRead] = {}
    lines = iter(partial(io.BytesIO(body).readline, caps.line_bytes + 1), b"")
    for number, line in enumerate(lines, 1):
        read = known.get(line)
        if read is None:
            if not line.strip():
                continue
            if len(known) == caps.files:
                raise InvalidInput(f"line {number}", shown(line), f"record {caps.files} files")
            read = known[line] = _read(line, f"line {number}", caps)
        reads.append(read)
    return tuple(reads)


def write_record_out(reads: Iterable[RecordedRead]) -> bytes:
    """The lines as ctr-remote writes them. Raises InvalidInput for a path that is not UTF-8."""
    return b"".join(map(_line, reads))


def listed_files(reads: Iterable[RecordedRead]) -> tuple[ListedFile, ...]:
    """Each file once, where it was read first."""
    seen = dict.fromkeys((read.path, read.layer) for read in reads)
    return tuple(ListedFile(path, layer) for path, layer in seen)


def recorded_reads(
    files: Iterable[ListedFile], manifest: Digest, layers: Sequence[Digest]
) -> tuple[RecordedRead, ...]:
    """The files as reads of an image with these layers, the base first.

    Left out are those that are said to be in none of its layers.
    """
    numbers = {digest: number for number, digest in enumerate(layers)}
    reads: list[RecordedRead] = []
    for file in files:
        number = numbers.get(file.layer) if isinstance(file.layer, Digest) else file.layer
        if number is not None and number < len(layers):
            reads.append(RecordedRead(file.path, manifest, number))
    return tuple(dict.fromkeys(reads))


def _read(line: bytes, place: str, caps: ListCaps) -> RecordedRead:
    if len(line) > caps.line_bytes:
        raise InvalidInput(place, f"{len(line)} bytes", f"write at most {caps.line_bytes}")
    try:
        members = parse_json(line.decode())
        path = members["path"].encode() if isinstance(members, dict) else None
    except (AttributeError, KeyError, RecursionError, ValueError) as error:
        raise _no_read(line, place) from error
    if not isinstance(members, dict) or not isinstance(path, bytes):
        raise _no_read(line, place)
    layer, manifest = members.get("layerIndex"), members.get("manifestDigest") or None
    if layer is not None and (type(layer) is not int or not 0 <= layer < MOST_LAYERS):
        raise InvalidInput(f"layerIndex in {place}", f"{layer!s:.100}", "write a layer's number")
    if not isinstance(manifest, str | None):
        raise InvalidInput(f"manifestDigest in {place}", f"{manifest!s:.100}", "write a digest")
    return RecordedRead(
        clean_path(path, f"path in {place}"),
        None if manifest is None else parse_digest(manifest, f"manifestDigest in {place}"),
        layer,
    )


def _no_read(line: bytes, place: str) -> InvalidInput:
    text = line[:200].decode("utf-8", "backslashreplace").rstrip()
    remedy = 'ctr-remote writes {"path": …, "manifestDigest": …, "layerIndex": …}'
    return InvalidInput(place, text, remedy)


def _line(read: RecordedRead) -> bytes:
    try:
        members: dict[str, object] = {"path": read.path.decode()}
    except UnicodeDecodeError as error:
        remedy = "leave it out: ctr-remote's lines hold UTF-8 only"
        raise InvalidInput("path", shown(read.path), remedy) from error
    if read.manifest is not None:
        members["manifestDigest"] = str(read.manifest)
    if read.layer is not None:
        members["layerIndex"] = read.layer
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return f"{text.translate(_ESCAPED)}\n".encode()
