"""One entry of a TOC as an entry of a layer.

Field by field: stargz-snapshotter, docs/estargz.md, "TOCEntries"; containers/storage,
pkg/chunked/internal/minimal. What Go's encoding/json leaves out is zero, and ``null`` is absent.
"""

import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType

from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import shown

Members = Mapping[str, object]

_KINDS: Mapping[object, EntryKind] = {kind.value: kind for kind in EntryKind}
_LINKS = (EntryKind.SYMLINK, EntryKind.HARD_LINK)
_DEVICES = (EntryKind.CHARACTER, EntryKind.BLOCK)

_REPLACEMENT = "\ufffd"
"""What Go's encoding/json writes for each byte that is not UTF-8: the name itself is lost."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NANOSECONDS = 1_000_000_000

_NONE: Mapping[bytes, bytes] = MappingProxyType({})


def layer_entry(members: Members) -> Entry:
    """The entry that an object of any type but ``chunk`` says. Raises LayerRefused."""
    kind_name = members.get("type")
    kind = _KINDS.get(kind_name) if isinstance(kind_name, str) else None
    if kind is None:
        raise LayerRefused(f"an entry of its TOC is of the unknown type {kind_name!r:.40}")
    name = text(members, "name")
    modified = members.get("modtime")
    xattrs = members.get("xattrs")
    return Entry(
        name,
        kind,
        number(members, "mode") & 0o7777,
        number(members, "uid"),
        number(members, "gid"),
        _time(modified),
        number(members, "size") if kind is EntryKind.REGULAR else 0,
        text(members, "linkName") if kind in _LINKS else b"",
        (number(members, "devMajor"), number(members, "devMinor")) if kind in _DEVICES else (0, 0),
        _xattrs(xattrs, name) if xattrs else _NONE,
    )


def number(members: Members, key: str) -> int:
    """A whole number that is not negative; 0 where it is left out. Raises LayerRefused."""
    value = members.get(key)
    if type(value) is int and value >= 0:
        return value
    if value is None:
        return 0
    raise LayerRefused(f"an entry of its TOC has {value!r:.40} for {key}")


def text(members: Members, key: str) -> bytes:
    """A string as the bytes of a file's name; empty where it is left out. Raises LayerRefused."""
    value = members.get(key)
    if isinstance(value, str):
        return _encoded(value)
    if value is None:
        return b""
    raise LayerRefused(f"an entry of its TOC has {value!r:.40} for {key}")


def _encoded(value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise LayerRefused(f"its TOC has half a character in {value!r:.100}") from error
    if _REPLACEMENT in value:
        raise LayerRefused(f"the name {shown(encoded)} was not UTF-8, which a TOC cannot hold")
    return encoded


def _xattrs(given: object, name: bytes) -> Mapping[bytes, bytes]:
    if not isinstance(given, dict):
        raise LayerRefused(f"the extended attributes of {shown(name)} are no object")
    found: dict[bytes, bytes] = {}
    for key, value in given.items():
        try:
            found[_encoded(key)] = binascii.a2b_base64(value, strict_mode=True)
        except (TypeError, ValueError) as error:
            raise LayerRefused(
                f"an extended attribute of {shown(name)} is not base64: {error}"
            ) from error
    return found


def _time(value: object) -> int:
    """A time of RFC 3339 in nanoseconds from the epoch; 0 where it is left out or empty."""
    if value is None or value == "":
        return 0
    if isinstance(value, str):
        return _nanoseconds(value)
    raise LayerRefused(f"its TOC has {value!r:.40} for a time")


@lru_cache(maxsize=4096)
def _nanoseconds(value: str) -> int:
    found = _TIME.fullmatch(value)
    if found is not None:
        whole, fraction, zone = found.groups()
        try:
            moment = datetime.fromisoformat(whole + zone)
        except ValueError:
            pass
        else:
            seconds = round(moment.timestamp())
            return seconds * _NANOSECONDS + int((fraction or "").ljust(9, "0"))
    raise LayerRefused(f"its TOC has {value!r:.40} for a time")
