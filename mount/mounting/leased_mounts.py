"""Layer mounts for code that must not block, each with a lease at the filler.

A lease says that the layer image is in use, so that it is not evicted. The kernel would not mind
(it has the files open), but the next mount of the layer would have to wait for it to be made anew.
"""

from collections.abc import Callable, Collection
from typing import TypeVar

import anyio.to_thread

from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownLayer
from headstart.store.object_key import LayerKey
from headstart.store.open_layer import OpenLayer
from headstart.store.wire import Message
from mount.mounting.errors import FilesMissing
from mount.mounting.layer_mounts import LayerImage, LayerMounts, MountedLayer

HOLDER = "mount"
"""Whose leases these are; all processes that mount below one ``mount.root`` share them."""

LEASE_SECONDS = 10.0
"""How long the filler may take to note a lease: it writes a small record."""

_Result = TypeVar("_Result")


class LeasedMounts:
    """The mounts of one user: the snapshotter, or an image that a person mounted."""

    def __init__(self, mounts: LayerMounts, client: FillClient, user: str) -> None:
        """Nothing is asked or mounted yet."""
        self.mounts = mounts
        self.user = user
        self._client = client

    async def adopt(self, layers: Collection[KnownLayer] | None = None) -> None:
        """Take over what earlier processes have left, and let go of what nobody uses.

        ``layers`` are all that this user uses; None: those that it has noted. Raises MountError.
        """

        def call() -> None:
            if layers is not None:
                numbers = {self.mounts.use(layer, self.user) for layer in layers}
                for number in set(self.mounts.used_by(self.user)) - numbers:
                    self.mounts.unmount(number, self.user)
            self.mounts.adopt()

        await self._run(call)

    async def reconcile(self, layers: Collection[KnownLayer] = ()) -> None:
        """Tell the filler that the leases of ``layers`` and of all that is mounted are all there
        are. Raises FillFailed, FillerUnreachable."""
        devices = await self._run(self.mounts.devices)
        held = {*(layer.digest for layer in layers), *(device.layer.digest for device in devices)}
        keys = sorted(str(LayerKey(digest)) for digest in held)
        await self._client.call({"type": "leases", "holder": HOLDER, "keys": keys})

    async def incomplete(self) -> list[KnownLayer]:
        """The layers that are mounted, but were not whole yet."""

        def call() -> list[KnownLayer]:
            devices = self.mounts.devices()
            return [each.layer for each in devices if self.mounts.through_fuse(each.number)]

        return await self._run(call)

    async def mount(self, opened: OpenLayer) -> MountedLayer:
        """Mount a layer image that is mountable. Raises MountError, FillFailed, FillerUnreachable.

        May be called again whenever it is: nothing happens where nothing has to.
        """
        image = image_of(opened)
        # In this order: whoever releases a lease looks for users of the layer afterwards.
        await self._run(lambda: self.mounts.enter(image, self.user))
        await self._lease("lease", image.layer)
        return await self._run(lambda: self.mounts.mount(image, self.user))

    async def restore(self, layer: KnownLayer) -> MountedLayer:
        """Mount a layer again where its mount has gone; asks nothing of the filler.

        Raises FilesMissing where the filler has to be asked, else MountRefused.
        """

        def call() -> MountedLayer:
            number = self.mounts.use(layer, self.user)
            if number is None:
                raise FilesMissing(f"{layer.digest}: it has not been mounted yet")
            return self.mounts.restore(number)

        return await self._run(call)

    async def unmount(self, layer: KnownLayer, *, release: bool = True) -> None:
        """Be done with a layer. Raises MountError, FillFailed, FillerUnreachable.

        May be called again until it raises nothing. Without ``release`` the filler is not told.
        """

        def call() -> bool:
            device = self.mounts.find(layer)
            return device is None or self.mounts.unmount(device.number, self.user)

        if not await self._run(call) or not release:
            return
        await self._lease("release", layer)
        if await self._run(lambda: self.mounts.find(layer)) is not None:
            await self._lease("lease", layer)

    async def _lease(self, kind: str, layer: KnownLayer) -> None:
        message: Message = {"type": kind, "holder": HOLDER, "key": str(LayerKey(layer.digest))}
        await self._client.call(message, LEASE_SECONDS)

    @staticmethod
    async def _run(call: Callable[[], _Result]) -> _Result:
        """In a thread, which goes on by itself where nobody waits for it any more."""
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)


def image_of(opened: OpenLayer) -> LayerImage:
    """What is mounted of an open layer image. Raises FillFailed before it is mountable."""
    cached = opened.cached
    return LayerImage(
        opened.layer,
        opened.meta,
        tuple(opened.devices),
        cached.geometry,
        opened.state == "complete",
    )
