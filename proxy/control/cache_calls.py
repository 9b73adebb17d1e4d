"""Control calls about the contents of the cache; the filler knows and decides."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.fill_client import FillClient

MOST_OBJECTS = 1000
"""Objects of one answer; ``after`` asks for the next ones."""


class CacheCalls:
    """``/cache`` and what is below it."""

    def __init__(self, filler: FillClient) -> None:
        """``filler`` is the mirror's own connection."""
        self._filler = filler

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/cache", self.list, methods=["GET"]),
            Route("/cache/{digest}", self.evict, methods=["DELETE"]),
            Route("/cache/{digest}/pin", self.pin, methods=["PUT"]),
            Route("/cache/{digest}/pin", self.unpin, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """``?after=DIGEST&limit=N``: objects sorted by digest, and where the next page begins."""
        after = request.query_params.get("after", "")
        if after:
            Digest.parse(after)
        limit = _limit(request.query_params.get("limit"))
        answer = await self._filler.call({"type": "cache", "after": after, "limit": limit})
        return JSONResponse({"objects": answer.get("objects"), "next": answer.get("next")})

    async def evict(self, request: Request) -> Response:
        """Remove an object that nobody uses, pins or leases."""
        digest = Digest.parse(request.path_params["digest"])
        await self._filler.call({"type": "evict", "digest": str(digest)})
        return Response(status_code=204)

    async def pin(self, request: Request) -> Response:
        """Keep an object from eviction."""
        return await self._set_pinned(request, True)

    async def unpin(self, request: Request) -> Response:
        """Let an object be evicted again."""
        return await self._set_pinned(request, False)

    async def _set_pinned(self, request: Request, pinned: bool) -> Response:
        digest = Digest.parse(request.path_params["digest"])
        await self._filler.call({"type": "pin", "digest": str(digest), "pinned": pinned})
        return JSONResponse({"digest": str(digest), "pinned": pinned})


def _limit(text: str | None) -> int:
    if text is None:
        return MOST_OBJECTS
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST_OBJECTS):
        raise InvalidInput("limit", text, f"write a number from 1 to {MOST_OBJECTS}")
    return int(text)
