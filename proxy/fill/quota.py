"""How much of the disks the cache may take, and what goes when that is reached.

Counts allocated bytes. Least recently used objects go first, never one that is leased, pinned or
being filled; open readers of an evicted object finish. All methods may be called from any thread.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from headstart.store.object_key import ObjectKey

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""Nothing is evicted in this time after a start, unless all lease holders have reconciled."""


@dataclass(slots=True)
class Entry:
    """What the quota knows of one object."""

    allocated: int
    used_at: float
    pinned: bool = False
    busy: int = 0


class Quota:
    """The account of one cache."""

    def __init__(
        self,
        high_water: int,
        low_water: int,
        remove: Callable[[ObjectKey], None],
        *,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """``remove`` unlinks an object's files; water levels are in bytes."""
        self.high_water = high_water
        self.low_water = low_water
        self._remove = remove
        self._lock = threading.RLock()
        self._entries: dict[ObjectKey, Entry] = {}
        self._leased: dict[str, set[ObjectKey]] = {}
        self._total = 0
        self.evicted_objects = 0
        self.evicted_bytes = 0
        self._evict_from = time.monotonic() + grace_seconds
        self._unreconciled: set[str] = set()

    @property
    def total(self) -> int:
        """Allocated bytes of all objects."""
        return self._total

    def account(self, key: ObjectKey, allocated: int, used_at: float, *, pinned: bool) -> None:
        """Enter what an object takes; replaces an earlier figure."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._entries[key] = Entry(allocated, used_at, pinned)
                self._total += allocated
            else:
                self._total += allocated - entry.allocated
                entry.allocated = allocated
                entry.used_at = max(entry.used_at, used_at)
                entry.pinned = entry.pinned or pinned

    def known(self, key: ObjectKey) -> bool:
        """Whether the object is in the account."""
        with self._lock:
            return key in self._entries

    def touch(self, key: ObjectKey, used_at: float) -> None:
        """Note a use."""
        with self._lock:
            if key in self._entries:
                self._entries[key].used_at = used_at

    def pin(self, key: ObjectKey, pinned: bool) -> bool:
        """Pin or release an object; False when it is not here."""
        with self._lock:
            if key not in self._entries:
                return False
            self._entries[key].pinned = pinned
            return True

    def busy(self, key: ObjectKey, change: int) -> None:
        """Count fills of an object (+1, -1); a busy one is not evicted."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if change < 0:
                    return
                entry = self._entries[key] = Entry(0, time.time())
            entry.busy = max(0, entry.busy + change)
            if change < 0 and not (entry.busy or entry.allocated or entry.pinned):
                # Nothing has come of it: whoever asks for what no upstream has leaves no trace.
                del self._entries[key]

    def lease(self, holder: str, keys: Iterable[ObjectKey]) -> None:
        """Replace what a holder has leased."""
        with self._lock:
            self._leased[holder] = set(keys)

    def leased_by(self, holder: str) -> set[ObjectKey]:
        """What a holder has leased."""
        with self._lock:
            return set(self._leased.get(holder, ()))

    def leased(self, key: ObjectKey) -> bool:
        """Whether anybody has leased the object."""
        with self._lock:
            return any(key in held for held in self._leased.values())

    @property
    def count(self) -> int:
        """How many objects are in the account."""
        return len(self._entries)

    def forget(self, key: ObjectKey) -> None:
        """The object's files are gone."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._total -= entry.allocated

    def reserve(self, key: ObjectKey, length: int) -> None:
        """Count bytes that are about to be written. Raises OSError(ENOSPC) when none can go."""
        with self._lock:
            if self._total + length > self.high_water:
                self._free(self._total + length - self.low_water, spare=key)
            if self._total + length > self.high_water:
                raise OSError(errno.ENOSPC, f"cache.max_size: {self.high_water} bytes are in use")
            self._entries.setdefault(key, Entry(0, time.time())).allocated += length
            self._total += length

    def unreserve(self, key: ObjectKey, length: int) -> None:
        """Take back a reservation that the disk did not give."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.allocated -= length
                self._total -= length

    def make_room(self, key: ObjectKey, length: int) -> bool:
        """The disk itself is full: evict at least ``length`` bytes; whether any went."""
        with self._lock:
            return self._free(length, spare=key) > 0

    def evict(self, key: ObjectKey) -> bool:
        """Evict one object on request; False when it is busy, leased, pinned or not here."""
        with self._lock:
            if key not in self._evictable():
                return False
            self._drop(key)
            return True

    def _evictable(self) -> list[ObjectKey]:
        leased = set().union(*self._leased.values()) if self._leased else set()
        candidates = [
            (entry.used_at, str(key), key)
            for key, entry in self._entries.items()
            if not entry.busy and not entry.pinned and key not in leased
        ]
        return [key for _, _, key in sorted(candidates, key=lambda entry: entry[:2])]

    def _free(self, length: int, spare: ObjectKey) -> int:
        if time.monotonic() < self._evict_from:
            return 0
        freed = 0
        for key in self._evictable():
            if freed >= length:
                break
            if key != spare:
                freed += self._drop(key)
        return freed

    def _drop(self, key: ObjectKey) -> int:
        allocated = self._entries[key].allocated
        logger.info("evict: %s, %d bytes", key, allocated)
        self._remove(key)
        self.evicted_objects += 1
        self.evicted_bytes += allocated
        self.forget(key)
        return allocated

    def expect(self, holders: Iterable[str]) -> None:
        """Whose leases are known from before this start; with none eviction may start at once."""
        with self._lock:
            self._unreconciled = set(holders)
            if not self._unreconciled:
                self._evict_from = 0.0

    def reconciled(self, holder: str) -> None:
        """A holder has said what it holds; after the last one eviction may start."""
        with self._lock:
            if holder in self._unreconciled:
                self._unreconciled.discard(holder)
                if not self._unreconciled:
                    self._evict_from = 0.0

    def snapshot(self) -> list[tuple[ObjectKey, Entry]]:
        """All entries, for listings."""
        with self._lock:
            return list(self._entries.items())


def water_marks(
    stripes: Iterable[Path], max_bytes: int | None, max_share: float | None, low_share: float
) -> tuple[int, int]:
    """High and low water in bytes from ``cache.max_size`` (bytes or a share) and ``low_water``."""
    high = max_bytes
    if high is None:
        sizes = {}
        for stripe in stripes:
            status = os.statvfs(stripe)
            sizes[os.stat(stripe).st_dev] = status.f_blocks * status.f_frsize
        high = int(sum(sizes.values()) * (max_share if max_share is not None else 0.8))
    return high, int(high * low_share)
