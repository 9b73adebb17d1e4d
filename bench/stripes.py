"""A blob larger than the dirty bound on one and on two disks of 125 MiB/s each (root).

Two stripes have to take it nearly twice as fast, and the pull's verdict has to name the disk.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.client import receive
from bench.disks import CannotThrottle, Throttle, disk, throttle, write_rate
from bench.measure import MB, MIB, Sample, WrongAnswer, compare
from bench.peers import Blob, Origin, headstart
from bench.report import Cell, Report, Rows, Wanted, compared, failures
from bench.setting import Setting
from tests.parts.mirror import Mirror
from tests.parts.nginx import Front

RATE = 125 * MIB


def bench(setting: Setting) -> Report:
    """One stripe and two in turns."""
    report = Report("stripes")
    size = setting.choose(1536 * MIB, 256 * MIB)
    # In memory, so that the disk below is not slower than the throttle.
    with setting.scratch(4 * size + 512 * MIB) as directory:
        try:
            with throttle(directory / "control") as control:
                _measure(setting, report, directory, control, size)
        except CannotThrottle as reason:
            report.notes.append(f"not measured: {reason}")
            report.wanted.append(Wanted("rate of two stripes / one", None, 1.8))
    return report


def _measure(
    setting: Setting, report: Report, directory: Path, control: Throttle, size: int
) -> None:
    report.notes.append(f"throttled by cgroup version {control.version}")
    with ExitStack() as stack:
        disks: list[tuple[Path, str]] = []
        for number in (1, 2):
            # A cache takes 80 % of its disk; what does not fit would pass through uncached.
            room = size * 3 // 2 + 256 * MIB
            made = stack.enter_context(disk(directory / f"disk-{number}", room))
            control.limit(made[1], RATE)
            stack.callback(control.limit, made[1], None)
            disks.append(made)
        if control.version == 1:
            rows: list[list[Cell]] = [
                [device, write_rate(place, 64 * MIB) / MB] for place, device in disks
            ]
            title = f"what the disks take, throttled to {RATE / MB:.0f} MB/s"
            report.tables.append(Rows(title, ["device", "MB/s"], rows))
        origin = stack.enter_context(Origin(directory / "origin"))
        blob, front = origin.add_sparse(size), origin.front()
        verdicts: list[str] = []
        numbers = iter(range(1_000_000))

        def pull(stripes: int) -> Sample:
            name = f"cache-{next(numbers)}"
            places = [place / name for place, _ in disks[:stripes]]
            with headstart(directory / name, front, stripes=places) as mirror:
                control.add(mirror.running.pid)
                sample = _pull(mirror, front, blob)
                verdicts.append(f"{stripes}: {verdict(mirror)}")
                return sample

        legs: dict[str, Callable[[], Sample]] = {
            "one stripe": partial(pull, 1),
            "two stripes": partial(pull, 2),
        }
        result = compare(legs, setting.rounds, setting.say)
    report.tables.append(compared(f"{size / MIB:.0f} MiB, cold", result, "one stripe"))
    report.notes += failures(result)
    report.notes += [f"verdict, stripes {line}" for line in verdicts[-2:]]
    report.wanted += [
        Wanted("rate of two stripes / one", result.rate_ratio("two stripes", "one stripe"), 1.8),
        Wanted(
            "pulls whose verdict says disk-bound",
            sum("disk-bound" in line for line in verdicts) if verdicts else None,
            len(verdicts),
        ),
    ]
    report.figures["verdicts"] = verdicts


def _pull(mirror: Mirror, front: Front, blob: Blob) -> Sample:
    received = receive(mirror.url + blob.target)
    if received.size != blob.size:
        raise WrongAnswer(f"{received.size} bytes of {blob.size}")
    return Sample(received.seconds, blob.size)


def verdict(mirror: Mirror, deadline: float = 15.0) -> str:
    """Verdict and evidence of the mirror's only pull, which has ended some seconds after it."""
    end = time.monotonic() + deadline
    while not (recent := mirror.ask("/pulls")["recent"]):
        if time.monotonic() > end:
            return "none: GET /pulls lists no pull that has ended"
        time.sleep(0.2)
    return f"{recent[0]['verdict']}: {recent[0]['evidence']}"
