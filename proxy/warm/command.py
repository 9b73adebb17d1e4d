"""``headstart warm``: asks the running mirror over its control socket and shows the progress."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import httpx

from headstart.command.invocation import CommandFailed
from headstart.command.output import Output
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Platform
from headstart.content.reference import ImageReference
from headstart.content.sizes import parse_duration, show_size
from proxy.warm.job import DONE, UNFINISHED
from proxy.warm.progress import Bars, Lines
from proxy.warm.request import ALL_PLATFORMS, JOB_PRIORITIES, POLICIES

AWAY_SECONDS = 30.0
"""How long a mirror that restarts in the middle of a job may be away."""

INTERRUPTED = 130
"""128 and SIGINT, as shells have it."""

_ANSWER_SECONDS = 30.0
_RETRY_SECONDS = 0.5

Job = dict[str, Any]


class Display(Protocol):
    """Shows how a job goes on."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def show(self, job: Job) -> None:
        """Show the job as it is now."""


def warm(asked: Mapping[str, object], socket: Path, output: Output, *, detach: bool) -> int:
    """Start the job and follow it; return the exit status.

    Raises InvalidInput for what is malformed, CommandFailed for everything else.
    """
    _check(asked)
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket)),
        base_url="http://localhost",
        timeout=_ANSWER_SECONDS,
    ) as client:
        job = _start(client, socket, asked)
        if detach:
            output.show(job, f"job {job['id']} runs; it goes on by itself")
            return 0
        try:
            with _display(output) as display:
                job = _follow(client, socket, job, display)
        except KeyboardInterrupt:
            output.note(f"job {job['id']} goes on in the mirror; the same command follows it again")
            return INTERRUPTED
    return _conclude(job, output)


def _check(asked: Mapping[str, object]) -> None:
    """Refuse what no mirror would take, as bad usage. Raises InvalidInput."""
    images = asked["images"]
    for image in images if isinstance(images, list) else []:
        ImageReference.parse(image)
    platform, deadline = asked.get("platform"), asked.get("deadline")
    if isinstance(platform, str) and platform != ALL_PLATFORMS:
        Platform.parse(platform)
    if isinstance(deadline, str):
        parse_duration(deadline)
    for option, words in (("policy", POLICIES), ("priority", JOB_PRIORITIES)):
        if asked[option] not in words:
            raise InvalidInput(option, str(asked[option]), f"write one of {', '.join(words)}")


def _start(client: httpx.Client, socket: Path, asked: Mapping[str, object]) -> Job:
    try:
        answer = client.post("/warm", json=dict(asked))
    except httpx.TransportError as error:
        raise _unanswered(socket, error) from error
    return _job(answer)


def _unanswered(socket: Path, error: Exception) -> CommandFailed:
    if isinstance(error, httpx.ConnectError) and "Permission denied" in str(error):
        return CommandFailed(f"{socket}: this user may not use it; its group or root may")
    if isinstance(error, httpx.ConnectError):
        return CommandFailed(f"no mirror answers at {socket}; start one with headstart serve")
    return CommandFailed(f"the mirror at {socket} broke off: {error or type(error).__name__}")


def _job(answer: httpx.Response) -> Job:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise CommandFailed(f"the mirror answered {answer.status_code} without JSON")
    if answer.is_error:
        subject = " ".join(str(body[name]) for name in ("field", "value") if body.get(name))
        detail = str(body.get("detail") or body.get("title") or answer.status_code)
        raise CommandFailed(f"{subject} {detail}" if subject else detail)
    return body


def _follow(client: httpx.Client, socket: Path, job: Job, display: Display) -> Job:
    """Show the job until it has ended; a mirror that restarts meanwhile is asked again."""
    heard = time.monotonic()
    while True:
        try:
            for seen in _events(client, job["id"]):
                job, heard = seen, time.monotonic()
                display.show(job)
            reason: Exception = httpx.RemoteProtocolError("the stream ended")
        except httpx.TransportError as error:
            reason = error
        if job["state"] not in UNFINISHED:
            return job
        if time.monotonic() - heard > AWAY_SECONDS:
            raise _unanswered(socket, reason)
        time.sleep(_RETRY_SECONDS)


def _events(client: httpx.Client, id: str) -> Iterator[Job]:
    with client.stream("GET", f"/warm/{id}/events") as answer:
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return
        if answer.is_error:
            answer.read()
            _job(answer)
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def _display(output: Output) -> Display:
    if output.as_json:
        return Lines(None)
    return Bars(output.stream) if output.stream.isatty() else Lines(output.stream)


def _conclude(job: Job, output: Output) -> int:
    failure = job.get("failure") or {}
    if job["state"] == DONE:
        seconds = (job["finished_at"] or 0) - (job["created_at"] or 0)
        text = f"warm: {', '.join(job_names(job))}: {show_size(job['bytes_wanted'])}"
        output.show(job, f"{text} in {seconds:.1f} s")
        return 0
    if output.as_json:
        output.show(job, "")
    reason = f"{failure.get('code')}: {failure.get('text')}" if failure else job["state"]
    raise CommandFailed(f"job {job['id']}: {reason}")


def job_names(job: Job) -> list[str]:
    """The images of a job, each once."""
    return list(dict.fromkeys(image["image"] for image in job["images"]))
