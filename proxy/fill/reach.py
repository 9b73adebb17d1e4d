"""How far beyond what a reader waits for to fetch."""

from headstart.store.geometry import UNIT_SIZE


class Reach:
    """Of one reader: doubles while its reads follow each other, begins anew when they do not."""

    def __init__(self, least: int, most: int) -> None:
        """Bounds in bytes; the first read gets ``least``."""
        self._least = least
        self._most = most
        self._stop = -1
        self._reach = least

    def of(self, offset: int, stop: int) -> int:
        """Bytes to fetch in all for a read from ``offset`` to ``stop``, as far as it is less."""
        sequential = 0 <= self._stop <= offset < self._stop + UNIT_SIZE
        self._reach = min(2 * self._reach, self._most) if sequential else self._least
        self._stop = stop
        return self._reach
