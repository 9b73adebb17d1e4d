"""Asks the filler for its figures, at most as often as they change visibly."""

import time

from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from proxy.control.figures import Figures

PATIENCE_SECONDS = 2.0
"""Whoever wants figures would rather have none than wait for a filler that starts again."""

FRESH_SECONDS = 0.05


class FiguresReader:
    """The filler's figures for all who want them."""

    def __init__(self, filler: FillClient) -> None:
        """``filler`` is the mirror's own connection."""
        self._filler = filler
        self._figures: Figures | None = None
        self._read_at = float("-inf")

    async def read(self) -> Figures | None:
        """The figures as of now; None while the filler does not answer."""
        if time.monotonic() - self._read_at < FRESH_SECONDS:
            return self._figures
        if not self._filler.connected:
            return None
        try:
            answer = await self._filler.call({"type": "figures"}, PATIENCE_SECONDS)
        except (FillerUnreachable, FillFailed):
            return None
        self._figures, self._read_at = Figures.read(answer), time.monotonic()
        return self._figures
