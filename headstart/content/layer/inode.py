"""One file of a layer."""

from dataclasses import dataclass, field

from headstart.content.layer.entry import EntryKind


@dataclass(slots=True, eq=False)
class Inode:
    """What the file system of a layer image says of one file.

    ``kind`` is never HARD_LINK: names that share a file share one Inode, and ``links`` counts them
    (a directory's: 2 and one for each directory in it). Whiteouts are CHARACTER with device
    (0, 0). ``offset`` is where the contents of a non-empty regular file begin on the data device.
    ``children`` is of directories. ``implied`` is a directory that no entry names: its attributes
    were made up, those of the layers below are meant.
    """

    kind: EntryKind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    offset: int = 0
    links: int = 1
    children: dict[bytes, "Inode"] = field(default_factory=dict)
    implied: bool = False
