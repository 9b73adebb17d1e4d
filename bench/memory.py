"""Peak memory and descriptors of all processes while a large blob fills and 64 clients read it.

Each client reads its own part. The memory must not depend on the blob's size.
"""

import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.client import receive, together
from bench.measure import GIB, MB, MIB, WrongAnswer
from bench.peers import Blob, Origin, headstart
from bench.report import Report, Rows, Wanted
from bench.setting import Setting
from tests.parts.mirror import Mirror
from tests.parts.nginx import Front

CLIENTS = 64
LIMIT = 300 * MIB
IDLE = 40.0
"""Seconds that descriptors have to come back: idle connections are closed after 30 s."""


@dataclass(frozen=True, slots=True)
class _Filled:
    size: int
    seconds: float
    peak: int
    idle_peak: int
    descriptors: tuple[int, int, int]
    """Before, at most, and after."""


def bench(setting: Setting) -> Report:
    """A blob of 8 GiB and one of 1 GiB, each with a cache of its own."""
    report = Report("memory")
    large = setting.choose(8 * GIB, 256 * MIB)
    sizes = [large, large // 8]
    filled: list[_Filled] = []
    for size in sizes:
        with (
            setting.scratch(size + 64 * MIB) as directory,
            Origin(directory / "origin") as origin,
        ):
            setting.say(f"{CLIENTS} clients, {size / MIB:.0f} MiB")
            blob, small = origin.add_sparse(size), origin.add(MIB, seed=1)
            front = origin.front()
            filled.append(_fill(setting, directory, front, blob, small))
    report.tables.append(
        Rows(
            f"{CLIENTS} clients, each with its part of the blob",
            ["blob MiB", "MB/s", "peak MiB", "at start", "descriptors", "most", "after"],
            [
                [
                    f"{fill.size / MIB:.0f}",
                    fill.size / MB / fill.seconds,
                    fill.peak / MIB,
                    fill.idle_peak / MIB,
                    *fill.descriptors,
                ]
                for fill in filled
            ],
        )
    )
    report.wanted += [
        Wanted(
            f"peak memory, {fill.size / MIB:.0f} MiB", fill.peak / MIB, LIMIT / MIB, False, "MiB"
        )
        for fill in filled
    ]
    report.wanted.append(
        Wanted("peak memory, large / small blob", filled[0].peak / filled[1].peak, 1.1, False)
    )
    if setting.quick:
        report.notes.append("descriptors are not judged: idle connections stay for 30 s")
        return report
    report.wanted += [
        Wanted(
            f"descriptors left open, {fill.size / MIB:.0f} MiB",
            fill.descriptors[2] - fill.descriptors[0],
            0,
            False,
        )
        for fill in filled
    ]
    return report


def _fill(setting: Setting, directory: Path, front: Front, blob: Blob, small: Blob) -> _Filled:
    with headstart(directory / "mirror", front) as mirror:
        # The first pull opens what stays open: the index, the client of the control plane.
        receive(mirror.url + small.target)
        wait = 0.5 if setting.quick else IDLE
        before = _lowest(mirror, wait)
        idle_peak = mirror.running.peak_memory()
        part = blob.size // CLIENTS
        url = mirror.url + blob.target
        reads = [partial(receive, url, part * k, part * (k + 1)) for k in range(CLIENTS)]
        with _Descriptors(mirror) as most:
            seconds, received = together(reads)
        if [answer.size for answer in received] != [part] * CLIENTS:
            raise WrongAnswer(f"sizes {sorted({answer.size for answer in received})}")
        peak = mirror.running.peak_memory()
        after = _lowest(mirror, wait, before)
    return _Filled(blob.size, seconds, peak, idle_peak, (before, most.value, after))


def _lowest(mirror: Mirror, wait: float, enough: int = 0) -> int:
    """The fewest descriptors within ``wait`` seconds, at once when they are no more than enough."""
    deadline = time.monotonic() + wait
    least = mirror.running.descriptors()
    while least > enough and time.monotonic() < deadline:
        time.sleep(0.5)
        least = min(least, mirror.running.descriptors())
    return least


class _Descriptors:
    """The most descriptors that the mirror's processes had within the block."""

    def __init__(self, mirror: Mirror) -> None:
        self.value = 0
        self._mirror = mirror
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Descriptors":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.value = max(self.value, self._mirror.running.descriptors())
            if self._ended.wait(0.1):
                return
