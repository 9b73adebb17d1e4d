"""How much a TOC may ask of this node; what is over it is refused, never cut."""

from dataclasses import dataclass

from headstart.content.layer.caps import MIB


@dataclass(frozen=True, slots=True)
class TocCaps:
    """Bounds on a TOC; a layer that is over them is still an ordinary layer.

    A TOC has some 350 bytes for a file or a chunk (two digests are half of that): ``json_bytes``,
    which are held in memory, is enough for 400,000 of them, and a layer's digests leave a third of
    it after compression. ``entry_bytes`` is one entry's JSON: base64 of all extended attributes
    that LayerCaps allows, a name and a target of 4095 bytes each, and room to spare.

    ``chunks``: a chunk costs the filler 60 bytes. ``chunk_bytes``: who wants one byte of a chunk
    waits for all of it; writers cut at 4 MiB (eStargz) or at 64 KiB on average (zstd:chunked, but a
    hole is one chunk).
    """

    compressed_bytes: int = 64 * MIB
    json_bytes: int = 128 * MIB
    entry_bytes: int = 1 * MIB
    chunks: int = 1_000_000
    chunk_bytes: int = 256 * MIB


DEFAULT_TOC_CAPS = TocCaps()
