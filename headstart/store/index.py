"""The index: everything small, in diskcache. It can be lost; the files can rebuild what matters.

Only JSON goes in and comes out: diskcache's default would unpickle what it reads, which is
CVE-2025-69872. It evicts nothing by itself. Calls block: run them in a thread.
"""

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from diskcache import Cache, JSONDisk, Timeout
from diskcache.core import MODE_PICKLE

INDEX_VERSION = 1
_VERSION_KEY = "index-version"

logger = logging.getLogger(__name__)

type_json = dict[str, object]


class _PlainDisk(JSONDisk):  # type: ignore[misc]
    """Reads JSON and nothing else: ``JSONDisk`` unpickles whatever a row calls a pickle."""

    def get(self, key: object, raw: bool) -> object:
        """A row's key; None when it cannot be read, so that a walk over all rows goes on."""
        try:
            return super().get(key, raw) if raw else None
        except (ValueError, TypeError, zlib.error):
            return None

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        """A row's value. Raises ValueError, OSError."""
        if mode == MODE_PICKLE:
            raise ValueError("a pickle")
        try:
            return super().fetch(mode, filename, value, read)
        except (TypeError, zlib.error) as error:
            raise ValueError(str(error)) from error


class Index:
    """Records under string keys ``kind:name``; every record is a JSON object."""

    def __init__(self, directory: Path) -> None:
        """Open or create; a damaged or foreign index is moved aside, and ``fresh`` is True."""
        self.fresh = False
        cache: Cache | None = None
        try:
            cache = _open_cache(directory)
            version = cache.get(_VERSION_KEY)
        except (sqlite3.DatabaseError, OSError, ValueError, Timeout) as error:
            logger.warning("index: %s is damaged (%s); starting a new one", directory, error)
            version = "damaged"
        if cache is None or version not in (None, INDEX_VERSION):
            if cache is not None:
                cache.close()
            _move_aside(directory)
            cache = _open_cache(directory)
        self._cache = cache
        if version != INDEX_VERSION:
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

    def put(
        self, kind: str, name: str, record: type_json, keep_seconds: float | None = None
    ) -> None:
        """Store a record, for ever or until nobody has refreshed it for ``keep_seconds``.

        Losing one is survivable: a failure is logged, not raised.
        """
        try:
            self._cache.set(f"{kind}:{name}", record, expire=keep_seconds)
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be written: %s", kind, name, error)

    def refresh(self, kind: str, name: str, keep_seconds: float) -> None:
        """Keep a record for so long from now on."""
        try:
            self._cache.touch(f"{kind}:{name}", expire=keep_seconds)
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be refreshed: %s", kind, name, error)

    def sweep(self) -> int:
        """Remove the records whose time has passed; how many."""
        try:
            return int(self._cache.expire())
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: old records cannot be removed: %s", error)
            return 0

    def delete(self, kind: str, name: str) -> None:
        """Drop a record if it is there."""
        try:
            self._cache.delete(f"{kind}:{name}")
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: record %s:%s cannot be removed: %s", kind, name, error)

    def items(self, kind: str) -> Iterator[tuple[str, type_json]]:
        """All records of a kind, oldest first; those that can be read."""
        prefix = f"{kind}:"
        try:
            for key in self._cache:
                if isinstance(key, str) and key.startswith(prefix):
                    record = self.get(kind, key[len(prefix) :])
                    if record is not None:
                        yield key[len(prefix) :], record
        except (OSError, sqlite3.DatabaseError, Timeout) as error:
            logger.warning("index: the records of %s cannot all be read: %s", kind, error)

    def close(self) -> None:
        """Close the database."""
        self._cache.close()


def _open_cache(directory: Path) -> Cache:
    return Cache(
        str(directory),
        timeout=10,
        disk=_PlainDisk,
        eviction_policy="none",
        cull_limit=0,
        size_limit=1 << 62,
        sqlite_journal_mode="wal",
    )


def _move_aside(directory: Path) -> None:
    aside = directory.with_name(f"{directory.name}.damaged-{time.time_ns()}")
    os.rename(directory, aside)
