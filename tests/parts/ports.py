"""Ports of 127.0.0.1 for servers that are stopped and started again in the middle of a test.

Port 0 is not enough for these: the kernel picks from the ephemeral range, and while the server is
down any outgoing connection may be given its port. These ports lie below that range.
"""

import random
import socket
import time
from pathlib import Path

LOWEST = 10_000
"""Below it other services of a developer's machine are likely."""

_given: set[int] = set()


def free_port() -> int:
    """A TCP port nobody listens on, never the same twice in one process."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    highest = ephemeral if ephemeral > LOWEST + 1000 else 65_536
    # Not seeded: two runs of the suite at the same time should not go for the same ports.
    for _ in range(1000):
        port = random.SystemRandom().randrange(LOWEST, highest)
        if port not in _given and _bindable(port):
            _given.add(port)
            return port
    raise OSError(f"no free port between {LOWEST} and {highest}")


def accepts(port: int) -> bool:
    """Whether somebody listens on 127.0.0.1:``port``."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until_closed(port: int, deadline: float = 5.0) -> None:
    """Return when nobody listens on ``port`` any more; TimeoutError after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while accepts(port):
        if time.monotonic() > end:
            raise TimeoutError(f"127.0.0.1:{port} still accepts connections after {deadline} s")
        time.sleep(0.01)


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
