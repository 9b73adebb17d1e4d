"""From `run` to the first answer of a model server, its registry behind 1 Gbit/s.

The image has a Python library and weights, all of which the program reads before it answers. What
is wanted follows from the link: nobody answers before the bytes that were read have come, nor
sooner after that than the program takes by itself. Every leg is the first start of its containerd.
Needs root.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from bench.client import receive
from bench.cold_node import ColdNode, Start, mounting_node, own_seconds, stock_node
from bench.image_registry import REPOSITORY, ImageRegistry
from bench.library_tree import library_tree
from bench.link import Link
from bench.llm_image import ESTARGZ, GZIP, LlmImage, llm_image
from bench.measure import FAILURES, GIB, MB, MIB, brief, ratio
from bench.page_cache import drop, make_room
from bench.report import Cell, Report, Rows, Wanted
from bench.setting import Setting

STOCK = "containerd"
STOCK_MIRRORED = "containerd, mirror"
UNPACKED = "containerd, unpacked"
UNPACKED_DISK = "containerd, unpacked, on disk"
UNCONVERTED = "headstart mount, gzip"
LAZY = "headstart mount, eStargz"
WARMED = "headstart mount, warmed"
WARM = "headstart mount, complete"
WARM_DISK = "headstart mount, complete, on disk"
LEGS = (
    STOCK,
    STOCK_MIRRORED,
    UNPACKED,
    UNPACKED_DISK,
    UNCONVERTED,
    LAZY,
    WARMED,
    WARM,
    WARM_DISK,
)
_OWN_RUNS = 3
_MOST_ROUNDS = 3
_POINTS = 400


@dataclass(slots=True)
class _Measured:
    starts: dict[str, list[Start]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def seconds(self, leg: str) -> float | None:
        """The median."""
        taken = self.starts.get(leg)
        return statistics.median(start.seconds for start in taken) if taken else None


def bench(setting: Setting) -> Report:
    """All legs in turns, each with an empty node; at most three rounds."""
    setting = replace(
        setting,
        directory=setting.directory or Path(tempfile.gettempdir()),
        rounds=min(setting.rounds, _MOST_ROUNDS),
    )
    report = Report("coldstart")
    setting.say("making the image, unless there is one from an earlier run")
    image = llm_image(library_tree(setting.quick), setting.choose(2 * GIB, 192 * MIB))
    with ExitStack() as stack:
        directory = stack.enter_context(setting.scratch(4 * max(image.sizes.values())))
        link = stack.enter_context(Link())
        registry = stack.enter_context(ImageRegistry(directory / "registry", image, link))
        rate = _link_rate(registry, image)
        own, expected = _own(image)
        setting.say(f"link: {rate / MB:.1f} MB/s; the program by itself: {own:.2f} s")
        measured = _Measured()
        for number in range(1, setting.rounds + 1):
            for node, legs in _NODES.items():
                place = directory / f"{node}-{number}"
                setting.say(f"{node} ({number} of {setting.rounds})")
                _note(measured, node, legs(place, link, registry, image, expected))
                shutil.rmtree(place, ignore_errors=True)
    _tell(report, image, measured, rate, own)
    plot(setting.results / "coldstart.png", measured.starts)
    return report


# --- the legs ---

_Legs = Generator[tuple[str, Callable[[], Start]], None, None]
"""Names, and what measures, of the legs of one node."""


def _note(measured: _Measured, node: str, legs: _Legs) -> None:
    """Run the legs of one node in order; the first that fails ends it."""
    name = node
    try:
        with closing(legs):
            for name, leg in legs:
                start = leg()
                measured.starts.setdefault(name, []).append(start)
    except grpc.RpcError as error:
        measured.failures[name] = str(error.details()) if isinstance(error, grpc.Call) else "?"
    except FAILURES as error:
        measured.failures[name] = brief(error)


def _stock(
    place: Path, link: Link, registry: ImageRegistry, image: LlmImage, expected: str
) -> _Legs:
    with stock_node(place, link, registry, mirrored=False) as node:
        yield STOCK, lambda: node.start(GZIP, image.paths(), expected)
        node.restart()
        _make_room(image)
        yield UNPACKED, lambda: node.start(GZIP, image.paths(), expected, pull=False)
        node.restart()
        _leave_memory(node)
        _make_room(image)
        yield UNPACKED_DISK, lambda: node.start(GZIP, image.paths(), expected, pull=False)


def _mirrored(
    place: Path, link: Link, registry: ImageRegistry, image: LlmImage, expected: str
) -> _Legs:
    with stock_node(place, link, registry, mirrored=True) as node:
        yield STOCK_MIRRORED, lambda: node.start(GZIP, image.paths(), expected)


def _unconverted(
    place: Path, link: Link, registry: ImageRegistry, image: LlmImage, expected: str
) -> _Legs:
    with mounting_node(place, link, registry) as node:
        yield UNCONVERTED, lambda: node.start(GZIP, image.paths(), expected)
        node.forget(GZIP)
        node.restart()
        _make_room(image)
        yield WARM, lambda: node.start(GZIP, image.paths(), expected)
        node.forget(GZIP)
        node.restart()
        _leave_memory(node)
        _make_room(image)
        yield WARM_DISK, lambda: node.start(GZIP, image.paths(), expected)


def _lazy(
    place: Path, link: Link, registry: ImageRegistry, image: LlmImage, expected: str
) -> _Legs:
    with mounting_node(place, link, registry) as node:
        yield LAZY, lambda: node.start(ESTARGZ, image.paths(), expected)


def _warmed(
    place: Path, link: Link, registry: ImageRegistry, image: LlmImage, expected: str
) -> _Legs:
    with mounting_node(place, link, registry) as node:
        _warm(node, GZIP)
        _make_room(image)
        yield WARMED, lambda: node.start(GZIP, image.paths(), expected)


_NODES: dict[str, Callable[[Path, Link, ImageRegistry, LlmImage, str], _Legs]] = {
    "stock": _stock,
    "mirrored": _mirrored,
    "unconverted": _unconverted,
    "lazy": _lazy,
    "warmed": _warmed,
}


def _leave_memory(node: ColdNode) -> None:
    """As on the next day: what is on the disk is not in the page cache."""
    os.sync()
    drop(node.files())


def _make_room(image: LlmImage) -> None:
    """For what the program reads, twice: as files and as files below them."""
    sizes = [path.stat().st_size for path in image.unpacked.rglob("*") if path.is_file()]
    make_room(2 * sum(sizes))


def _warm(node: ColdNode, tag: str) -> None:
    """``POST /warm`` for an image that is to start from the mount, and wait for its end."""
    assert node.mirror is not None
    asked = {"images": [node.registry.reference(tag)], "ready": True}
    job = node.mirror.ask("/warm", "POST", asked)
    end = time.monotonic() + 600
    while job["state"] not in ("done", "failed", "cancelled"):
        if time.monotonic() > end:
            raise TimeoutError(f"warm job after 600 s: {job}")
        time.sleep(0.1)
        job = node.mirror.ask(f"/warm/{job['id']}")
    if job["state"] != "done" or job["notes"]:
        raise OSError(f"warm job: {job}")


def _link_rate(registry: ImageRegistry, image: LlmImage) -> float:
    """Bytes a second that one connection gets over the link, of a whole blob."""
    largest = max((image.directory / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    size = min(largest.stat().st_size, 256 * MIB)
    url = f"{registry.url}/v2/{REPOSITORY}/blobs/{largest.name}"
    return size / receive(url, 0, size).seconds


def _own(image: LlmImage) -> tuple[float, str]:
    """The program's own seconds, from files that the page cache has, and what it says."""
    paths = image.paths(image.unpacked)
    own_seconds(image.program, paths)
    taken = [own_seconds(image.program, paths) for _ in range(_OWN_RUNS)]
    return statistics.median(seconds for seconds, _ in taken), taken[0][1]


# --- what it says ---


def _tell(report: Report, image: LlmImage, measured: _Measured, rate: float, own: float) -> None:
    bounds = {
        UNCONVERTED: 1.15 * image.sizes[GZIP] / rate + own,
        LAZY: 1.1 * image.sizes[ESTARGZ] / rate + own,
    }
    for leg, peer in ((WARMED, UNPACKED), (WARM, UNPACKED), (WARM_DISK, UNPACKED_DISK)):
        unpacked = measured.seconds(peer)
        if unpacked is not None:
            bounds[leg] = 1.1 * unpacked
    rows: list[list[Cell]] = []
    for leg in LEGS:
        taken = measured.starts.get(leg)
        if not taken:
            rows.append([leg, "failed", *[None] * 6])
            continue
        seconds = [start.seconds for start in taken]
        middle = statistics.median(seconds)
        rows.append(
            [
                leg,
                middle,
                min(seconds),
                max(seconds),
                statistics.median(start.pull_seconds for start in taken),
                statistics.median(start.received for start in taken) / MB,
                ratio(middle, measured.seconds(STOCK)),
                bounds.get(leg),
            ]
        )
    title = (
        f"gzip {image.sizes[GZIP] / MB:.0f} MB, eStargz {image.sizes[ESTARGZ] / MB:.0f} MB, "
        f"all of it read ({image.library.description}); link {rate / MB:.1f} MB/s, "
        f"the program alone {own:.2f} s"
    )
    columns = ["", "s to 200", "least", "most", "pull s", "MB over link", f"/ {STOCK}", "wanted s"]
    report.tables.append(Rows(title, columns, rows))
    for leg, bound in bounds.items():
        report.wanted.append(
            Wanted(f"{leg}, to the first 200", measured.seconds(leg), bound, False, "s")
        )
    report.notes += [f"{leg} failed: {reason}" for leg, reason in measured.failures.items()]
    report.figures = {
        "link_bytes_per_second": rate,
        "own_seconds": own,
        "compressed_bytes": dict(image.sizes),
        "arrivals": {leg: _thinned(taken[-1].arrivals) for leg, taken in measured.starts.items()},
    }


def _thinned(points: Sequence[tuple[float, int]]) -> list[list[float]]:
    step = -(-len(points) // _POINTS)
    return [[round(seconds, 2), received] for seconds, received in points[::step]]


def plot(file: Path, starts: Mapping[str, Sequence[Start]]) -> None:
    """Draw what had come when, the last round of each leg, with a mark at its first answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 5), layout="constrained")
    for leg in LEGS:
        if leg not in starts:
            continue
        last = starts[leg][-1]
        points = [point for point in last.arrivals if point[0] <= last.seconds]
        (line,) = axis.plot(
            [seconds for seconds, _ in points], [received / MB for _, received in points], label=leg
        )
        axis.plot([last.seconds], [points[-1][1] / MB], "o", color=line.get_color())
    axis.set_xlabel("s since `run`; a dot is the first 200")
    axis.set_ylabel("MB over the link")
    axis.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
