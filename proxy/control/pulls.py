"""The pull book: which requests belong together, when a pull has ended, and what held it up."""

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic, process_time

from headstart.content.manifest import Index, Manifest
from proxy.control.figures import Figures, UpstreamFigures
from proxy.control.pull import LONGEST_AGENT, Pull, PullWatch, printable
from proxy.control.verdict import judge
from proxy.serve.services import BlobWatch

logger = logging.getLogger("headstart.pull")

IDLE_SECONDS = 3.0
"""A pull without an open request for this long has ended."""

LOOK_SECONDS = 0.25
MOST_RECENT = 200
MOST_RUNNING = 1000

ReadFigures = Callable[[], Awaitable[Figures | None]]


class PullBook:
    """Requests by client address, upstream and repository. Use as an async context manager."""

    def __init__(self, read_figures: ReadFigures, *, idle_seconds: float = IDLE_SECONDS) -> None:
        """``read_figures`` gives the filler's figures as of now, or None."""
        self._read_figures = read_figures
        self._idle_seconds = idle_seconds
        self._running: dict[tuple[str, str, str], Pull] = {}
        self._recent: deque[Pull] = deque(maxlen=MOST_RECENT)
        self._numbers = itertools.count(1)
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # What cannot be told apart any more when too many clients come at once.
        self._others = Pull(0, "", "", "")
        self._ended_sent = 0
        self._ended_from_cache = 0
        self.by_verdict: Counter[str] = Counter()

    async def __aenter__(self) -> "PullBook":
        """Start to look after the pulls."""
        self._task = asyncio.create_task(self._look_after(), name="pull book")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all pulls."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for pull in list(self._running.values()):
            self._end(pull)

    # --- what the serving side tells (PullWatcher) ---

    def manifest_served(
        self,
        client: str,
        user_agent: str,
        upstream: str,
        repository: str,
        reference: str,
        digest: str,
        manifest: Manifest | Index | None,
    ) -> None:
        """A manifest or index went to a client, which asked for it by ``reference``."""
        tag = None if ":" in reference else reference
        agent = printable(user_agent, LONGEST_AGENT)
        pull = self._pull(client, upstream, repository)
        if pull.is_over_for(tag, agent) and pull is not self._others:
            self._end(pull)
            pull = self._pull(client, upstream, repository)
        pull.active_at = monotonic()
        pull.requests += 1
        pull.agent = agent
        pull.tag = tag or pull.tag
        if pull.digest is None or not isinstance(manifest, Index):
            pull.digest = digest
        if isinstance(manifest, Manifest):
            named = (*manifest.layers, *([manifest.config] if manifest.config else []))
            pull.wanted = sum({blob.digest: blob.size for blob in named}.values())

    def blob(
        self, client: str, upstream: str, repository: str, digest: str, size: int
    ) -> BlobWatch:
        """A client reads a blob; enter the watch for as long as its request is open."""
        return PullWatch(self._pull(client, upstream, repository))

    # --- what is shown ---

    @property
    def running(self) -> int:
        """How many pulls have not ended."""
        return len(self._running)

    @property
    def sent_bytes(self) -> tuple[int, int]:
        """Bytes that went to clients since the start: from the cache, and not from it."""
        pulls = [self._others, *self._running.values()]
        sent = self._ended_sent + sum(pull.sent for pull in pulls)
        hit = self._ended_from_cache + sum(pull.from_cache for pull in pulls)
        return hit, sent - hit

    def describe(self) -> dict[str, object]:
        """The answer to ``GET /pulls``: running and recent pulls, the latest first."""
        running = sorted(self._running.values(), key=lambda pull: pull.number, reverse=True)
        return {
            "running": [pull.describe() for pull in running],
            "recent": [pull.describe() for pull in reversed(self._recent)],
        }

    # --- from the first request to the last ---

    def _pull(self, client: str, upstream: str, repository: str) -> Pull:
        key = (client, upstream, repository)
        pull = self._running.get(key)
        if pull is None:
            if len(self._running) >= MOST_RUNNING:
                return self._others
            pull = Pull(next(self._numbers), client, upstream, repository)
            self._running[key] = pull
            self._begun.set()
        return pull

    async def _look_after(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), LOOK_SECONDS if self._running else None)
            self._begun.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("the pull book failed to look after its pulls")
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        figures = await self._read_figures()
        for pull in list(self._running.values()):
            self._note(pull, figures)
            if pull.idle_seconds() >= self._idle_seconds:
                self._end(pull)

    @staticmethod
    def _note(pull: Pull, figures: Figures | None) -> None:
        """Take over the figures that belong to the pull's time, and none of later."""
        if not pull.open_requests and pull.noted_at > pull.active_at:
            return
        pull.noted_at, pull.cpu_at_end = monotonic(), process_time()
        if figures is None:
            return
        if pull.figures_at_start is None:
            pull.figures_at_start = figures
        pull.figures_at_end = figures
        upstream = figures.upstreams.get(pull.upstream, UpstreamFigures())
        pull.connections = max(pull.connections, upstream.active)

    def _end(self, pull: Pull) -> None:
        del self._running[pull.client, pull.upstream, pull.repository]
        pull.verdict = judge(pull.measured())
        pull.figures_at_start = pull.figures_at_end = None
        self._ended_sent += pull.sent
        self._ended_from_cache += pull.from_cache
        self.by_verdict[pull.verdict.word] += 1
        self._recent.append(pull)
        logger.info("%s", pull.line())
