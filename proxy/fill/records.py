"""What the index remembers of blobs, and how the account of the disks is filled from it.

A record is JSON under ``blob:DIGEST``: ``size`` and ``allocated`` (bytes), ``used_at`` (Unix
seconds), ``pinned``, ``verified`` and ``vouched``, the upstreams that have delivered it (with
``access: passthrough`` REGISTRY/REPOSITORY). All of it but ``vouched`` and ``pinned`` can be read
from the files again.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.extent_map import FLAG_VERIFIED, StripeMap
from headstart.store.index import Index, type_json
from headstart.store.layout import Layout
from headstart.store.map_file import MapDamaged
from proxy.fill.layers.stored_layers import stored_layers
from proxy.fill.quota import Quota

logger = logging.getLogger(__name__)

KIND = "blob"
ACCOUNT = "account"
LEASES = "lease"


@dataclass(slots=True)
class BlobRecord:
    """One blob's record."""

    size: int | None = None
    allocated: int = 0
    used_at: float = 0.0
    pinned: bool = False
    verified: bool = False
    vouched: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, stored: type_json) -> "BlobRecord":
        """From JSON; what has not the right form is left at its default."""
        record = cls()
        size, allocated, used_at = (stored.get(key) for key in ("size", "allocated", "used_at"))
        vouched = stored.get("vouched")
        record.size = size if isinstance(size, int) else None
        record.allocated = allocated if isinstance(allocated, int) else 0
        record.used_at = float(used_at) if isinstance(used_at, int | float) else 0.0
        record.pinned = stored.get("pinned") is True
        record.verified = stored.get("verified") is True
        record.vouched = [str(name) for name in vouched] if isinstance(vouched, list) else []
        return record

    def written(self) -> type_json:
        """As JSON."""
        return {
            "size": self.size,
            "allocated": self.allocated,
            "used_at": self.used_at,
            "pinned": self.pinned,
            "verified": self.verified,
            "vouched": list(self.vouched),
        }


class BlobRecords:
    """The records, through the index; every call blocks and belongs into a thread."""

    def __init__(self, index: Index, layout: Layout) -> None:
        """``layout`` is where files are looked for when the index is new."""
        self._index = index
        self._layout = layout
        # Written last: a process that was killed while it read the files has them read again.
        self.fresh = index.fresh or index.get(ACCOUNT, "complete") is None

    def get(self, digest: Digest) -> BlobRecord | None:
        """The record of a blob."""
        stored = self._index.get(KIND, str(digest))
        return None if stored is None else BlobRecord.read(stored)

    def put(self, digest: Digest, record: BlobRecord) -> None:
        """Store a record."""
        self._index.put(KIND, str(digest), record.written())

    def delete(self, digest: Digest) -> None:
        """The blob is gone."""
        self._index.delete(KIND, str(digest))

    def leases(self) -> dict[str, list[str]]:
        """What each holder has leased."""
        found: dict[str, list[str]] = {}
        for holder, stored in self._index.items(LEASES):
            keys = stored.get("keys")
            found[holder] = [str(key) for key in keys] if isinstance(keys, list) else []
        return found

    def put_leases(self, holder: str, keys: list[str]) -> None:
        """Replace what a holder has leased."""
        if keys:
            self._index.put(LEASES, holder, {"keys": list(keys)})
        else:
            self._index.delete(LEASES, holder)

    def fill_account(self, quota: Quota) -> None:
        """Enter every blob into the account: from the index, or from the files if that is new."""
        entries = self._from_files() if self.fresh else self._from_index()
        count = 0
        for digest, record in entries:
            quota.account(digest, record.allocated, record.used_at, pinned=record.pinned)
            count += 1
        logger.info("cache: %d blobs, %d bytes", count, quota.total)
        if self.fresh:
            self._index.put(ACCOUNT, "complete", {})
            if count == 0 and next(stored_layers(self._layout), None) is None:
                # Nothing is here that a holder could have leased.
                quota.expect(())

    def _from_index(self) -> Iterator[tuple[Digest, BlobRecord]]:
        for name, stored in self._index.items(KIND):
            try:
                digest = Digest.parse(name)
            except InvalidInput:
                logger.warning("index: %s is no digest; left out", name[:100])
                continue
            record = BlobRecord.read(stored)
            if not record.verified:
                # A process that was killed has not told how much it had written.
                record.allocated = self._allocated(digest)
            yield digest, record

    def _from_files(self) -> Iterator[tuple[Digest, BlobRecord]]:
        found = sorted(self._digests_on_disk())
        if found:
            logger.warning("index: new; %d blobs are entered from their files", len(found))
        for digest in found:
            record = self._read_files(digest)
            known = self.get(digest)
            if known is not None:
                record.vouched, record.pinned = known.vouched, known.pinned
            self.put(digest, record)
            yield digest, record

    def _digests_on_disk(self) -> set[Digest]:
        found: set[Digest] = set()
        for stripe in self._layout.stripes:
            try:
                paths = list((stripe / "blobs").glob("*/*/*.map"))
            except OSError as error:
                logger.warning("cache: %s cannot be read: %s", stripe, error.strerror)
                continue
            for path in paths:
                try:
                    found.add(Digest.parse(f"{path.parts[-3]}:{path.stem}"))
                except InvalidInput:
                    logger.warning("cache: %s does not belong here; left alone", path)
        return found

    def _allocated(self, digest: Digest) -> int:
        return sum(map(_allocated, self._layout.blob_paths(digest, len(self._layout.stripes))))

    def _read_files(self, digest: Digest) -> BlobRecord:
        record = BlobRecord(verified=True, allocated=self._allocated(digest))
        for path in self._layout.blob_paths(digest, len(self._layout.stripes)):
            record.used_at = max(record.used_at, _used_at(path))
            try:
                stripe_map = StripeMap(path.with_name(path.name + ".map"), writable=False)
            except (OSError, MapDamaged):
                record.verified = False
                continue
            record.size = stripe_map.size
            record.verified = record.verified and bool(stripe_map.flags & FLAG_VERIFIED)
            stripe_map.close()
        return record


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _used_at(path: Path) -> float:
    try:
        # A clock that was wrong must not make a blob the newest for ever.
        return min(path.stat().st_mtime, time.time())
    except OSError:
        return 0.0
