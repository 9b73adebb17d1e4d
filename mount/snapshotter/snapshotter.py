"""The methods of a containerd snapshotter, in terms of this package; ``service.py`` speaks gRPC."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mount.snapshotter.directories import SnapshotDirectories
from mount.snapshotter.errors import (
    DirectoryMissing,
    InvalidRequest,
    LayerUnavailable,
    RecordsFailed,
    SnapshotError,
    WrongKind,
)
from mount.snapshotter.filters import parse_filters
from mount.snapshotter.layers import Layers
from mount.snapshotter.mounts import mounts_of
from mount.snapshotter.records import Records
from mount.snapshotter.remote import RemoteLayers
from mount.snapshotter.snapshot import Caller, Kind, Mount, Snapshot, Usage
from mount.snapshotter.worker import Worker

logger = logging.getLogger(__name__)

REMOUNT_SECONDS = 2.0
"""In Prepare, for layers below that have to be mounted again: containerd holds a lock meanwhile."""

_LABEL_PREFIX = "labels."


class Snapshotter:
    """Snapshots below one ``mount.root``; needs a running event loop."""

    def __init__(self, root: Path, layers: Layers, repositories: Sequence[str]) -> None:
        """``repositories``: which may be mounted instead of unpacked. Raises StartFailed."""
        self._directories = SnapshotDirectories(root)
        self._records = Records(root)
        self._worker = Worker()
        self._remote = RemoteLayers(layers, self._records, self._worker, repositories)
        self._sweeping = asyncio.Lock()
        self._counting: set[asyncio.Task[None]] = set()

    # --- the life of this object ---

    async def reconcile(self) -> None:
        """At the start: compare rows and files, and say which layers are in use."""
        rows = await self._worker.run(self._records.all)
        lost = await asyncio.to_thread(self._lost, rows)
        for snapshot in lost:
            logger.error(
                "snapshots: the files of %s are gone; remove its %s",
                snapshot.name,
                "image and pull it again" if snapshot.kind is Kind.COMMITTED else "container",
            )
        await self._remote.adopt()

    def stop(self) -> None:
        """Pulls that wait are told to try again; everything else still works."""
        self._remote.stop()

    async def close(self) -> None:
        """After the last call."""
        counting = list(self._counting)
        for task in counting:
            task.cancel()
        await asyncio.gather(*counting, return_exceptions=True)
        await self._remote.close()
        await asyncio.to_thread(self._worker.close)
        self._records.close()

    # --- snapshots ---

    async def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], caller: Caller
    ) -> tuple[Mount, ...] | None:
        """Add an active snapshot; None where the layer itself is here, committed.

        Raises SnapshotExists, SnapshotMissing, InvalidRequest, LayerUnavailable and RecordsFailed.
        """
        if await self._remote.commit(key, parent, labels, caller) is not None:
            return None
        return await self._add(key, parent, Kind.ACTIVE, labels)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Add a read-only snapshot. Raises as :meth:`prepare`."""
        return await self._add(key, parent, Kind.VIEW, labels)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """What makes an active snapshot or a view, every layer of it mounted now.

        Raises SnapshotMissing, WrongKind, DirectoryMissing and LayerUnavailable.
        """
        snapshot, *below = await self._worker.run(self._records.ancestors, key)
        if snapshot.kind is Kind.COMMITTED:
            raise WrongKind(f"snapshot {key!r} is committed; it has no mounts")
        await self._lower([snapshot])
        return self._mounts_of(snapshot, await self._lower(below))

    async def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one; its usage is counted afterwards.

        containerd holds a transaction of its database meanwhile. Raises SnapshotMissing,
        SnapshotExists, WrongKind and InvalidRequest.
        """
        committed = await self._worker.run(self._records.commit, key, name, labels)
        task = asyncio.create_task(self._count_committed(committed), name=f"usage of {name}")
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    async def remove(self, key: str) -> None:
        """Forget a snapshot; :meth:`cleanup` deletes and unmounts.

        Raises SnapshotMissing and SnapshotInUse.
        """
        await self._worker.run(self._records.remove, key)
        self._remote.nameless.unsettled.discard(key)

    async def stat(self, key: str, caller: Caller) -> Snapshot:
        """A snapshot; for the pull of a layer, when that is ready.

        Statistics carry no lease and never wait. Raises SnapshotMissing, LayerUnavailable and
        Stopping.
        """
        snapshot = await self._worker.run(self._records.get, key)
        if snapshot.remote is not None:
            if caller.lease is not None:
                await self._remote.settle(snapshot.remote, caller.lease)
            elif caller.namespace is None:
                await self._remote.settle_nameless(snapshot.name, snapshot.remote)
        return snapshot

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Change the labels that ``paths`` name (``labels``, ``labels.NAME``), all without paths.

        Raises SnapshotMissing and InvalidRequest.
        """
        for path in paths:
            if path != "labels" and not path.startswith(_LABEL_PREFIX):
                raise InvalidRequest(f"field {path!r} of a snapshot cannot be changed")

        def change(present: Mapping[str, str]) -> Mapping[str, str]:
            changed = dict(labels if not paths or "labels" in paths else present)
            for path in paths:
                if path != "labels":
                    named = path.removeprefix(_LABEL_PREFIX)
                    changed[named] = labels.get(named, "")
            return changed

        return await self._worker.run(self._records.relabel, name, change)

    async def walk(self, filters: Sequence[str], caller: Caller) -> list[Snapshot]:
        """The snapshots that a filter matches.

        containerd takes the first one with the chain ID that it pulls: those of its namespace come
        first, of these what its own pull has prepared, and of these the newest. Raises
        InvalidRequest.
        """
        matches = parse_filters(filters)
        found = [one for one in await self._worker.run(self._records.all) if matches(one)]
        if caller.namespace is not None:
            mine = f"{caller.namespace}/"
            found.sort(key=lambda snapshot: not _prepared_by(snapshot, caller))
            found.sort(key=lambda snapshot: not snapshot.name.startswith(mine))
        elif filters:
            found = self._remote.nameless.found(found)
        return found

    async def usage(self, key: str) -> Usage:
        """What a snapshot takes without its parents; a mounted layer: nothing, it is cache.

        Raises SnapshotMissing and RecordsFailed.
        """
        snapshot = await self._worker.run(self._records.get, key)
        if snapshot.usage is not None:
            return snapshot.usage
        counted = await self._count(snapshot.number)
        await self._worker.run(self._records.set_usage, snapshot.number, counted)
        return counted

    async def cleanup(self) -> None:
        """Delete the directories of removed snapshots and unmount the layers that none is."""
        async with self._sweeping:
            for directory in await self._worker.run(self._set_aside):
                await asyncio.to_thread(self._directories.delete, directory)
            await self._remote.release()

    # --- inside ---

    def _set_aside(self) -> list[Path]:
        """What can be deleted, by names that no snapshot will have."""
        for number in self._directories.present() - self._records.numbers():
            self._directories.set_aside(number)
        return self._directories.aside()

    async def _add(
        self, key: str, parent: str, kind: Kind, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        lower: list[Path] = []
        owner = None
        if parent:
            below = await self._worker.run(self._records.ancestors, parent)
            # Before there is a row: nothing is left behind when a layer cannot be mounted.
            try:
                async with asyncio.timeout(REMOUNT_SECONDS):
                    lower = await self._lower(below)
            except TimeoutError:
                raise LayerUnavailable("layers are being mounted again; try again") from None
            owner = await self._owner(lower[0])

        def make(number: int) -> None:
            self._directories.make(number, kind, owner)

        added = await self._worker.run(self._records.create, key, parent, kind, labels, make)
        return self._mounts_of(added, lower)

    async def _owner(self, directory: Path) -> tuple[int, int]:
        try:
            found = await asyncio.to_thread(os.stat, directory)
        except OSError as error:
            raise LayerUnavailable(f"{directory}: {error.strerror}") from error
        return found.st_uid, found.st_gid

    def _mounts_of(self, snapshot: Snapshot, lower: Sequence[Path]) -> tuple[Mount, ...]:
        number = snapshot.number
        upper, work = self._directories.upper(number), self._directories.work(number)
        return mounts_of(snapshot.kind, upper, work, lower)

    async def _lower(self, snapshots: Sequence[Snapshot]) -> list[Path]:
        """Their directories, which are there, and mounted where they are layers."""
        own = [one for one in snapshots if one.remote is None]
        for lost in await asyncio.to_thread(self._lost, own):
            raise DirectoryMissing(
                f"the files of snapshot {lost.name!r} are gone; remove its image and pull it again"
            )
        return await asyncio.gather(*map(self._directory, snapshots))

    async def _directory(self, snapshot: Snapshot) -> Path:
        if snapshot.remote is None:
            return self._directories.upper(snapshot.number)
        return await self._remote.mounted(snapshot.remote)

    def _lost(self, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        return [
            one
            for one in snapshots
            if one.remote is None and not self._directories.complete(one.number)
        ]

    async def _count(self, number: int) -> Usage:
        try:
            return await asyncio.to_thread(self._directories.usage, number)
        except OSError as error:
            raise RecordsFailed(f"usage of snapshot {number}: {error}") from error

    async def _count_committed(self, snapshot: Snapshot) -> None:
        try:
            await self._worker.run(
                self._records.set_usage, snapshot.number, await self._count(snapshot.number)
            )
        except SnapshotError as error:
            logger.info("snapshots: %s", error)


def _prepared_by(snapshot: Snapshot, caller: Caller) -> bool:
    """Whether the pull that asks has prepared a layer; another may say something else of it."""
    return snapshot.remote is not None and caller.lease in snapshot.remote.leases
