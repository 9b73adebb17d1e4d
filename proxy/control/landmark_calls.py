"""Control calls about prefetch lists: what a start of an image reads, in order."""

from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headstart.content.digest import Digest
from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS
from headstart.content.landmarks.prefetch_list import MEDIA_TYPE
from headstart.store.prefetch_lists import KEEP_SECONDS, LISTS, list_record, listed_text
from proxy.control.body import read_body
from proxy.control.problem import Problem
from proxy.serve.records import AsyncIndex


class LandmarkCalls:
    """``/landmarks/{manifest digest}``."""

    def __init__(self, index: AsyncIndex) -> None:
        """``index`` keeps the lists; the filler reads them there."""
        self._index = index

    def routes(self) -> list[Route]:
        """The routes."""
        path = "/landmarks/{digest}"
        return [
            Route(path, self.show, methods=["GET"]),
            Route(path, self.keep, methods=["PUT"]),
            Route(path, self.forget, methods=["DELETE"]),
        ]

    async def show(self, request: Request) -> Response:
        """The list, in its one form."""
        digest = Digest.parse(request.path_params["digest"])
        text = listed_text(await self._index.get(LISTS, str(digest)))
        if text is None:
            raise _unknown(digest)
        await self._index.refresh(LISTS, str(digest), KEEP_SECONDS)
        return Response(text, headers={"Content-Type": MEDIA_TYPE})

    async def keep(self, request: Request) -> Response:
        """Keep a list; layers that are begun from now on follow it."""
        digest = Digest.parse(request.path_params["digest"])
        body = await read_body(request, DEFAULT_LIST_CAPS.json_bytes)
        record = await run_in_threadpool(list_record, body)
        await self._index.put(LISTS, str(digest), record, KEEP_SECONDS)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def forget(self, request: Request) -> Response:
        """Drop a list; landmarks count again."""
        digest = Digest.parse(request.path_params["digest"])
        if await self._index.get(LISTS, str(digest)) is None:
            raise _unknown(digest)
        await self._index.delete(LISTS, str(digest))
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _unknown(digest: Digest) -> Problem:
    return Problem(
        HTTPStatus.NOT_FOUND,
        "no-list",
        "There is no such list",
        f"no prefetch list of {digest} is known; PUT one, by the digest of the platform's manifest",
        field="digest",
        value=str(digest),
    )
