"""What the snapshotter needs of layers, and nothing else of filler, kernel and cache.

The mounting side implements it. All methods run on the event loop of the snapshotter and are safe
to cancel; any of them may be called for many layers at once, and again for the same one.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from headstart.content.digest import Digest
from headstart.store.known_layer import KnownChain, KnownLayer


class Layers(Protocol):
    """Layers that can be mounted. LayerUnavailable is in ``mount.snapshotter.errors``."""

    async def known(
        self, chain: Digest, *, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        """The image that a chain ID was last seen in; never waits for bytes.

        None: unknown, refused, or the filler does not answer. The snapshotter waits for a second
        at most, since containerd holds a lock meanwhile.
        """

    def begin(self, chain: KnownChain) -> None:
        """All layers of this image are wanted from now on; returns at once, raises nothing.

        Called for each layer of a pull; what has begun goes on.
        """

    async def mountable(self, layer: KnownLayer) -> None:
        """Wait until the layer may be mounted for the image that it was prepared for.

        An ordinary layer: when it is whole and verified; eStargz: when its TOC is here. Raises
        LayerUnavailable, ``refused`` where its content is at fault.
        """

    async def verified(self, layer: KnownLayer, *, urgent: bool) -> None:
        """Wait until the layer is whole and its diff ID right.

        ``urgent``: somebody's pull waits, so the rest of the layer has the priority of a mount;
        else nothing is fetched for this. Both may be asked of one layer at once. Raises
        LayerUnavailable; ``refused`` for a mismatch.
        """

    async def mounted(self, layer: KnownLayer) -> Path:
        """The directory that shows the layer; mounts it where it is not mounted, or not any more.

        No ``:``, ``,`` or ``\\`` in the path, and as few characters as can be after a parent that
        all layers share: overlayfs takes 4 KiB of options. Takes milliseconds where it is mounted,
        without the filler too. Raises LayerUnavailable.
        """

    async def unmount(self, layer: KnownLayer) -> None:
        """No snapshot uses a layer of this digest any more; it may stay in the cache.

        Asked again later when it raises LayerUnavailable.
        """

    async def adopt(self, layers: Collection[KnownLayer]) -> None:
        """At the start: the layers that snapshots use, and no others.

        They have to survive eviction; they need not be mounted before :meth:`mounted` asks. Does
        not wait for the filler.
        """
