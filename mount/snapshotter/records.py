"""The rows of snapshots. All calls block; one thread at a time.

A call is one transaction, on the disk when it returns. sqlite3.Error passes through.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.known_layer import KnownLayer
from mount.snapshotter.errors import (
    InvalidRequest,
    SnapshotExists,
    SnapshotInUse,
    SnapshotMissing,
    WrongKind,
)
from mount.snapshotter.schema import open_database
from mount.snapshotter.snapshot import REF_LABEL, Kind, RemoteLayer, Snapshot, Usage

FILE = Path("snapshots.sqlite")
"""Below ``mount.root``."""

MOST_LEASES = 16
"""Remembered of a row: pulls of one layer at once, before containerd has claimed it."""

_COLUMNS = (
    "s.number, s.name, coalesce(p.name, ''), s.kind, s.created, s.updated, s.labels, "
    "s.size, s.inodes, s.layer, s.verified, s.leases, s.refused"
)
_JOINED = "snapshot s LEFT JOIN snapshot p ON p.number = s.parent"

Labels = Mapping[str, str]


class Records:
    """What is known of snapshots; the file is ``ROOT/snapshots.sqlite``."""

    def __init__(self, root: Path) -> None:
        """Raises StartFailed."""
        self._database = open_database(root / FILE)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- snapshots ---

    def get(self, name: str) -> Snapshot:
        """Raises SnapshotMissing."""
        for row in self._select("WHERE s.name = ?", name):
            return row
        raise SnapshotMissing(name)

    def all(self) -> list[Snapshot]:
        """All snapshots, the newest first."""
        return list(self._select("ORDER BY s.number DESC"))

    def numbers(self) -> set[int]:
        """The numbers of all snapshots."""
        return {number for (number,) in self._database.execute("SELECT number FROM snapshot")}

    def ancestors(self, name: str) -> list[Snapshot]:
        """The snapshot of that name and all below it, the base last. Raises SnapshotMissing."""
        found = list(
            self._select(
                "JOIN chain c ON c.number = s.number ORDER BY c.depth",
                name,
                before="WITH RECURSIVE chain (number, parent, depth) AS ("
                "SELECT number, parent, 0 FROM snapshot WHERE name = ? UNION ALL "
                "SELECT s.number, s.parent, c.depth + 1 FROM snapshot s "
                "JOIN chain c ON s.number = c.parent) ",
            )
        )
        if not found:
            raise SnapshotMissing(name)
        return found

    def create(
        self, name: str, parent: str, kind: Kind, labels: Labels, make: Callable[[int], None]
    ) -> Snapshot:
        """Add an active snapshot or a view; ``make`` makes its directory within the transaction.

        Raises SnapshotExists, SnapshotMissing (the parent) and InvalidRequest.
        """
        _named(name)
        with self._transaction():
            number = self._insert(name, self._committed_number(parent), kind, labels)
            make(number)
        return self.get(name)

    def commit(self, key: str, name: str, labels: Labels) -> Snapshot:
        """Make an active snapshot a committed one of another name.

        ``labels`` replace those that it had; its usage has to be counted. Raises SnapshotMissing,
        SnapshotExists and WrongKind.
        """
        _named(name)
        with self._transaction():
            active = self.get(key)
            if active.kind is not Kind.ACTIVE:
                raise WrongKind(f"snapshot {key!r} is {active.kind.value}, not active")
            now = time.time_ns()
            try:
                self._database.execute(
                    "UPDATE snapshot SET name = ?, kind = ?, labels = ?, created = ?, updated = ? "
                    "WHERE number = ?",
                    (name, Kind.COMMITTED.value, _encoded(labels), now, now, active.number),
                )
            except sqlite3.IntegrityError:
                raise SnapshotExists(name) from None
        return self.get(name)

    def remove(self, name: str) -> None:
        """Forget a snapshot. Raises SnapshotMissing and SnapshotInUse.

        A layer that nothing uses any more goes to :meth:`unused_layers`.
        """
        with self._transaction():
            snapshot = self.get(name)
            try:
                self._database.execute("DELETE FROM snapshot WHERE number = ?", (snapshot.number,))
            except sqlite3.IntegrityError:
                raise SnapshotInUse(name) from None
            if snapshot.remote is not None and not self.uses(snapshot.remote.layer.digest):
                layer = snapshot.remote.layer
                self._database.execute(
                    "INSERT OR REPLACE INTO unused_layer VALUES (?, ?)",
                    (str(layer.digest), _layer_text(layer)),
                )

    def relabel(self, name: str, change: Callable[[Labels], Labels]) -> Snapshot:
        """Change a snapshot's labels. Raises SnapshotMissing."""
        with self._transaction():
            labels = change(self.get(name).labels)
            self._database.execute(
                "UPDATE snapshot SET labels = ?, updated = ? WHERE name = ?",
                (_encoded(labels), time.time_ns(), name),
            )
        return self.get(name)

    def set_usage(self, number: int, usage: Usage) -> None:
        """Note what a committed snapshot takes; nothing when it is gone."""
        self._database.execute(
            "UPDATE snapshot SET size = ?, inodes = ? WHERE number = ? AND kind = ?",
            (usage.size, usage.inodes, number, Kind.COMMITTED.value),
        )

    # --- layers that are mounted ---

    def commit_layer(
        self,
        chain: Digest,
        parent: str,
        layer: KnownLayer,
        labels: Labels,
        *,
        namespace: str,
        lease: str | None,
    ) -> Snapshot:
        """Add a committed snapshot that is a layer, or find the one that another pull has added.

        Its name is ours, with the label by which containerd looks for it. Raises SnapshotMissing
        and InvalidRequest (the parent).
        """
        with self._transaction():
            below = self._committed_number(parent)
            for name, leases in self._database.execute(
                "SELECT name, leases FROM snapshot WHERE chain = ? AND parent IS ? "
                "AND namespace = ? AND layer = ? ORDER BY number DESC LIMIT 1",
                (str(chain), below, namespace, _layer_text(layer)),
            ).fetchall():
                self._add_lease(name, json.loads(leases), lease)
                return self.get(name)
            named = {**labels, REF_LABEL: str(chain)}
            number = self._insert(f"{namespace}/layer/{chain}", below, Kind.COMMITTED, named)
            # containerd's own names are NAMESPACE/NUMBER/KEY.
            name = f"{namespace}/layer/{number}/{chain}"
            self._database.execute(
                "UPDATE snapshot SET name = ?, layer = ?, digest = ?, leases = ?, namespace = ?, "
                "chain = ?, size = 0, inodes = 0, "
                "verified = EXISTS (SELECT 1 FROM snapshot WHERE layer = ? AND verified) "
                "WHERE number = ?",
                (
                    name,
                    _layer_text(layer),
                    str(layer.digest),
                    json.dumps([] if lease is None else [lease]),
                    namespace,
                    str(chain),
                    _layer_text(layer),
                    number,
                ),
            )
        return self.get(name)

    def set_verified(self, layer: KnownLayer) -> None:
        """The layer's diff ID was seen to be right."""
        self._database.execute(
            "UPDATE snapshot SET verified = 1, refused = NULL WHERE layer = ? AND NOT verified",
            (_layer_text(layer),),
        )

    def set_refused(self, layer: KnownLayer, reason: str) -> None:
        """What is said of the layer is not so: of all its snapshots, wherever it came from.

        That stays until they are removed, or the layer is seen to be right after all.
        """
        with self._transaction():
            for number, text in self._database.execute(
                "SELECT number, layer FROM snapshot WHERE digest = ? AND NOT verified",
                (str(layer.digest),),
            ).fetchall():
                if _claim(_layer_of(text)) == _claim(layer):
                    self._database.execute(
                        "UPDATE snapshot SET refused = ? WHERE number = ?", (reason, number)
                    )

    def uses(self, digest: Digest) -> bool:
        """Whether a snapshot is the layer of that digest."""
        found = self._database.execute("SELECT 1 FROM snapshot WHERE digest = ?", (str(digest),))
        return found.fetchone() is not None

    def used_layers(self) -> list[KnownLayer]:
        """All layers that snapshots are; one for each digest."""
        return self._layers("SELECT layer FROM snapshot WHERE digest NOTNULL GROUP BY digest")

    def unverified_layers(self) -> list[KnownLayer]:
        """Those of which no diff ID was seen yet, and those whose diff ID is wrong."""
        return self._layers(
            "SELECT DISTINCT layer FROM snapshot WHERE digest NOTNULL AND NOT verified"
        )

    def unused_layers(self) -> list[KnownLayer]:
        """Layers whose last snapshot was removed, until :meth:`forget_unused`."""
        return self._layers("SELECT layer FROM unused_layer")

    def forget_unused(self, digest: Digest) -> None:
        """The layer is unmounted, or in use again."""
        self._database.execute("DELETE FROM unused_layer WHERE digest = ?", (str(digest),))

    # --- layers that cannot be mounted ---

    def refuse(self, layer: KnownLayer, reason: str, seconds: float) -> None:
        """Remember for so long that a layer cannot be mounted."""
        until = time.time_ns() + int(seconds * 1e9)
        self._database.execute(
            "INSERT OR REPLACE INTO refusal VALUES (?, ?, ?)", (_claim(layer), reason, until)
        )

    def refusal(self, layer: KnownLayer) -> str | None:
        """Why a layer is not mounted; None where nothing is remembered, or not any more."""
        self._database.execute("DELETE FROM refusal WHERE until < ?", (time.time_ns(),))
        found = self._database.execute(
            "SELECT reason FROM refusal WHERE digest = ?", (_claim(layer),)
        ).fetchone()
        return None if found is None else str(found[0])

    # --- inside ---

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _select(self, clause: str, *values: object, before: str = "") -> Iterator[Snapshot]:
        for row in self._database.execute(
            f"{before}SELECT {_COLUMNS} FROM {_JOINED} {clause}", values
        ):
            yield _snapshot_of(row)

    def _insert(self, name: str, parent: int | None, kind: Kind, labels: Labels) -> int:
        now = time.time_ns()
        try:
            inserted = self._database.execute(
                "INSERT INTO snapshot (name, parent, kind, labels, created, updated) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (name, parent, kind.value, _encoded(labels), now, now),
            )
        except sqlite3.IntegrityError:
            raise SnapshotExists(name) from None
        return int(inserted.lastrowid or 0)

    def _committed_number(self, parent: str) -> int | None:
        if not parent:
            return None
        snapshot = self.get(parent)
        if snapshot.kind is not Kind.COMMITTED:
            raise InvalidRequest(f"parent {parent!r} is {snapshot.kind.value}, not committed")
        return snapshot.number

    def _add_lease(self, name: str, leases: Sequence[str], lease: str | None) -> None:
        if lease is None or lease in leases:
            return
        self._database.execute(
            "UPDATE snapshot SET leases = ? WHERE name = ?",
            (json.dumps([*leases, lease][-MOST_LEASES:]), name),
        )

    def _layers(self, query: str) -> list[KnownLayer]:
        rows = self._database.execute(query).fetchall()
        return [_layer_of(text) for (text,) in rows]


def _named(name: str) -> None:
    if not name:
        raise InvalidRequest("a snapshot has to have a name")


def _encoded(labels: Labels) -> str:
    """As JSON; an empty value is no label, as in containerd's own records."""
    return json.dumps({name: value for name, value in labels.items() if value})


def _layer_text(layer: KnownLayer) -> str:
    """Equal for equal layers."""
    return json.dumps(layer.as_message(), sort_keys=True)


def _claim(layer: KnownLayer) -> str:
    """The digest of what is said of a layer, wherever it is: who lies refuses nobody else's."""
    said = layer.as_message()
    del said["upstream"], said["repository"], said["position"]
    return str(Digest.of(json.dumps(said, sort_keys=True).encode()))


@lru_cache(maxsize=8192)
def _layer_of(text: str) -> KnownLayer:
    """Each pull lists all snapshots once a layer: most of that would be reading these again."""
    return KnownLayer.from_message(json.loads(text))


def _snapshot_of(row: Sequence[object]) -> Snapshot:
    number, name, parent, kind, created, updated, labels, size, inodes, *rest = row
    layer, verified, leases, refused = rest
    assert isinstance(number, int) and isinstance(created, int) and isinstance(updated, int)
    usage = None
    if isinstance(size, int) and isinstance(inodes, int):
        usage = Usage(size, inodes)
    remote = None
    if layer is not None:
        leased = tuple(json.loads(str(leases)))
        reason = None if refused is None else str(refused)
        remote = RemoteLayer(_layer_of(str(layer)), bool(verified), leased, reason)
    return Snapshot(
        number,
        str(name),
        str(parent),
        Kind(kind),
        created,
        updated,
        json.loads(str(labels)),
        usage,
        remote,
    )
