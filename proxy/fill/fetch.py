"""One range on its way: what a connection is asked for, how far it has come, why it ended."""

import socket
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from headstart.store.geometry import UNIT_SIZE

if TYPE_CHECKING:
    from proxy.fill.fill import Fill

RATE_WINDOW_SECONDS = 1.0


class Ending(Enum):
    """How a request to the upstream ended."""

    COMPLETE = "complete"
    CUT = "cut"
    REDIRECT = "redirect"
    CHALLENGE = "challenge"
    STATUS = "status"
    UNSATISFIABLE = "unsatisfiable"
    NO_LENGTH = "no length"
    DISPUTED = "disputed"
    CHANGED = "changed"
    PROTOCOL = "protocol"
    NETWORK = "network"
    DEADLINE = "deadline"
    REFUSED = "refused"
    DISK = "disk"


@dataclass(slots=True)
class Outcome:
    """What a request brought; the fields beside ``ending`` belong to some endings only."""

    ending: Ending
    text: str = ""
    status: int = 0
    location: str = ""
    challenges: list[str] = field(default_factory=list)
    retry_after: str | None = None
    date: str | None = None
    size: int | None = None
    error: OSError | None = None
    key: str = ""
    value: str = ""


class Fetch:
    """Bytes ``start`` to ``stop`` of a blob on one connection.

    ``stop`` shrinks when another connection takes over the upper part. The receiver's thread
    moves ``reserved`` (bytes it is about to write) and ``committed`` (bytes that are written and
    published); the scheduler's thread moves ``stop``; both under ``lock``.
    """

    def __init__(
        self, fill: "Fill", start: int, stop: int, *, bulk: bool, priority: int, order: int
    ) -> None:
        """A range that no connection has taken yet."""
        self.fill = fill
        self.start = start
        self.stop = stop
        self.asked = (start, stop)
        self.bulk = bulk
        self.priority = priority
        self.order = order
        self.lock = threading.Lock()
        self.reserved = start
        self.committed = start
        self.seen = start
        self.stream = False
        self.cut_reason: Outcome | None = None
        self.received = 0
        self.started = time.monotonic()
        self.request_sent: float | None = None
        self.first_byte: float | None = None
        self._samples: list[tuple[float, int]] = []
        self._stall_mark: tuple[float, int] | None = None
        self._socket: socket.socket | None = None

    @property
    def remaining(self) -> int:
        """Bytes that no one has written yet."""
        return max(0, self.stop - self.reserved)

    def brings(self, start: int, stop: int | None) -> bool:
        """Whether any of these bytes, to the end for None, are still to come by it."""
        return start < self.stop and (stop is None or self.committed < stop)

    def begin_request(self) -> None:
        """A request is about to be made: the clock of its first byte starts anew."""
        self.first_byte = self.request_sent = None

    def attach(self, connection: socket.socket | None) -> None:
        """Remember the socket, so that :meth:`cut` can wake a transfer that waits for bytes."""
        with self.lock:
            self._socket = connection
            if self.cut_reason is not None:
                self._shut()

    def cut(self, reason: Outcome) -> None:
        """End the request where it stands; what has come stays. Any thread may call this."""
        with self.lock:
            if self.cut_reason is None:
                self.cut_reason = reason
                self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Already disconnected: the transfer is ending by itself.
                return

    def split(self, minimum: int) -> tuple[int, int] | None:
        """Give away the upper half, on a unit border; None when less than ``minimum`` is in it."""
        with self.lock:
            if self.cut_reason is not None or self.stream:
                return None
            half = self.reserved + (self.stop - self.reserved) // 2
            border = -(-half // UNIT_SIZE) * UNIT_SIZE
            if self.stop - border < minimum:
                return None
            taken = (border, self.stop)
            self.stop = border
            return taken

    def give_up_from(self, border: int, ahead: int) -> tuple[int, int] | None:
        """Give away everything from ``border`` (a unit's) on; None when that is near already.

        Near is less than ``ahead`` bytes beyond what has come.
        """
        with self.lock:
            if self.cut_reason is not None or self.stream:
                return None
            if border >= self.stop or border - self.reserved < ahead:
                return None
            taken = (border, self.stop)
            self.stop = border
            return taken

    def sample(self, now: float) -> None:
        """Note the progress; called at each tick of the scheduler."""
        self._samples.append((now, self.received))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_SECONDS:
            del self._samples[0]

    def rate(self) -> float | None:
        """Bytes a second over about the last second; None while it is too young to tell."""
        if len(self._samples) < 2:
            return None
        (since, before), (now, after) = self._samples[0], self._samples[-1]
        if now - since < RATE_WINDOW_SECONDS * 0.7:
            return None
        return (after - before) / (now - since)

    def slow_since(self, now: float, seconds: float, least_rate: int) -> int | None:
        """Bytes that came in the last ``seconds`` if those are below ``least_rate`` a second."""
        if self._stall_mark is None:
            self._stall_mark = (now, self.received)
        since, before = self._stall_mark
        if now - since < seconds:
            return None
        came = self.received - before
        self._stall_mark = (now, self.received)
        return came if came < least_rate * seconds else None
