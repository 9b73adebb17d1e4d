"""64 clients that want the same cold blob at once: what the upstream sees, and how long it takes.

With ranges of 32 MiB and no re-issues there is exactly one request for each range; with the
defaults hardly a byte is fetched twice.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.client import receive, together
from bench.measure import MB, MIB, WrongAnswer, settled_cpu
from bench.peers import Blob, Origin, headstart
from bench.report import Cell, Report, Rows, Wanted
from bench.setting import Setting
from tests.parts.nginx import Front

CLIENTS = 64
RANGE = 32 * MIB


@dataclass(frozen=True, slots=True)
class _Pulled:
    requests: int
    fetched: int
    seconds: float
    cpu: float
    peak: int


def bench(setting: Setting) -> Report:
    """Both settings, each with an empty cache in every round."""
    report = Report("many_clients")
    size = setting.choose(512 * MIB, 64 * MIB)
    clients = 8 if setting.quick else CLIENTS
    exact: Mapping[str, object] = {"request_size": "32MiB", "reissue": "disabled"}
    with setting.scratch(3 * size) as directory, Origin(directory / "origin") as origin:
        blob, front = origin.add(size), origin.front()
        rows: list[list[Cell]] = []
        taken: dict[str, list[_Pulled]] = {}
        for number in range(setting.rounds):
            for name, fetch, hashed in (
                ("32 MiB, no re-issues", exact, True),
                ("defaults", None, False),
            ):
                setting.say(f"{clients} clients, {name} ({number + 1} of {setting.rounds})")
                place = directory / f"mirror-{number}-{hashed}"
                pulled = _pull(place, front, blob, fetch, clients, hashed)
                taken.setdefault(name, []).append(pulled)
        for name, pulls in taken.items():
            seconds = statistics.median(pull.seconds for pull in pulls)
            rows.append(
                [
                    name,
                    max(pull.requests for pull in pulls),
                    max(pull.fetched for pull in pulls) / size,
                    seconds,
                    clients * size / MB / seconds,
                    statistics.median(pull.cpu for pull in pulls),
                    max(pull.peak for pull in pulls) / MIB,
                ]
            )
    report.tables.append(
        Rows(
            f"{clients} cold clients of one blob of {size / MIB:.0f} MiB",
            ["", "requests", "bytes fetched / blob", "s", "MB/s to all", "CPU s", "peak MiB"],
            rows,
        )
    )
    report.notes.append("the clients of the first setting check sha256, the others drop the bytes")
    strict, default = taken["32 MiB, no re-issues"], taken["defaults"]
    ranges = -(-size // RANGE)
    report.wanted += [
        Wanted("requests, 32 MiB, least of all rounds", min(p.requests for p in strict), ranges),
        Wanted("requests, 32 MiB", max(p.requests for p in strict), ranges, at_least=False),
        Wanted(
            "defaults, bytes fetched / blob",
            max(pull.fetched for pull in default) / size,
            1.02,
            at_least=False,
        ),
    ]
    return report


def _pull(
    place: Path,
    front: Front,
    blob: Blob,
    fetch: Mapping[str, object] | None,
    clients: int,
    hashed: bool,
) -> _Pulled:
    with headstart(place, front, fetch=fetch) as mirror:
        front.clear()
        before = settled_cpu(mirror.running)
        url = mirror.url + blob.target
        seconds, received = together([partial(receive, url, hashed=hashed)] * clients)
        cpu = settled_cpu(mirror.running) - before
        for answer in received:
            if answer.size != blob.size or answer.digest not in (None, blob.digest):
                raise WrongAnswer(f"{answer.size} bytes with digest {answer.digest}")
        # A line is written a moment after its last byte; the filler's own are the last to come.
        gets = [access for access in front.wait_for_accesses(1) if access.of_blob]
        fetched = sum(access.body_bytes for access in gets)
        return _Pulled(len(gets), fetched, seconds, cpu, mirror.running.peak_memory())
