"""The two deadlines of a job: its caller's, counted from the call, and the upstreams' own."""

import asyncio
import time
from collections.abc import Mapping

from headstart.content.sizes import format_duration, show_size
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from proxy.warm.job import WarmJob


class JobDeadline:
    """Ends a job by TimeoutError; :meth:`failure` says which deadline it was."""

    def __init__(self, job: WarmJob, upstreams: Mapping[str, Upstream]) -> None:
        """The shortest ``deadlines.job`` of the job's upstreams holds."""
        self._job = job
        self._limit: float | None = None
        self._host = ""
        for host in sorted({image.registry for image in job.request.images}):
            limit = upstreams[host].deadlines.job
            if limit is not None and (self._limit is None or limit < self._limit):
                self._limit, self._host = limit, host
        self._own = self._upstreams = asyncio.timeout(None)

    def from_call(self) -> asyncio.Timeout:
        """The caller's deadline, for everything from here on."""
        asked = self._job.request.deadline
        left = None if asked is None else self._job.created_at + asked - time.time()
        self._own = asyncio.timeout(None if left is None else max(0.0, left))
        return self._own

    def from_start(self) -> asyncio.Timeout:
        """The upstreams' deadline, for everything from here on."""
        self._upstreams = asyncio.timeout(self._limit)
        return self._upstreams

    def failure(self) -> FillFailed | None:
        """The failure after a TimeoutError; None when it came from elsewhere."""
        own = self._own.expired()
        if not own and not self._upstreams.expired():
            return None
        seconds = self._job.request.deadline if own else self._limit
        key = "deadline" if own else f"upstreams.{self._host}.deadlines.job"
        value = format_duration(seconds or 0.0)
        job = self._job
        job.sample()
        if not job.images:
            state = "the manifests were not there yet" if job.started_at else "it was still queued"
        else:
            state = f"{show_size(job.bytes_done)} of {show_size(job.bytes_wanted)} were there"
        return FillFailed("deadline", f"{state} after {value} ({key})", key=key, value=value)
