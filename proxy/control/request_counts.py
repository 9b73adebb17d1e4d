"""Counts requests by what they ask for and how they were answered."""

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KINDS = (
    ("/blobs/", "blob"),
    ("/manifests/", "manifest"),
    ("/tags/", "tags"),
    ("/referrers/", "referrers"),
)


class RequestCounts:
    """An ASGI application around the mirror's own."""

    def __init__(self, application: ASGIApp) -> None:
        """``application`` answers all requests."""
        self._application = application
        self.counts: Counter[tuple[str, str]] = Counter()
        """By kind and class of status; ``none`` where nothing could be answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and count."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, sending)
        finally:
            answered = f"{status // 100}xx" if status else "none"
            self.counts[_kind(scope["path"]), answered] += 1


def _kind(path: str) -> str:
    if not path.startswith("/v2/"):
        return "control"
    return next((kind for part, kind in _KINDS if part in path), "other")
