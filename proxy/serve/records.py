"""The index from the event loop: one thread, opened when the filler holds the cache's lock."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from headstart.store.errors import FillerUnreachable
from headstart.store.index import Index

Record = dict[str, object]

OPEN_SECONDS = 10.0
"""How long a first use waits for the filler, which creates and locks the cache."""

_POLL_SECONDS = 0.02

T = TypeVar("T")


class AsyncIndex:
    """:class:`headstart.store.index.Index` for one event loop.

    One thread, since every thread would have a connection and a page cache of its own, and SQLite
    would let only one of them write anyway.
    """

    def __init__(self, directory: Path, filler_greeted: Callable[[], bool]) -> None:
        """Opens nothing yet; ``filler_greeted`` tells whether the cache is locked for us."""
        self._directory = directory
        self._filler_greeted = filler_greeted
        self._index: Index | None = None
        self._opening = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")

    async def get(self, kind: str, name: str) -> Record | None:
        """The record or None. Raises FillerUnreachable while the index cannot be opened."""
        return await self._run(lambda index: index.get(kind, name))

    async def put(
        self, kind: str, name: str, record: Record, keep_seconds: float | None = None
    ) -> None:
        """Store a record, see :meth:`Index.put`. Raises FillerUnreachable."""
        await self._run(lambda index: index.put(kind, name, record, keep_seconds))

    async def refresh(self, kind: str, name: str, keep_seconds: float) -> None:
        """Keep a record for so long from now on. Raises FillerUnreachable."""
        await self._run(lambda index: index.refresh(kind, name, keep_seconds))

    async def delete(self, kind: str, name: str) -> None:
        """Drop a record if it is there. Raises FillerUnreachable."""
        await self._run(lambda index: index.delete(kind, name))

    async def items(self, kind: str) -> list[tuple[str, Record]]:
        """All records of a kind, oldest first. Raises FillerUnreachable."""
        return await self._run(lambda index: list(index.items(kind)))

    async def aclose(self) -> None:
        """Close the database and end the thread."""
        if self._index is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._index.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[Index], T]) -> T:
        index = self._index or await self._open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, index)

    async def _open(self) -> Index:
        async with self._opening:
            if self._index is None:
                await self._wait_for_filler()
                loop = asyncio.get_running_loop()
                self._index = await loop.run_in_executor(self._thread, Index, self._directory)
            return self._index

    async def _wait_for_filler(self) -> None:
        ends = asyncio.get_running_loop().time() + OPEN_SECONDS
        while not self._filler_greeted():
            if asyncio.get_running_loop().time() >= ends:
                raise FillerUnreachable(f"the filler has not started within {OPEN_SECONDS:g} s")
            await asyncio.sleep(_POLL_SECONDS)
