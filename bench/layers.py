"""A giant layer beside ten small ones, pulled at once: are all connections busy until the end?

From the filler's own trace, drawn as a chart: one line a connection, one colour a layer.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import trace
from bench.client import receive, together
from bench.measure import GIB, MB, MIB, WrongAnswer
from bench.peers import Blob, Origin, headstart
from bench.report import Cell, Report, Rows, Wanted
from bench.setting import Setting

CONNECTIONS = 8
SMALL = 10
LIMIT = 30 * MB
"""Bytes a second of each connection: the network is what the layers have to share."""


def bench(setting: Setting) -> Report:
    """One pull in each round; the chart is of the one with the median share."""
    report = Report("layers")
    size = setting.choose(GIB, 320 * MIB)
    small_size = size // 64
    shares: list[tuple[float, list[trace.Event]]] = []
    rows: list[list[Cell]] = []
    with (
        setting.scratch(2 * size + 3 * SMALL * small_size) as directory,
        Origin(directory / "origin") as origin,
    ):
        giant = origin.add_sparse(size)
        blobs = [giant, *(origin.add(small_size, seed) for seed in range(1, SMALL + 1))]
        front = origin.front(limit_rate=LIMIT)
        for number in range(1, setting.rounds + 1):
            setting.say(f"{len(blobs)} layers at once ({number} of {setting.rounds})")
            file = directory / f"trace-{number}"
            mirror = headstart(
                directory / f"mirror-{number}",
                front,
                fetch={"max_connections": CONNECTIONS},
                environment={trace.VARIABLE: str(file)},
            )
            with mirror:
                urls = [mirror.url + blob.target for blob in blobs]
                seconds, received = together([partial(receive, url) for url in urls])
                if [answer.size for answer in received] != [blob.size for blob in blobs]:
                    raise WrongAnswer(f"sizes {[answer.size for answer in received]}")
                events = _settled(file)
            share = trace.busy_share(events)
            total = sum(blob.size for blob in blobs)
            rows.append([str(number), share, seconds, total / MB / seconds, len(events)])
            if share is None:
                report.notes.append(f"round {number}: no range ever waited for a connection")
            else:
                shares.append((share, events))
    shares.sort(key=lambda pair: pair[0])
    report.tables.append(
        Rows(
            f"a layer of {size / MIB:.0f} MiB beside {SMALL} of {small_size / MIB:.0f} MiB, "
            f"{CONNECTIONS} connections of {LIMIT // MB} MB/s",
            ["round", "busy share", "s", "MB/s", "events"],
            rows,
        )
    )
    middle = shares[len(shares) // 2] if shares else None
    report.wanted.append(
        Wanted(
            "connections busy until the last range is handed out",
            middle[0] if middle else None,
            0.95,
        )
    )
    if middle is not None:
        plot(setting.results / "layers.png", middle[1], blobs)
    return report


def plot(file: Path, events: Sequence[trace.Event], blobs: Sequence[Blob]) -> None:
    """Draw who used which connection when, with a line at the last hand-out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colormaps, pyplot

    colours = {blob.digest: colormaps["tab20"](number % 20) for number, blob in enumerate(blobs)}
    names = {blob.digest: f"small {number}" for number, blob in enumerate(blobs)}
    names[blobs[0].digest] = "giant"
    lines = {name: place for place, name in enumerate(sorted({e.connection for e in events}))}
    figure, axis = pyplot.subplots(figsize=(11, 1.6 + 0.4 * len(lines)), layout="constrained")
    first = events[0].at
    drawn: set[str] = set()
    for span in trace.spans(events):
        label = names.get(span.digest, span.digest[:15])
        axis.barh(
            lines[span.connection],
            span.ended - span.begun,
            left=span.begun - first,
            color=colours.get(span.digest, "grey"),
            edgecolor="white",
            linewidth=0.5,
            label=f"_{label}" if label in drawn else label,
        )
        drawn.add(label)
    until = trace.last_handed_out(events)
    if until is not None:
        axis.axvline(until - first, color="black", linestyle="--", label="last range handed out")
    axis.set_yticks(list(lines.values()), [str(name) for name in lines])
    axis.set_xlabel("s")
    axis.set_ylabel("connection")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _settled(file: Path) -> list[trace.Event]:
    """The trace once every range that started has ended: the last line follows the last byte."""
    deadline = time.monotonic() + 5
    while True:
        events = trace.read(file)
        open_ranges = sum(1 if event.starts else -1 for event in events)
        if (events and open_ranges <= 0) or time.monotonic() > deadline:
            return events
        time.sleep(0.05)
