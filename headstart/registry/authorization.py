"""The Authorization field for an upstream's own origin: Bearer tokens, Basic, or none.

Tokens are kept per identity and rights and fetched once for all who wait for them. Nothing is
sent before the upstream has asked for it once. Knows no HTTP client: it is given a function that
asks a realm.
"""

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from headstart.registry.challenge import Challenge, check_realm, parse_challenges
from headstart.registry.credentials import Login, login_of_basic, read_login
from headstart.registry.errors import UpstreamDenied, UpstreamProtocol
from headstart.registry.upstream import Upstream

DEFAULT_LIFETIME = 60.0  # the token specification's, when expires_in is absent
EARLY = 0.1
"""Share of a token's lifetime by which it is renewed before its end."""
MAX_KEPT = 4096
MAX_STRIKES = 3
FRESH_SECONDS = 1.0
"""A token that is refused so soon after it was given out is a strike: a loop of 401."""
DENIED_SECONDS = 5.0

_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")
_FIELD = re.compile(r"[A-Za-z]+ [\x20-\x7e]{1,32768}")


class AskRealm(Protocol):
    """Asks a realm for a token: GET, or POST of ``form``; gives the JSON body of a 200.

    Raises RegistryError: UpstreamDenied for 400, 401 and 403.
    """

    def __call__(
        self, url: str, *, form: dict[str, str] | None, authorization: str | None
    ) -> Awaitable[bytes]:
        """Ask once, with retries."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a request needs: to pull from ``repository``, or with ``push`` to push to it too.

    ``source`` is another repository of the same registry from which a blob is mounted.
    """

    repository: str
    push: bool = False
    source: str | None = None

    def scopes(self) -> list[str]:
        """As a token is asked for them (distribution's token specification, "scope")."""
        actions = "pull,push" if self.push else "pull"
        sources = [f"repository:{self.source}:pull"] if self.source is not None else []
        return [f"repository:{self.repository}:{actions}", *sources]


@dataclass(frozen=True, slots=True)
class _Bearer:
    """What an upstream wants of a token; ``scope`` is None where it is the request's rights."""

    realm: str
    service: str | None
    scope: str | None


@dataclass(slots=True)
class _Kept:
    """The Authorization of one identity and its rights."""

    value: str | None = field(default=None, repr=False)
    given: float = 0.0
    until: float = 0.0
    strikes: int = 0
    denied_until: float = 0.0
    renewal: "asyncio.Task[str] | None" = None


class Authorizer:
    """Authorization for one upstream. Belongs to one event loop."""

    def __init__(
        self,
        upstream: Upstream,
        ask_realm: AskRealm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._upstream = upstream
        self._ask_realm = ask_realm
        self._clock = clock
        self._wanted: _Bearer | str | None = None  # "basic", or unknown yet
        self._kept: OrderedDict[tuple[str, Rights], _Kept] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def identity(self, authorization: str | None) -> str:
        """A name for whoever sent ``authorization``, from which it cannot be read back."""
        if authorization is None or self._upstream.access != "passthrough":
            return ""
        return hashlib.blake2b(authorization.encode(), key=self._salt).hexdigest()

    async def current(self, rights: Rights, authorization: str | None = None) -> str | None:
        """The field for a request, or None where none is known to be needed.

        ``authorization`` is the client's own field, used with ``access: passthrough`` only.
        """
        given = self._given(authorization)
        if given is not None and given[:7].lower() == "bearer ":
            return given
        if self._wanted is None:
            return None
        kept = self._keep(given, rights)
        if kept.value is not None and self._clock() < kept.until:
            return kept.value
        try:
            return await self._renewed(kept, self._wanted, rights, given)
        except UpstreamDenied:
            # Not every repository needs what another one has asked for: let the answer decide.
            return None

    async def challenged(
        self,
        rights: Rights,
        www_authenticate: list[str],
        used: str | None,
        authorization: str | None = None,
    ) -> str:
        """The field to repeat a request with that was answered by 401 when sent with ``used``.

        Callers that come together share one renewal. Raises UpstreamDenied when there is nothing
        better than ``used``, or what was just given out is refused again and again.
        """
        given = self._given(authorization)
        if given is not None and given[:7].lower() == "bearer ":
            raise self._denied("refuses the client's token")
        kept = self._keep(given, rights)
        now = self._clock()
        if now < kept.denied_until:
            raise self._denied("refuses the tokens that its realm gives out")
        if kept.value is not None and kept.value != used and now < kept.until:
            return kept.value
        wanted = self._read_challenge(www_authenticate)
        self._wanted = wanted
        if used is not None and kept.renewal is None:
            self._count_strike(kept, used)
        value = await self._renewed(kept, wanted, rights, given)
        if value == used:
            raise self._denied("refuses the credentials")
        return value

    def accepted(self, rights: Rights, used: str, authorization: str | None = None) -> None:
        """Note that a request sent with ``used`` was let in: it is no loop of 401."""
        kept = self._kept.get((self.identity(authorization), rights))
        if kept is not None and kept.value == used:
            kept.strikes = 0

    async def aclose(self) -> None:
        """End the renewals that are under way."""
        tasks = [kept.renewal for kept in self._kept.values() if kept.renewal is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _denied(self, text: str) -> UpstreamDenied:
        return UpstreamDenied(f"{self._upstream.host} {text}")

    def _given(self, authorization: str | None) -> str | None:
        if authorization is None or self._upstream.access != "passthrough":
            return None
        if not _FIELD.fullmatch(authorization):
            raise self._denied("is not sent a malformed Authorization")
        return authorization

    def _keep(self, given: str | None, rights: Rights) -> _Kept:
        key = (self.identity(given), rights)
        kept = self._kept.setdefault(key, _Kept())
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_KEPT:
            oldest = next(iter(self._kept))
            if self._kept[oldest].renewal is not None:
                break
            del self._kept[oldest]
        return kept

    def _count_strike(self, kept: _Kept, used: str) -> None:
        now = self._clock()
        fresh = kept.value == used and now - kept.given < FRESH_SECONDS
        kept.strikes = kept.strikes + 1 if fresh else 0
        if kept.strikes >= MAX_STRIKES:
            kept.value, kept.strikes = None, 0
            kept.denied_until = now + DENIED_SECONDS
            raise self._denied("refuses the tokens that its realm gives out")

    def _read_challenge(self, www_authenticate: list[str]) -> _Bearer | str:
        challenges = parse_challenges(www_authenticate)
        bearer = next((c for c in challenges if c.scheme == "bearer"), None)
        if bearer is not None and bearer.parameters.get("realm"):
            return _read_bearer(bearer)
        if any(challenge.scheme == "basic" for challenge in challenges):
            return "basic"
        raise self._denied("answers 401 and asks for nothing that we can give")

    async def _renewed(
        self, kept: _Kept, wanted: _Bearer | str, rights: Rights, given: str | None
    ) -> str:
        if kept.renewal is None:
            kept.renewal = asyncio.create_task(self._renew(kept, wanted, rights, given))
            kept.renewal.add_done_callback(_note_outcome)
        task = kept.renewal
        try:
            # Whoever leaves does not take the token from those who wait on.
            return await asyncio.shield(task)
        finally:
            if task.done() and kept.renewal is task:
                kept.renewal = None

    async def _renew(
        self, kept: _Kept, wanted: _Bearer | str, rights: Rights, given: str | None
    ) -> str:
        try:
            login = await self._login(given)
            if isinstance(wanted, _Bearer):
                token, lifetime = await self._fetch_token(wanted, rights, login)
                value = f"Bearer {token}"
            elif login is None or login.identity_token is not None:
                raise self._denied("asks for a user name and a password, and there are none")
            else:
                value, lifetime = login.basic(), float("inf")
            kept.value, kept.given = value, self._clock()
            kept.until = kept.given + lifetime * (1 - EARLY)
            return value
        finally:
            kept.renewal = None

    async def _login(self, given: str | None) -> Login | None:
        if given is not None:
            login = login_of_basic(given)
            if login is None:
                raise self._denied("takes neither Basic nor Bearer from this client")
            return login
        source = self._upstream.credentials
        if source is None or self._upstream.access != "shared":
            return None
        return await read_login(source, self._upstream.host, self._upstream.deadlines.first_byte)

    async def _fetch_token(
        self, wanted: _Bearer, rights: Rights, login: Login | None
    ) -> tuple[str, float]:
        realm = check_realm(self._upstream, wanted.realm, with_credentials=login is not None)
        scopes = rights.scopes() if wanted.scope is None else [wanted.scope]
        fields = [("service", wanted.service)] if wanted.service else []
        if login is not None and login.identity_token is not None:
            form = {
                **dict(fields),
                "grant_type": "refresh_token",
                "client_id": "headstart",
                "scope": " ".join(scopes),
                "refresh_token": login.identity_token,
            }
            body = await self._ask_realm(realm, form=form, authorization=None)
        else:
            query = urlencode([*fields, *(("scope", scope) for scope in scopes)])
            url = f"{realm}{'&' if urlsplit(realm).query else '?'}{query}"
            basic = login.basic() if login is not None else None
            body = await self._ask_realm(url, form=None, authorization=basic)
        return self._parse_token(body)

    def _parse_token(self, body: bytes) -> tuple[str, float]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UpstreamProtocol(f"{self._upstream.host}: its realm's answer is no JSON object")
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise UpstreamProtocol(f"{self._upstream.host}: its realm's answer holds no token")
        lifetime = answer.get("expires_in")
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or lifetime <= 0:
            lifetime = DEFAULT_LIFETIME
        return token, float(lifetime)


def _read_bearer(challenge: Challenge) -> _Bearer:
    scope = challenge.parameters.get("scope") or None
    # Only what we need is asked for, whatever the challenge offers; other kinds of scope than
    # repository:… are the upstream's own words.
    if scope is not None and scope.startswith("repository:"):
        scope = None
    return _Bearer(challenge.parameters["realm"], challenge.parameters.get("service"), scope)


def _note_outcome(task: "asyncio.Task[str]") -> None:
    """Mark the exception as seen: all who waited for it may have left."""
    if not task.cancelled():
        task.exception()
