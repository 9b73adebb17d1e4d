"""The supervisor: keeps one daemon serving the connection, replaces it, watches it.

It stays for as long as anything is mounted and must not die, so it does little and imports little.
"""

import contextlib
import errno
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from mount.device.places import MountPlaces
from mount.supervisor import kept_descriptor
from mount.supervisor.daemon_process import DaemonProcess
from mount.supervisor.fuse_connection import (
    AnswerDiffers,
    ConnectionBroken,
    FuseConnection,
    detach,
    mounted_device,
    read_record,
)
from mount.supervisor.probe import Probe
from mount.supervisor.requests import Caller, ControlSocket, Message

VERSION = 1
"""Of the control protocol."""

DRAIN_SECONDS = 2.0
"""How long a daemon that is replaced may take to answer what it has read; the rest comes again."""

_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
_START_SECONDS = 60.0
_TICK_SECONDS = 0.5
_UNMOUNT_ATTEMPTS = 20
_SUPERSEDED = "its settings have been changed"


class Settings:
    """What a supervisor is started with; ``upgrade`` changes the first two."""

    def __init__(
        self,
        fill_socket: str,
        read_deadline_seconds: float,
        watchdog_seconds: float = 10.0,
        healthy_seconds: float = 5.0,
    ) -> None:
        """``watchdog_seconds``: how long the mount may not answer before its daemon is killed.

        ``healthy_seconds``: a daemon that has lived for so long is started again without a pause.
        """
        self.fill_socket = fill_socket
        self.read_deadline_seconds = read_deadline_seconds
        self.watchdog_seconds = watchdog_seconds
        self.healthy_seconds = healthy_seconds


class Supervisor:
    """One connection, its present daemon, and perhaps the one that is to follow."""

    def __init__(
        self, places: MountPlaces, settings: Settings, environment: Mapping[str, str]
    ) -> None:
        """Mount, or go on with what a former supervisor has left. Raises OSError."""
        self._places = places
        self._settings = settings
        self._environment = dict(environment)
        self._selector = selectors.DefaultSelector()
        self._current: DaemonProcess | None = None
        self._successor: DaemonProcess | None = None
        self._upgrading: list[Caller] = []
        self._failures = 0
        self._restarts = 0
        self._start_at: float | None = None
        self._silent_since: float | None = None
        self._ended = False
        self._connection = self._adopt() or self._mount()
        self._began = time.monotonic()
        self._probe = Probe(places.device_files)
        self._control = ControlSocket(places.socket, self._selector, self._answer)

    # --- beginning and end ---

    def _adopt(self) -> FuseConnection | None:
        """The connection of a former supervisor, with its daemon when that lives."""
        record = read_record(self._places)
        daemon = record.get("daemon") if record is not None else None
        descriptor = kept_descriptor.of_service(self._environment)
        living = kept_descriptor.of_daemon(daemon) if isinstance(daemon, int) else None
        if descriptor is None:
            descriptor = living
        elif living is not None:
            os.close(living)
        if descriptor is None:
            return None
        connection = FuseConnection.resume(self._places, descriptor)
        if connection is None:
            os.close(descriptor)
            return None
        say(f"going on with the connection of {connection.device}")
        if living is not None and isinstance(daemon, int):
            with contextlib.suppress(OSError):
                self._current = DaemonProcess(daemon, None)
                self._watch(self._current)
        return connection

    def _mount(self) -> FuseConnection:
        lost = detach(self._places.device_files)
        if lost:
            say("a former connection is lost: mounts that read from it answer errors for good")
        connection = FuseConnection.create(self._places)
        say(f"mounted {self._places.device_files} ({connection.device})")
        return connection

    def run(self) -> int:
        """Supervise until the wanted end; the exit status."""
        wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(signalled)
        received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: received.append(number))
        self._selector.register(wake, selectors.EVENT_READ, lambda: os.read(wake, 64))
        kept_descriptor.keep_in_service(self._environment, self._connection.descriptor)
        self._begin_successor()
        while not self._ended:
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._act(key.data)
            if received and not self._ended:
                self._leave()
                return 0
            if not self._ended:
                self._act(self._look)
        return 0

    def _act(self, action: Callable[[], object]) -> None:
        """Whatever goes wrong with one thing, the others must go on."""
        try:
            action()
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
            traceback.print_exception(error)

    def _leave(self) -> None:
        """SIGTERM: end everything when nothing is in use, else let the daemon serve alone."""
        if self._stop(force=False) is None:
            return
        say("device files are in use: the daemon goes on without a supervisor")
        self._control.close()

    def _stop(self, *, force: bool) -> str | None:
        """Unmount and end the daemons; what prevents it, if anything does."""
        with self._probe.paused():
            for _ in range(_UNMOUNT_ATTEMPTS):
                try:
                    self._connection.unmount(detach=force)
                    break
                except OSError as error:
                    reason = str(error)
                    if error.errno == errno.EINVAL:  # somebody else has unmounted it
                        break
                    if error.errno != errno.EBUSY:
                        return reason
                    time.sleep(0.05)
            else:
                return "device files are in use"
            kept_descriptor.drop_from_service(self._environment)
            self._end_daemons("stopped")
            self._connection.close()
            self._control.close()
            self._ended = True
        say("stopped")
        return None

    def _end_daemons(self, reason: str) -> None:
        """SIGKILL to all of them; nothing follows."""
        for daemon in (self._current, self._successor):
            if daemon is not None:
                daemon.kill(reason)
                daemon.how_it_ended()
                self._forget(daemon)
        self._current = self._successor = None

    def _forget(self, daemon: DaemonProcess) -> None:
        self._selector.unregister(daemon.pidfd)
        if daemon.channel is not None:
            self._selector.unregister(daemon.channel)
        daemon.close()

    # --- requests ---

    def status(self) -> Message:
        """What ``ping`` answers."""
        current = self._current
        serving = current is not None and current.serving_since is not None
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "daemon": current.pid if current is not None else None,
            "serving": serving,
            "answering": serving and self._probe.answered > self._began and self._mounted(),
            "restarts": self._restarts,
            "device": self._connection.device,
            "fill_socket": self._settings.fill_socket,
            "read_deadline_seconds": self._settings.read_deadline_seconds,
        }

    def _mounted(self) -> bool:
        """Whether the device files are where they should be."""
        return mounted_device(self._places.device_files) == self._connection.device

    def _answer(self, request: Message, caller: Caller) -> None:
        match request.get("call"):
            case "ping":
                caller.answer(self.status())
            case "upgrade":
                self._settings.fill_socket = str(request["fill_socket"])
                self._settings.read_deadline_seconds = float(str(request["read_deadline_seconds"]))
                self._upgrading.append(caller)
                if self._successor is not None:
                    self._successor.kill(_SUPERSEDED)
                else:
                    self._begin_successor()
            case "stop":
                failed = self._stop(force=bool(request.get("force")))
                caller.answer({"stopped": True} if failed is None else {"failed": failed})
            case other:
                caller.answer({"failed": f"unknown call {other!r:.40}"})

    # --- daemons ---

    def _begin_successor(self) -> None:
        """Start a daemon that is to take over."""
        self._start_at = None
        settings = self._settings
        arguments = [
            str(self._places.root),
            settings.fill_socket,
            str(settings.read_deadline_seconds),
        ]
        try:
            daemon = DaemonProcess.start(
                self._connection.descriptor,
                self._connection.init,
                arguments,
                _daemon_environment(self._environment),
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
        try:
            self._connection.settle(answer)
        except AnswerDiffers as error:
            daemon.kill(str(error))
            return
        except ConnectionBroken:
            self._begin_anew()
            return
        daemon.ready = True
        if self._current is not None:
            self._current.ask_to_end(DRAIN_SECONDS)
        else:
            self._promote(daemon)

    def _promote(self, daemon: DaemonProcess) -> None:
        """Nobody reads requests: let ``daemon`` do it, and give it those that were read before."""
        self._current, self._successor = daemon, None
        try:
            if not self._connection.resend():
                failed = self._connection.fail_abandoned()
                say(f"this kernel cannot send requests again; {failed} were answered with EIO")
            self._connection.record(daemon.pid)
            daemon.go()
        except ConnectionBroken:
            self._begin_anew()
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
        lived = time.monotonic() - daemon.started
        say(f"daemon {daemon.pid} {daemon.how_it_ended()} after {lived:.1f} s")
        self._forget(daemon)
        if daemon is self._current:
            self._current_ended(daemon, lived)
            return
        self._successor = None
        if daemon.killed == _SUPERSEDED:
            self._begin_successor()
        elif self._current is None:
            self._plan_start()
        elif self._upgrading:
            text = daemon.killed or "it ended before it served"
            for caller in self._upgrading:
                caller.answer({"failed": text})
            self._upgrading.clear()

    def _current_ended(self, daemon: DaemonProcess, lived: float) -> None:
        self._current = None
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        if not daemon.retired:
            self._restarts += 1
            if not self._mounted():
                say(f"{self._places.device_files} has been unmounted by somebody else")
                self._begin_anew()
                return
        if lived >= self._settings.healthy_seconds:
            self._failures = 0
        if self._successor is None:
            self._plan_start()
        elif self._successor.ready:
            self._promote(self._successor)

    # --- what time brings ---

    def _look(self) -> None:
        """Start what is due, kill what hangs."""
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at and self._successor is None:
            self._begin_successor()
        for daemon in (self._current, self._successor):
            if daemon is None or daemon.killed:
                continue
            if daemon.kill_at is not None and now >= daemon.kill_at:
                daemon.kill(f"it had not ended after {DRAIN_SECONDS:g} s")
            elif daemon.serving_since is None and now - daemon.started > _START_SECONDS:
                daemon.kill(f"it did not serve within {_START_SECONDS:g} s")
        if self._probe.broken:
            say("the kernel has ended the connection; mounts that read from it are lost")
            self._begin_anew()
            return
        self._watchdog(now)

    def _watchdog(self, now: float) -> None:
        current, asked = self._current, self._probe.asked
        if current is None or current.killed or asked is None or current.serving_since is None:
            return
        silent = now - max(asked, current.serving_since)
        if silent > self._settings.watchdog_seconds:
            current.kill(f"the mount had not answered for {silent:.0f} s")

    def _begin_anew(self) -> None:
        """The connection is over: mount another one, so that later mounts work."""
        self._end_daemons("its connection has ended")
        with self._probe.paused():
            self._connection.close()
            self._connection = self._mount()
        self._began = time.monotonic()
        kept_descriptor.keep_in_service(self._environment, self._connection.descriptor)
        self._plan_start()


def _daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what systemd says to the supervisor alone."""
    private = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC")
    return {name: value for name, value in environment.items() if name not in private}


def say(line: str) -> None:
    """One line for the log; whoever reads it may have gone."""
    with contextlib.suppress(OSError):
        print(f"headstart: mount supervisor: {line}", file=sys.stderr, flush=True)
