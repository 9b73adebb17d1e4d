"""Errors at HTTP's edge: one table from what went wrong to status and OCI code.

Clients get 404 or 503 wherever it is true enough: they go on to the next host then at once, while
408 and 429 are asked again several times. A challenge is sent only where the upstream has
``access: passthrough``, since clients answer it with their users' credentials.
"""

from dataclasses import dataclass, field

from headstart.content.errors import InvalidInput
from headstart.registry.errors import (
    RefusedTarget,
    RegistryError,
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.store.errors import FillerUnreachable, FillFailed, StoreError


class RequestRefused(Exception):
    """A request that is not asked of any upstream."""


class NotOnAllowlist(RequestRefused):
    """The registry that the request names is not configured."""


class NoSuchEndpoint(RequestRefused):
    """A path below ``/v2/`` that a pull-through mirror does not have."""


class MethodRefused(RequestRefused):
    """Anything but GET and HEAD: the mirror is for pulling."""


class RangeUnsatisfiable(RequestRefused):
    """None of the ranges lies within the blob of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no byte of the range is within the {size} bytes of the blob")
        self.size = size


class CredentialsWanted(Exception):
    """The upstream wants credentials, and this client may pass its own through us."""

    def __init__(self, host: str, text: str) -> None:
        super().__init__(text)
        self.host = host


UNKNOWN = "(the code for what is missing)"
"""Stands for BLOB_UNKNOWN, MANIFEST_UNKNOWN or NAME_UNKNOWN, by what was asked for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Status and OCI code of one kind of error."""

    status: int
    code: str


_MISSING = Kind(404, UNKNOWN)
_DENIED = Kind(404, "DENIED")
_DOWN = Kind(503, "UNAVAILABLE")
_WRONG = Kind(502, "UNKNOWN")

BY_CLASS: dict[type[Exception], Kind] = {
    NotOnAllowlist: Kind(404, "NAME_UNKNOWN"),
    NoSuchEndpoint: Kind(404, "UNSUPPORTED"),
    MethodRefused: Kind(405, "UNSUPPORTED"),
    RangeUnsatisfiable: Kind(416, "SIZE_INVALID"),
    CredentialsWanted: Kind(401, "UNAUTHORIZED"),
    UpstreamMissing: _MISSING,
    UpstreamDenied: _DENIED,
    UpstreamThrottled: Kind(503, "TOOMANYREQUESTS"),
    UpstreamUnavailable: _DOWN,
    UpstreamDeadline: _DOWN,
    UpstreamProtocol: _WRONG,
    RefusedTarget: _WRONG,
    RegistryError: _WRONG,
    FillerUnreachable: _DOWN,
    StoreError: _DOWN,
    OSError: _DOWN,
    MemoryError: _DOWN,
}
"""An error that is not here itself is what its nearest base class is."""

BY_FILL_CODE: dict[str, Kind] = {
    "missing": _MISSING,
    "denied": _DENIED,
    "deadline": _DOWN,
    "space": _DOWN,
    "upstream": _DOWN,
    "refused": _WRONG,
    "digest": _WRONG,
    "protocol": _WRONG,
}

BY_FIELD: dict[str, Kind] = {
    "digest": Kind(400, "DIGEST_INVALID"),
    "repository": Kind(400, "NAME_INVALID"),
    "registry": Kind(400, "NAME_INVALID"),
    "tag": Kind(400, "MANIFEST_INVALID"),
    "range": Kind(400, "SIZE_INVALID"),
    "manifest": _WRONG,
}
"""Malformed input by the field that is at fault."""

UNEXPECTED = Kind(500, "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told of an error; ``fields`` are further header fields."""

    status: int
    code: str
    message: str
    detail: dict[str, str] | None = None
    fields: tuple[tuple[bytes, bytes], ...] = field(default=())


def problem(error: Exception, unknown: str) -> Problem:
    """Translate an error; ``unknown`` is the code for what is missing.

    Everything but what is in the tables becomes a 500 that tells the client nothing.
    """
    kind = kind_of(error)
    if kind is UNEXPECTED:
        return Problem(kind.status, kind.code, "the mirror has failed; its log has the reason")
    code = unknown if kind.code is UNKNOWN else kind.code
    return Problem(kind.status, code, _message(error), _detail(error), tuple(_fields(error)))


def kind_of(error: Exception) -> Kind:
    """The error's row of the tables, or :data:`UNEXPECTED`."""
    if isinstance(error, FillFailed):
        return BY_FILL_CODE.get(error.code, UNEXPECTED)
    if isinstance(error, InvalidInput):
        return BY_FIELD.get(error.field, UNEXPECTED)
    for ancestor in type(error).__mro__:
        if ancestor in BY_CLASS:
            return BY_CLASS[ancestor]
    return UNEXPECTED


def _message(error: Exception) -> str:
    if isinstance(error, OSError | MemoryError | StoreError):
        return "the mirror is short of a resource; its log has the reason"  # paths are not theirs
    return str(error)


def _detail(error: Exception) -> dict[str, str] | None:
    if isinstance(error, InvalidInput):
        return {"field": error.field, "value": error.value, "remedy": error.remedy}
    if isinstance(error, FillFailed) and error.key is not None:
        named = {"key": error.key, "value": error.value, "limit": error.limit}
        return {name: text for name, text in named.items() if text is not None}
    if isinstance(error, UpstreamDeadline):
        return {"key": f"fetch.deadlines.{error.key}", "value": f"{error.value:g}"}
    return None


def _fields(error: Exception) -> list[tuple[bytes, bytes]]:
    if isinstance(error, MethodRefused):
        return [(b"allow", b"GET, HEAD")]
    if isinstance(error, RangeUnsatisfiable):
        return [(b"content-range", b"bytes */%d" % error.size)]
    if isinstance(error, CredentialsWanted):
        return [(b"www-authenticate", b'Basic realm="%s"' % error.host.encode("ascii"))]
    pause = getattr(error, "retry_after", None)
    if isinstance(pause, int | float):
        return [(b"retry-after", b"%d" % max(1, round(pause)))]
    return []
