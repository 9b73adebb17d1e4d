"""The members of a TOC's JSON object that an entry of a tar gives.

Field by field: stargz-snapshotter, docs/estargz.md, "TOCEntries". Those that it calls required are
always there; others are left out where they are zero or empty.
"""

import base64
from datetime import datetime, timedelta

from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.names import shown

Fields = dict[str, object]

_DEVICES = (EntryKind.CHARACTER, EntryKind.BLOCK)

_REPLACEMENT = "\ufffd"
"""Readers take it for a byte that was lost."""

_EPOCH = datetime(1970, 1, 1)
_NANOSECONDS = 1_000_000_000


def entry_fields(entry: Entry) -> Fields:
    """What is known before the entry is written. Raises NotConvertible for what no TOC can hold."""
    fields: Fields = {"name": toc_text(entry.name), "type": entry.kind.value}
    if entry.size:
        fields["size"] = entry.size
    if entry.mtime_ns:
        fields["modtime"] = _time(entry)
    if entry.target:
        fields["linkName"] = toc_text(entry.target)
    fields["mode"] = entry.mode
    fields["uid"] = entry.uid
    fields["gid"] = entry.gid
    if entry.kind in _DEVICES:
        fields["devMajor"], fields["devMinor"] = entry.device
    if entry.xattrs:
        fields["xattrs"] = {
            toc_text(name): base64.b64encode(value).decode() for name, value in entry.xattrs.items()
        }
    return fields


def toc_text(name: bytes) -> str:
    """A name as JSON has it. Raises NotConvertible for one that is not UTF-8."""
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise NotConvertible(
            f"the name {shown(name)} is not UTF-8, which a TOC cannot hold"
        ) from error
    if _REPLACEMENT in text:
        raise NotConvertible(
            f"the name {shown(name)} has U+FFFD, which in a TOC means that a byte was lost"
        )
    return text


def _time(entry: Entry) -> str:
    """RFC 3339, in UTC, with as many digits after the second as it needs."""
    seconds, fraction = divmod(entry.mtime_ns, _NANOSECONDS)
    try:
        moment = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError as error:
        raise NotConvertible(
            f"{shown(entry.name)} is of a year that a TOC cannot hold: {seconds} seconds from 1970"
        ) from error
    return f"{moment}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"
