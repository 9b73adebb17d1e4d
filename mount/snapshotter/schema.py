"""The database's file: ``ROOT/snapshots.sqlite``, SQLite in WAL mode.

Losing a row makes every pull of its image fail until the image is removed, so a transaction is on
the disk (``synchronous = FULL``) before anybody hears of it.
"""

import sqlite3
from pathlib import Path

from mount.snapshotter.directories import SNAPSHOTS
from mount.snapshotter.errors import StartFailed

FORMAT = 1
"""``PRAGMA user_version``."""

_SCHEMA = """
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshot (number) ON DELETE RESTRICT,
    kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size INTEGER,
    inodes INTEGER,
    layer TEXT,
    digest TEXT,
    verified INTEGER NOT NULL DEFAULT 0,
    leases TEXT NOT NULL DEFAULT '[]',
    namespace TEXT,
    chain TEXT,
    CHECK ((layer IS NULL) = (digest IS NULL))
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE INDEX snapshot_digest ON snapshot (digest) WHERE digest IS NOT NULL;
CREATE INDEX snapshot_chain ON snapshot (chain) WHERE chain IS NOT NULL;
CREATE TABLE unused_layer (digest TEXT PRIMARY KEY, layer TEXT NOT NULL) STRICT;
CREATE TABLE refusal (digest TEXT PRIMARY KEY, reason TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
"""

_ADDED = {"refused": "TEXT"}
"""Columns of ``snapshot`` that the first version has not: it works with them as well."""


def open_database(file: Path) -> sqlite3.Connection:
    """Open or create the database; it may be used by one thread at a time.

    Raises StartFailed.
    """
    try:
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, file)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise StartFailed(
            f"{file}: {error}; end its containers and remove its images, then move the file and "
            f"{file.parent / SNAPSHOTS} away"
        ) from error
    return connection


def _check_unused(file: Path) -> None:
    """A new database knows no snapshot: the next sweep would delete what containers write.

    Raises StartFailed.
    """
    snapshots = file.parent / SNAPSHOTS
    if snapshots.is_dir() and any(path.name.isdecimal() for path in snapshots.iterdir()):
        raise StartFailed(
            f"{file} is missing or empty, but {snapshots} holds what containers have written; "
            f"put the database back, or end them, remove their images, and move {snapshots} away"
        )


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found not in (0, FORMAT):
        raise StartFailed(
            f"{file} has format {found}, this version reads {FORMAT}; use the version that wrote it"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if found == 0:
        _check_unused(file)
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
    present = {row[1] for row in connection.execute("PRAGMA table_info(snapshot)")}
    for column in _ADDED.keys() - present:
        connection.execute(f"ALTER TABLE snapshot ADD COLUMN {column} {_ADDED[column]}")
