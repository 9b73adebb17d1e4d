"""Why a job failed, in one form: the code and text of :class:`FillFailed`."""

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
from headstart.store.errors import FillerUnreachable, FillFailed

CODES: dict[type[Exception], str] = {
    UpstreamMissing: "missing",
    UpstreamDenied: "denied",
    UpstreamThrottled: "upstream",
    UpstreamUnavailable: "upstream",
    UpstreamDeadline: "deadline",
    UpstreamProtocol: "protocol",
    RefusedTarget: "refused",
    RegistryError: "upstream",
    InvalidInput: "protocol",
    FillerUnreachable: "filler",
}
"""The codes of what is not said by the filler; ``filler`` where it does not answer at all."""


def failure_of(error: Exception) -> FillFailed:
    """The failure that ``error`` is for a job."""
    if isinstance(error, FillFailed):
        return error
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    if isinstance(error, UpstreamDeadline):
        return FillFailed(code, str(error), key=f"deadlines.{error.key}", value=f"{error.value:g}")
    return FillFailed(code, str(error))
