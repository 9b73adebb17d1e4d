"""An ordinary layer to an image that can be mounted, beside unpacking it; members in threads.

The layer is about 15,000 files of a library, gzip -6. What containerd takes to unpack is an import
less one with ``--no-unpack``. Files lie on a disk unless ``--directory`` says otherwise: what an
unpacked layer costs is its file system's work, of which there is little in memory.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.measure import Comparison, Sample, compare, observe_command, ratio, settled_cpu
from bench.python_library import FILES, LibraryLayer, make_layer, write_archive
from bench.report import Report, Rows, Wanted, compared, failures
from bench.setting import Setting
from tests.parts.containerd import Containerd
from tests.parts.processes import run

HEADSTART = "headstart"
TAR = "tar -xzf"
UNPACK = "containerd: import"
NO_UNPACK = "containerd: import --no-unpack"
ONE, TWO = "one thread", "two threads"
_NAME = "localhost/library:1"
_QUICK_FILES = 1_500
_MEMBER_FILES = 6_000
_DEADLINE = 600.0


def bench(setting: Setting) -> Report:
    """Ordinary layers, then members."""
    report = Report("inflate")
    setting = replace(setting, directory=setting.directory or Path(tempfile.gettempdir()))
    files = _QUICK_FILES if setting.quick else FILES
    with setting.scratch(files * 260_000) as directory, ExitStack() as stack:
        setting.say(f"making a layer of {files} files")
        layer = make_layer(directory / "layer", files)
        archive = directory / "image.tar"
        write_archive(layer, archive, _NAME)
        containerd = stack.enter_context(Containerd(directory / "containerd"))
        _ordinary(setting, report, directory, layer, archive, containerd)
        containerd.stop()
        smaller = layer
        if not setting.quick:
            smaller = make_layer(directory / "smaller", _MEMBER_FILES)
        _members(setting, report, directory, smaller)
        containerd.start()
    return report


def _ordinary(
    setting: Setting,
    report: Report,
    directory: Path,
    layer: LibraryLayer,
    archive: Path,
    containerd: Containerd,
) -> None:
    stored: list[float] = []
    legs: dict[str, Callable[[], Sample]] = {
        HEADSTART: partial(_emptied, directory / "cache", partial(_headstart, layer, stored)),
        TAR: partial(_emptied, directory / "unpacked", partial(_tar, layer)),
        UNPACK: partial(_import, containerd, archive, layer.size),
        NO_UNPACK: partial(_import, containerd, archive, layer.size, "--no-unpack"),
    }
    result = compare(legs, setting.rounds, setting.say)
    report.notes += failures(result)
    title = (
        f"{layer.size / 1e6:.0f} MB of tar, {layer.blob.stat().st_size / 1e6:.0f} MB as gzip -6;"
        " MB/s and CPU by the tar's bytes"
    )
    report.tables.append(compared(title, result, TAR))
    seconds, cpu = _unpacking(result)
    summary = result.legs.get(HEADSTART)
    report.tables.append(
        Rows(
            "what unpacking alone takes",
            ["", "s", "CPU s"],
            [
                [HEADSTART, *_taken(result, HEADSTART, layer.size)],
                [TAR, *_taken(result, TAR, layer.size)],
                ["containerd's unpack", seconds, cpu and cpu * layer.size / 1e9],
            ],
        )
    )
    mine = summary.seconds if summary else None
    mine_cpu = summary.cpu_per_gb if summary else None
    report.wanted += [
        Wanted(f"wall time, {TAR} / {HEADSTART}", result.rate_ratio(HEADSTART, TAR), 4),
        Wanted(f"CPU, {TAR} / {HEADSTART}", result.cpu_ratio(TAR, HEADSTART), 4),
        Wanted(f"wall time, containerd's unpack / {HEADSTART}", ratio(seconds, mine), 4),
        Wanted(f"CPU, containerd's unpack / {HEADSTART}", ratio(cpu, mine_cpu), 4),
        Wanted(
            "bytes on disk / bytes of the tar",
            ratio(max(stored, default=None), layer.size),
            1.05,
            at_least=False,
        ),
    ]


def _taken(result: Comparison, name: str, size: int) -> tuple[float | None, float | None]:
    leg = result.legs.get(name)
    if leg is None:
        return None, None
    return leg.seconds, None if leg.cpu_per_gb is None else leg.cpu_per_gb * size / 1e9


def _unpacking(result: Comparison) -> tuple[float | None, float | None]:
    """Seconds, and CPU seconds a GB, of an import less those of one that does not unpack."""
    both, fetched = result.legs.get(UNPACK), result.legs.get(NO_UNPACK)
    if both is None or fetched is None:
        return None, None
    cpu = None
    if both.cpu_per_gb is not None and fetched.cpu_per_gb is not None:
        cpu = both.cpu_per_gb - fetched.cpu_per_gb
    return both.seconds - fetched.seconds, cpu


def _emptied(place: Path, measure: Callable[[Path], Sample]) -> Sample:
    """Measure with an empty directory ``place``, removed again afterwards."""
    place.mkdir()
    try:
        return measure(place)
    finally:
        shutil.rmtree(place)


def _leg(*arguments: str | Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.inflate_legs", *arguments]
    figures: dict[str, float] = json.loads(run(command, deadline=_DEADLINE).stdout)
    return figures


def _headstart(layer: LibraryLayer, stored: list[float], cache: Path) -> Sample:
    figures = _leg("ordinary", layer.blob, layer.digest, layer.diff_id, cache)
    stored.append(figures["stored"])
    return Sample(figures["seconds"], layer.size, figures["cpu"], int(figures["peak"]))


def _tar(layer: LibraryLayer, place: Path) -> Sample:
    def unpack() -> float:
        return run(["tar", "-xzf", layer.blob, "-C", place], deadline=_DEADLINE).seconds

    return observe_command(unpack, layer.size)


def _import(containerd: Containerd, archive: Path, size: int, *options: str) -> Sample:
    containerd.wipe()
    server = containerd.running
    before = settled_cpu(server)
    started = time.monotonic()
    containerd.ctr(["images", "import", *options, archive], deadline=_DEADLINE)
    seconds = time.monotonic() - started
    return Sample(seconds, size, settled_cpu(server) - before, server.peak_memory())


def _members(setting: Setting, report: Report, directory: Path, layer: LibraryLayer) -> None:
    checks: list[tuple[float, float]] = []

    def write(threads: int, cache: Path) -> Sample:
        figures = _leg("members", layer.tar, cache, str(threads))
        checks.append((figures["check_seconds"], figures["check_cpu"]))
        return Sample(figures["seconds"], layer.size, figures["cpu"], int(figures["peak"]))

    legs: dict[str, Callable[[], Sample]] = {
        name: partial(_emptied, directory / "cache", partial(write, threads))
        for name, threads in ((ONE, 1), (TWO, 2))
    }
    result = compare(legs, setting.rounds, setting.say)
    report.notes += failures(result)
    title = f"members of {layer.size / 1e6:.0f} MB of tar, neighbours packed up to 1 MiB"
    report.tables.append(compared(title, result, ONE))
    report.wanted.append(Wanted(f"members, {TWO} / {ONE}", result.rate_ratio(TWO, ONE), 1.7))
    if checks:
        seconds, cpu = min(checks)
        report.notes.append(
            f"its diff ID and its tree: {layer.size / 1e6 / seconds:.0f} MB/s,"
            f" {cpu / layer.size * 1e9:.2f} CPU s/GB, by one thread"
        )
