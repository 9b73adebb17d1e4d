"""Snapshots that are layers: which are taken, where their pull waits, how they are mounted.

The rules are containerd's (measured with 1.6.20): Prepare must not wait, since containerd holds a
lock meanwhile that every creation of a container needs; after the answer ALREADY_EXISTS a pull
cannot turn to the ordinary way any more, only fail and be tried again. So the choice is made in
Prepare from what is known already, and the wait is in the Stat that follows.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.estargz.announced import TOC_DIGEST, announced_toc
from headstart.content.layer.errors import LayerRefused
from headstart.store.known_layer import KnownChain, KnownLayer
from mount.snapshotter.errors import LayerUnavailable, Stopping
from mount.snapshotter.layers import Layers
from mount.snapshotter.nameless import NamelessPulls
from mount.snapshotter.records import Records
from mount.snapshotter.snapshot import (
    IMAGE_REF_LABEL,
    MANIFEST_LABEL,
    REF_LABEL,
    Caller,
    RemoteLayer,
    namespace_of,
)
from mount.snapshotter.worker import Worker

logger = logging.getLogger(__name__)

KNOWN_SECONDS = 1.0
"""In Prepare, for the question which layer a chain ID is."""
SILENT_SECONDS = 10.0
"""After a question without an answer nobody is asked for so long: a pull has many layers."""
FAILED_SECONDS = 600.0
"""A layer that could not be brought is pulled the ordinary way for so long."""
REFUSED_SECONDS = 7 * 86400.0
"""And one whose content is at fault: that stays, but the next version may judge otherwise."""

T = TypeVar("T")


class RemoteLayers:
    """What the snapshotter does with layers; needs a running event loop."""

    def __init__(
        self, layers: Layers, records: Records, worker: Worker, repositories: Sequence[str]
    ) -> None:
        """``repositories``: patterns as of fnmatch(3) on ``UPSTREAM/REPOSITORY``."""
        self._layers = layers
        self._records = records
        self._worker = worker
        self._repositories = tuple(repositories)
        self._mounting: dict[Digest, asyncio.Task[Path]] = {}
        self._verifying: dict[tuple[KnownLayer, bool], asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._stopping = asyncio.Event()
        self._silent_until = -math.inf
        self.nameless = NamelessPulls()

    # --- Prepare ---

    async def commit(
        self, key: str, parent: str, labels: Mapping[str, str], caller: Caller
    ) -> str | None:
        """Commit a layer for the chain ID that a pull names; the name of its snapshot.

        None where the layer has to be unpacked: nobody knows the chain, its repository is not
        among those to be mounted, or it has failed lately. Raises SnapshotMissing and
        InvalidRequest (the parent).
        """
        namespace = caller.namespace or namespace_of(key)
        if REF_LABEL not in labels or namespace is None:
            return None
        try:
            chain = Digest.parse(labels[REF_LABEL])
        except InvalidInput as error:
            logger.info("snapshots: %s", error)
            return None
        known = await self._known(chain, labels)
        if known is None or not await self._taken(chain, known, parent, labels):
            return None
        nameless = caller.namespace is None
        if nameless and not self.nameless.enter(chain, parent, namespace):
            logger.info("snapshots: %s is unpacked: another namespace pulls it too", chain)
            return None
        snapshot = await self._worker.run(
            self._records.commit_layer,
            chain,
            parent,
            known.layer,
            labels,
            namespace=namespace,
            lease=caller.lease,
        )
        if nameless:
            self.nameless.unsettled.add(snapshot.name)
        self._layers.begin(known)
        return snapshot.name

    async def _known(self, chain: Digest, labels: Mapping[str, str]) -> KnownChain | None:
        manifest = None
        if MANIFEST_LABEL in labels:
            try:
                manifest = Digest.parse(labels[MANIFEST_LABEL])
            except InvalidInput as error:
                logger.info("snapshots: %s: %s", MANIFEST_LABEL, error)
        if time.monotonic() < self._silent_until:
            return None
        try:
            async with asyncio.timeout(KNOWN_SECONDS):
                return await self._layers.known(
                    chain, manifest=manifest, image_ref=labels.get(IMAGE_REF_LABEL)
                )
        except TimeoutError:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            logger.warning("snapshots: nobody says which layer %s is; it is unpacked", chain)
        except LayerUnavailable as error:
            logger.info("snapshots: %s: %s; it is unpacked", chain, error)
        except Exception:
            # Any other answer than "unknown" would end the pull.
            logger.exception("snapshots: which layer %s is could not be asked", chain)
        return None

    async def _taken(
        self, chain: Digest, known: KnownChain, parent: str, labels: Mapping[str, str]
    ) -> bool:
        layer = known.layer
        below = [listed.diff_id for listed in known.layers[: known.position + 1]]
        if chain_ids(below)[-1] != chain or (known.position > 0) != bool(parent):
            logger.warning("snapshots: %s is not what %s is said to be", chain, layer.digest)
            return False
        name = f"{layer.upstream}/{layer.repository}"
        toc = layer.annotations.get(TOC_DIGEST)
        vouched = labels.get(TOC_DIGEST) == toc if toc is not None else MANIFEST_LABEL in labels
        if _has_toc(layer) and not vouched:
            # What the client pulls does not vouch for it. The label of the TOC is of that image's
            # manifest; of zstd:chunked there is none, but for the manifest's own label.
            logger.info("snapshots: %s is unpacked: its TOC is that of another image", chain)
            return False
        if not any(fnmatchcase(name, pattern) for pattern in self._repositories):
            logger.info("snapshots: %s is not on mount.repositories; it is unpacked", name)
            return False
        refusal = await self._worker.run(self._records.refusal, layer)
        if refusal is not None:
            logger.info("snapshots: %s of %s is unpacked: %s", layer.digest, name, refusal)
        return refusal is None

    # --- Stat ---

    async def settle(self, remote: RemoteLayer, lease: str) -> None:
        """Wait until a pull may go on: here, mounted, and fit for the one who asks.

        Who did not prepare the snapshot may mean another image with the same chain ID: for him the
        diff ID has to be right, not only what the first image's manifest says. Raises
        LayerUnavailable and Stopping.
        """
        layer = remote.layer
        if remote.verified:
            return
        if lease not in remote.leases or remote.refused is not None:
            verifying = self._verify(layer, urgent=True)
            await self._unless_stopping(_result(verifying, layer))
            return
        await self._ready(layer)

    async def settle_nameless(self, name: str, remote: RemoteLayer) -> None:
        """The same where neither lease nor namespace says who asks: the pull, or anybody.

        For what another has prepared the diff ID is not awaited, since that cannot be told from a
        container's creation. Raises as :meth:`settle`.
        """
        if name not in self.nameless.unsettled:
            return
        if not remote.verified:
            await self._ready(remote.layer)
        self.nameless.unsettled.discard(name)

    async def _ready(self, layer: KnownLayer) -> None:
        """Wait until the layer is here and mounted. Raises LayerUnavailable and Stopping."""
        try:
            await self._unless_stopping(self._layers.mountable(layer))
            # A refusal by the kernel is better seen now than by the first container.
            await self._unless_stopping(self._mounted(layer))
        except LayerUnavailable as error:
            await self._refuse(layer, error)
            raise
        self._verify(layer, urgent=False)

    async def _refuse(self, layer: KnownLayer, error: LayerUnavailable) -> None:
        seconds = REFUSED_SECONDS if error.refused else FAILED_SECONDS
        logger.warning("snapshots: %s of %s: %s", layer.digest, layer.repository, error)
        await self._worker.run(self._records.refuse, layer, str(error), seconds)
        if error.refused:
            await self._worker.run(self._records.set_refused, layer, str(error))

    def _verify(self, layer: KnownLayer, *, urgent: bool) -> "asyncio.Task[None]":
        """Note when a layer's diff ID is seen to be right, whether somebody waits or not."""
        task = self._verifying.get((layer, urgent))
        if task is None:
            following = self._follow(layer, urgent=urgent)
            task = asyncio.create_task(following, name=f"verify {layer.digest}")
            self._verifying[layer, urgent] = task
            task.add_done_callback(lambda done: self._verifying.pop((layer, urgent), None))
            task.add_done_callback(_look_at)
        return task

    async def _follow(self, layer: KnownLayer, *, urgent: bool) -> None:
        try:
            await self._layers.verified(layer, urgent=urgent)
        except LayerUnavailable as error:
            if error.refused:
                await self._refuse(layer, error)
            raise
        await self._worker.run(self._records.set_verified, layer)

    # --- Mounts ---

    async def mounted(self, remote: RemoteLayer) -> Path:
        """The directory of a layer, mounted now. Raises LayerUnavailable.

        What was found to be wrong is not mounted, whoever else has forgotten that: it would be for
        a container that has not read any of it yet.
        """
        if not remote.verified:
            self._verify(remote.layer, urgent=False)
        if remote.refused is not None:
            raise LayerUnavailable(f"{remote.refused}; remove its image", refused=True)
        return await self._mounted(remote.layer)

    async def _mounted(self, layer: KnownLayer) -> Path:
        task = self._mounting.get(layer.digest)
        if task is None:
            task = asyncio.create_task(self._mount(layer), name=f"mount {layer.digest}")
            self._mounting[layer.digest] = task
            task.add_done_callback(lambda done: self._mounting.pop(layer.digest, None))
            task.add_done_callback(_look_at)
        return await _result(task, layer)

    async def _mount(self, layer: KnownLayer) -> Path:
        async with self._lock(layer.digest):
            return await self._layers.mounted(layer)

    # --- Cleanup, start and end ---

    async def adopt(self) -> None:
        """At the start: say which layers are in use, and follow those that are to be verified."""
        await self._layers.adopt(await self._worker.run(self._records.used_layers))
        for layer in await self._worker.run(self._records.unverified_layers):
            self._verify(layer, urgent=False)

    async def release(self) -> None:
        """Unmount the layers that no snapshot uses any more."""
        for layer in await self._worker.run(self._records.unused_layers):
            used = await self._worker.run(self._records.uses, layer.digest)
            if not used:
                await self._abandon(layer.digest)
            async with self._lock(layer.digest):
                # Asked under the lock: who has added a snapshot since mounts after us.
                if not await self._worker.run(self._records.uses, layer.digest):
                    try:
                        await self._layers.unmount(layer)
                    except LayerUnavailable as error:
                        logger.warning("snapshots: %s stays mounted: %s", layer.digest, error)
                        continue
                await self._worker.run(self._records.forget_unused, layer.digest)

    async def _abandon(self, digest: Digest) -> None:
        """Nobody is left for whom a layer could be waited for, or mounted when it has come."""
        tasks: list[asyncio.Task[Path] | asyncio.Task[None]] = [
            task for (layer, _), task in self._verifying.items() if layer.digest == digest
        ]
        if digest in self._mounting:
            tasks.append(self._mounting[digest])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Who waits in a pull is told to try again."""
        self._stopping.set()

    async def close(self) -> None:
        """End what runs for nobody in particular."""
        tasks = [*self._mounting.values(), *self._verifying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- inside ---

    def _lock(self, digest: Digest) -> asyncio.Lock:
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        return lock

    async def _unless_stopping(self, waiting: Awaitable[T]) -> T:
        wait = asyncio.ensure_future(waiting)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({wait, stop}, return_when=asyncio.FIRST_COMPLETED)
            if wait.done():
                return wait.result()
            raise Stopping
        finally:
            stop.cancel()
            if not wait.done():
                wait.cancel()
                await asyncio.gather(wait, return_exceptions=True)


async def _result(task: "asyncio.Task[T]", layer: KnownLayer) -> T:
    """What a task gives that several may wait for. Raises LayerUnavailable when it is abandoned."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        raise LayerUnavailable(f"layer {layer.digest}: its last snapshot was removed") from None


def _has_toc(layer: KnownLayer) -> bool:
    """Whether it would be mounted before its diff ID is known to be right."""
    try:
        return announced_toc(layer.annotations, layer.size) is not None
    except LayerRefused:
        return True


def _look_at(task: "asyncio.Task[Path] | asyncio.Task[None]") -> None:
    """Log what nobody may have waited for."""
    if not task.cancelled() and (error := task.exception()) is not None:
        level = logging.INFO if isinstance(error, LayerUnavailable) else logging.ERROR
        logger.log(level, "snapshots: %s: %s", task.get_name(), error)
