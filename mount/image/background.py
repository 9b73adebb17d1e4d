"""Goes on in the background once something has been achieved in the foreground."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from headstart.command.invocation import CommandFailed

Work = Callable[[Callable[[dict[str, object]], None]], int]
"""Takes what to call when it is achieved, returns an exit status."""


def detach(work: Work, log: Path) -> dict[str, object]:
    """Run ``work`` in a process of its own session; return what it says once it has achieved it.

    What that process prints later goes to ``log``. Call it before anything starts a thread. Raises
    CommandFailed with the reason when it ends before.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        status = 1
        try:
            os.setsid()
            _leave_terminal(log)
            status = _report(work, writer)
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.readline()
    if not said:
        raise CommandFailed(f"the process in the background has ended; see {log}")
    answer: dict[str, object] = json.loads(said)
    if "failed" in answer:
        raise CommandFailed(str(answer["failed"]))
    return answer


def _leave_terminal(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def _report(work: Work, writer: int) -> int:
    """Run ``work``; its success, or else its failure, is the one line that is written."""

    def say(message: dict[str, object]) -> None:
        os.write(writer, json.dumps(message).encode() + b"\n")
        os.close(writer)

    try:
        return work(say)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        try:
            say({"failed": text})
        except OSError:
            # It was achieved before, and nobody reads any more.
            os.write(2, f"{text}\n".encode())
        return 1
