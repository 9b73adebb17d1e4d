"""The filler's threads, by what they do; what comes of it is told on the loop."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from proxy.fill.pool import MOST_CONNECTIONS

logger = logging.getLogger(__name__)


class Threads:
    """Threads for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """None runs yet."""
        self._loop = loop
        self._stopping = False
        self.carriers = ThreadPoolExecutor(8 * MOST_CONNECTIONS, thread_name_prefix="carrier")
        self.workers = ThreadPoolExecutor(4, thread_name_prefix="worker")
        # Hashing after a boot, and a disk that is slow to sync, must not hold up who opens.
        self.openers = ThreadPoolExecutor(2, thread_name_prefix="opener")
        self.syncers = ThreadPoolExecutor(1, thread_name_prefix="sync")

    def run(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[[], object],
        done: Callable[[object], None],
    ) -> None:
        """Run ``work`` in a thread; ``done`` gets its result or its exception, on the loop."""

        def run() -> object:
            try:
                return work()
            except Exception as error:
                if not isinstance(error, OSError):
                    logger.exception("fill: an error of the filler itself")
                return error

        def finished(future: asyncio.Future[object]) -> None:
            if not future.cancelled() and not self._stopping:
                done(future.result())

        self._loop.run_in_executor(threads, run).add_done_callback(finished)

    def hush(self) -> None:
        """From now on nothing is told any more."""
        self._stopping = True

    def stop(self) -> None:
        """Wait for what runs, carriers excepted; what waits is not begun."""
        for threads in (self.workers, self.openers, self.syncers):
            threads.shutdown(wait=True, cancel_futures=True)

    def stop_carriers(self) -> None:
        """Wait for the connections' threads."""
        self.carriers.shutdown(wait=True, cancel_futures=True)
