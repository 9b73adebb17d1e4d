"""Liveness and readiness; neither asks an upstream, and both are open to everybody."""

import asyncio
import sqlite3
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from headstart.store.errors import FillerUnreachable
from headstart.store.fill_client import FillClient
from proxy.serve.records import Record

INDEX_SECONDS = 2.0


class ReadsRecords(Protocol):
    """The index: :class:`proxy.serve.records.AsyncIndex`."""

    async def get(self, kind: str, name: str) -> Record | None:
        """A record."""


class HealthCalls:
    """``/healthz`` and ``/readyz``."""

    def __init__(self, filler: FillClient, index: ReadsRecords) -> None:
        """The two things without which nothing can be served."""
        self._filler = filler
        self._index = index

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def alive(self, _: Request) -> Response:
        """200 while the process answers at all."""
        return JSONResponse({"alive": True})

    async def ready(self, _: Request) -> Response:
        """200 when the filler has greeted and the index is open, else 503 with the reasons."""
        reasons: list[str] = []
        if not self._filler.connected:
            refusal = self._filler.refusal
            reasons.append(f"the filler has not greeted{f': {refusal}' if refusal else ''}")
        elif not await self._index_is_open():
            reasons.append("the index is not open")
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def _index_is_open(self) -> bool:
        reading = asyncio.ensure_future(self._index.get("ready", "probe"))
        # Not cancelled at the end of our patience: it may be opening the index for everybody.
        await asyncio.wait((reading,), timeout=INDEX_SECONDS)
        if not reading.done():
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            return False
        return not isinstance(
            reading.exception(), FillerUnreachable | OSError | sqlite3.DatabaseError
        )
