"""How a scripted upstream lets requests in: a token service, Basic, and signed URLs."""

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.doubles.rules import RecordedRequest


@dataclass(slots=True)
class IssuedToken:
    """A token that was given out."""

    text: str
    scope: str
    until: float
    uses_left: int | None


@dataclass(slots=True, kw_only=True)
class TokenService:
    """Gives out Bearer tokens at :attr:`path` and checks them.

    ``lifetime`` and ``uses`` are the truth by which tokens are refused; the answer tells the
    client ``announced_lifetime`` (None: says nothing), so that a token can end earlier than told.
    """

    credentials: tuple[str, str] | None = None
    """User name and password that are asked for; None: anonymous tokens."""
    refresh_token: str | None = None
    """An identity token that is accepted by POST with grant_type=refresh_token."""
    lifetime: float = 300.0
    uses: int | None = None
    announced_lifetime: float | None = 300.0
    path: str = "/token"
    service: str = "scripted"
    realm: str | None = None
    """The realm in challenges; None: :attr:`path` at the upstream itself."""
    field_name: str = "token"
    """``token`` or ``access_token``."""
    make: Callable[[int], str] = field(default=lambda number: f"secret-token-{number}")
    issued: list[IssuedToken] = field(default_factory=list)
    refused: int = 0
    """Requests to the token endpoint that were answered by 401."""
    made: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def challenge(self, upstream_url: str, repository: str | None) -> str:
        """The WWW-Authenticate field for a request to ``repository``."""
        realm = self.realm or upstream_url + self.path
        scope = f',scope="repository:{repository}:pull"' if repository else ""
        return f'Bearer realm="{realm}",service="{self.service}"{scope}'

    def admits(self, request: RecordedRequest, repository: str | None) -> bool:
        """Whether the request carries a token that is good for ``repository``."""
        kind, _, text = (request.authorization or "").partition(" ")
        if kind.lower() != "bearer":
            return False
        with self._lock:
            for token in self.issued:
                if token.text == text and time.monotonic() < token.until:
                    if repository is not None and f"repository:{repository}:" not in token.scope:
                        return False
                    if token.uses_left is not None:
                        if token.uses_left == 0:
                            return False
                        token.uses_left -= 1
                    return True
        return False

    def answer(self, request: RecordedRequest, body: bytes) -> tuple[int, bytes]:
        """Status and JSON body of a request to the token endpoint."""
        given = {name: values[0] for name, values in parse_qs(request.query).items()}
        if request.method == "POST":
            given = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            allowed = given.get("grant_type") == "refresh_token" and (
                self.refresh_token is not None and given.get("refresh_token") == self.refresh_token
            )
        else:
            allowed = self.credentials is None or (
                request.authorization == basic_authorization(*self.credentials)
            )
        if not allowed:
            self.refused += 1
            return 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong credentials"}]}'
        with self._lock:
            self.made += 1
            token = IssuedToken(
                self.make(self.made),
                given.get("scope", ""),
                time.monotonic() + self.lifetime,
                self.uses,
            )
            self.issued.append(token)
        answer: dict[str, object] = {self.field_name: token.text}
        if self.announced_lifetime is not None:
            answer["expires_in"] = self.announced_lifetime
        return 200, json.dumps(answer).encode()

    def revoke(self) -> None:
        """Make every token given out so far invalid at once."""
        with self._lock:
            for token in self.issued:
                token.until = 0.0


@dataclass(frozen=True, slots=True)
class BasicAccess:
    """One user name and password for everything."""

    username: str
    password: str

    def challenge(self, upstream_url: str, repository: str | None) -> str:
        """The WWW-Authenticate field."""
        return 'Basic realm="scripted"'

    def admits(self, request: RecordedRequest, repository: str | None) -> bool:
        """Whether the request carries the user name and password."""
        return request.authorization == basic_authorization(self.username, self.password)


def basic_authorization(username: str, password: str) -> str:
    """The value of an Authorization field (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(slots=True)
class Grant:
    """A signed URL that was given out."""

    payload: memoryview
    until: float
    uses_left: int | None
    expired_status: int


class SignedUrls:
    """The signed URLs of an object storage; GET only, as a signature is for one method."""

    def __init__(self) -> None:
        """No URL yet."""
        self._grants: dict[str, Grant] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def grant(self, payload: memoryview, lifetime: float, uses: int | None, status: int) -> str:
        """Path and query of a new URL for ``payload``."""
        with self._lock:
            signature = f"signed-secret-{next(self._numbers)}"
            until = time.monotonic() + lifetime
            self._grants[signature] = Grant(payload, until, uses, status)
        return f"/signed/object?X-Amz-Expires={lifetime:g}&X-Amz-Signature={signature}"

    def open(self, request: RecordedRequest) -> memoryview | int:
        """The payload, or the status with which the request is refused."""
        signature = parse_qs(request.query).get("X-Amz-Signature", [""])[0]
        if request.authorization is not None:
            return 400  # as S3: only one way to authenticate is allowed
        if request.method != "GET":
            return 403
        with self._lock:
            grant = self._grants.get(signature)
            if grant is None:
                return 403
            if time.monotonic() >= grant.until or grant.uses_left == 0:
                return grant.expired_status
            if grant.uses_left is not None:
                grant.uses_left -= 1
            return grant.payload

    def expire(self) -> None:
        """End every URL given out so far."""
        with self._lock:
            for grant in self._grants.values():
                grant.until = 0.0
