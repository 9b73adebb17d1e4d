"""Errors of control calls as ``application/problem+json`` (RFC 9457): the table at this edge."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from headstart.command.complaint import ConfigurationError
from headstart.content.errors import InvalidInput
from headstart.store.errors import FillerUnreachable, FillFailed
from proxy.warm.jobs import JobsFull, JobUnknown

MEDIA_TYPE = "application/problem+json"

FILL_STATUS = {
    "deadline": HTTPStatus.GATEWAY_TIMEOUT,
    "denied": HTTPStatus.FORBIDDEN,
    "missing": HTTPStatus.NOT_FOUND,
    "digest": HTTPStatus.BAD_GATEWAY,
    "space": HTTPStatus.INSUFFICIENT_STORAGE,
    "protocol": HTTPStatus.BAD_GATEWAY,
    "upstream": HTTPStatus.BAD_GATEWAY,
    "refused": HTTPStatus.CONFLICT,
}
"""Statuses of the codes of :class:`FillFailed`."""


class Problem(Exception):
    """A control call that is refused; ``kind`` is the last word of the problem's type."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        title: str,
        detail: str,
        *,
        field: str | None = None,
        value: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.field = field
        self.value = value
        self.headers = headers

    def answer(self) -> JSONResponse:
        """The response."""
        body: dict[str, object] = {
            "type": f"urn:headstart:problem:{self.kind}",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.value is not None:
            body["value"] = self.value
        return JSONResponse(body, self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception) -> Problem | None:
    """The problem that a domain error is for the caller; None for what is no domain error."""
    match error:
        case Problem():
            return error
        case ConfigurationError():
            return Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "invalid-field",
                "A field of the request is refused",
                f"{error.problem}; {error.remedy}",
                field=error.field or None,
                value=error.value,
            )
        case InvalidInput():
            return Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "invalid-field",
                "A field of the request is refused",
                f"is not valid; {error.remedy}",
                field=error.field,
                value=error.value,
            )
        case JobUnknown():
            return Problem(HTTPStatus.NOT_FOUND, "unknown-job", "No such job", str(error))
        case JobsFull():
            return Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too-many-jobs",
                "Too many jobs",
                str(error),
                headers={"Retry-After": "10"},
            )
        case FillFailed():
            status = FILL_STATUS.get(error.code, HTTPStatus.BAD_GATEWAY)
            return Problem(status, error.code, "The cache refuses", error.text)
        case FillerUnreachable():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "filler-away",
                "The filler does not answer",
                f"{error}; it is started again by itself, try again",
                headers={"Retry-After": "2"},
            )
    return None
