"""What is known of blobs and of leases: in the account at once, in the index by and by.

Runs on the filler's loop; the index is written by one thread, in order.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from headstart.content.digest import Digest
from headstart.store.object_key import ObjectKey, parse_key
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fill import Fill
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecord, BlobRecords

TOUCH_SECONDS = 60.0
"""At most so often the use of a blob is written to the index."""


class Bookkeeping:
    """The records of blobs that are open, and the leases."""

    def __init__(self, records: BlobRecords, quota: Quota) -> None:
        """Nothing is read yet."""
        self._records = records
        self._quota = quota
        self._known: dict[Digest, BlobRecord] = {}
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="index")

    def fill_account(self) -> None:
        """Enter every blob of the store into the account, in the thread."""
        self._clerk.submit(self._records.fill_account, self._quota)

    def stored(self, digest: Digest) -> BlobRecord | None:
        """The record in the index; from any thread, without waiting for what is still to write."""
        return self._records.get(digest)

    async def record(self, digest: Digest) -> BlobRecord | None:
        """What is remembered of a blob."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._clerk, self._records.get, digest)

    def opened(self, digest: Digest, files: BlobFiles, record: BlobRecord) -> None:
        """The files of a blob have been opened."""
        used_at = record.used_at or time.time()
        self._quota.account(digest, files.allocated(), used_at, pinned=record.pinned)
        self._known[digest] = record

    def note(self, fill: Fill) -> None:
        """Enter a blob's state into the account and the index."""
        files = fill.files
        if files is None or fill.evicted or fill.failure is not None:
            return
        record = self._known.setdefault(fill.digest, BlobRecord())
        record.size = files.geometry.size
        record.used_at = time.time()
        record.verified = fill.verified
        record.vouched = sorted(fill.vouched)
        record.allocated = files.allocated()
        self._quota.account(fill.digest, record.allocated, record.used_at, pinned=record.pinned)
        self._clerk.submit(self._records.put, fill.digest, record)

    def touch(self, fill: Fill) -> None:
        """The blob is used now."""
        now = time.time()
        self._quota.touch(fill.digest, now)
        record = self._known.get(fill.digest)
        if record is None or now - record.used_at > TOUCH_SECONDS:
            self.note(fill)

    def closed(self, digest: Digest) -> None:
        """Nobody has the blob open any more."""
        self._known.pop(digest, None)

    def forget(self, digest: Digest) -> None:
        """What the account says of the blob is not true any more."""
        self._quota.forget(digest)
        self._known.pop(digest, None)

    def delete(self, digest: Digest) -> None:
        """The files are gone, so goes the record; from any thread."""
        self._clerk.submit(self._records.delete, digest)

    def pin(self, digest: Digest, pinned: bool) -> bool:
        """Pin or unpin; False when it is not here."""
        if not self._quota.pin(digest, pinned):
            return False

        def store() -> None:
            record = self._records.get(digest) or BlobRecord()
            record.pinned = pinned
            self._records.put(digest, record)

        record = self._known.get(digest)
        if record is not None:
            record.pinned = pinned
        self._clerk.submit(store)
        return True

    def leased_by(self, holder: str) -> set[ObjectKey]:
        """What a holder has leased."""
        return self._quota.leased_by(holder)

    def lease(self, holder: str, keys: set[ObjectKey]) -> None:
        """Replace what a holder has leased; it survives a restart."""
        self._quota.lease(holder, keys)
        self._clerk.submit(self._records.put_leases, holder, sorted(map(str, keys)))

    async def restore_leases(self) -> None:
        """Take over the leases of before this start."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._clerk, self._records.leases)
        for holder, keys in found.items():
            self._quota.lease(holder, [parse_key(key) for key in keys])
        if not self._records.fresh:
            self._quota.expect(found)

    def close(self) -> None:
        """Write what is still to be written."""
        self._clerk.shutdown(wait=True)
