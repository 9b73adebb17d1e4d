"""The first byte of a cold range deep in a blob, beside the upstream's own first byte.

Measured on an idle mirror, and while another client pulls a large blob whose ranges hold every
connection to the upstream. The upstream's log has to show a request that starts where was asked.
"""

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from bench.client import Received, receive
from bench.measure import FAILURES, GIB, MB, MIB, brief
from bench.peers import Blob, Origin, headstart
from bench.report import Report, Rows, Wanted
from bench.setting import Setting
from tests.parts.nginx import Access, Front

LENGTH = 64 * 1024
UNIT = 256 * 1024
CONNECTIONS = 8
LIMIT = 10 * MB
"""Bytes a second of each connection, so that the bulk pull lasts longer than the samples."""


@dataclass(frozen=True, slots=True)
class _Pair:
    offset: int
    mirror: float
    upstream: float


def bench(setting: Setting) -> Report:
    """20 samples each, at offsets that nothing else has fetched."""
    report = Report("first_byte")
    size = setting.choose(512 * MIB, 64 * MIB)
    bulk_size = 256 * MIB if setting.quick else GIB
    samples = 5 if setting.quick else 20
    with (
        setting.scratch(2 * size + 2 * bulk_size) as directory,
        Origin(directory / "origin") as origin,
    ):
        blob, bulk = origin.add(size), origin.add_sparse(bulk_size, seed=1)
        step = size // (2 * samples + 1)
        offsets = [step * (number + 1) + 12_345 for number in range(samples)]
        setting.say("an idle mirror")
        front, direct = origin.front(), origin.front()
        with headstart(directory / "idle", front) as mirror:
            _measure(report, "idle", mirror.url, front, direct, blob, offsets)
        setting.say("bulk on every connection")
        front, direct = origin.front(limit_rate=LIMIT), origin.front(limit_rate=LIMIT)
        fetch = {"max_connections": CONNECTIONS}
        with (
            headstart(directory / "busy", front, fetch=fetch) as mirror,
            _Bulk(mirror.url, bulk) as running,
        ):
            name = f"{CONNECTIONS} connections of {LIMIT // MB} MB/s busy with bulk"
            _measure(report, name, mirror.url, front, direct, blob, offsets)
            if not running.goes_on():
                report.notes.append("the bulk pull did not last as long as the samples")
    return report


def _measure(
    report: Report,
    name: str,
    mirror: str,
    front: Front,
    direct: Front,
    blob: Blob,
    offsets: Sequence[int],
) -> None:
    front.clear()
    pairs: list[_Pair] = []
    for offset in offsets:
        own = receive(direct.url + blob.target, offset, offset + LENGTH)
        through = receive(mirror + blob.target, offset, offset + LENGTH)
        pairs.append(_Pair(offset, through.first_byte, own.first_byte))
    through_median = statistics.median(pair.mirror for pair in pairs)
    own_median = statistics.median(pair.upstream for pair in pairs)
    report.tables.append(
        Rows(
            f"first byte, {name}: ms, {len(pairs)} samples",
            ["", "median", "least", "most"],
            [
                _row("through headstart", [pair.mirror for pair in pairs]),
                _row("the upstream's own", [pair.upstream for pair in pairs]),
            ],
        )
    )
    report.wanted.append(
        Wanted(
            f"first byte, {name}, later than the upstream's own",
            1000 * (through_median - own_median),
            50,
            at_least=False,
            unit="ms",
        )
    )
    asked = [access for access in front.blob_ranges() if access.target.startswith(blob.target)]
    found = sum(starts_there(asked, offset) for offset in offsets)
    report.wanted.append(
        Wanted(f"first byte, {name}, upstream requests that start there", found, len(offsets))
    )


def starts_there(accesses: Sequence[Access], offset: int) -> bool:
    """Whether one of them starts at ``offset``, or less than an on-demand unit before it."""
    firsts = (access.first for access in accesses)
    return any(first is not None and offset - UNIT < first <= offset for first in firsts)


def _row(name: str, seconds: Sequence[float]) -> Sequence[str | float]:
    return [
        name,
        *(1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds))),
    ]


class _Bulk:
    """A client that pulls a large blob in a thread, until its connection is cut."""

    def __init__(self, mirror: str, blob: Blob) -> None:
        self._url = mirror + blob.target
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self.failure: str | None = None

    def __enter__(self) -> "_Bulk":
        self._thread.start()
        # Its first bytes show that the size is known and the ranges are handed out.
        receive(self._url, 0, 1)
        self._thread.join(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        """It goes on until the mirror ends."""

    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def _pull(self) -> None:
        try:
            received: Received = receive(self._url)
            assert received.size
        except FAILURES as error:
            self.failure = brief(error)
