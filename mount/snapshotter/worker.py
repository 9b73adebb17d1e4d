"""The one thread that the records and the making of directories belong to.

What runs in it is done to its end, also when the caller is cancelled, and never beside anything
else: so a sweep sees no directory whose row is still being written.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from mount.snapshotter.errors import RecordsFailed

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs blocking calls one after another."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises what the call raises; RecordsFailed for the database and the file system."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, partial(call, *args, **kwargs))
        except sqlite3.Error as error:
            raise RecordsFailed(f"the records of snapshots: {error}") from error
        except OSError as error:
            raise RecordsFailed(f"a snapshot's directory: {error}") from error

    def close(self) -> None:
        """Wait for what runs."""
        self._thread.shutdown()
