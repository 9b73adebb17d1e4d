"""What is known of an eStargz or zstd:chunked layer before its contents are here.

The bytes that tell it, footer, TOC and what lies before the TOC, are kept beside the layer image:
after a restart it is known again without the upstream.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.estargz.announced import announced_toc
from headstart.content.estargz.footer import TAIL_SIZE, parse_footer
from headstart.content.estargz.index_entry import index_entry
from headstart.content.estargz.toc import Toc, parse_toc
from headstart.content.estargz.toc_file import read_toc
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.placement import Placement
from headstart.store.geometry import MIB
from headstart.store.known_layer import KnownLayer
from proxy.fill.layers.inflating import inflate

LARGEST_TAIL = 64 * MIB
"""Compressed bytes of the last member, which is held in memory to see what follows its file."""
_HEAD = struct.Struct("<QQ")

Read = Callable[[int, int], bytes]
"""The bytes of the blob from one offset to another; blocks."""


@dataclass(slots=True)
class Plan:
    """A layer's tree and chunks, and its metadata image."""

    toc: Toc
    meta: bytes


def make_plan(known: KnownLayer, read: Read, extent_size: int, stripes: int) -> Plan:
    """Read what the blob says of itself. Raises LayerRefused, and what ``read`` raises."""
    announced = announced_toc(known.annotations, known.size)
    if announced is None:
        raise LayerRefused("its descriptor announces no TOC")
    location = announced.location
    if location is None:
        tail = read(max(0, known.size - TAIL_SIZE), known.size)
        location = parse_footer(tail, known.size)
    file = read_toc(read(location.offset, location.stop), location, announced)
    placement = Placement(extent_size, stripes)
    toc = parse_toc(file.json, announced.json_digest, location, placement)
    if toc.tail is not None:
        if toc.tail.stop - toc.tail.start > LARGEST_TAIL:
            raise LayerRefused(f"its last member has more than {LARGEST_TAIL} bytes")
        pieces = iter([memoryview(read(toc.tail.start, toc.tail.stop))])
        entry = index_entry(inflate(location.compression, pieces), toc.tail.skip, file)
        if entry is not None:
            toc.show_index(entry, file)
    geometry = DeviceGeometry(toc.device_size, extent_size, stripes)
    return Plan(toc, build(toc.tree.root, geometry))


class KeptReads:
    """Remembers what was read for a plan, in a file, and reads it from there again."""

    def __init__(self, path: Path) -> None:
        """Take over what the file has; none is as good as an empty one."""
        self._path = path
        self._kept: dict[tuple[int, int], bytes] = {}
        try:
            content = path.read_bytes()
        except OSError:
            return
        position = 0
        while position + _HEAD.size <= len(content):
            start, stop = _HEAD.unpack_from(content, position)
            position += _HEAD.size
            if not 0 <= stop - start <= len(content) - position:
                return
            self._kept[start, stop] = content[position : position + stop - start]
            position += stop - start

    def get(self, start: int, stop: int) -> bytes | None:
        """The bytes, if the same have been read before."""
        return self._kept.get((start, stop))

    def put(self, start: int, stop: int, content: bytes) -> None:
        """Remember; written by :meth:`save`."""
        self._kept[start, stop] = content

    def clear(self) -> None:
        """Forget all of it; what has been saved stays."""
        self._kept.clear()

    def save(self) -> None:
        """Write the file whole. Raises OSError."""
        temporary = self._path.with_name(self._path.name + ".new")
        with open(temporary, "wb") as file:
            for (start, stop), content in self._kept.items():
                file.write(_HEAD.pack(start, stop))
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._path)
