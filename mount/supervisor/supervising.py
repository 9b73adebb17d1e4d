"""The supervisor: holds the connection and the control socket, watches, ends.

It stays for as long as anything is mounted and must not die, so it does little and imports little.
"""

import contextlib
import errno
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Mapping

from mount.device.places import MountPlaces
from mount.supervisor import kept_descriptor
from mount.supervisor.daemon_process import DaemonProcess
from mount.supervisor.fuse_connection import FuseConnection, detach, mounted_device, read_record
from mount.supervisor.probe import Probe
from mount.supervisor.requests import Caller, ControlSocket, Message
from mount.supervisor.succession import Settings, Succession, say

VERSION = 1
"""Of the control protocol."""

_TICK_SECONDS = 0.5
_UNMOUNT_ATTEMPTS = 20


class Supervisor:
    """One connection, and the daemons that follow each other behind it."""

    def __init__(
        self, places: MountPlaces, settings: Settings, environment: Mapping[str, str]
    ) -> None:
        """Mount, or go on with what a former supervisor has left. Raises OSError."""
        self._places = places
        self._settings = settings
        self._environment = dict(environment)
        self._selector = selectors.DefaultSelector()
        self._ended = False
        self._living: DaemonProcess | None = None
        adopted = self._adopt()
        self._connection = adopted or self._mount()
        self._adopted = adopted is not None
        self._began = time.monotonic()
        self._daemons = Succession(
            self, places.root, settings, _daemon_environment(environment), self._selector
        )
        self._probe = Probe(places.device_files)
        self._control = ControlSocket(places.socket, self._selector, self._answer)

    # --- beginning and end ---

    def _adopt(self) -> FuseConnection | None:
        """The connection of a former supervisor, with its daemon when that lives."""
        record = read_record(self._places)
        daemon = record.get("daemon") if record is not None else None
        descriptor = kept_descriptor.of_service(self._environment)
        living = (
            kept_descriptor.of_daemon(daemon, self._places.root)
            if isinstance(daemon, int)
            else None
        )
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
                self._living = DaemonProcess(daemon, None)
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
        self._daemons.begin(self._connection, self._living, self._adopted)
        while not self._ended:
            pause = self._daemons.seconds_until_start(time.monotonic())
            wait = _TICK_SECONDS if pause is None else min(pause, _TICK_SECONDS)
            for key, _ in self._selector.select(wait):
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
        if not force and self._connection.mounted_elsewhere():
            return "layers are mounted from it"
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
            if not force and self._connection.trees_left():
                self._let_go()
                return "an overlay still has layers of it"
            self._finish()
        return None

    def _let_go(self) -> None:
        """End, with the daemon serving what cannot be reached by any path any more.

        The next supervisor mounts anew.
        """
        say("layers are in use: the daemon goes on without a supervisor")
        kept_descriptor.drop_from_service(self._environment)
        self._control.close()
        self._ended = True

    def _finish(self) -> None:
        """Nothing is mounted any more."""
        kept_descriptor.drop_from_service(self._environment)
        self._daemons.end("stopped")
        self._connection.close()
        self._control.close()
        self._ended = True
        say("stopped")

    # --- what the daemons' succession asks ---

    def nothing_to_serve(self) -> bool:
        """Whether the file system has gone, unmounted by somebody: an end that was wanted."""
        if self._mounted() or self._connection.alive():
            return False
        say(f"{self._places.device_files} is not mounted any more")
        self._finish()
        return True

    def connection_broken(self) -> None:
        """Mount anew, so that later mounts work."""
        say("the kernel has ended the connection; mounts that read from it are lost")
        self._daemons.end("its connection has ended")
        with self._probe.paused():
            self._connection.close()
            self._connection = self._mount()
        self._began = time.monotonic()
        kept_descriptor.keep_in_service(self._environment, self._connection.descriptor)
        self._daemons.begin(self._connection, None, read=False)

    # --- requests ---

    def status(self) -> Message:
        """What ``ping`` answers."""
        current = self._daemons.current
        serving = current is not None and current.serving_since is not None
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "daemon": current.pid if current is not None else None,
            "serving": serving,
            "answering": serving and self._probe.answered > self._began and self._mounted(),
            "restarts": self._daemons.restarts,
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
                self._daemons.upgrade(caller)
            case "stop":
                failed = self._stop(force=bool(request.get("force")))
                caller.answer({"stopped": True} if failed is None else {"failed": failed})
            case other:
                caller.answer({"failed": f"unknown call {other!r:.40}"})

    def _look(self) -> None:
        """What time brings."""
        now = time.monotonic()
        self._daemons.look(now)
        if self._probe.broken:
            self.connection_broken()
        else:
            self._daemons.kill_silent(now, self._probe.asked)


def _daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what systemd says to the supervisor alone."""
    private = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC")
    return {name: value for name, value in environment.items() if name not in private}
