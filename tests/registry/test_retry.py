"""Back-off, Retry-After, and pauses that callers share."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headstart.registry.errors import (
    UpstreamMissing,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.retry import LONGEST_PAUSE, Retry, parse_retry_after


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, None, None),
        ("7", None, 7.0),
        (" 0 ", None, 0.0),
        ("1000000000", None, LONGEST_PAUSE),
        ("9" * 400, None, LONGEST_PAUSE),
        ("-3", None, None),
        ("soon", None, None),
        ("1.5", None, None),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:10 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, LONGEST_PAUSE),
        ("Wed, 99 Oct 2015 99:99:99 GMT", None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_capped(
    value: str | None, date: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(value, date) == seconds


class Clockless:
    """A Retry whose sleeps are noted and not slept."""

    def __init__(self, attempts: int = 4) -> None:
        self.slept: list[float] = []
        self.retry = Retry(attempts=attempts, sleep=self._sleep, random=lambda: 1.0)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def run(self, call: Callable[[], Awaitable[str]], limit: float = 60.0) -> str:
        async def work() -> str:
            ends = asyncio.get_running_loop().time() + limit
            return await self.retry.run("", ends, call)

        return asyncio.run(work())


class Flaky:
    """Fails with the given errors, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_transient_errors_are_repeated_with_growing_delays() -> None:
    clockless = Clockless()
    flaky = Flaky(*(UpstreamUnavailable("down") for _ in range(3)))
    assert clockless.run(flaky) == "answer"
    assert clockless.slept == pytest.approx([0.2, 0.4, 0.8])


def test_attempts_are_bounded() -> None:
    flaky = Flaky(*(UpstreamUnavailable("down") for _ in range(9)))
    with pytest.raises(UpstreamUnavailable):
        Clockless(attempts=3).run(flaky)
    assert flaky.calls == 3


@pytest.mark.parametrize(
    "error", [UpstreamMissing("no"), UpstreamUnavailable("bad certificate", transient=False)]
)
def test_lasting_errors_are_not_repeated(error: Exception) -> None:
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        Clockless().run(flaky)
    assert flaky.calls == 1


def test_nothing_is_repeated_when_no_time_is_left() -> None:
    flaky = Flaky(UpstreamUnavailable("down"))
    with pytest.raises(UpstreamUnavailable):
        Clockless().run(flaky, limit=0.1)
    assert flaky.calls == 1


def test_delays_differ_between_callers() -> None:
    retry = Retry()
    delays = {retry.delay(3) for _ in range(20)}
    assert len(delays) > 10
    assert all(0.4 <= delay <= 0.8 for delay in delays)


def test_a_pause_is_waited_for_by_everybody_and_longer_ones_are_refused_at_once() -> None:
    async def work() -> list[float]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        retry = Retry(attempts=1, sleep=sleep, random=lambda: 0.0)
        ends = asyncio.get_running_loop().time() + 60
        retry.pause("", 20.0)
        await asyncio.gather(*(retry.run("", ends, Flaky()) for _ in range(3)))
        await retry.run("other", ends, Flaky())
        retry.pause("", 10**9)
        flaky = Flaky()
        with pytest.raises(UpstreamThrottled) as refusal:
            await retry.run("", ends, flaky)
        assert flaky.calls == 0
        assert 0 < refusal.value.retry_after <= LONGEST_PAUSE
        return slept

    slept = asyncio.run(work())
    assert len(slept) == 3
    assert all(19 < seconds <= 20 for seconds in slept)
