"""The kinds of values that a configuration holds: read from text, checked, written back.

Every kind takes what YAML and an environment variable give (text, and where it is natural a
number) and is written back in a form that can be read again. What is refused raises ``BadValue``.
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, ValidationInfo

from headstart.command.complaint import BadValue
from headstart.content.reference import parse_registry
from headstart.content.sizes import (
    format_duration,
    format_size,
    parse_duration,
    parse_percent,
    parse_size,
)

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address and port to listen on; ``str()`` gives the form of the configuration."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket to listen on; ``str()`` gives the form of the configuration."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class Percent:
    """A share, in hundredths, of something whose size is known only where it is used."""

    value: float

    def of(self, total: int) -> int:
        """This share of ``total``, rounded down."""
        return int(total * self.value / 100)

    def __str__(self) -> str:
        return f"{self.value:g}%"


def _text(value: object, remedy: str) -> str:
    """The text of a YAML scalar; numbers are text that YAML has read for us."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadValue(f"is of the wrong kind ({type(value).__name__})", remedy)


def _read_size(value: object) -> int:
    return parse_size(_text(value, "write a size such as 32MiB"))


def _read_positive_size(value: object) -> int:
    size = _read_size(value)
    if size <= 0:
        raise BadValue("is not more than nothing", "write a size such as 32MiB")
    return size


def _read_duration(value: object) -> float:
    return parse_duration(_text(value, "write a duration such as 5s or 2m"))


def _read_positive_duration(value: object) -> float:
    duration = _read_duration(value)
    if duration <= 0:
        raise BadValue("would end everything at once", "write a duration such as 5s or 2m")
    return duration


def _read_percent(value: object) -> Percent:
    if isinstance(value, Percent):
        return value
    share = parse_percent(_text(value, "write a share such as 80%"))
    if share <= 0:
        raise BadValue("leaves nothing", "write a share from 1% to 100%")
    return Percent(share)


def _read_size_or_percent(value: object) -> int | Percent:
    if isinstance(value, Percent):
        return value
    remedy = "write a size such as 200GiB or a share such as 80%"
    text = _text(value, remedy)
    return _read_percent(text) if text.endswith("%") else _read_positive_size(text)


def _read_listen(value: object, info: ValidationInfo) -> TcpAddress | UnixAddress:
    if isinstance(value, TcpAddress | UnixAddress):
        return value
    remedy = "write HOST:PORT, [V6]:PORT or unix:/PATH"
    text = _text(value, remedy)
    if text.startswith("unix:"):
        return UnixAddress(_read_path(text.removeprefix("unix:"), info))
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        hint = f"write 127.0.0.1:{port}, or 0.0.0.0:{port} for every address of the machine"
        raise BadValue("names no address", hint if port.isdecimal() else remedy)
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise BadValue("has no port between 0 and 65535", remedy)
    if host.startswith("[") and host.endswith("]"):
        try:
            return TcpAddress(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            raise BadValue("holds no IPv6 address between the brackets", remedy) from None
    if ":" in host:
        raise BadValue("is an IPv6 address without brackets", remedy)
    if not _HOST_NAME.fullmatch(host) or (_looks_numeric(host) and not _is_ipv4(host)):
        raise BadValue("names no valid host", remedy)
    return TcpAddress(host, int(port))


def _looks_numeric(host: str) -> bool:
    return all(character in "0123456789." for character in host)


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _read_path(value: object, info: ValidationInfo) -> Path:
    """An absolute path: ``~`` is expanded, a relative one starts at the configuration file."""
    text = str(value) if isinstance(value, Path) else _text(value, "write a path")
    if not text or "\0" in text:
        raise BadValue("is no path", "write a path such as /var/cache/headstart")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise BadValue("starts in a home directory that is not known", "write it out") from None
    base = info.context.get("base") if isinstance(info.context, dict) else None
    return (base if isinstance(base, Path) else Path.cwd()) / path


def _read_url(value: object) -> str:
    remedy = "write https://HOST, https://HOST:PORT or http://…"
    text = _text(value, remedy)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadValue("is no valid URL", remedy) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadValue("is no http or https URL with a host", remedy)
    if parts.username is not None or parts.password is not None:
        raise BadValue(
            "holds a user name", "put it into a file and name that in credentials", secret=True
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise BadValue("holds a query or a fragment", remedy)
    if any(character.isspace() for character in text) or port == 0:
        raise BadValue("is no valid URL", remedy)
    return text.rstrip("/")


def loopback(url: str) -> bool:
    """Whether the host of ``url`` says by itself that it is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_registry(value: object) -> str:
    return parse_registry(_text(value, "write a registry host such as ghcr.io"))


def _read_repository_pattern(value: object) -> str:
    text = _text(value, "write a pattern such as docker.io/library/*")
    if not re.fullmatch(r"[a-z0-9._/:*?\[\]!-]+", text):
        raise BadValue("can match no repository", "write a pattern such as docker.io/library/*")
    return text


def split_list(value: object) -> object:
    """Several values from one text with commas; a single value becomes a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float | dict) else value


def _read_connections(value: object) -> object:
    remedy = "write auto or a number from 1 to 256"
    text = _text(value, remedy)
    if text == "auto":
        return text
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 256):
        raise BadValue("is no number of connections", remedy)
    return int(text)


def _read_rate(value: object) -> int:
    text = _text(value, "write bytes per second such as 10MiB")
    return _read_positive_size(text.removesuffix("/s").rstrip())


def _read_background(value: object) -> object:
    if value in ("auto", "disabled"):
        return value
    remedy = "write auto, disabled, or bytes per second such as 10MiB"
    text = _text(value, remedy)
    if not text[:1].isdigit():
        raise BadValue("is neither a word known here nor a rate", remedy)
    return _read_rate(text)


def _write_size(value: object) -> object:
    return format_size(value) if isinstance(value, int) else _write_text(value)


def _write_duration(value: object) -> object:
    return format_duration(value) if isinstance(value, int | float) else value


def _write_text(value: object) -> object:
    return None if value is None else str(value)


_SIZE_OUT = PlainSerializer(_write_size, when_used="json")
_DURATION_OUT = PlainSerializer(_write_duration, when_used="json")
_TEXT_OUT = PlainSerializer(_write_text, when_used="json")

Size = Annotated[int, BeforeValidator(_read_positive_size), _SIZE_OUT]
"""Bytes, more than none."""

Rate = Annotated[int, BeforeValidator(_read_rate), _SIZE_OUT]
"""Bytes per second, more than none; a trailing ``/s`` is allowed."""

Connections = Annotated[int | Literal["auto"], PlainValidator(_read_connections)]
"""A number of connections, or ``auto``."""

Background = Annotated[
    int | Literal["auto", "disabled"], PlainValidator(_read_background), _SIZE_OUT
]
"""Bytes per second, or a word."""

Duration = Annotated[float, BeforeValidator(_read_duration), _DURATION_OUT]
"""Seconds, none allowed."""

PositiveDuration = Annotated[float, BeforeValidator(_read_positive_duration), _DURATION_OUT]
"""Seconds, more than none."""

Share = Annotated[Percent, PlainValidator(_read_percent), _TEXT_OUT]
"""More than 0 %, at most 100 %."""

SizeOrShare = Annotated[int | Percent, PlainValidator(_read_size_or_percent), _SIZE_OUT]
"""Bytes, or a share of what there is."""

Listen = Annotated[TcpAddress | UnixAddress, PlainValidator(_read_listen), _TEXT_OUT]
"""Where to listen: ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``."""

FilePath = Annotated[Path, BeforeValidator(_read_path), _TEXT_OUT]
"""An absolute path."""

Url = Annotated[str, BeforeValidator(_read_url)]
"""An http or https URL without user, query and fragment; no slash at its end."""

RegistryHost = Annotated[str, BeforeValidator(_read_registry)]
"""A registry as in image names: ``HOST`` or ``HOST:PORT``."""

RepositoryPattern = Annotated[str, BeforeValidator(_read_repository_pattern)]
"""A shell pattern of ``REGISTRY/REPOSITORY``."""
