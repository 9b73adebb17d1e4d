"""The control API as one ASGI application, for the mirror's port and for the control socket."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.control.access import Access
from proxy.control.cache_calls import CacheCalls
from proxy.control.figures_reader import FiguresReader
from proxy.control.health import HealthCalls
from proxy.control.landmark_calls import LandmarkCalls
from proxy.control.metrics import CONTENT_TYPE, exposition
from proxy.control.problem import Problem, problem_of
from proxy.control.pulls import PullBook
from proxy.control.warm_calls import WarmCalls
from proxy.serve.services import Services
from proxy.warm.jobs import WarmJobs

logger = logging.getLogger(__name__)

OPEN_TO_ALL = frozenset(("/healthz", "/readyz"))


def make_control(
    services: Services,
    *,
    figures: FiguresReader,
    book: PullBook,
    jobs: WarmJobs,
    requests: Mapping[tuple[str, str], int],
) -> ASGIApp:
    """The application; ``requests`` are the counts of :class:`RequestCounts`."""

    async def show_pulls(_: Request) -> Response:
        return JSONResponse(book.describe())

    async def show_metrics(_: Request) -> Response:
        text = exposition(await figures.read(), book, jobs, requests)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    routes = [
        *HealthCalls(services.filler, services.index).routes(),
        Route("/metrics", show_metrics, methods=["GET"]),
        Route("/pulls", show_pulls, methods=["GET"]),
        *CacheCalls(services.filler).routes(),
        *LandmarkCalls(services.index).routes(),
        *WarmCalls(jobs, services.upstreams).routes(),
    ]
    # A slash at the end is another path here: a redirect would be followed without its body.
    router = Router(routes, redirect_slashes=False)
    return _Guarded(router, Access(services.configuration.control.token_file))


class _Guarded:
    """Checks access before anything else, and answers every error as a problem."""

    def __init__(self, router: Router, access: Access) -> None:
        self._router = router
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["path"] not in OPEN_TO_ALL:
                await self._access.check(Request(scope))
            # With an application in the scope the router raises what it cannot route.
            await self._router({**scope, "app": self}, receive, sending)
        except Exception as error:
            if started:
                raise
            await _problem(error).answer()(scope, receive, send)


def _problem(error: Exception) -> Problem:
    known = problem_of(error)
    if known is not None:
        return known
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        return Problem(
            status,
            "no-such-call",
            status.phrase,
            "there is no such control call, or not with this method",
            headers=error.headers,
        )
    logger.error("a control call failed", exc_info=error)
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "unexpected",
        "Something unexpected happened",
        f"{type(error).__name__}; the log has more",
    )
