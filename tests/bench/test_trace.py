"""The filler's trace: spans, the last hand-out, the share of time in which connections worked."""

import json
from pathlib import Path

import pytest

from bench import trace
from bench.layers import plot
from bench.peers import Blob

DIGEST = "sha256:" + "ab" * 32


def line(at: float, event: str, connection: int, queued: int, limit: int = 2) -> str:
    record = {
        "at": at,
        "event": event,
        "connection": connection,
        "upstream": "registry.example",
        "digest": DIGEST,
        "start": 0,
        "stop": 100,
        "received": 100 if event == "end" else 0,
        "ending": "complete" if event == "end" else "",
        "queued": queued,
        "limit": limit,
    }
    return json.dumps(record) + "\n"


def read(directory: Path, *lines: str) -> list[trace.Event]:
    file = directory / "trace"
    file.write_text("".join(lines))
    return trace.read(file)


def test_two_connections_that_never_pause_are_wholly_busy(tmp_path: Path) -> None:
    events = read(
        tmp_path,
        line(10, "start", 1, 2),
        line(10, "start", 2, 1),
        line(12, "end", 1, 1),
        line(12, "start", 1, 0),
        line(14, "end", 2, 0),
        line(15, "end", 1, 0),
    )
    assert trace.last_handed_out(events) == 12
    assert trace.busy_share(events) == pytest.approx(1.0)
    assert [(span.connection, span.begun, span.ended) for span in trace.spans(events)] == [
        (1, 10, 12),
        (2, 10, 14),
        (1, 12, 15),
    ]


def test_pauses_and_missing_connections_lower_the_share(tmp_path: Path) -> None:
    events = read(
        tmp_path,
        line(0, "start", 1, 2),
        line(4, "end", 1, 2),
        line(5, "start", 1, 1),
        line(5, "start", 2, 1),
        line(10, "end", 1, 1),
        line(10, "start", 1, 0),
        line(10, "end", 2, 0),
        line(12, "end", 1, 0),
    )
    assert trace.last_handed_out(events) == 10
    assert trace.busy_share(events) == pytest.approx((4 + 5 + 5) / 20)


def test_what_starts_after_the_last_hand_out_does_not_count(tmp_path: Path) -> None:
    events = read(
        tmp_path,
        line(0, "start", 1, 1),
        line(0, "start", 2, 1),
        line(4, "end", 1, 1),
        line(4, "start", 1, 0),
        line(6, "end", 2, 0),
        line(9, "start", 2, 0),
        line(10, "end", 2, 0),
    )
    assert trace.last_handed_out(events) == 4
    assert trace.busy_share(events) == pytest.approx(1.0)
    assert trace.spans(events)[-2:] == [
        trace.Span(1, DIGEST, 4, 10, 0),
        trace.Span(2, DIGEST, 9, 10, 100),
    ]


def test_the_limit_may_grow(tmp_path: Path) -> None:
    events = read(
        tmp_path,
        line(0, "start", 1, 3, limit=1),
        line(5, "start", 2, 2, limit=2),
        line(10, "end", 1, 2, limit=2),
        line(10, "start", 1, 0, limit=2),
    )
    assert trace.busy_share(events) == pytest.approx(1.0)


def test_nothing_queued_means_nothing_to_use(tmp_path: Path) -> None:
    events = read(tmp_path, line(0, "start", 1, 0), line(1, "end", 1, 0))
    assert trace.last_handed_out(events) is None
    assert trace.busy_share(events) is None


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    events = read(tmp_path, line(0, "start", 1, 0), line(1, "end", 1, 0)[:20])
    assert len(events) == 1


def test_a_trace_is_drawn(tmp_path: Path) -> None:
    events = read(tmp_path, line(0, "start", 1, 1), line(4, "end", 1, 1), line(4, "start", 1, 0))
    plot(tmp_path / "layers.png", events, [Blob(DIGEST, 100)])
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
