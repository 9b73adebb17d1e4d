"""One of eight connections falls to 1 MB/s in the middle of a range: how much later is the end?

Between the filler and the upstream, which gives each connection the same rate, stands a relay that
slows one of them down, so that nothing but its own progress shows the filler what happens.
"""

import statistics
import time
from pathlib import Path

from bench.client import receive
from bench.measure import GIB, MB, MIB, WrongAnswer
from bench.peers import Origin
from bench.relay import Relay
from bench.report import Cell, Report, Rows, Wanted
from bench.setting import Setting
from tests.parts.mirror import Mirror, upstream_at

CONNECTIONS = 8
RATE = 25 * MB
SLOW = 1 * MB
UNDISTURBED, DISTURBED = "undisturbed", f"one connection at {SLOW // MB} MB/s"


def bench(setting: Setting) -> Report:
    """Pulls with and without a straggler in turns."""
    report = Report("straggler")
    size = setting.choose(GIB, 256 * MIB)
    expected = size / (CONNECTIONS * RATE)
    taken: dict[str, list[float]] = {UNDISTURBED: [], DISTURBED: []}
    fetched: dict[str, list[float]] = {name: [] for name in taken}
    with setting.scratch(2 * size) as directory, Origin(directory / "origin") as origin:
        blob, front = origin.add_sparse(size), origin.front(limit_rate=RATE)
        for number in range(setting.rounds):
            for name in taken:
                setting.say(f"{name} ({number + 1} of {setting.rounds})")
                front.clear()
                place = directory / f"mirror-{number}-{len(name)}"
                with Relay(front.port) as relay, _mirror(place, relay) as mirror:
                    if name == DISTURBED:
                        relay.slow_down(time.monotonic() + expected / 2, SLOW)
                    received = receive(mirror.url + blob.target)
                    if name == DISTURBED and not relay.restore():
                        report.notes.append(f"round {number + 1}: no connection was slowed down")
                if received.size != size:
                    raise WrongAnswer(f"{received.size} bytes of {size}")
                taken[name].append(received.seconds)
                # Cut requests are logged once nginx has noticed.
                time.sleep(0.5)
                sent = sum(access.body_bytes for access in front.accesses() if access.of_blob)
                fetched[name].append(sent / size)
    rows: list[list[Cell]] = [
        [
            name,
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            statistics.median(fetched[name]),
        ]
        for name, seconds in taken.items()
    ]
    title = f"{size / MIB:.0f} MiB, {CONNECTIONS} connections of {RATE // MB} MB/s"
    report.tables.append(Rows(title, ["", "s", "least", "most", "bytes sent / blob"], rows))
    before, after = (statistics.median(taken[name]) for name in (UNDISTURBED, DISTURBED))
    report.wanted.append(
        Wanted("delay by the straggler", after - before, 2.0, at_least=False, unit="s")
    )
    return report


def _mirror(place: Path, relay: Relay) -> Mirror:
    return Mirror(
        place,
        {relay.host: upstream_at(f"http://{relay.host}")},
        settings={"fetch": {"max_connections": CONNECTIONS}},
    )
