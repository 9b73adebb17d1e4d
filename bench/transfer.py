"""The bytes' way in alone: one blob by eight connections to a file in memory, by several clients.

This is the table that the choice of libcurl rests on, measured again: plain HTTP and TLS, curl's
own command beside what Python can use, and the filler's source with its hashing and its map.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.measure import GIB, MIB, Comparison, Sample, compare, observe_command
from bench.peers import Blob, Origin
from bench.report import Report, Wanted, compared, failures, plot_bars
from bench.setting import Setting
from bench.transfer_clients import CLIENTS, RANGE
from tests.parts.curl import fetch_ranges
from tests.parts.nginx import Front
from tests.parts.processes import run

CONNECTIONS = 8
CURL = "curl -Z"
FILLER = "the filler's source"


def bench(setting: Setting) -> Report:
    """Plain and TLS."""
    report = Report("transfer")
    size = setting.choose(2 * GIB, 128 * MIB)
    bars: dict[str, dict[str, float]] = {}
    with setting.scratch(4 * size) as directory, Origin(directory / "origin", tls=True) as origin:
        blob = origin.add(size)
        for name, tls in (("plain", False), ("TLS", True)):
            front = origin.front(tls=tls)
            result = _compare(setting, name, directory, front, blob, origin.ca_file)
            report.notes += failures(result)
            title = (
                f"{size / MIB:.0f} MiB over {name}, {CONNECTIONS} connections; CPU of the client"
            )
            report.tables.append(compared(title, result, CURL))
            report.wanted.append(
                Wanted(f"{name}, MB/s of {FILLER} / {CURL}", result.rate_ratio(FILLER, CURL), 0.9)
            )
            bars[f"{name}, MB/s"] = {leg: made.rate for leg, made in result.legs.items()}
    plot_bars(setting.results / "transfer.png", "the bytes' way in", bars, "MB/s")
    return report


def _compare(
    setting: Setting, name: str, directory: Path, front: Front, blob: Blob, ca_file: Path
) -> Comparison:
    place = directory / "fetched"
    url = front.url + blob.target
    legs: dict[str, Callable[[], Sample]] = {
        CURL: partial(_emptied, place, partial(_curl, url, blob.size, place, ca_file)),
        **{
            client: partial(
                _emptied, place, partial(_client, client, url, blob.size, place, ca_file)
            )
            for client in CLIENTS
        },
    }
    return compare(legs, setting.rounds, lambda text: setting.say(f"{name}: {text}"))


def _emptied(place: Path, measure: Callable[[], Sample]) -> Sample:
    """Measure with an empty directory ``place``, emptied again afterwards."""
    place.mkdir()
    try:
        return measure()
    finally:
        shutil.rmtree(place)


def _curl(url: str, size: int, place: Path, ca_file: Path) -> Sample:
    ranges = [(start, min(start + RANGE, size)) for start in range(0, size, RANGE)]

    def fetch() -> float:
        completed = fetch_ranges(
            url, ranges, connections=CONNECTIONS, directory=place, ca_file=ca_file, deadline=600
        )
        return completed.seconds

    return observe_command(fetch, size)


def _client(client: str, url: str, size: int, place: Path, ca_file: Path) -> Sample:
    file = place / "blob"
    with file.open("wb") as made:
        made.truncate(size)
    arguments: list[str | Path] = [client, url, str(size), str(CONNECTIONS), file]
    if url.startswith("https:"):
        arguments.append(ca_file)
    completed = run([sys.executable, "-m", "bench.transfer_clients", *arguments], deadline=600)
    figures = json.loads(completed.stdout)
    return Sample(figures["seconds"], size, figures["cpu"], figures["peak"])
