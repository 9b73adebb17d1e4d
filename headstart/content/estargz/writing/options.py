"""How an eStargz layer is written."""

from dataclasses import dataclass

from headstart.content.errors import InvalidInput
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS
from headstart.content.layer.caps import MIB


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """Raises InvalidInput for numbers that no layer can be written with.

    ``chunk_size``: at most so many bytes of a file are one chunk; 4 MiB is what stargz-snapshotter
    writes.

    ``pack``: small files beside each other share a member. Layers of many small files become
    smaller by some 3 % of their uncompressed size, but readers that do not know ``innerOffset``
    cannot read them: stargz-snapshotter's refuse one offset for two files.

    ``level`` is libdeflate's, for what is compressed: 6 is as small as ``gzip -9`` for a twelfth of
    its CPU. ``sample_level`` is igzip's, for the samples. A member whose samples shrink to no less
    than ``stored_from`` of their size is stored: float16 weights would save 8 % of their size, but
    cost three to four times as much to read.
    """

    chunk_size: int = 4 * MIB
    pack: bool = False
    level: int = 6
    sample_level: int = 1
    stored_from: float = 0.9

    def __post_init__(self) -> None:
        _check("chunk_size", self.chunk_size, 1, DEFAULT_TOC_CAPS.chunk_bytes)
        _check("level", self.level, 1, 12)
        _check("sample_level", self.sample_level, 0, 3)
        _check("stored_from", self.stored_from, 0, 2)


def _check(field: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidInput(field, str(value), f"write a number from {least} to {most}")


DEFAULT_OPTIONS = WritingOptions()
