"""Layers as the snapshotter wants them, made of the filler's layer images and of mounts."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import anyio

from headstart.content.digest import Digest
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownChain, KnownLayer
from headstart.store.open_layer import OpenLayer
from mount.mounting.errors import FilesMissing, MountError
from mount.mounting.layer_mounts import LayerMounts
from mount.mounting.leased_mounts import LeasedMounts
from mount.mounting.opened_layers import AT_FAULT, OpenedLayers
from mount.snapshotter.errors import LayerUnavailable

logger = logging.getLogger(__name__)

KNOWN_SECONDS = 1.0
"""How long a Prepare may wait for the filler: containerd holds a lock meanwhile."""

USER = "snapshotter"

_RECONCILE_EVERY_SECONDS = 5.0


class FilledLayers:
    """Layers of the filler, mounted. Use as an async context manager; belongs to one event loop."""

    def __init__(self, client: FillClient, mounts: LayerMounts) -> None:
        """Nothing is asked or mounted yet."""
        self._client = client
        self._opened = OpenedLayers(client)
        self._mounts = LeasedMounts(mounts, client, USER)
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        """Start to work in the background."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what works in the background; what is mounted stays."""
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    # --- what is wanted ---

    async def known(
        self, chain: Digest, *, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        """The image that a chain ID was last seen in; within a second."""
        reason = f"the filler has not answered within {KNOWN_SECONDS:g} s"
        with anyio.move_on_after(KNOWN_SECONDS):
            try:
                found = await self._client.chain(chain, manifest=manifest, image_ref=image_ref)
                if found is not None:
                    return found
                reason = "no image with it has come through the mirror"
            except (FillFailed, FillerUnreachable) as error:
                reason = str(error)
        logger.info("chain %s is pulled the ordinary way: %s", chain, reason)
        return None

    def begin(self, chain: KnownChain) -> None:
        """Let all layers of this image stream; those that cannot be opened are logged."""
        self._tasks.start_soon(self._begin, chain.layers)

    async def mountable(self, layer: KnownLayer) -> None:
        """Wait until the layer may be mounted, and mount it. Raises LayerUnavailable."""
        with _unavailable(layer):
            await self._mount(await self._opened.mountable(layer))

    async def verified(self, layer: KnownLayer, *, urgent: bool) -> None:
        """Wait until the layer is whole and its diff ID right. Raises LayerUnavailable."""
        with _unavailable(layer):
            await self._mount(await self._opened.complete(layer, urgent=urgent))

    # --- what is mounted ---

    async def mounted(self, layer: KnownLayer) -> Path:
        """The directory that shows the layer. Raises LayerUnavailable."""
        with _unavailable(layer):
            failure = self._opened.failure(layer)
            if failure is not None and failure.code in AT_FAULT:
                raise failure
            whole = self._opened.whole(layer)
            if whole is not None:
                return await self._mount(whole)
            try:
                return (await self._mounts.restore(layer)).path
            except FilesMissing as missing:
                logger.info("layer %s: the filler is asked for it: %s", layer.digest, missing)
            return await self._mount(await self._opened.mountable(layer))

    async def unmount(self, layer: KnownLayer) -> None:
        """No snapshot uses the layer any more. Raises LayerUnavailable."""
        with _unavailable(layer):
            self._opened.close_all(layer.digest)
            await self._mounts.unmount(layer)

    async def adopt(self, layers: Collection[KnownLayer]) -> None:
        """Take over what is mounted; the filler hears of it as soon as it answers."""
        kept = tuple(layers)
        try:
            await self._mounts.adopt(kept)
        except MountError as error:
            # What could not be unmounted is in nobody's way, and goes at the next start.
            logger.warning("mounts of an earlier process: %s", error)
        self._tasks.start_soon(self._reconcile, kept)

    async def _mount(self, opened: OpenLayer) -> Path:
        """Mount it; a whole one needs to be open no longer. Raises as :class:`LeasedMounts`."""
        mounted = await self._mounts.mount(opened)
        if opened.state == "complete":
            self._opened.close(opened.layer)
        return mounted.path

    # --- in the background ---

    async def _begin(self, layers: Sequence[KnownLayer]) -> None:
        try:
            await self._opened.begin(layers)
        except (FillFailed, FillerUnreachable) as error:
            logger.warning("a layer of %s cannot be fetched ahead: %s", _name(layers[0]), error)

    async def _reconcile(self, layers: Collection[KnownLayer]) -> None:
        """Renew the leases, and let go on what was mounted before it was whole."""
        while True:
            try:
                await self._mounts.reconcile(layers)
                break
            except (FillFailed, FillerUnreachable, OSError) as error:
                logger.warning("leases of mounted layers are not renewed yet: %s", error)
                await anyio.sleep(_RECONCILE_EVERY_SECONDS)
        await self._begin(await self._mounts.incomplete())


def _name(layer: KnownLayer) -> str:
    return f"{layer.upstream}/{layer.repository}"


@contextmanager
def _unavailable(layer: KnownLayer) -> Iterator[None]:
    """What goes wrong with a layer, in the snapshotter's words."""
    try:
        yield
    except FillFailed as error:
        refused = error.code in AT_FAULT
        raise LayerUnavailable(f"layer {layer.digest}: {error.text}", refused=refused) from error
    except (FillerUnreachable, MountError, OSError) as error:
        raise LayerUnavailable(f"layer {layer.digest}: {error}") from error
