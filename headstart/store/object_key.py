"""How messages and records name an object of the store: a blob, or the layer image of one."""

from dataclasses import dataclass

from headstart.content.digest import Digest

_LAYER = "layer:"


@dataclass(frozen=True, slots=True)
class LayerKey:
    """The layer image that is made of the blob ``digest``; written ``layer:DIGEST``."""

    digest: Digest

    def __str__(self) -> str:
        return f"{_LAYER}{self.digest}"


ObjectKey = Digest | LayerKey
"""A blob is named by its digest alone."""


def parse_key(text: str) -> ObjectKey:
    """Read what ``str()`` of a key has written. Raises InvalidInput."""
    if text.startswith(_LAYER):
        return LayerKey(Digest.parse(text[len(_LAYER) :]))
    return Digest.parse(text)
