"""The launcher: starts the mirror's processes, starts a dead one again, stops them in order.

It stays for as long as they run, so it imports nothing heavy, and ``replace_process`` gives up
the memory of a process that has.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from proxy.child import LAUNCHER_VARIABLE

DRAIN_SECONDS = 30.0
"""How long pulls under way may take to end after SIGTERM."""

STOP_SECONDS = 5.0
"""What each process that is stopped after the last-started one gets at least."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_HEALTHY_SECONDS = 2.0
"""A start takes half a second of CPU time: one every other second is no burden, and whoever waits
for bytes waits for no pause."""

_BAD_CONFIGURATION = 2  # a child that ends so has said why, and would end so again

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class _Child:  # dataclasses would import inspect, which is a fifth of this process
    """One process: its command line, its process id while it runs, when it starts again."""

    __slots__ = ("argv", "name", "pause", "pid", "restart_at", "started")

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.pid: int | None = None
        self.started = 0.0
        self.pause = _FIRST_PAUSE_SECONDS
        self.restart_at: float | None = None

    def running(self) -> bool:
        """Whether it was started and its end has not been collected."""
        return self.pid is not None


class _BadConfiguration(Exception):
    """A child ended with the status that says that starting it again is of no use."""


def run_children(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str] | None = None,
    *,
    drain_seconds: float = DRAIN_SECONDS,
) -> int:
    """Run ``commands`` (name to argv) until SIGTERM or SIGINT; return the exit status.

    They start in the order of the mapping and are stopped in reverse, each when those after it
    have ended, so that what the later ones need outlives them. One that dies starts again after
    0.1 s, doubling to 5 s until it has lived for 2 s. One that ends with status 2 ends all, and
    2 is returned. SIGTERM and SIGINT are passed on as SIGTERM; what has not ended within
    ``drain_seconds``, or at the second SIGINT, gets SIGKILL.

    Children stay in this process's group. They start with SIGINT ignored, since the terminal's
    Ctrl-C reaches the whole group and would end all of them at once, in no order.
    """
    inherited = os.environ if environment is None else environment
    variables = {**inherited, LAUNCHER_VARIABLE: str(os.getpid())}
    children = [_Child(name, argv) for name, argv in commands.items()]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # A blocked signal is queued for sigtimedwait even while it is ignored; children inherit this.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        try:
            _keep_running(children, variables)
        except _BadConfiguration:
            _stop(children, drain_seconds)
            return _BAD_CONFIGURATION
        _stop(children, drain_seconds)
        return 0
    finally:
        for child in children:
            _end_now(child)
        signal.signal(signal.SIGINT, on_interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def replace_process(
    commands: Mapping[str, Sequence[str]], *, drain_seconds: float = DRAIN_SECONDS
) -> NoReturn:
    """Become the launcher of ``commands``: the same process id, a fresh small interpreter."""
    arguments = json.dumps({name: list(argv) for name, argv in commands.items()})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(
        sys.executable,
        [sys.executable, "-P", "-m", "proxy.launcher", str(drain_seconds), arguments],
    )


def _keep_running(children: list[_Child], variables: dict[str, str]) -> None:
    """Start and restart until SIGTERM or SIGINT has come."""
    for child in children:
        _start(child, variables)
    while True:
        due = [child.restart_at for child in children if child.restart_at is not None]
        received = _next_signal(min(due) if due else None)
        if received in (signal.SIGTERM, signal.SIGINT):
            _say(f"{signal.Signals(received).name}: stopping")
            return
        for child, status in _ended(children):
            _plan_restart(child, status)
        now = time.monotonic()
        for child in children:
            if child.restart_at is not None and child.restart_at <= now:
                _start(child, variables)


def _start(child: _Child, variables: dict[str, str]) -> None:
    child.restart_at = None
    child.started = time.monotonic()
    try:
        child.pid = os.posix_spawnp(child.argv[0], child.argv, variables, setsigmask=())
    except (FileNotFoundError, PermissionError) as error:
        _say(f"{child.name}: {child.argv[0]}: {error.strerror}; it cannot be started")
        raise _BadConfiguration from error
    except OSError as error:
        _pause(child, f"could not be started ({error.strerror})")


def _plan_restart(child: _Child, status: int) -> None:
    """Decide what the end of a child that nobody stopped means."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _BAD_CONFIGURATION:
        raise _BadConfiguration
    lived = time.monotonic() - child.started
    if lived >= _HEALTHY_SECONDS:
        child.pause = _FIRST_PAUSE_SECONDS
    _pause(child, f"{_reason(status)} after {lived:.1f} s")


def _pause(child: _Child, what_happened: str) -> None:
    _say(f"{child.name} {what_happened}; starting it again in {child.pause:.1f} s")
    child.restart_at = time.monotonic() + child.pause
    child.pause = min(child.pause * 2, _LONGEST_PAUSE_SECONDS)


def _stop(children: list[_Child], drain_seconds: float) -> None:
    """SIGTERM from the last-started to the first; SIGKILL when the time has passed."""
    deadline = time.monotonic() + drain_seconds
    for child in reversed(children):
        if child.pid is None:
            continue
        os.kill(child.pid, signal.SIGTERM)
        while child.running():
            received = _next_signal(deadline)
            for other, status in _ended(children):
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGTERM:
                    _say(f"{other.name} {_reason(status)} while stopping")
            if received == signal.SIGINT:
                deadline = time.monotonic()
            if child.running() and time.monotonic() >= deadline:
                _say(f"{child.name} had not ended within {drain_seconds:g} s of draining: SIGKILL")
                _end_now(child)
        deadline = max(deadline, time.monotonic() + STOP_SECONDS)


def _end_now(child: _Child) -> None:
    if child.pid is None:
        return
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    child.pid = None


def _next_signal(deadline: float | None) -> int | None:
    """Wait for a signal until ``deadline`` (monotonic seconds; None for ever)."""
    if deadline is None:
        return signal.sigwait(_SIGNALS)
    left = max(0.0, deadline - time.monotonic())
    received = signal.sigtimedwait(_SIGNALS, left)
    return None if received is None else received.si_signo


def _ended(children: list[_Child]) -> list[tuple[_Child, int]]:
    """Collect every child that has ended, with its wait status."""
    running = {child.pid: child for child in children if child.pid is not None}
    found: list[tuple[_Child, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid in running:  # others are orphans that came to us as process 1 of a container
            running[pid].pid = None
            found.append((running[pid], status))


def _reason(status: int) -> str:
    """Say how a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        return f"died by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with exit status {os.WEXITSTATUS(status)}"


def _say(line: str) -> None:
    print(f"headstart: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run ``DRAIN_SECONDS COMMANDS``, the latter a JSON object of name to argv."""
    drain_seconds, commands = arguments
    return run_children(json.loads(commands), drain_seconds=float(drain_seconds))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
