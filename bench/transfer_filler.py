"""The filler's own source and receiver as a client of the comparison: hashing and map included.

Nothing of the scheduler takes part: threads take range after range, as the other clients do.
"""

from typing import cast

from bench.transfer_clients import Following, Task, in_threads
from headstart.content.digest import Digest
from headstart.store.geometry import MIB
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.receiver import RangeReceiver
from proxy.fill.source import BlobRequest, CurlSource

EXTENT_SIZE = 32 * MIB
CONNECT_SECONDS = 5.0


class _Accepting:
    """Accepts every answer; what a fill would do with its bytes beyond writing is left out."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files

    def admit(self, fetch: Fetch, size: int | None, etag: str | None) -> Outcome | None:
        return None if size == self._files.geometry.size else Outcome(Ending.PROTOCOL, "size")

    def admit_stream(self, fetch: Fetch, size: int | None) -> Outcome | None:
        return Outcome(Ending.PROTOCOL, "no range")

    def opened_files(self) -> BlobFiles:
        return self._files

    def reserve(self, extent: int) -> None:
        self._files.reserve(extent)

    def wrote(self, stripe: int, file_offset: int, length: int) -> None:
        """No disk to pace."""

    def extent_whole(self, extent: int, digest: bytes | None) -> None:
        """Nothing checks it later."""

    def progressed(self) -> None:
        """Nobody reads."""


def filler_source(task: Task) -> None:
    """CurlSource and RangeReceiver into a store's files."""
    layout = Layout((task.file.with_name(f"{task.file.name}-store"),))
    layout.prepare()
    files = BlobFiles.create(layout, Digest.of(b"transfer"), task.size, EXTENT_SIZE)
    source, accepting = CurlSource(), _Accepting(files)

    def connection(task: Task, following: Following) -> None:
        while (taken := following()) is not None:
            # Only a scheduler asks a fetch for its fill.
            fetch = Fetch(cast(Fill, None), *taken, bulk=True, priority=0, order=0)
            request = BlobRequest(task.url, None, *taken, CONNECT_SECONDS, task.ca_file, True, None)
            outcome = source.perform(
                fetch, request, lambda buffer, fetch=fetch: RangeReceiver(fetch, accepting, buffer)
            )
            if outcome.ending is not Ending.COMPLETE:
                raise ValueError(f"{taken}: {outcome}")

    try:
        in_threads(task, connection)
    finally:
        source.close()
        files.close()
