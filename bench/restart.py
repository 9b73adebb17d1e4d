"""Ready again after a restart, with few and with many blobs; bytes fetched twice after SIGKILL.

Each process is killed in the middle of a fill; the client asks again for the whole blob, and what
the upstream has sent in the end is compared with the blob's size.
"""

import os
import random
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from bench.client import Received, receive
from bench.measure import FAILURES, GIB, MB, MIB, WrongAnswer
from bench.peers import REPOSITORY, Blob, Origin, headstart
from bench.report import Report, Rows, Wanted
from bench.setting import Setting
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front

MANY = 10_000
SMALL = 4096
CONNECTIONS = 8
LIMIT = 25 * MB
READY = 3.0
LAUNCHER, MIRROR, FILLER = "launcher", "proxy.mirror", "proxy.fill.process"
_PULLING = 8


def bench(setting: Setting) -> Report:
    """First the starts, then the kills."""
    report = Report("restart")
    _starts(setting, report)
    _kills(setting, report)
    return report


# --- starts ---


def _starts(setting: Setting, report: Report) -> None:
    many = 200 if setting.quick else MANY
    medians: dict[int, float] = {}
    rows: list[list[str | float]] = []
    with setting.scratch(many * 64 * 1024) as directory, ScriptedUpstream() as upstream:
        contents = random.Random(0)
        digests = [upstream.add_blob(REPOSITORY, contents.randbytes(SMALL)) for _ in range(many)]
        for count in (1, many):
            setting.say(f"filling a cache with {count} blobs")
            place = directory / f"mirror-{count}"
            with Mirror(place, {upstream.host: upstream_at(upstream.url)}) as mirror:
                _pull_all(mirror, digests[:count])
                seconds: list[float] = []
                for _ in range(setting.rounds):
                    mirror.stop()
                    begun = time.monotonic()
                    mirror.start()
                    seconds.append(time.monotonic() - begun)
                upstream.forget_requests()
                _pull_all(mirror, digests[: count : max(1, count // 100)])
                asked = len(upstream.blob_requests())
                if asked:
                    report.notes.append(
                        f"{count} blobs: {asked} were fetched again after a restart"
                    )
            medians[count] = statistics.median(seconds)
            rows.append([str(count), medians[count], min(seconds), max(seconds)])
    report.tables.append(
        Rows("ready after a restart", ["blobs in the cache", "s", "least", "most"], rows)
    )
    report.wanted += [
        Wanted(f"ready after a restart, {many} blobs", medians[many], READY, False, "s"),
        Wanted(f"ready, {many} blobs / 1 blob", medians[many] / medians[1], 1.2, False),
    ]


def _pull_all(mirror: Mirror, digests: list[str]) -> None:
    urls = [f"{mirror.url}/v2/{REPOSITORY}/blobs/{digest}" for digest in digests]
    with ThreadPoolExecutor(_PULLING) as threads:
        for received in threads.map(receive, urls):
            if received.size != SMALL:
                raise WrongAnswer(f"{received.size} bytes of {SMALL}")


# --- kills ---


@dataclass(frozen=True, slots=True)
class _Killed:
    ready: float
    seconds: float
    twice: float


def _kills(setting: Setting, report: Report) -> None:
    size = setting.choose(GIB, 128 * MIB)
    rounds = min(setting.rounds, 3)
    rows: list[list[str | float]] = []
    with setting.scratch(2 * size) as directory, Origin(directory / "origin") as origin:
        blob, front = origin.add(size), origin.front(limit_rate=LIMIT)
        for name in (LAUNCHER, MIRROR, FILLER):
            killed: list[_Killed] = []
            for number in range(rounds):
                setting.say(f"SIGKILL of {name} ({number + 1} of {rounds})")
                front.clear()
                place = directory / f"mirror-{name}-{number}"
                fetch = {"max_connections": CONNECTIONS}
                with headstart(place, front, fetch=fetch) as mirror:
                    killed.append(_kill(mirror, front, blob, name))
            ready = statistics.median(kill.ready for kill in killed)
            twice = max(kill.twice for kill in killed)
            rows.append([name, ready, statistics.median(k.seconds for k in killed), 100 * twice])
            report.wanted += [
                Wanted(f"ready after SIGKILL of {name}", ready, READY, False, "s"),
                Wanted(f"fetched twice, SIGKILL of {name}, worst", 100 * twice, 5, False, "%"),
            ]
    title = (
        f"SIGKILL in the middle of {size / MIB:.0f} MiB, "
        f"{CONNECTIONS} connections of {LIMIT // MB} MB/s"
    )
    report.tables.append(Rows(title, ["process", "ready s", "pull s", "fetched twice %"], rows))


def _kill(mirror: Mirror, front: Front, blob: Blob, name: str) -> _Killed:
    url = mirror.url + blob.target
    with ThreadPoolExecutor(1) as threads:
        begun = time.monotonic()
        pulling = threads.submit(partial(receive, url, hashed=True))
        time.sleep(blob.size / (CONNECTIONS * LIMIT) / 2)
        ready = _restart(mirror, name)
        try:
            received = pulling.result()
        except FAILURES:
            received = receive(url, hashed=True)
        seconds = time.monotonic() - begun
    _check(received, blob)
    # Cut requests are logged once nginx has noticed.
    time.sleep(1.0)
    sent = sum(access.body_bytes for access in front.accesses() if access.of_blob)
    return _Killed(ready, seconds, (sent - blob.size) / blob.size)


def _restart(mirror: Mirror, name: str) -> float:
    """SIGKILL the process; seconds until its successor is ready."""
    if name == LAUNCHER:
        mirror.running.signal(signal.SIGKILL)
        # As a service manager would: after what is left of it is gone.
        mirror.stop()
        begun = time.monotonic()
        mirror.start()
        return time.monotonic() - begun
    old = mirror.process_id(name)
    begun = time.monotonic()
    os.kill(old, signal.SIGKILL)
    while not (_replaced(mirror, name, old) and mirror.ready()):
        if time.monotonic() - begun > 30:
            raise TimeoutError(f"{name} was not restarted within 30 s")
        time.sleep(0.01)
    return time.monotonic() - begun


def _replaced(mirror: Mirror, name: str, old: int) -> bool:
    try:
        return mirror.process_id(name) != old
    except ProcessLookupError:
        return False


def _check(received: Received, blob: Blob) -> None:
    if received.digest != blob.digest:
        raise WrongAnswer(f"the pull ended with {received.digest}, not {blob.digest}")
