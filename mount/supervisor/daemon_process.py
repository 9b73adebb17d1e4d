"""One process of the daemon: started with the FUSE descriptor, spoken to, ended."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time

from mount.device.channel import (
    CHANNEL_DESCRIPTOR,
    FUSE_DESCRIPTOR,
    MAX_MESSAGE,
    parse,
    send,
)

_FIRST_FREE_DESCRIPTOR = 64
"""Descriptors are inherited from above it, so that none is in the place of another."""

_LAST_THREAD_SECONDS = 2.0


class DaemonProcess:
    """A daemon, or what a former supervisor has left of one."""

    def __init__(self, pid: int, channel: socket.socket | None) -> None:
        """``channel`` None: another supervisor has started it; it serves. Raises OSError."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.started = time.monotonic()
        self.ready = False
        self.serving_since = None if channel is not None else self.started
        self.retired = False
        """Whether it was asked to end."""
        self.kill_at: float | None = None
        """When its time is over (monotonic seconds)."""
        self.killed = ""
        """Why it was killed, when we did that."""
        self.dead_since: float | None = None
        """When its main thread was first seen dead (monotonic seconds)."""
        self.collected = True
        """False when it is dead and a thread of it waits for what the next daemon answers."""

    @classmethod
    def start(
        cls, fuse_descriptor: int, init: bytes, arguments: list[str], environment: dict[str, str]
    ) -> "DaemonProcess":
        """Start one; it says ``ready`` on :attr:`channel` when it can take over. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fuse = fcntl.fcntl(fuse_descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR)
        channel = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "mount.device.daemon", *arguments],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fuse, FUSE_DESCRIPTOR),
                    (os.POSIX_SPAWN_DUP2, channel, CHANNEL_DESCRIPTOR),
                ],
                setsigmask=(),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(fuse)
            os.close(channel)
        ours.setblocking(False)
        process = cls(pid, ours)
        send(ours, {"init": init.hex()})
        return process

    def receive(self) -> dict[str, object] | None:
        """The next message; None when there is none, or no more. Raises ValueError."""
        if self.channel is None:
            return None
        try:
            return parse(self.channel.recv(MAX_MESSAGE))
        except BlockingIOError:
            return None
        except (EOFError, OSError):
            self.close_channel()
            return None

    def go(self) -> None:
        """Let it read requests. Raises OSError when it has died."""
        if self.channel is not None:
            send(self.channel, {"type": "go"})

    def ask_to_end(self, seconds: float) -> None:
        """SIGTERM: it answers what it has read, within ``seconds``."""
        self.retired = True
        self.kill_at = time.monotonic() + seconds
        self._signal(signal.SIGTERM)

    def kill(self, reason: str) -> None:
        """SIGKILL."""
        self.killed = reason
        self.kill_at = None
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> None:
        """Wait for the end of its last thread, which may need an answer that nobody gives."""
        select.select([self.pidfd], [], [], _LAST_THREAD_SECONDS)
        self.how_it_ended()

    def how_it_ended(self) -> str:
        """Collect the dead process, if that is possible already, and say how it ended."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return "ended"
        self.collected = pid != 0
        if not self.collected:
            return "died while it waited for an answer that it was to give itself"
        if self.killed:
            return f"was killed: {self.killed}"
        if os.WIFSIGNALED(status):
            return f"died by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"ended with exit status {os.WEXITSTATUS(status)}"

    def close_channel(self) -> None:
        """Close our end of the channel."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def close(self) -> None:
        """Close all descriptors; the process itself is left as it is."""
        self.close_channel()
        os.close(self.pidfd)


def collect(pid: int) -> bool:
    """Whether a dead child has been collected now, or was before."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
