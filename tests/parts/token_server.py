"""A token server as the distribution token specification wants it, for docker-registry.

GET is the Docker token protocol, POST the OAuth2 form of it (grant types ``password`` and
``refresh_token``). Tokens are RS256 JWTs whose header carries the certificate (``x5c``), the only
form that every version of docker-registry understands: key identifiers changed between 2 and 3.
https://distribution.github.io/distribution/spec/auth/jwt/
"""

import base64
import datetime
import json
import secrets
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.doubles.certificates import ServerCertificate
from tests.parts.accounts import Account

LEEWAY = 60.0
"""Seconds that docker-registry accepts a token after its ``exp``; lifetimes here allow for it."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for a token: who asked (None: anonymous or wrong), for what, the status."""

    method: str
    username: str | None
    scopes: tuple[str, ...]
    status: int


class TokenServer:
    """Gives tokens to ``accounts``, and for pulls to anybody when ``anonymous_pull``.

    ``lifetime`` is how many seconds docker-registry really accepts a token, ``announced`` what the
    answer says in ``expires_in`` (None: the truth). Both may be changed while it runs.
    """

    def __init__(
        self,
        directory: Path,
        *accounts: Account,
        anonymous_pull: bool = False,
        lifetime: float = 300.0,
        announced: float | None = None,
        tls: ServerCertificate | None = None,
    ) -> None:
        """``directory`` receives the certificate that the registry has to trust."""
        self.accounts = accounts
        self.anonymous_pull = anonymous_pull
        self.lifetime = lifetime
        self.announced = announced
        self.service = "headstart test registry"
        self.issuer = "headstart test token server"
        self.requests: list[TokenRequest] = []
        self._refresh_tokens: dict[str, Account] = {}
        self._lock = threading.Lock()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        certificate = _self_signed(self._key, self.issuer)
        self._chain = base64.b64encode(
            certificate.public_bytes(serialization.Encoding.DER)
        ).decode()
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate_file = directory / "token-server.pem"
        self.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._server = _Listener(self)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.realm = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def requested(self, status: int = 200) -> list[TokenRequest]:
        """The requests so far that were answered with ``status``."""
        with self._lock:
            return [request for request in self.requests if request.status == status]

    def account(self, username: str, password: str) -> Account | None:
        """The account whose credentials these are."""
        account = Account(username, password)
        return account if account in self.accounts else None

    def sign(self, subject: str, scopes: list[str], lifetime: float | None = None) -> str:
        """A JWT for ``scopes`` (``repository:NAME:pull,push``) that lasts ``lifetime`` seconds."""
        now = time.time()
        # Only whole seconds count; rounded up, or a short-lived token would be born dead.
        expires = int(now + (self.lifetime if lifetime is None else lifetime) - LEEWAY + 0.999)
        claims = {
            "iss": self.issuer,
            "sub": subject,
            "aud": self.service,
            "exp": expires,
            "nbf": min(int(now), expires) - 10,
            "iat": int(now),
            "jti": secrets.token_hex(8),
            "access": [_access(scope) for scope in scopes],
        }
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encode(signature)}"

    def answer(
        self, method: str, account: Account | None, tried: bool, scopes: list[str], offline: bool
    ) -> tuple[int, dict[str, object]]:
        """Status and JSON body; ``tried``: the request came with credentials."""
        if tried and account is None:
            return self._record(method, account, scopes, 401), {"details": "wrong credentials"}
        if account is None and not self.anonymous_pull:
            return self._record(method, account, scopes, 401), {"details": "credentials required"}
        granted = [scope if account else _pull_only(scope) for scope in scopes]
        token = self.sign(account.username if account else "", granted)
        announced = self.lifetime if self.announced is None else self.announced
        body: dict[str, object] = {
            "token": token,
            "access_token": token,
            "expires_in": int(announced),
            "issued_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "scope": " ".join(granted),
        }
        if offline and account is not None:
            refresh = secrets.token_hex(16)
            self._refresh_tokens[refresh] = account
            body["refresh_token"] = refresh
        return self._record(method, account, scopes, 200), body

    def refreshed(self, refresh_token: str) -> Account | None:
        """The account that a refresh token was given to."""
        return self._refresh_tokens.get(refresh_token)

    def _record(self, method: str, account: Account | None, scopes: list[str], status: int) -> int:
        request = TokenRequest(method, account.username if account else None, tuple(scopes), status)
        with self._lock:
            self.requests.append(request)
        return status


class _Listener(ThreadingHTTPServer):
    def __init__(self, tokens: TokenServer) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.tokens = tokens


class _Conversation(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    timeout = 20

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        account, tried = None, False
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            tried = True
            username, _, password = base64.b64decode(value).decode().partition(":")
            account = self.server.tokens.account(username, password)
        offline = query.get("offline_token") == ["true"]
        self._send("GET", account, tried, _scopes(query), offline)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        form = urllib.parse.parse_qs(self.rfile.read(length).decode())
        first = {key: values[0] for key, values in form.items()}
        if first.get("grant_type") == "refresh_token":
            account = self.server.tokens.refreshed(first.get("refresh_token", ""))
        else:
            account = self.server.tokens.account(
                first.get("username", ""), first.get("password", "")
            )
        self._send("POST", account, True, _scopes(form), first.get("access_type") == "offline")

    def _send(
        self, method: str, account: Account | None, tried: bool, scopes: list[str], offline: bool
    ) -> None:
        status, answer = self.server.tokens.answer(method, account, tried, scopes, offline)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: requests are recorded."""


def _scopes(query: dict[str, list[str]]) -> list[str]:
    return [scope for value in query.get("scope", []) for scope in value.split()]


def _access(scope: str) -> dict[str, object]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {
        "type": kind,
        "name": name,
        "actions": [action for action in actions.split(",") if action],
    }


def _pull_only(scope: str) -> str:
    resource, _, actions = scope.rpartition(":")
    return f"{resource}:{'pull' if 'pull' in actions.split(',') else ''}"


def _encode(payload: bytes) -> str:
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def _self_signed(key: rsa.RSAPrivateKey, name: str) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
