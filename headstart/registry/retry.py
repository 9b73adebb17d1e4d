"""When a call is repeated and after what wait: back-off with jitter, Retry-After; bounded."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from headstart.registry.errors import RegistryError, UpstreamThrottled

ATTEMPTS = 4
FIRST_DELAY = 0.2
LONGEST_DELAY = 2.0
LONGEST_WAIT = 30.0
"""Seconds that a call waits for a throttling upstream; for longer pauses it fails at once."""
LONGEST_PAUSE = 300.0
"""Seconds after which an upstream is asked again, whatever its Retry-After said."""
DEFAULT_PAUSE = 1.0

T = TypeVar("T")


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds from now, from 0 to :data:`LONGEST_PAUSE`; None when absent or unreadable.

    An HTTP date is measured against ``date``, the answer's own Date, so that a wrong clock here
    does no harm; without it against this machine's clock.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:12]), LONGEST_PAUSE)
    until = _http_date(text)
    if until is None:
        return None
    now = (_http_date(date) if date is not None else None) or datetime.now(UTC)
    return min(max(0.0, (until - now).total_seconds()), LONGEST_PAUSE)


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@dataclass(slots=True)
class Retry:
    """Repeats calls to one upstream; pauses that it asks for are shared by all its callers.

    Pauses have keys, so that one client's limit does not stop another client.
    """

    attempts: int = ATTEMPTS
    first_delay: float = FIRST_DELAY
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    _paused_until: dict[str, float] = field(default_factory=dict)

    async def run(self, pause_key: str, ends: float, call: Callable[[], Awaitable[T]]) -> T:
        """The result of ``call``, repeated while its errors are transient.

        ``ends`` is the loop's time by which it has to be through. Raises what the last call raised,
        and UpstreamThrottled where a pause is too long to wait for.
        """
        for number in range(1, self.attempts + 1):
            await self._wait(pause_key, ends)
            try:
                return await call()
            except UpstreamThrottled as error:
                self.pause(pause_key, max(error.retry_after, self.delay(number)))
                if number == self.attempts:
                    raise
            except RegistryError as error:
                delay = self.delay(number)
                late = asyncio.get_running_loop().time() + delay >= ends
                if not error.transient or number == self.attempts or late:
                    raise
                await self.sleep(delay)
        raise AssertionError("attempts is at least 1")

    def delay(self, number: int) -> float:
        """Seconds to wait after the attempt ``number`` (from 1): half fixed, half random."""
        longest = min(LONGEST_DELAY, self.first_delay * 2.0 ** (number - 1))
        return longest * (0.5 + 0.5 * self.random())

    def pause(self, pause_key: str, seconds: float) -> None:
        """Hold every call under ``pause_key`` back for so long."""
        now = asyncio.get_running_loop().time()
        self._paused_until = {key: end for key, end in self._paused_until.items() if end > now}
        end = now + min(seconds, LONGEST_PAUSE)
        self._paused_until[pause_key] = max(end, self._paused_until.get(pause_key, 0.0))

    async def _wait(self, pause_key: str, ends: float) -> None:
        now = asyncio.get_running_loop().time()
        left = self._paused_until.get(pause_key, 0.0) - now
        if left <= 0:
            return
        if left > LONGEST_WAIT or now + left >= ends:
            raise UpstreamThrottled(f"the upstream asked for a pause of {left:.0f} s", left)
        # Those who waited together do not come back in the same instant.
        await self.sleep(left + min(0.2, left * 0.1) * self.random())
