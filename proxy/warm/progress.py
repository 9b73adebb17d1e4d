"""How far a warm job is, for people: bars on a terminal, else a line for every change of state."""

import time
from collections import deque
from datetime import timedelta
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
)

from headstart.content.sizes import SIZE_UNITS, show_size
from proxy.warm.job import DONE, FILLING, SKIPPED

MOST_BARS = 16
"""Bars that fit above the total; of more layers, the finished and the last ones are left out."""

PACE_SECONDS = 5.0

_KINDS = (("config", "config"), ("layer", "layer"), ("rootfs", "layer"))
_WAYS = (("gzip", "gzip"), ("zstd", "zstd"))


def kind_of(media_type: str) -> str:
    """A media type in a word or two: ``layer gzip``, ``config``."""
    kind = next((word for part, word in _KINDS if part in media_type), "blob")
    way = next((f" {word}" for part, word in _WAYS if part in media_type), "")
    return f"{kind}{way if kind == 'layer' else ''}"


def short_digest(digest: str) -> str:
    """The first 12 digits, as other tools show them."""
    return digest.partition(":")[2][:12]


class Lines:
    """A line when the state changes, and for every note; nothing at all without a stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, job: dict[str, Any]) -> None:
        """Say what has not been said."""
        for note in job["notes"]:
            self._say(note)
        if job["bytes_wanted"]:
            self._say(f"job {job['id']}: {job['state']}, {show_size(job['bytes_wanted'])} wanted")
        else:
            self._say(f"job {job['id']}: {job['state']}")

    def _say(self, line: str) -> None:
        if self._stream is not None and line not in self._said:
            self._said.add(line)
            print(line, file=self._stream, flush=True)


class Pace:
    """Bytes a second of one layer, over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, done: int) -> float:
        """Take one more look; the rate now."""
        now = time.monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > PACE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        return (done - before) / (now - since) if now > since else 0.0


class Bars:
    """A bar for each layer, with its short digest and kind, and one for the whole job."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[pace]}", justify="right"),
            console=Console(file=stream),
            refresh_per_second=4,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}
        self._noted: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, job: dict[str, Any]) -> None:
        """Move the bars."""
        for note in job["notes"]:
            if note not in self._noted:
                self._noted.add(note)
                self._progress.console.print(note, markup=False, highlight=False)
        layers = {
            layer["digest"]: layer
            for image in job["images"]
            for layer in image["layers"]
            if layer["state"] != SKIPPED
        }
        room = MOST_BARS
        for digest, layer in layers.items():
            visible = len(layers) <= MOST_BARS or (layer["state"] != DONE and room > 0)
            room -= visible
            self._move_layer(digest, layer, visible)
        if layers:
            pace = _pace(job["state"], job["rate"], job["eta_seconds"])
            self._move("all", "all", job["bytes_wanted"], job["bytes_done"], pace, True)

    def _move_layer(self, digest: str, layer: dict[str, Any], visible: bool) -> None:
        pace = layer["state"]
        if layer["state"] == FILLING:
            rate = self._paces.setdefault(digest, Pace()).note(layer["done"])
            left = (layer["size"] - layer["done"]) / rate if rate else None
            pace = _pace(FILLING, rate, left)
        label = f"{short_digest(digest)} {kind_of(layer['media_type'])}"
        self._move(digest, label, layer["size"], layer["done"], pace, visible)

    def _move(self, key: str, label: str, size: int, done: int, pace: str, visible: bool) -> None:
        if key in self._bars:
            self._progress.update(
                self._bars[key], total=size, completed=done, visible=visible, pace=pace
            )
        else:
            # Drawn at once: with its real size, not with rich's 100.
            self._bars[key] = self._progress.add_task(
                label, total=size, completed=done, visible=visible, pace=pace
            )


def _pace(state: str, rate: float, seconds_left: float | None) -> str:
    """Rate and time left, or the state while there is no rate."""
    if not rate:
        return state
    left = "" if seconds_left is None else f" {timedelta(seconds=round(seconds_left))}"
    return f"{rate / SIZE_UNITS['MB']:.1f} MB/s{left}"
