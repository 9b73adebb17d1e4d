"""How many ranges of 64 KiB a second a server answers from its cache, asked by wrk."""

import re
from dataclasses import dataclass
from pathlib import Path

from bench.measure import WrongAnswer
from tests.parts.processes import run

LENGTH = 64 * 1024
CONNECTIONS = 8
_SCRIPT = Path(__file__).with_name("ranges.lua")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class RangesRate:
    """Answers a second, and the seconds in which 99 of 100 came."""

    per_second: float
    p99: float


def small_ranges(url: str, size: int, seconds: int) -> RangesRate:
    """Ask for random ranges of the blob at ``url`` for so long. Raises :class:`WrongAnswer`."""
    completed = run(
        [
            *("wrk", "--threads", "1", "--connections", str(CONNECTIONS)),
            *("--duration", f"{seconds}s", "--latency", "--script", _SCRIPT),
            *(url, "--", str(size)),
        ],
        deadline=seconds + 30,
    )
    return parse(completed.stdout)


def parse(printed: str) -> RangesRate:
    """Read what wrk prints."""
    errors = re.search(r"^\s*(Non-2xx or 3xx responses|Socket errors).*", printed, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", printed, re.MULTILINE)
    p99 = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s|m)", printed, re.MULTILINE)
    transferred = re.search(r"^\s*(\d+) requests in", printed, re.MULTILINE)
    if errors is not None or rate is None or p99 is None or transferred is None:
        raise WrongAnswer(f"wrk: {errors[0].strip() if errors else printed}")
    return RangesRate(float(rate[1]), float(p99[1]) * _UNITS[p99[2]])
