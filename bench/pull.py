"""One large blob, warm and cold, over plain HTTP and TLS: Headstart beside what else there is.

Warm pulls are measured against nginx's sendfile of the same bytes, cold ones against
docker-registry in proxy mode and nginx with proxy_cache and slice, each with an empty cache every
time. The client is curl; its CPU counts where there is no server between it and the upstream.
"""

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.client import receive
from bench.measure import (
    FAILURES,
    GB,
    GIB,
    MB,
    MIB,
    Comparison,
    Sample,
    WrongAnswer,
    brief,
    compare,
    observe,
    observe_command,
    ratio,
)
from bench.peers import Blob, Origin, ProxyRegistry, headstart, sliced_cache
from bench.report import Report, Rows, Wanted, compared, failures, plot_bars
from bench.setting import Setting
from bench.small_ranges import RangesRate, small_ranges
from tests.parts.curl import fetch, fetch_ranges
from tests.parts.nginx import Files, Front
from tests.parts.server import TcpServer

LIMIT = 60 * MB
"""Bytes a second of one connection to the limited upstream."""
RANGE = 32 * MIB
DEADLINE = 600.0
MIRROR, REGISTRY, SLICE = "headstart", "docker-registry proxy", "nginx slice"
SENDFILE, DIRECT = "nginx sendfile", "direct (curl)"

MakeServer = Callable[[Path], TcpServer]


def bench(setting: Setting) -> Report:
    """Run all of it; a stranger's machine takes about a quarter of an hour."""
    report = Report("pull")
    size = setting.choose(2 * GIB, 64 * MIB)
    bars: dict[str, Mapping[str, float]] = {}
    with setting.scratch(6 * size) as directory, Origin(directory / "origin", tls=True) as origin:
        setting.say(f"making a blob of {size / MIB:.0f} MiB")
        run = _Run(setting, report, directory, origin, origin.add(size))
        bars["warm, MB/s"] = run.warm()
        bars["cold, MB/s"] = run.cold("plain")
        bars["cold over TLS, MB/s"] = run.cold("TLS")
        for connections in (8,) if setting.quick else (8, 16):
            name = f"cold, {connections} connections of {LIMIT // MB} MB/s, MB/s"
            bars[name] = run.limited(connections)
    plot_bars(setting.results / "pull.png", f"a blob of {size / GB:.2f} GB", bars, "MB/s")
    report.figures["size"] = size
    return report


class _Run:
    def __init__(
        self, setting: Setting, report: Report, directory: Path, origin: Origin, blob: Blob
    ) -> None:
        self._setting = setting
        self._report = report
        self._directory = directory
        self._origin = origin
        self._blob = blob
        self._made = 0

    # --- warm ---

    def warm(self) -> Mapping[str, float]:
        """Everything from caches that have all of it."""
        front = self._origin.front()
        with ExitStack() as stack:
            # The registry last: it has to have stored everything, which it does afterwards.
            servers: dict[str, TcpServer] = {
                SENDFILE: Files(self._fresh(), self._origin.file(self._blob).parent),
                MIRROR: headstart(self._fresh(), front),
                SLICE: sliced_cache(self._fresh(), front),
                REGISTRY: ProxyRegistry(self._fresh(), front.url),
            }
            urls: dict[str, str] = {}
            for name, server in servers.items():
                url = f"{server.url}/data" if name == SENDFILE else server.url + self._blob.target
                try:
                    stack.enter_context(server)
                    observe(server.running, partial(self._curl, url), self._blob.size)
                    urls[name] = url
                except FAILURES as error:
                    self._report.notes.append(f"warm, {name}: {brief(error)}")
            front.clear()
            legs: dict[str, Callable[[], Sample]] = {}
            for name, url in urls.items():
                running = servers[name].running
                for client, transfer in (("", self._curl), (", dropped", self._drop)):
                    legs[f"{name}{client}"] = partial(
                        observe, running, partial(transfer, url), self._blob.size
                    )
            result = self._compare("warm", legs)
            self._report.tables.append(compared("warm", result, SENDFILE))
            self._report.notes.append(
                "warm: 'dropped' is a client that does not copy what it receives, "
                "so that the server is the limit"
            )
            ranges = self._small_ranges(urls)
            asked = sum(access.of_blob for access in front.accesses())
            self._report.notes.append(f"warm: blob requests that reached the upstream: {asked}")
        self._report.wanted += [
            Wanted(
                "warm, MB/s of headstart / nginx sendfile",
                result.rate_ratio(MIRROR, SENDFILE),
                0.9,
            ),
            Wanted(
                "warm, CPU of headstart / nginx sendfile",
                result.cpu_ratio(MIRROR, SENDFILE),
                1.1,
                at_least=False,
            ),
            Wanted(
                "warm, MB/s of headstart / nginx sendfile, client drops the bytes",
                result.rate_ratio(f"{MIRROR}, dropped", f"{SENDFILE}, dropped"),
                0.9,
            ),
            Wanted(
                "warm, ranges of 64 KiB a second, headstart / docker-registry",
                ratio(ranges.get(MIRROR), ranges.get(REGISTRY)),
                20,
            ),
        ]
        return _rates(result)

    def _small_ranges(self, urls: Mapping[str, str]) -> Mapping[str, float]:
        seconds = 1 if self._setting.quick else 3
        taken: dict[str, list[RangesRate]] = {name: [] for name in urls}
        for number in range(self._setting.rounds):
            for name, url in urls.items():
                self._setting.say(f"64 KiB ranges: {name} ({number + 1})")
                try:
                    taken[name].append(small_ranges(url, self._blob.size, seconds))
                except FAILURES as error:
                    self._report.notes.append(f"64 KiB ranges of {name}: {brief(error)}")
        medians = {
            name: statistics.median(rate.per_second for rate in rates)
            for name, rates in taken.items()
            if rates
        }
        slow = medians.get(REGISTRY)
        self._report.tables.append(
            Rows(
                f"warm, ranges of 64 KiB by wrk, 8 connections; ratios to {REGISTRY}",
                ["", "ranges/s", "p99 ms", "ratio"],
                [
                    [
                        name,
                        median,
                        statistics.median(rate.p99 * 1000 for rate in taken[name]),
                        ratio(median, slow),
                    ]
                    for name, median in medians.items()
                ],
            )
        )
        return medians

    # --- cold ---

    def cold(self, scheme: str) -> Mapping[str, float]:
        """Empty caches, an upstream as fast as the machine."""
        tls = scheme == "TLS"
        front = self._origin.front(tls=tls)
        ca_file = self._origin.ca_file if tls else None
        parallel = f"curl, {_CONNECTIONS} ranges at once"
        legs = {
            DIRECT: lambda: self._direct(front, ca_file),
            parallel: lambda: self._direct_ranges(front, _CONNECTIONS, ca_file),
            **self._cold_legs(front, ca_file, None, self._blob),
        }
        result = self._compare(f"cold, {scheme}", legs)
        self._report.tables.append(compared(f"cold, {scheme} upstream", result, DIRECT))
        for peer in (REGISTRY, SLICE):
            self._report.wanted.append(
                Wanted(
                    f"cold, {scheme}, MB/s of headstart / {peer}",
                    result.rate_ratio(MIRROR, peer),
                    1.0,
                )
            )
        if tls:
            self._report.wanted.append(
                Wanted(
                    f"cold, TLS, MB/s of headstart / curl with {_CONNECTIONS} connections",
                    result.rate_ratio(MIRROR, parallel),
                    0.9,
                )
            )
        return _rates(result)

    def limited(self, connections: int) -> Mapping[str, float]:
        """Empty caches, an upstream that gives each connection so much and no more."""
        front = self._origin.front(limit_rate=LIMIT)
        parallel = f"curl, {connections} ranges at once"
        fetch_keys = {"max_connections": connections}
        legs: dict[str, Callable[[], Sample]] = {
            parallel: lambda: self._direct_ranges(front, connections, None)
        }
        cold = self._cold_legs(front, None, fetch_keys, self._blob)
        legs[MIRROR] = cold[MIRROR]
        result = self._compare(f"cold, limited, {connections} connections", legs)
        title = f"cold, upstream at {LIMIT // MB} MB/s a connection, {connections} connections"
        # What one connection carries needs no large blob to be known.
        if connections == 8:
            small = self._origin.add(max(self._blob.size // 4, 16 * MIB), seed=1)
            peers = self._cold_legs(front, None, None, small)
            del peers[MIRROR]
            beside = self._compare("cold, limited, peers", peers)
            result.legs |= beside.legs
            result.failures |= beside.failures
            self._report.notes.append(
                f"cold, limited: the peers pull {small.size / MIB:.0f} MiB, on one connection"
            )
            for peer in (REGISTRY, SLICE):
                self._report.wanted.append(
                    Wanted(
                        f"cold, limited, MB/s of headstart / {peer}",
                        result.rate_ratio(MIRROR, peer),
                        5,
                    )
                )
        self._report.tables.append(compared(title, result, parallel))
        given = result.rate(parallel)
        limit = connections * LIMIT / MB
        bound = limit if given is None else min(limit, given)
        what = "the machine's" if bound < limit else "the connections'"
        self._report.wanted.append(
            Wanted(
                f"cold, limited, {connections} connections, of {what} {bound:.0f} MB/s",
                ratio(result.rate(MIRROR), bound),
                0.9,
            )
        )
        return _rates(result)

    def _cold_legs(
        self,
        front: Front,
        ca_file: Path | None,
        fetch_keys: Mapping[str, object] | None,
        blob: Blob,
    ) -> dict[str, Callable[[], Sample]]:
        makers: dict[str, MakeServer] = {
            MIRROR: lambda place: headstart(place, front, ca_file=ca_file, fetch=fetch_keys),
            REGISTRY: lambda place: ProxyRegistry(place, front.url, ca_file),
            SLICE: lambda place: sliced_cache(place, front, ca_file),
        }
        return {name: partial(self._cold_pull, make, blob) for name, make in makers.items()}

    def _cold_pull(self, make: MakeServer, blob: Blob) -> Sample:
        with self._emptied() as place, make(place) as server:
            url = server.url + blob.target
            return observe(server.running, lambda: self._curl(url, size=blob.size), blob.size)

    # --- the clients ---

    def _direct(self, front: Front, ca_file: Path | None) -> Sample:
        url = front.url + self._blob.target
        return observe_command(lambda: self._curl(url, ca_file), self._blob.size)

    def _direct_ranges(self, front: Front, connections: int, ca_file: Path | None) -> Sample:
        size = self._blob.size
        # A small blob still has a range for every connection.
        step = min(RANGE, max(MIB, size // connections))
        ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
        url = front.url + self._blob.target
        return observe_command(
            lambda: (
                fetch_ranges(
                    url, ranges, connections=connections, ca_file=ca_file, deadline=DEADLINE
                ).seconds
            ),
            size,
        )

    def _curl(self, url: str, ca_file: Path | None = None, size: int | None = None) -> float:
        fetched = fetch(url, ca_file=ca_file, deadline=DEADLINE)
        if fetched.status != 200 or fetched.size != (size or self._blob.size):
            raise WrongAnswer(f"GET {url}: status {fetched.status}, {fetched.size} bytes")
        return fetched.seconds

    def _drop(self, url: str) -> float:
        received = receive(url)
        if received.size != self._blob.size:
            raise WrongAnswer(f"GET {url}: {received.size} bytes")
        return received.seconds

    # --- the rest ---

    def _compare(self, what: str, legs: Mapping[str, Callable[[], Sample]]) -> Comparison:
        rounds = self._setting.rounds
        result = compare(legs, rounds, lambda text: self._setting.say(f"{what}: {text}"))
        self._report.notes += [f"{what}: {line}" for line in failures(result)]
        return result

    def _fresh(self) -> Path:
        self._made += 1
        return self._directory / f"peer-{self._made}"

    @contextmanager
    def _emptied(self) -> Iterator[Path]:
        place = self._fresh()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


_CONNECTIONS = 8


def _rates(result: Comparison) -> Mapping[str, float]:
    return {name: leg.rate for name, leg in result.legs.items()}
