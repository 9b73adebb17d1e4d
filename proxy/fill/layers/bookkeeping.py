"""What is known of layer images: in the account at once, in the index by and by.

Runs on the filler's loop; the index is read and written by one thread, in order.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.index import type_json
from headstart.store.known_layer import KnownLayer
from headstart.store.object_key import LayerKey
from proxy.fill.layers.layer import Layer
from proxy.fill.layers.layer_records import LayerRecord, LayerRecords
from proxy.fill.quota import Quota

TOUCH_SECONDS = 60.0
"""At most so often the use of a layer image is written to the index."""

T = TypeVar("T")


class LayerBookkeeping:
    """The records of layer images that are open, and what was refused."""

    def __init__(self, records: LayerRecords, quota: Quota) -> None:
        """Nothing is read yet. Make it on the loop that it will run on."""
        self.quota = quota
        self._records = records
        self._known: dict[Digest, LayerRecord] = {}
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="layer-index")
        self._loop = asyncio.get_running_loop()

    def fill_account(self) -> None:
        """Enter every layer image of the store into the account, in the thread."""
        self._clerk.submit(self._records.fill_account, self.quota)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """The result of something that reads or writes the index, after all that is to write."""
        return await self._loop.run_in_executor(self._clerk, work)

    async def list_of(self, known: KnownLayer) -> type_json | None:
        """The record of the prefetch list of the layer's image."""
        manifest = known.manifest
        if manifest is None:
            return None
        return await self.in_turn(lambda: self._records.list_of(manifest))

    async def begun(self, digest: Digest, diff_id: Digest) -> None:
        """A layer image is about to be made: its record is to be older than its files."""
        record = self._known[digest] = LayerRecord(diff_id)
        record.used_at = time.time()
        await self.in_turn(lambda: self._records.put(digest, record))

    def opened(self, digest: Digest, record: LayerRecord) -> None:
        """The files of a layer image have been opened; ``record`` says what they take."""
        self._known[digest] = record
        self._account(digest, record)

    def note(self, layer: Layer) -> None:
        """Enter a layer image's state into the account and the index."""
        digest, files = layer.known.digest, layer.files
        if files is None or layer.evicted or layer.failure is not None:
            return
        record = self._known.setdefault(digest, LayerRecord(layer.known.diff_id))
        record.used_at = time.time()
        record.vouched = sorted(layer.vouched)
        record.implied = layer.implied
        record.whole = layer.state == "complete"
        record.allocated = files.allocated()
        self._account(digest, record)
        self._clerk.submit(self._records.put, digest, record)

    def _account(self, digest: Digest, record: LayerRecord) -> None:
        key = LayerKey(digest)
        self.quota.account(key, record.allocated, record.used_at, pinned=record.pinned)

    def touch(self, layer: Layer) -> None:
        """The layer image is used now."""
        now, digest = time.time(), layer.known.digest
        self.quota.touch(LayerKey(digest), now)
        record = self._known.get(digest)
        if record is not None and now - record.used_at > TOUCH_SECONDS:
            self.note(layer)

    def busy(self, digest: Digest, change: int) -> None:
        """Somebody works on the layer image from now on (+1), or not any more (-1)."""
        self.quota.busy(LayerKey(digest), change)

    def refused(self, layer: Layer, failure: FillFailed) -> None:
        """What is wrong in itself is not tried again soon."""
        if failure.code == "digest":
            self._clerk.submit(self._records.refuse, layer.known, failure.text)

    def closed(self, digest: Digest) -> None:
        """The layer image is not open any more."""
        self._known.pop(digest, None)

    def delete(self, digest: Digest) -> None:
        """The files of a layer image are gone, or will not be believed; from any thread."""
        self.quota.forget(LayerKey(digest))
        self._clerk.submit(self._records.delete, digest)

    def pin(self, digest: Digest, pinned: bool) -> bool:
        """Pin or unpin; False when it is not here."""
        if not self.quota.pin(LayerKey(digest), pinned):
            return False

        def store() -> None:
            record = self._records.get(digest)
            if record is not None:
                record.pinned = pinned
                self._records.put(digest, record)

        record = self._known.get(digest)
        if record is not None:
            record.pinned = pinned
        self._clerk.submit(store)
        return True

    def close(self) -> None:
        """Write what is still to write."""
        self._clerk.shutdown(wait=True)
