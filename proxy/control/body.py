"""The body of a control call, bounded."""

import json
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

from proxy.control.problem import Problem

MOST_BYTES = 64 * 1024
"""The longest legitimate warm job names a hundred images."""


async def read_body(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes. Raises :class:`Problem`."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise Problem(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "too-large",
                    "The body is too large",
                    f"send at most {most} bytes",
                )
    except ClientDisconnect:
        raise Problem(
            HTTPStatus.BAD_REQUEST, "not-json", "The body is cut off", "send all of it"
        ) from None
    return bytes(body)


async def read_json(request: Request) -> object:
    """The body as JSON. Raises :class:`Problem`."""
    body = await read_body(request, MOST_BYTES)
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "not-json",
            "The body is not JSON",
            f"{str(error)[:200]}; send a JSON object",
        ) from None
    return parsed
