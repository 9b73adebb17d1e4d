"""Control calls about warm jobs."""

import json
from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from headstart.registry.upstream import Upstream
from proxy.control.body import read_json
from proxy.warm.job import WarmJob
from proxy.warm.jobs import WarmJobs
from proxy.warm.request import WarmRequest


class WarmCalls:
    """``/warm`` and what is below it."""

    def __init__(self, jobs: WarmJobs, upstreams: Mapping[str, Upstream]) -> None:
        """``upstreams`` is the allowlist."""
        self._jobs = jobs
        self._upstreams = upstreams

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/warm", self.submit, methods=["POST"]),
            Route("/warm", self.list, methods=["GET"]),
            Route("/warm/{id}", self.show, methods=["GET"]),
            Route("/warm/{id}", self.cancel, methods=["DELETE"]),
            Route("/warm/{id}/events", self.events, methods=["GET"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Begin a job, or join the one that does the same work."""
        asked = WarmRequest.read(await read_json(request), self._upstreams)
        job = await self._jobs.submit(asked)
        return JSONResponse(job.describe(), 202, {"Location": f"/warm/{job.id}"})

    async def list(self, _: Request) -> Response:
        """All jobs, the latest first, without their layers."""
        jobs = await self._jobs.all()
        return JSONResponse({"jobs": [job.describe(layers=False) for job in jobs]})

    async def show(self, request: Request) -> Response:
        """One job."""
        job = await self._jobs.get(request.path_params["id"])
        job.look()
        return JSONResponse(job.describe())

    async def cancel(self, request: Request) -> Response:
        """Cancel a job; the answer shows how it ended."""
        job = await self._jobs.cancel(request.path_params["id"])
        return JSONResponse(job.describe())

    async def events(self, request: Request) -> Response:
        """Server-sent events until the job has ended."""
        job = await self._jobs.get(request.path_params["id"])
        return StreamingResponse(
            self._events(job),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _events(self, job: WarmJob) -> AsyncIterator[bytes]:
        async for described in self._jobs.follow(job):
            if described is None:
                yield b": nothing new\n\n"
            else:
                text = json.dumps(described, separators=(",", ":"))
                yield f"event: job\ndata: {text}\n\n".encode()
