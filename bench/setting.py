"""What every benchmark is given: sizes, rounds, room for its files, a console."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

_MEMORY = Path("/dev/shm")
_SPARE = 1.25


@dataclass(frozen=True, slots=True)
class Setting:
    """``size`` in bytes, when the user chose one; ``directory`` likewise."""

    console: Console
    results: Path
    quick: bool = False
    rounds: int = 5
    size: int | None = None
    directory: Path | None = None

    def choose(self, full: int, quick: int) -> int:
        """A size or a count: the quick run's own, else the user's or ``full``."""
        if self.size is not None:
            return self.size
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """One dim line about what happens now."""
        self.console.print(f"  … {text}", style="dim", highlight=False)

    @contextmanager
    def scratch(self, needed: int) -> Iterator[Path]:
        """A directory with room for ``needed`` bytes, removed afterwards.

        In memory where that has room: a disk's speed is not what is compared, unless a benchmark
        says so.
        """
        parent = self.directory or _roomy(needed)
        made = Path(tempfile.mkdtemp(prefix="headstart-bench-", dir=parent))
        try:
            self.say(f"files are in {kind_of(made)} ({parent})")
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def kind_of(path: Path) -> str:
    """The type of the file system of a directory: ``tmpfs``, ``ext4``, …"""
    best = ("", "an unknown file system")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if path.is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]


def _roomy(needed: int) -> Path:
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        room = min(shutil.disk_usage(_MEMORY).free, _available_memory())
        if room >= needed * _SPARE:
            return _MEMORY
    return Path(tempfile.gettempdir())


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
