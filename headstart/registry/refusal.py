"""What a registry says when it does not take what is pushed, and the error that it becomes.

The form of the body: OCI distribution specification, "Error Codes".
"""

import json
from collections.abc import Iterator

from headstart.registry.errors import (
    PushRefused,
    RegistryError,
    UpstreamMissing,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.exchange import Answer
from headstart.registry.retry import DEFAULT_PAUSE, parse_retry_after

MOST_READ = 64 * 1024
MOST_SHOWN = 300

_MISSING = "make the repository there first, or mend its name"
_REMEDIES = {
    405: "push to the registry itself, not to a mirror of it",
    413: "raise the limit for bodies, of the registry or of a proxy before it",
    501: "push to the registry itself, not to a mirror of it",
    507: "make room at the registry",
}


async def read_errors(answer: Answer) -> list[tuple[str, str]]:
    """Code and message of each entry of the ``errors`` in a body; none where it has no such."""
    try:
        body = await answer.read(MOST_READ)
    except RegistryError:
        return []  # the status says enough
    return list(_errors(body))


def refusal(
    answer: Answer, subject: str, host: str, said: list[tuple[str, str]], *, led_away: bool = False
) -> RegistryError:
    """The error for a status that is not the hoped for.

    ``subject`` says what was to be pushed to where, ``host`` is the key below ``upstreams``,
    ``led_away`` whether the registry itself has sent the request where no credentials go.
    """
    status = answer.status
    words = f" ({shown(said)})" if said else ""
    text = f"{subject}: {answer.host} answers {status}{words}"
    pause = parse_retry_after(answer.first("retry-after"), answer.first("date"))
    if status == 429 or (status == 503 and pause is not None):
        seconds = DEFAULT_PAUSE if pause is None else pause
        return UpstreamThrottled(f"{text}, a pause of {seconds:.0f} s", seconds)
    if status in (401, 403) and led_away:
        return PushRefused(f"{text}; {host} leads uploads to another origin than its own")
    if status in (401, 403):
        return PushRefused(f"{text}; {credentials_remedy(host)}")
    if status in (404, 410):
        return UpstreamMissing(f"{text}; {_MISSING}")
    if status in _REMEDIES:
        return PushRefused(f"{text}; {_REMEDIES[status]}")
    if status >= 500 or status == 408:
        return UpstreamUnavailable(f"{text}; try again later")
    return PushRefused(f"{text}; the registry's log may say more")


def credentials_remedy(host: str) -> str:
    """What helps when a registry wants other credentials than it was given."""
    return f"give upstreams.{host} credentials that may push there, and access: shared"


def shown(said: list[tuple[str, str]]) -> str:
    """``CODE: message; …`` in one printable line of at most :data:`MOST_SHOWN` characters."""
    text = "; ".join(": ".join(filter(None, entry)) for entry in said)
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def _errors(body: bytes) -> Iterator[tuple[str, str]]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    listed = document.get("errors") if isinstance(document, dict) else None
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict):
            code, message = entry.get("code"), entry.get("message")
            pair = (
                code if isinstance(code, str) else "",
                message if isinstance(message, str) else "",
            )
            if any(pair):
                yield pair
