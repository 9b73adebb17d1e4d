"""Made things that are worth keeping between runs: below ``~/.cache/headstart-bench``.

``XDG_CACHE_HOME`` says where else; deleting the directory costs the next run some minutes.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

DIRECTORY = "headstart-bench"


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The directory ``name``, made by ``make`` in an empty directory where it is not there yet.

    It appears with its name when it is whole: a run that ends in the middle leaves nothing.
    """
    place = _cache() / name
    if not place.is_dir():
        waiting = place.with_name(f"{name}.{os.getpid()}")
        waiting.mkdir(parents=True)
        try:
            make(waiting)
            waiting.rename(place)
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
    return place


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / DIRECTORY
