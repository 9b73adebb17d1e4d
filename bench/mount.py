"""A library's tree and large files: ext4, overlayfs over it, and layer images as they are mounted.

Cold: the caches of the mounted file systems are empty, the bytes below them are in the page cache.
Through FUSE means: as while bytes of the layer are missing; none are, so what is measured is the
way. Needs root; files lie on a disk, since EROFS mounts none of tmpfs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.layer_images import made_by_filler
from bench.library_tree import IMPORTED, library_tree
from bench.llm_image import GZIP, LIBRARY, WEIGHTS, LlmImage, llm_image
from bench.measure import GIB, MB, MIB, ratio
from bench.mounted_trees import Layers, LayersThroughFuse, Native, Stacked, Tree, make_ext4
from bench.page_cache import CacheWatch, drop, make_room
from bench.report import Cell, Report, Rows, Wanted
from bench.setting import Setting
from bench.start_program import compiled
from mount.mounting.probe import choose_mode

NATIVE = "ext4"
STACKED = "overlayfs"
FUSE = "layers by FUSE"
WHOLE = "layers complete"
COLD, WARM = "cold", "warm"
_STORM_FILES = 3_000
_SETTLED_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class _Work:
    """Something to do with a tree: a command whose seconds are taken, and what it may read."""

    name: str
    command: Callable[[Tree], Sequence[str | Path]]
    reads: int = 0


@dataclass(slots=True)
class _Taken:
    """Seconds by work, tree, and cold or warm; CPU seconds of the daemon for each GiB."""

    seconds: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)

    def median(self, work: str, tree: str, state: str) -> float | None:
        found = self.seconds.get((work, tree, state))
        return statistics.median(found) if found else None

    def ratio(self, work: str, tree: str, state: str) -> float | None:
        """To the native directory, in the same state."""
        return ratio(self.median(work, tree, state), self.median(work, NATIVE, state))


def bench(setting: Setting) -> Report:
    """Everything in turns, then the page cache."""
    setting = replace(setting, directory=setting.directory or Path(tempfile.gettempdir()))
    report = Report("mount")
    setting.say("making the image, unless there is one from an earlier run")
    image = llm_image(library_tree(setting.quick), setting.choose(2 * GIB, 192 * MIB))
    size, files = _size(image.unpacked)
    with ExitStack() as stack:
        directory = stack.enter_context(setting.scratch(3 * size))
        program = compiled(directory)
        setting.say("making an ext4 with the same files, and the layer images")
        make_ext4(directory / "ext4.img", image.unpacked, size)
        made = made_by_filler(directory / "filler", image, GZIP)
        fill_socket, layers = stack.enter_context(made)
        run_directory = directory / "run"
        run_directory.mkdir()
        mode = choose_mode("auto", run_directory).mode
        ext4 = directory / "ext4.img"
        trees: list[Tree] = [
            Native(NATIVE, directory / "native", ext4),
            Stacked(STACKED, directory / "stacked", ext4),
            LayersThroughFuse(FUSE, directory / "fuse", layers, mode, fill_socket),
            Layers(WHOLE, directory / "whole", layers, mode),
        ]
        for tree in trees:
            stack.callback(tree.end)
        _check_equal(trees, program)
        works = _works(image, program)
        taken = _measure(setting, trees, works)
        _tell(report, trees, works, taken)
        report.notes.append(f"{files} files of {size / MB:.0f} MB, {image.library.description}")
        _page_cache(setting, report, trees, program)
    return report


def _works(image: LlmImage, program: Path) -> list[_Work]:
    library, large = (_size(image.unpacked / part)[0] for part in (LIBRARY, WEIGHTS))
    storm = "import storm" if image.library.real else "import storm (synthetic)"
    return [
        _Work("find", lambda tree: ["find", tree.library]),
        _Work("stat of all", lambda tree: ["find", tree.library, "-size", "+9999999G"]),
        _Work(storm, lambda tree: _storm(image, tree, program), library),
        _Work("read all small", lambda tree: [program, "-", tree.library], library),
        _Work("read the large", lambda tree: [program, "-", tree.weights], large),
    ]


def _storm(image: LlmImage, tree: Tree, program: Path) -> Sequence[str | Path]:
    """Real imports, without what this interpreter has installed; else files in a fixed order."""
    if image.library.real:
        told = f"import sys; sys.path.insert(0, {str(tree.library)!r}); import {IMPORTED}"
        return [sys.executable, "-I", "-S", "-B", "-c", told]
    found = sorted(path.relative_to(image.unpacked) for path in _files(image.unpacked / "usr"))
    step = max(1, len(found) // _STORM_FILES)
    return [program, "-", *(tree.root / path for path in found[::step])]


def _measure(setting: Setting, trees: Sequence[Tree], works: Sequence[_Work]) -> _Taken:
    taken = _Taken()
    for number in range(1, setting.rounds + 1):
        for work in works:
            setting.say(f"{work.name} ({number} of {setting.rounds})")
            for tree in trees:
                tree.mount()
                try:
                    command = [str(word) for word in work.command(tree)]
                    used = tree.cpu_seconds()
                    # A copy in the file system's cache, and one in that of FUSE.
                    make_room(2 * work.reads)
                    for state in (COLD, WARM):
                        key = work.name, tree.name, state
                        taken.seconds.setdefault(key, []).append(_seconds(command))
                        if state == COLD and used is not None and work is works[-1]:
                            spent = (tree.cpu_seconds() or 0.0) - used
                            taken.cpu.append(spent / (_size(tree.weights)[0] / GIB))
                finally:
                    tree.unmount()
    return taken


def _seconds(command: Sequence[str]) -> float:
    begun = time.perf_counter()
    # Without a timeout: Python would look for its end less and less often.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _check_equal(trees: Sequence[Tree], program: Path) -> None:
    """All trees have the same bytes. Raises ValueError."""
    said: dict[str, bytes] = {}
    for tree in trees:
        tree.mount()
        try:
            command: list[str | Path] = [program, "0", tree.library, tree.weights]
            said[tree.name] = subprocess.run(command, check=True, capture_output=True).stdout
        finally:
            tree.unmount()
    if len(set(said.values())) != 1:
        raise ValueError(f"the trees differ: {said}")


def _tell(
    report: Report,
    trees: Sequence[Tree],
    works: Sequence[_Work],
    taken: _Taken,
) -> None:
    columns = ["", NATIVE]
    for tree in trees[1:]:
        columns += [tree.name, "ratio"]
    rows: list[list[Cell]] = []
    for work in works:
        for state in (COLD, WARM):
            cells: list[Cell] = [taken.median(work.name, NATIVE, state)]
            for tree in trees[1:]:
                cells += [taken.median(work.name, tree.name, state)]
                cells += [taken.ratio(work.name, tree.name, state)]
            rows.append([f"{work.name}, {state}", *cells])
    report.tables.append(Rows(f"seconds, and their ratio to {NATIVE}", columns, rows))
    _, stat, storm, _, large = (work.name for work in works)
    limits = [
        (storm, FUSE, COLD, 1.3),
        (storm, FUSE, WARM, 1.05),
        (stat, FUSE, COLD, 3.0),
        (stat, FUSE, WARM, 1.1),
    ]
    for name, leg, state, bound in limits:
        what = f"{name}, {state}: seconds of {leg} / {NATIVE}"
        report.wanted.append(Wanted(what, taken.ratio(name, leg, state), bound, False))
    for leg, state, bound in ((FUSE, COLD, 0.45), (FUSE, WARM, 0.95), (WHOLE, COLD, 0.9)):
        measured = ratio(taken.median(large, NATIVE, state), taken.median(large, leg, state))
        what = f"{large}, {state}: rate of {leg} / {NATIVE}"
        report.wanted.append(Wanted(what, measured, bound))
    if taken.cpu:
        report.notes.append(f"the daemon's CPU: {statistics.median(taken.cpu):.2f} s/GiB")
    report.figures["seconds"] = {" / ".join(key): found for key, found in taken.seconds.items()}
    report.figures["daemon_cpu_seconds_per_gib"] = taken.cpu


def _page_cache(setting: Setting, report: Report, trees: Sequence[Tree], program: Path) -> None:
    """Read the large files once with nothing of them in the page cache, and see what is then."""
    rows: list[list[Cell]] = []
    shares: dict[str, float] = {}
    groups = ("EROFS", "FUSE", "store")
    for tree in trees:
        if not isinstance(tree, Layers):
            continue
        setting.say(f"page cache: {tree.name}")
        tree.mount()
        try:
            size = _size(tree.weights)[0]
            drop(tree.below())
            with CacheWatch(tree.caches()) as watch:
                _seconds([str(program), "-", str(tree.weights)])
                time.sleep(_SETTLED_SECONDS)
                left = watch.now()
        finally:
            tree.unmount()
        for when, found in (("at the most", watch.peak), ("6 s later", left)):
            cells = [found.get(group, 0) / size for group in groups]
            rows.append([f"{tree.name}, {when}", *cells, sum(cells)])
        shares[tree.name] = (watch.peak["EROFS"] + watch.peak.get("FUSE", 0)) / size
    title = "page cache after one read of the large files, as shares of them; store cold before"
    report.tables.append(Rows(title, ["", *groups, "together"], rows))
    for name, share in shares.items():
        what = f"page cache above the store at the most, {name} / bytes read"
        report.wanted.append(Wanted(what, share, 1.3, False))


def _files(directory: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(directory) for name in names]


def _size(directory: Path) -> tuple[int, int]:
    """Bytes of all files, and how many these are."""
    sizes = [path.lstat().st_size for path in _files(directory)]
    return sum(sizes), len(sizes)
