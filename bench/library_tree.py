"""A directory of an installed Python library: real packages, or files that resemble them.

The packages come from the index that pip is configured with. Where it has none of them, slices of
this interpreter's own library make up for it, and every table says so.
"""

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.kept import kept
from bench.python_library import FILES, make_layer

PACKAGES = (
    "matplotlib==3.11.2",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "pyarrow==26.0.1",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
    "statsmodels==0.15.0",
    "sympy==1.14.0",
)
IMPORTED = "numpy, scipy.optimize, scipy.stats, pandas, sklearn.ensemble, sklearn.linear_model"
_INSTALL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LibraryTree:
    """``directory`` is what would be in ``sys.path``; ``real`` says whether it can be imported."""

    directory: Path
    real: bool

    @property
    def description(self) -> str:
        """For a table's title."""
        return "installed packages" if self.real else "synthetic files"


def library_tree(quick: bool) -> LibraryTree:
    """Make it, or take the one of an earlier run; ``quick`` has a tenth of the files.

    Raises ProcessFailed, OSError.
    """
    if quick:
        return LibraryTree(kept("library-quick", partial(_resemble, FILES // 10)), real=False)
    try:
        return LibraryTree(kept("library-packages", partial(_install, PACKAGES)), real=True)
    except (subprocess.SubprocessError, OSError):
        return LibraryTree(kept("library-synthetic", partial(_resemble, FILES)), real=False)


def _install(packages: Sequence[str], place: Path) -> None:
    # With the user's own configuration of pip, which the other programs do not get.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", place, *packages],
        check=True,
        capture_output=True,
        timeout=_INSTALL_SECONDS,
    )


def _resemble(files: int, place: Path) -> None:
    made = place / "made"
    layer = make_layer(made, files)
    with tarfile.open(layer.tar) as archive:
        # By attribute: Debian 12's Python has no `filter` yet, later ones warn without one.
        archive.extraction_filter = lambda member, _: member
        archive.extractall(place)
    layer.tar.unlink()
    layer.blob.unlink()
    made.rmdir()
