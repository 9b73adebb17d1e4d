"""How much a prefetch list may ask of this node; what is over it is refused, never cut."""

from dataclasses import dataclass

from headstart.content.layer.caps import MIB


@dataclass(frozen=True, slots=True)
class ListCaps:
    """Bounds on a prefetch list; an image without one starts too, only later.

    An import of the largest Python stacks reads some 15,000 files. With both digests a file takes
    some 200 bytes and its path: ``json_bytes`` hold ``files`` of them with paths of 100 bytes.

    ``separators`` are commas and opening brackets together, which is what bounds the objects that
    are made of the JSON: some 70 bytes each, where ``{},{},…`` would be 25 times its size. A file
    has at most six of them and three a range.

    ``ranges`` are of one entry; a file that is read in more pieces has several entries.

    ctr-remote writes a line for every 64 KiB or so that are read: ``record_bytes`` are the reads of
    a model of 100 GiB. ``line_bytes`` is a path of 4095 bytes, all of them escaped.
    """

    json_bytes: int = 16 * MIB
    separators: int = 500_000
    files: int = 50_000
    ranges: int = 1024
    record_bytes: int = 256 * MIB
    line_bytes: int = 32 * 1024


DEFAULT_LIST_CAPS = ListCaps()
