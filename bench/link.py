"""A link of a limited rate to another network namespace, where the registry is.

``tc qdisc … tbf`` on the far end of a veth pair: what the namespace sends is limited, and what has
come is counted by the near end. Needs root.
"""

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.parts.processes import ProcessFailed, run

RATE = "1gbit"
_SHAPING = ("burst", "256kb", "latency", "50ms")
_EVERY_SECONDS = 0.05
_numbers = itertools.count(os.getpid() % 1000)


class Link:
    """The namespace and the link to it, while its block lasts."""

    def __init__(self, rate: str = RATE) -> None:
        """``rate`` as tc(8) has it."""
        number = next(_numbers)
        self.rate = rate
        self.namespace = f"headstart-bench-{number}"
        self.near, self._far = f"hsb{number}near", f"hsb{number}far"
        network = f"10.231.{number // 64 % 256}"
        first = number % 64 * 4
        self._near_address = f"{network}.{first + 1}/30"
        self.address = f"{network}.{first + 2}"
        """Where the other side is reached."""

    def __enter__(self) -> Self:
        run(["ip", "netns", "add", self.namespace])
        try:
            peer = ["peer", "name", self._far, "netns", self.namespace]
            run(["ip", "link", "add", self.near, "type", "veth", *peer])
            run(["ip", "address", "add", self._near_address, "dev", self.near])
            run(["ip", "link", "set", self.near, "up"])
            self._inside("address", "add", f"{self.address}/30", "dev", self._far)
            for device in ("lo", self._far):
                self._inside("link", "set", device, "up")
            shaping = ["root", "tbf", "rate", self.rate, *_SHAPING]
            inside = ["ip", "netns", "exec", self.namespace]
            run([*inside, "tc", "qdisc", "add", "dev", self._far, *shaping])
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def received(self) -> int:
        """Bytes that have come over the link, headers of Ethernet and above included."""
        return int(Path(f"/sys/class/net/{self.near}/statistics/rx_bytes").read_text())

    def _inside(self, *arguments: str) -> None:
        run(["ip", "-netns", self.namespace, *arguments])

    def _remove(self) -> None:
        # The pair goes with the namespace, which lives on while a process is in it.
        with contextlib.suppress(ProcessFailed):  # it was not made
            run(["ip", "link", "delete", self.near])
        run(["ip", "netns", "delete", self.namespace])


class Arrivals:
    """What has come over a link, again and again: ``(seconds, bytes)`` since its block began."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._begun = self._before = 0.0
        self.points: list[tuple[float, int]] = []

    @property
    def size(self) -> int:
        """Bytes up to now, or up to the end of the block."""
        return self.points[-1][1]

    def __enter__(self) -> Self:
        self._begun, self._before = time.monotonic(), self._link.received()
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._note()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._note()

    def _note(self) -> None:
        received = self._link.received() - int(self._before)
        self.points.append((time.monotonic() - self._begun, received))
