"""The index: everything small, in diskcache. It can be lost; the files can rebuild what matters.

Only JSON goes in (``JSONDisk``: diskcache's default would unpickle what it reads, which is
CVE-2025-69872), and diskcache evicts nothing by itself. Calls block: run them in a thread.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from diskcache import Cache, JSONDisk, Timeout

INDEX_VERSION = 1
_VERSION_KEY = "index-version"

logger = logging.getLogger(__name__)

type_json = dict[str, object]


class Index:
    """Records under string keys ``kind:name``; every record is a JSON object."""

    def __init__(self, directory: Path) -> None:
        """Open or create; a damaged or foreign index is moved aside, and ``fresh`` is True."""
        self.fresh = False
        try:
            self._cache = _open_cache(directory)
            version = self._cache.get(_VERSION_KEY)
        except (sqlite3.DatabaseError, OSError, ValueError, Timeout) as error:
            logger.warning("index: %s is damaged (%s); starting a new one", directory, error)
            version = "damaged"
        if version != INDEX_VERSION:
            if version is not None:
                _move_aside(directory)
                self._cache = _open_cache(directory)
            self.fresh = True
            self._cache.set(_VERSION_KEY, INDEX_VERSION)

    def get(self, kind: str, name: str) -> type_json | None:
        """The record, or None; an unreadable record counts as absent."""
        try:
            record = self._cache.get(f"{kind}:{name}")
        except (ValueError, OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be read: %s", kind, name, error)
            return None
        return record if isinstance(record, dict) else None

    def put(self, kind: str, name: str, record: type_json) -> None:
        """Store a record. Losing one is survivable: a failure is logged, not raised."""
        try:
            self._cache.set(f"{kind}:{name}", record)
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be written: %s", kind, name, error)

    def delete(self, kind: str, name: str) -> None:
        """Drop a record if it is there."""
        try:
            self._cache.delete(f"{kind}:{name}")
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be removed: %s", kind, name, error)

    def items(self, kind: str) -> Iterator[tuple[str, type_json]]:
        """All records of a kind, oldest first."""
        prefix = f"{kind}:"
        for key in self._cache:
            if isinstance(key, str) and key.startswith(prefix):
                record = self.get(kind, key[len(prefix) :])
                if record is not None:
                    yield key[len(prefix) :], record

    def close(self) -> None:
        """Close the database."""
        self._cache.close()


def _open_cache(directory: Path) -> Cache:
    return Cache(
        str(directory),
        timeout=10,
        disk=JSONDisk,
        eviction_policy="none",
        cull_limit=0,
        size_limit=1 << 62,
        sqlite_journal_mode="wal",
    )


def _move_aside(directory: Path) -> None:
    aside = directory.with_name(f"{directory.name}.damaged-{time.time_ns()}")
    os.rename(directory, aside)
