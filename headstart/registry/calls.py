"""A call of the control plane: authorization, redirects, retries and the deadline of it all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from headstart.registry.authorization import Authorizer, Rights
from headstart.registry.errors import (
    RefusedTarget,
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.exchange import Answer, Exchange
from headstart.registry.outgoing import Content
from headstart.registry.redirect import MAX_REDIRECTS, check_redirect, printable_url, same_origin
from headstart.registry.retry import DEFAULT_PAUSE, Retry, parse_retry_after
from headstart.registry.transport import Resolve
from headstart.registry.upstream import Upstream

MAX_CHALLENGES = 3
MAX_RESOLVES = 2
"""How often a redirect whose target refuses us is asked for again: its signature has expired."""
MAX_TOKEN_SIZE = 1024 * 1024

_REDIRECTS = frozenset((301, 302, 303, 307, 308))

T = TypeVar("T")
Take = Callable[[Answer], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of the registry; ``authorization`` is the client's own field.

    ``push`` and ``source`` are as in :class:`Rights`. ``at_origin`` is false for what the registry
    itself has sent elsewhere: it gets no Authorization. The answer may take ``patience`` seconds
    more than others.
    """

    method: str
    url: str
    repository: str
    fields: dict[str, str]
    authorization: str | None = None
    push: bool = False
    source: str | None = None
    at_origin: bool = True
    content: Content | None = None
    patience: float = 0.0

    @property
    def rights(self) -> Rights:
        """What is to be asked of a realm for it."""
        return Rights(self.repository, self.push, self.source)


class Calls:
    """Makes the calls to one upstream."""

    def __init__(self, upstream: Upstream, resolve_host: Resolve, retry: Retry) -> None:
        """Connects to nothing yet."""
        self._upstream = upstream
        self._retry = retry
        self._exchange = Exchange(upstream, resolve_host)
        self._authorizer = Authorizer(upstream, self._ask_realm)

    async def aclose(self) -> None:
        """Close connections and end renewals of tokens."""
        await self._authorizer.aclose()
        await self._exchange.aclose()

    async def run(self, call: Call, take: Take[T], close: bool = True) -> T:
        """What ``take`` makes of the answer; repeated while its errors are transient.

        The answer is closed afterwards; without ``close`` it stays open when ``take`` succeeds.
        """

        async def once() -> T:
            return await self.run_once(call, take, close)

        key = self._authorizer.identity(call.authorization)
        async with self._limited() as ends:
            return await self._retry.run(key, ends, once)

    async def run_once(self, call: Call, take: Take[T], close: bool = True) -> T:
        """As :meth:`run`, but neither repeated nor with a deadline of the whole.

        For a content of any length: while that goes out, progress is all that is asked for.
        """
        answer = await self._open(call)
        kept = False
        try:
            taken = await take(answer)
            kept = not close
            return taken
        finally:
            if not kept:
                await answer.discard()

    async def current(self, repository: str, authorization: str | None) -> str | None:
        """See :meth:`Authorizer.current`; within the deadline of a call."""
        async with self._limited():
            return await self._authorizer.current(Rights(repository), authorization)

    async def challenged(
        self,
        repository: str,
        www_authenticate: list[str],
        used: str | None,
        authorization: str | None,
    ) -> str:
        """See :meth:`Authorizer.challenged`; within the deadline of a call."""
        async with self._limited():
            return await self._authorizer.challenged(
                Rights(repository), www_authenticate, used, authorization
            )

    def accepted(self, repository: str, used: str, authorization: str | None) -> None:
        """See :meth:`Authorizer.accepted`."""
        self._authorizer.accepted(Rights(repository), used, authorization)

    def check_status(self, answer: Answer, *expected: int) -> None:
        """Raise the error that a status stands for, unless it is among ``expected``."""
        status, where = answer.status, printable_url(answer.url)
        if status in expected:
            return
        if status in (404, 410):
            raise UpstreamMissing(f"{where}: {status}, the upstream does not have it")
        if status in (401, 403) and not same_origin(answer.url, self._upstream.url):
            # An object storage that takes no fresh signature says nothing about our rights.
            raise UpstreamUnavailable(f"{where}: {status} for a signed URL", transient=False)
        if status in (401, 403):
            raise UpstreamDenied(f"{where}: {status}, the upstream refuses it")
        pause = parse_retry_after(answer.first("retry-after"), answer.first("date"))
        if status == 429 or (status == 503 and pause is not None):
            seconds = DEFAULT_PAUSE if pause is None else pause
            raise UpstreamThrottled(f"{where}: {status}, a pause of {seconds:.0f} s", seconds)
        if status >= 500 or status == 408:
            raise UpstreamUnavailable(f"{where}: {status}")
        raise UpstreamProtocol(f"{where}: an unexpected status {status}")

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[float]:
        """The deadline of a whole call; gives the loop's time at which it ends."""
        deadlines = self._upstream.deadlines
        ends = asyncio.get_running_loop().time() + deadlines.total
        try:
            async with asyncio.timeout_at(ends):
                yield ends
        except TimeoutError:
            raise UpstreamDeadline(
                "stall",
                deadlines.stall,
                f"{self._upstream.host}: no complete answer in {deadlines.total:g} s, "
                "which is first_byte and stall together",
            ) from None

    async def _open(self, call: Call) -> Answer:
        """The first answer that is neither a challenge that we can meet nor a redirect."""
        used = None
        if call.at_origin:
            used = await self._authorizer.current(call.rights, call.authorization)
        challenges = resolves = 0
        while True:
            answer, at_origin = await self._follow(call, used)
            if answer.status == 401 and at_origin:
                challenges += 1
                await answer.discard()
                if challenges > MAX_CHALLENGES:
                    raise UpstreamDenied(f"{self._upstream.host} refuses every token")
                used = await self._authorizer.challenged(
                    call.rights, answer.all("www-authenticate"), used, call.authorization
                )
                continue
            if used is not None and at_origin:
                self._authorizer.accepted(call.rights, used, call.authorization)
            expired = not at_origin and answer.status in (400, 401, 403) and call.method == "GET"
            if not expired or resolves == MAX_RESOLVES:
                return answer
            resolves += 1
            await answer.discard()

    async def _follow(self, call: Call, used: str | None) -> tuple[Answer, bool]:
        """The answer at the end of the redirects, and whether they never left the origin."""
        url, at_origin = call.url, call.at_origin
        for _ in range(MAX_REDIRECTS + 1):
            fields = dict(call.fields)
            if used is not None and at_origin:
                fields["Authorization"] = used
            answer = await self._exchange.open(
                call.method, url, fields, content=call.content, patience=call.patience
            )
            if answer.status not in _REDIRECTS:
                return answer, at_origin
            location = answer.first("location") or ""
            await answer.discard()
            url = check_redirect(url, location)
            # Once elsewhere, always elsewhere: nobody leads us back with our own credentials.
            at_origin = at_origin and same_origin(call.url, url)
        raise RefusedTarget(f"{printable_url(call.url)}: more than {MAX_REDIRECTS} redirects")

    async def _ask_realm(
        self, url: str, *, form: dict[str, str] | None, authorization: str | None
    ) -> bytes:
        async def once() -> bytes:
            fields = {"Accept": "application/json"}
            if authorization is not None:
                fields["Authorization"] = authorization
            method = "GET" if form is None else "POST"
            async with await self._exchange.open(method, url, fields, form) as answer:
                if answer.status in (400, 401, 403):
                    raise UpstreamDenied(f"{printable_url(url)}: {answer.status}, no token for us")
                if answer.status in _REDIRECTS:
                    raise RefusedTarget(f"{printable_url(url)}: a realm that redirects")
                self.check_status(answer, 200)
                return await answer.read(MAX_TOKEN_SIZE)

        # Its own deadline: it runs in a task that belongs to no single call.
        async with self._limited() as ends:
            return await self._retry.run("realm", ends, once)
