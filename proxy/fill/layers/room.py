"""The disk space of one layer image: counted by the quota, its writes paced."""

from collections.abc import Callable
from typing import TypeVar

from headstart.content.digest import Digest
from headstart.store.object_key import LayerKey
from proxy.fill.filler import Filler

T = TypeVar("T")


class LayerRoom:
    """What a layer's files need of the filler; called from the threads that write them."""

    def __init__(self, filler: Filler, digest: Digest) -> None:
        """For the layer image of the blob ``digest``."""
        self._filler = filler
        self._key = LayerKey(digest)

    def reserve(self, length: int, work: Callable[[], None]) -> None:
        """Count ``length`` bytes and do what takes them; a full disk gets room by evicting once.

        Raises OSError.
        """
        self._filler.room.take(self._key, length, work)

    def wrote(self, descriptor: int, stripe: int, offset: int, length: int) -> None:
        """Count and pace a write; may wait for the disk."""
        self._filler.room.pacers[stripe].wrote(descriptor, offset, length)
