"""One entry of a layer, as a tar header or a TOC says it; nothing is believed yet."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class EntryKind(enum.Enum):
    """What an entry is; the values are the TOC's words."""

    DIRECTORY = "dir"
    REGULAR = "reg"
    SYMLINK = "symlink"
    HARD_LINK = "hardlink"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name and what it is to become.

    ``name`` and ``target`` are as the archive has them, not cleaned; ``target`` is a symlink's
    text or the name of the entry that a hard link shares, else empty. ``mode`` has permission,
    setuid, setgid and sticky bits only. ``mtime_ns`` counts from the epoch and may be negative.
    ``size`` is of a regular file's contents, else 0. ``device`` is (major, minor).
    """

    name: bytes
    kind: EntryKind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
