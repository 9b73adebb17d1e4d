"""What Prometheus scrapes; every name has its unit, every counter counts from a process's start."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from headstart import __version__
from proxy.control.figures import Figures, UpstreamFigures
from proxy.control.pulls import PullBook
from proxy.control.verdict import VERDICTS
from proxy.warm.job import STATES
from proxy.warm.jobs import WarmJobs

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(
    figures: Figures | None,
    book: PullBook,
    jobs: WarmJobs,
    requests: Mapping[tuple[str, str], int],
) -> bytes:
    """The text format; without ``figures`` (the filler is away) only this process's own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot([*_own(book, jobs, requests), *_filler(figures)]))
    return generate_latest(registry)


class _Snapshot(Collector):
    """Metrics that were put together beforehand."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> list[Metric]:
        """The metrics."""
        return self._metrics


def _own(
    book: PullBook, jobs: WarmJobs, requests: Mapping[tuple[str, str], int]
) -> Iterator[Metric]:
    build = GaugeMetricFamily("headstart_build_info", "The version that runs.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    yield _counter(
        "headstart_requests",
        "Requests that were answered, by what was asked for and class of status.",
        ["kind", "status"],
        {key: float(count) for key, count in requests.items()},
    )
    hit, missed = book.sent_bytes
    yield _counter(
        "headstart_sent_bytes",
        "Bytes of blobs that went to clients, by whether they were in the cache.",
        ["cache"],
        {("hit",): hit, ("miss",): missed},
    )
    yield _counter(
        "headstart_pulls",
        "Pulls that have ended, by what held them up.",
        ["verdict"],
        _all_words(VERDICTS, book.by_verdict),
    )
    yield _gauge(
        "headstart_warm_jobs",
        "Warm jobs that are known, by state.",
        ["state"],
        _all_words(STATES, jobs.by_state()),
    )
    yield CounterMetricFamily(
        "headstart_mirror_cpu_seconds",
        "Processor time of the mirror process.",
        value=time.process_time(),
    )
    yield GaugeMetricFamily(
        "headstart_running_pulls", "Pulls that have not ended.", value=book.running
    )


def _all_words(words: Iterable[str], counts: Counter[str]) -> dict[tuple[str, ...], float]:
    return {(word,): counts[word] for word in words}


def _filler(figures: Figures | None) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "headstart_filler_up", "Whether the filler answers.", value=float(figures is not None)
    )
    if figures is None:
        return
    yield from _filler_totals(figures)
    yield from _upstreams(figures)
    yield from _stripes(figures)


def _filler_totals(figures: Figures) -> Iterator[Metric]:
    counters: list[tuple[str, str, float]] = [
        ("received_bytes", "Bytes of blobs from all upstreams.", figures.received),
        ("hashed_bytes", "Bytes that went through the digest of a whole blob.", figures.hashed),
        ("cpu_seconds", "Processor time of the filler process.", figures.cpu_seconds),
    ]
    for name, help_text, value in counters:
        yield CounterMetricFamily(f"headstart_filler_{name}", help_text, value=value)
    yield GaugeMetricFamily(
        "headstart_filler_uptime_seconds",
        "Seconds since the filler's start.",
        value=figures.uptime_seconds,
    )
    gauges: list[tuple[str, str, float]] = [
        ("allocated_bytes", "Bytes that the cache's files occupy.", figures.allocated),
        ("high_water_bytes", "Bytes from which objects are evicted.", figures.high_water),
        ("low_water_bytes", "Bytes to which eviction frees.", figures.low_water),
        ("objects", "Objects in the cache.", figures.objects),
        ("open_objects", "Objects that are open.", figures.open),
    ]
    for name, help_text, value in gauges:
        yield GaugeMetricFamily(f"headstart_cache_{name}", help_text, value=value)
    yield CounterMetricFamily(
        "headstart_cache_evicted_objects",
        "Objects that were evicted.",
        value=figures.evicted_objects,
    )
    yield CounterMetricFamily(
        "headstart_cache_evicted_bytes", "Bytes that were evicted.", value=figures.evicted_bytes
    )


def _upstreams(figures: Figures) -> Iterator[Metric]:
    per_host: dict[tuple[str, ...], UpstreamFigures] = {
        (host,): upstream for host, upstream in figures.upstreams.items()
    }
    for name, help_text, attribute in (
        ("received_bytes", "Bytes of blobs from an upstream.", "received"),
        ("refetched_bytes", "Bytes that were fetched twice.", "refetched"),
        ("requests", "Requests for bytes of blobs.", "requests"),
        ("failed_requests", "Requests for bytes of blobs that failed.", "failed"),
        ("paused_seconds", "Time in which an upstream had asked for a pause.", "paused_seconds"),
    ):
        values = {key: float(getattr(upstream, attribute)) for key, upstream in per_host.items()}
        yield _counter(f"headstart_upstream_{name}", help_text, ["upstream"], values)
    for name, help_text, attribute in (
        ("connections", "Connections that bring bytes of blobs.", "active"),
        ("connections_limit", "How many of them may be open.", "limit"),
        ("waiting_wants", "Wants that have no connection.", "waiting"),
    ):
        values = {key: float(getattr(upstream, attribute)) for key, upstream in per_host.items()}
        yield _gauge(f"headstart_upstream_{name}", help_text, ["upstream"], values)


def _stripes(figures: Figures) -> Iterator[Metric]:
    labels = ["path", "device"]
    stripes = {(stripe.path, stripe.device): stripe for stripe in figures.stripes}
    yield _counter(
        "headstart_stripe_written_bytes",
        "Bytes that were written to a stripe.",
        labels,
        {key: float(stripe.written) for key, stripe in stripes.items()},
    )
    yield _counter(
        "headstart_stripe_waited_seconds",
        "Time in which a writer waited for the stripe's disk.",
        labels,
        {key: stripe.waited_seconds for key, stripe in stripes.items()},
    )
    yield _gauge(
        "headstart_stripe_dirty_bytes",
        "Bytes that the stripe's disk has not taken yet.",
        labels,
        {key: float(stripe.dirty) for key, stripe in stripes.items()},
    )


def _counter(
    name: str, help_text: str, labels: list[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(
    name: str, help_text: str, labels: list[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
