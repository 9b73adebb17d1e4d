"""User names and passwords: from a file, a docker credential helper, or docker's config.json.

Nothing is remembered here: files are rotated and helpers give out short-lived passwords, so the
source is read whenever a token is fetched.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headstart.registry.errors import CredentialsUnusable
from headstart.registry.upstream import Credentials

MAX_SIZE = 1024 * 1024
DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""How docker names its own registry in config.json and to helpers."""

_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_IDENTITY_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Login:
    """User name and password, or an identity token (an OAuth2 refresh token) in their place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)

    def basic(self) -> str:
        """The value of an Authorization field (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


def login_of_basic(authorization: str) -> Login | None:
    """The login that a Basic Authorization field carries, or None."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    username, password = _decode_pair(encoded.strip()) or ("", "")
    return Login(username, password) if username else None


async def read_login(credentials: Credentials, host: str, seconds: float) -> Login | None:
    """The login for registry ``host``; None when the source has none for it.

    A helper may take ``seconds``. Raises CredentialsUnusable.
    """
    if credentials.file is not None:
        return _parse_file(credentials.file, await asyncio.to_thread(_read, credentials.file))
    if credentials.helper is not None:
        return await _ask_helper(credentials.helper, host, seconds)
    if credentials.docker_config is not None:
        return await _read_docker_config(credentials.docker_config, host, seconds)
    return None


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            path = path / "config.json"
        with path.open("rb") as file:
            return file.read(MAX_SIZE).decode()
    except UnicodeDecodeError:
        raise CredentialsUnusable(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise CredentialsUnusable(
            f"{path} cannot be read ({error.strerror}); make it readable for this user"
        ) from None


def _parse_file(path: Path, text: str) -> Login:
    remedy = "write USER:PASSWORD in one line, or JSON with username and password"
    if text.lstrip().startswith("{"):
        found = _object(text, str(path))
        username, password = found.get("username"), found.get("password")
        if isinstance(username, str) and isinstance(password, str) and username:
            return Login(username, password)
        raise CredentialsUnusable(f"{path} has no username and password; {remedy}")
    username, colon, password = text.split("\n", 1)[0].rstrip("\r").partition(":")
    if not colon or not username:
        raise CredentialsUnusable(f"{path} holds no credentials; {remedy}")
    return Login(username, password)


async def _read_docker_config(path: Path, host: str, seconds: float) -> Login | None:
    config = _object(await asyncio.to_thread(_read, path), str(path))
    helpers, auths = config.get("credHelpers"), config.get("auths")
    helpers = helpers if isinstance(helpers, dict) else {}
    auths = auths if isinstance(auths, dict) else {}
    store = config.get("credsStore")
    own = next((helpers[key] for key in _keys(host) if key in helpers), store)
    if isinstance(own, str) and own:
        login = await _ask_helper(own, host, seconds)
        if login is not None:
            return login
    for key in _keys(host):
        entry = auths.get(key)
        if isinstance(entry, dict):
            login = _parse_entry(entry)
            if login is not None:
                return login
    return None


def _keys(host: str) -> list[str]:
    """The names under which docker and podman keep a registry."""
    hosts = [host]
    if host == DOCKER_HUB:
        hosts = ["index.docker.io", "docker.io", "registry-1.docker.io"]
    forms = ("https://{}/v1/", "{}", "https://{}", "https://{}/", "https://{}/v2/", "http://{}")
    return [form.format(name) for name in hosts for form in forms]


def _parse_entry(entry: Mapping[str, object]) -> Login | None:
    username, password = entry.get("username"), entry.get("password")
    encoded, identity_token = entry.get("auth"), entry.get("identitytoken")
    if isinstance(encoded, str) and encoded:
        username, password = _decode_pair(encoded) or (username, password)
    name = username if isinstance(username, str) else ""
    if isinstance(identity_token, str) and identity_token:
        return Login(name, identity_token=identity_token)
    if name and isinstance(password, str):
        return Login(name, password)
    return None


def _decode_pair(encoded: str) -> tuple[str, str] | None:
    try:
        pair = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    username, colon, password = pair.partition(":")
    return (username, password.rstrip("\0")) if colon else None


async def _ask_helper(name: str, host: str, seconds: float) -> Login | None:
    """Run ``docker-credential-NAME get``: the server's name in, JSON out."""
    if not _HELPER.fullmatch(name):
        raise CredentialsUnusable(f"{name!r} is no name of a credential helper")
    program = f"docker-credential-{name}"
    server = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            program, "get", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        raise CredentialsUnusable(
            f"{program} cannot be run ({error.strerror}); install it or correct its name"
        ) from None
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate(server.encode())
    except TimeoutError:
        raise CredentialsUnusable(f"{program} gave no answer within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        # The protocol's only way to say that there is nothing.
        if b"credentials not found" in output:
            return None
        raise CredentialsUnusable(f"{program} failed with status {process.returncode}")
    found = _object(output.decode(errors="replace"), f"the answer of {program}")
    username, secret = found.get("Username"), found.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise CredentialsUnusable(f"the answer of {program} has no Username and Secret")
    if username == _IDENTITY_TOKEN_USER:
        return Login(identity_token=secret)
    return Login(username, secret)


def _object(text: str, source: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CredentialsUnusable(f"{source} is no JSON object")
    return found
