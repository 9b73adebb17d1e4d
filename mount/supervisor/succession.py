"""One daemon follows another: which serves, which is to take over, when the next one starts."""

import contextlib
import selectors
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mount.supervisor.daemon_process import DaemonProcess, collect
from mount.supervisor.fuse_connection import AnswerDiffers, ConnectionBroken, FuseConnection
from mount.supervisor.process_state import has_ended
from mount.supervisor.requests import Caller

DRAIN_SECONDS = 2.0
"""How long a daemon that is replaced may take to answer what it has read; the rest comes again."""

_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
_START_SECONDS = 60.0
_LAST_THREAD_SECONDS = 0.3
"""How long the last thread of a dead daemon may take to end; it waits for the next daemon else."""
_SUPERSEDED = "its settings have been changed"


class Settings:
    """What a supervisor is started with; ``upgrade`` changes the first two."""

    def __init__(
        self,
        fill_socket: str,
        read_deadline_seconds: float,
        watchdog_seconds: float = 10.0,
        healthy_seconds: float = 2.0,
    ) -> None:
        """``watchdog_seconds``: how long the mount may not answer before its daemon is killed.

        ``healthy_seconds``: a daemon that has lived for so long is started again without a pause.
        """
        self.fill_socket = fill_socket
        self.read_deadline_seconds = read_deadline_seconds
        self.watchdog_seconds = watchdog_seconds
        self.healthy_seconds = healthy_seconds


class Owner(Protocol):
    """The supervisor, as the daemons' succession needs it."""

    def connection_broken(self) -> None:
        """The kernel has ended the connection: end all daemons and go on with another one."""

    def nothing_to_serve(self) -> bool:
        """A daemon ended by itself: whether no other one is to follow."""


class Succession:
    """The present daemon and perhaps the one that is to follow."""

    def __init__(
        self,
        owner: Owner,
        root: Path,
        settings: Settings,
        environment: Mapping[str, str],
        selector: selectors.BaseSelector,
    ) -> None:
        """Nothing runs; ``environment`` is the daemons', ``root`` is ``mount.root``."""
        self.current: DaemonProcess | None = None
        self.restarts = 0
        """How many daemons have ended unasked."""
        self._owner = owner
        self._root = root
        self._settings = settings
        self._environment = dict(environment)
        self._selector = selector
        self._connection: FuseConnection | None = None
        self._had_reader = False
        self._successor: DaemonProcess | None = None
        self._upgrading: list[Caller] = []
        self._uncollected: list[int] = []
        self._failures = 0
        self._start_at: float | None = None
        self._silent_since: float | None = None

    def begin(self, connection: FuseConnection, living: DaemonProcess | None, read: bool) -> None:
        """Start a daemon for ``connection``, which follows ``living`` when there is one.

        ``read``: some daemon has read requests from this connection before.
        """
        self._connection = connection
        self._had_reader = read
        if living is not None:
            self.current = living
            self._watch(living)
        self._begin_successor()

    def upgrade(self, caller: Caller) -> None:
        """Let a new daemon with the present settings take over; ``caller`` hears of it."""
        self._upgrading.append(caller)
        if self._successor is not None:
            self._successor.kill(_SUPERSEDED)
        else:
            self._begin_successor()

    def look(self, now: float) -> None:
        """Start what is due, kill what has had its time, find out who is dead."""
        self._uncollected = [dead for dead in self._uncollected if not collect(dead)]
        if self._start_at is not None and now >= self._start_at and self._successor is None:
            self._begin_successor()
        for daemon in (self.current, self._successor):
            if daemon is None:
                continue
            if has_ended(daemon.pid):
                daemon.dead_since = daemon.dead_since or now
                if now - daemon.dead_since >= _LAST_THREAD_SECONDS:
                    self._daemon_ended(daemon)
                continue
            if daemon.killed:
                continue
            if daemon.kill_at is not None and now >= daemon.kill_at:
                daemon.kill(f"it had not ended after {DRAIN_SECONDS:g} s")
            elif daemon.serving_since is None and now - daemon.started > _START_SECONDS:
                daemon.kill(f"it did not serve within {_START_SECONDS:g} s")

    def seconds_until_start(self, now: float) -> float | None:
        """How long a daemon's start has to wait still; None when none is planned."""
        return None if self._start_at is None else max(0.0, self._start_at - now)

    def kill_silent(self, now: float, asked: float | None) -> None:
        """Kill the present daemon when a question has waited for too long, since ``asked``."""
        current = self.current
        if current is None or current.killed or asked is None or current.serving_since is None:
            return
        silent = now - max(asked, current.serving_since)
        if silent > self._settings.watchdog_seconds:
            current.kill(f"the mount had not answered for {silent:.0f} s")

    def end(self, reason: str) -> None:
        """SIGKILL to all daemons; nothing follows."""
        self._start_at = None
        for daemon in (self.current, self._successor):
            if daemon is not None:
                daemon.kill(reason)
                daemon.wait()
                self._forget(daemon)
        self.current = self._successor = None

    def _begin_successor(self) -> None:
        """Start a daemon that is to take over."""
        self._start_at = None
        connection, settings = self._connection, self._settings
        if connection is None:
            return
        arguments = [
            str(self._root),
            settings.fill_socket,
            str(settings.read_deadline_seconds),
        ]
        try:
            daemon = DaemonProcess.start(
                connection.descriptor,
                connection.init,
                arguments,
                self._environment,
            )
        except OSError as error:
            say(f"the daemon cannot be started: {error}")
            self._plan_start()
            return
        self._successor = daemon
        self._watch(daemon)
        channel = daemon.channel
        if channel is not None:
            self._selector.register(channel, selectors.EVENT_READ, lambda: self._heard(daemon))

    def _watch(self, daemon: DaemonProcess) -> None:
        self._selector.register(
            daemon.pidfd, selectors.EVENT_READ, lambda: self._daemon_ended(daemon)
        )

    def _plan_start(self) -> None:
        pause = _PAUSES_SECONDS[min(self._failures, len(_PAUSES_SECONDS) - 1)]
        self._failures += 1
        self._start_at = time.monotonic() + pause

    def _heard(self, daemon: DaemonProcess) -> None:
        channel = daemon.channel
        try:
            message = daemon.receive()
        except ValueError as error:
            daemon.kill(f"it says what cannot be read: {error}")
            return
        if daemon.channel is None and channel is not None:
            self._selector.unregister(channel)
        if message is None:
            return
        match message.get("type"):
            case "ready":
                self._ready(daemon, bytes.fromhex(str(message["answer"])))
            case "serving":
                self._serving(daemon)

    def _ready(self, daemon: DaemonProcess, answer: bytes) -> None:
        """A daemon is prepared: the present one has to make room."""
        if self._connection is None:
            return
        try:
            self._connection.settle(answer)
        except AnswerDiffers as error:
            daemon.kill(str(error))
            return
        except ConnectionBroken:
            self._owner.connection_broken()
            return
        daemon.ready = True
        if self.current is not None:
            self.current.ask_to_end(DRAIN_SECONDS)
        else:
            self._promote(daemon)

    def _promote(self, daemon: DaemonProcess) -> None:
        """Nobody reads requests: let ``daemon`` do it, and give it those that were read before."""
        if self._connection is None:
            return
        self.current, self._successor = daemon, None
        had_reader, self._had_reader = self._had_reader, True
        try:
            if had_reader and not self._connection.resend():
                failed = self._connection.fail_abandoned()
                say(f"this kernel cannot send requests again; {failed} were answered with EIO")
            self._connection.record(daemon.pid)
            daemon.go()
        except ConnectionBroken:
            self._owner.connection_broken()
        except OSError as error:
            daemon.kill(f"it could not be let go: {error}")

    def _serving(self, daemon: DaemonProcess) -> None:
        daemon.serving_since = time.monotonic()
        silent = self._silent_since
        self._silent_since = None
        after = "" if silent is None else f" after {time.monotonic() - silent:.2f} s"
        say(f"daemon {daemon.pid} serves{after}")
        for caller in self._upgrading:
            caller.answer({"upgraded": True})
        self._upgrading.clear()

    def _daemon_ended(self, daemon: DaemonProcess) -> None:
        if daemon not in (self.current, self._successor):
            return
        lived = time.monotonic() - daemon.started
        say(f"daemon {daemon.pid} {daemon.how_it_ended()} after {lived:.1f} s")
        if not daemon.collected:
            self._uncollected.append(daemon.pid)
        self._forget(daemon)
        if daemon is self.current:
            self._current_ended(daemon, lived)
            return
        self._successor = None
        if daemon.killed == _SUPERSEDED:
            self._begin_successor()
        elif self.current is None:
            self._plan_start()
        elif self._upgrading:
            text = daemon.killed or "it ended before it served"
            for caller in self._upgrading:
                caller.answer({"failed": text})
            self._upgrading.clear()

    def _current_ended(self, daemon: DaemonProcess, lived: float) -> None:
        self.current = None
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        if not daemon.retired:
            self.restarts += 1
            if self._owner.nothing_to_serve():
                return
        if lived >= self._settings.healthy_seconds:
            self._failures = 0
        if self._successor is None:
            self._plan_start()
        elif self._successor.ready:
            self._promote(self._successor)

    def _forget(self, daemon: DaemonProcess) -> None:
        self._selector.unregister(daemon.pidfd)
        if daemon.channel is not None:
            self._selector.unregister(daemon.channel)
        daemon.close()


def say(line: str) -> None:
    """One line for the log; whoever reads it may have gone."""
    with contextlib.suppress(OSError):
        print(f"headstart: mount supervisor: {line}", file=sys.stderr, flush=True)
