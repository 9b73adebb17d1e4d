"""``python -m mount.supervisor ROOT FILL_SOCKET READ_DEADLINE_SECONDS [WATCHDOG [HEALTHY]]``.

Exit status 3: another supervisor runs at this root.
"""

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mount.device.places import MountPlaces
from mount.supervisor.succession import Settings, say
from mount.supervisor.supervising import Supervisor

ALREADY_RUNNING = 3


def main(arguments: Sequence[str]) -> int:
    """Supervise in the foreground."""
    root, fill_socket, *seconds = arguments
    places = MountPlaces(Path(root))
    places.run.mkdir(parents=True, exist_ok=True, mode=0o750)
    pid_file = os.open(places.pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{places.pid_file} is locked: another supervisor runs")
        return ALREADY_RUNNING
    os.ftruncate(pid_file, 0)
    os.pwrite(pid_file, f"{os.getpid()}\n".encode(), 0)
    try:
        return Supervisor(places, Settings(fill_socket, *map(float, seconds)), os.environ).run()
    except OSError as error:
        say(f"cannot go on: {error}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
