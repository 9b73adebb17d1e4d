"""A prefetch list from a file that a person names: ``--list FILE``.

Three forms, told apart by what is in the file: our own JSON, what ctr-remote records, and plain
text with the path of a file on each line.
"""

import io
from functools import partial
from pathlib import Path

from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS, ListCaps
from headstart.content.landmarks.paths import clean_path
from headstart.content.landmarks.prefetch_list import (
    ListedFile,
    PrefetchList,
    parse_json,
    parse_prefetch_list,
    within_caps,
)
from headstart.content.landmarks.record_out import listed_files, read_record_out

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NO_LIST = "write a prefetch list, what ctr-remote records, or a path on each line"


def read_prefetch_file(file: Path, caps: ListCaps = DEFAULT_LIST_CAPS) -> PrefetchList:
    """Read a list in any of the forms; blocks. Raises InvalidInput, which names the file.

    A path in plain text that begins with ``{`` is written with a slash before it.
    """
    try:
        with open(file, "rb") as opened:
            body = opened.read(caps.record_bytes + 1)
    except OSError as error:
        remedy = f"it cannot be read ({error.strerror}): name a readable file"
        raise InvalidInput("--list", str(file), remedy) from error
    try:
        return _read(body, caps)
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error.field}", error.value, error.remedy) from error


def _read(body: bytes, caps: ListCaps) -> PrefetchList:
    if len(body) > caps.record_bytes:
        raise InvalidInput("size", f"over {caps.record_bytes} bytes", "write a shorter one")
    body = body.removeprefix(_BYTE_ORDER_MARK)
    text = body.lstrip()
    if not text:
        raise InvalidInput("--list", "", f"it is empty: {_NO_LIST}")
    if text[:1] != b"{":
        return _read_paths(body, caps)
    if _is_recorded(text[: caps.line_bytes].partition(b"\n")[0]):
        return _bounded(listed_files(read_record_out(body, caps)), caps)
    return parse_prefetch_list(text, caps)


def _is_recorded(first_line: bytes) -> bool:
    """Whether this is a line of ctr-remote: an object with a path, where ours has ``files``."""
    try:
        members = parse_json(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(members, dict) and "path" in members


def _read_paths(body: bytes, caps: ListCaps) -> PrefetchList:
    files: dict[ListedFile, None] = {}
    lines = iter(partial(io.BytesIO(body).readline, caps.line_bytes), b"")
    for number, line in enumerate(lines, 1):
        path = line.removesuffix(b"\n").removesuffix(b"\r")
        if path.strip() and len(files) <= caps.files:
            files[ListedFile(clean_path(path, f"line {number}"))] = None
    return _bounded(tuple(files), caps)


def _bounded(files: tuple[ListedFile, ...], caps: ListCaps) -> PrefetchList:
    kept = within_caps(files, caps)
    if len(kept.files) < len(files):
        remedy = f"list at most {caps.files} files, in at most {caps.json_bytes} bytes of JSON"
        raise InvalidInput("files", f"{len(kept.files)} and more", remedy)
    return kept
