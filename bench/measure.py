"""What the benchmarks measure: time, CPU seconds and memory of a server, medians over rounds.

Legs that are compared run in turns (A B A B …), so that a machine whose speed drifts shifts all of
them alike. MB and GB are powers of ten, sizes of memory powers of two.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.parts.processes import Process, ProcessFailed

MIB = 1 << 20
GIB = 1 << 30
MB = 1_000_000
GB = 1_000_000_000

IDLE_SHARE = 0.05
"""Of one core: a server that uses less is done with what it was asked for."""
_LOOK = 0.25


class WrongAnswer(Exception):
    """A server sent another status or another number of bytes than it had to."""


FAILURES = (WrongAnswer, ProcessFailed, OSError, ProcessLookupError)
"""What makes a leg of a comparison fail, while the others go on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One transfer of ``size`` bytes: ``cpu`` seconds and ``peak`` bytes of memory of the server.

    Both are None where no server of ours took part.
    """

    seconds: float
    size: int
    cpu: float | None = None
    peak: int | None = None

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.size / MB / self.seconds

    @property
    def cpu_per_gb(self) -> float | None:
        return None if self.cpu is None else self.cpu / (self.size / GB)


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians of samples, the slowest and the fastest of them; ``rate`` in MB/s."""

    rate: float
    slowest: float
    fastest: float
    seconds: float
    cpu_per_gb: float | None
    peak: int | None
    rounds: int

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Summary":
        """Summarise at least one sample; memory is the largest, not the median."""
        given = list(samples)
        rates = [sample.rate for sample in given]
        cpu = [sample.cpu_per_gb for sample in given if sample.cpu_per_gb is not None]
        peaks = [sample.peak for sample in given if sample.peak is not None]
        return cls(
            statistics.median(rates),
            min(rates),
            max(rates),
            statistics.median(sample.seconds for sample in given),
            statistics.median(cpu) if cpu else None,
            max(peaks) if peaks else None,
            len(given),
        )


@dataclass(slots=True)
class Comparison:
    """Summaries by the names of legs; a leg that failed has its reason instead."""

    legs: dict[str, Summary] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Median MB/s of a leg that did not fail."""
        return self.legs[name].rate if name in self.legs else None

    def rate_ratio(self, name: str, peer: str) -> float | None:
        """How many times as fast as ``peer``."""
        return ratio(self.rate(name), self.rate(peer))

    def cpu_ratio(self, name: str, peer: str) -> float | None:
        """How many times the CPU seconds of ``peer``."""
        if name not in self.legs or peer not in self.legs:
            return None
        return ratio(self.legs[name].cpu_per_gb, self.legs[peer].cpu_per_gb)


def compare(
    legs: Mapping[str, Callable[[], Sample]],
    rounds: int,
    announce: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run all legs in turns, ``rounds`` times; one that fails is left out from then on."""
    samples: dict[str, list[Sample]] = {name: [] for name in legs}
    compared = Comparison()
    for number in range(1, rounds + 1):
        for name, measure in legs.items():
            if name in compared.failures:
                continue
            announce(f"{name} ({number} of {rounds})")
            try:
                samples[name].append(measure())
            except FAILURES as error:
                compared.failures[name] = brief(error)
    compared.legs = {
        name: Summary.of(taken)
        for name, taken in samples.items()
        if taken and name not in compared.failures
    }
    return compared


def brief(error: Exception) -> str:
    """An error in one line: of a server's log the last one, which says why it ended."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1].strip()}"


def ratio(measured: float | None, peer: float | None) -> float | None:
    """``measured / peer``; None where one of them is missing or there is nothing to divide by."""
    return None if measured is None or not peer else measured / peer


def observe(server: Process, transfer: Callable[[], float], size: int) -> Sample:
    """Measure ``server`` during ``transfer``, which returns its seconds.

    CPU is counted from when the server is idle, which one that has just started is not, until it
    is idle again: some store what they have sent only afterwards.
    """
    before = settled_cpu(server)
    seconds = transfer()
    return Sample(seconds, size, settled_cpu(server) - before, server.peak_memory())


def settled_cpu(server: Process, deadline: float = 60.0) -> float:
    """CPU seconds of the server once it is idle; TimeoutError when it never is."""
    end = time.monotonic() + deadline
    used = server.cpu_seconds()
    while True:
        looked = time.monotonic()
        time.sleep(_LOOK)
        now = server.cpu_seconds()
        # A tick of the accounting is 10 ms: one alone is within the share.
        if now - used <= IDLE_SHARE * (time.monotonic() - looked):
            return now
        used = now
        if time.monotonic() > end:
            raise TimeoutError(f"{server.name} is not idle {deadline:g} s after its work")


def observe_command(command: Callable[[], float], size: int) -> Sample:
    """Measure a client that ``command`` runs to its end; its own CPU seconds are counted."""
    before = _children()
    seconds = command()
    return Sample(seconds, size, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
