"""Samples, medians, ratios; what is counted of a server and until when."""

import sys
from pathlib import Path

import pytest

from bench.measure import (
    GB,
    MB,
    Comparison,
    Sample,
    Summary,
    WrongAnswer,
    brief,
    compare,
    observe,
    observe_command,
    ratio,
)
from tests.parts.processes import Process, run

_BUSY_AFTERWARDS = """
import pathlib, sys, time
wanted = pathlib.Path(sys.argv[1])
def work():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
work()
while not wanted.exists():
    time.sleep(0.01)
work()
time.sleep(60)
"""


def test_a_sample_knows_its_rate_and_its_cpu_for_a_gigabyte() -> None:
    sample = Sample(2.0, 500 * MB, cpu=0.25, peak=1)
    assert sample.rate == 250
    assert sample.cpu_per_gb == 0.5
    assert Sample(2.0, GB).cpu_per_gb is None


def test_a_summary_has_medians_and_the_largest_memory() -> None:
    samples = [Sample(seconds, 100 * MB, seconds, int(seconds)) for seconds in (1, 2, 5)]
    summary = Summary.of(samples)
    assert (summary.rate, summary.slowest, summary.fastest) == (50, 20, 100)
    assert (summary.seconds, summary.cpu_per_gb, summary.peak, summary.rounds) == (2, 20, 5, 3)


def test_legs_run_in_turns_and_one_that_fails_is_left_out_with_its_reason() -> None:
    order: list[str] = []

    def leg(name: str) -> Sample:
        order.append(name)
        if name == "b" and order.count("b") == 2:
            raise WrongAnswer("404")
        return Sample(1.0, MB)

    said: list[str] = []
    legs = {"a": lambda: leg("a"), "b": lambda: leg("b")}
    result = compare(legs, 3, said.append)
    assert order == ["a", "b", "a", "b", "a"]
    assert result.failures == {"b": "404"}
    assert set(result.legs) == {"a"}
    assert said[:2] == ["a (1 of 3)", "b (1 of 3)"]


def test_ratios_are_none_where_something_is_missing() -> None:
    result = Comparison({"a": Summary.of([Sample(1.0, MB, 0.5)])}, {"b": "failed"})
    assert result.rate_ratio("a", "a") == 1
    assert result.rate_ratio("a", "b") is None
    assert result.cpu_ratio("b", "a") is None
    assert ratio(1.0, 0.0) is None


def test_an_error_becomes_one_line_that_says_why() -> None:
    assert brief(WrongAnswer("x ended with status 1:\nsome log\nthe reason")) == (
        "x ended with status 1: the reason"
    )


def test_cpu_is_counted_from_idle_to_idle(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    (tmp_path / "busy.py").write_text(_BUSY_AFTERWARDS)
    server = Process([sys.executable, tmp_path / "busy.py", wanted], tmp_path / "log")

    def transfer() -> float:
        wanted.touch()
        return 0.1

    try:
        sample = observe(server, transfer, MB)
    finally:
        server.stop()
    assert sample.cpu is not None
    assert 0.4 < sample.cpu < 0.9
    assert sample.peak is not None
    assert sample.peak > 0


def test_cpu_of_a_command_is_its_own(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    command = [sys.executable, "-c", busy]
    sample = observe_command(lambda: run(command).seconds, MB)
    assert sample.cpu is not None
    assert 0.25 < sample.cpu < 2.0


def test_a_mistake_in_a_benchmark_is_no_failed_leg() -> None:
    def broken() -> Sample:
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        compare({"a": broken}, 1)
