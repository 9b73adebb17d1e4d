"""A root file system as distributions have it: Debian's, from the mirrors of this machine's apt."""

import subprocess
from pathlib import Path

APT = Path("/etc/apt")
DEADLINE_SECONDS = 120
_TOO_MUCH = ("man", "locale")
"""Below /usr/share; images leave these out as well."""


class NoDebian(Exception):
    """No root file system can be had here; the message says why."""


def debian_root(directory: Path) -> bytes:
    """The tar of a Debian with its essential packages, about 100 MB. Raises NoDebian."""
    files = [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))]
    sources = [file for file in files if file.suffix in (".list", ".sources") and file.exists()]
    tar = directory / "root.tar"
    command = ["mmdebstrap", "--variant=essential", "--mode=root", "--format=tar"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _TOO_MUCH]
    command += ['--aptopt=Acquire::Retries "0"', '--aptopt=Acquire::http::Timeout "10"']
    try:
        made = subprocess.run(
            [*command, "", tar, *sources],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoDebian(f"mmdebstrap: {error}") from error
    if made.returncode:
        wrong = [line for line in made.stderr.splitlines() if line.startswith(("E:", "Err:"))]
        raise NoDebian(f"mmdebstrap: {'; '.join(wrong)[:300] or made.stderr[-300:]}")
    try:
        return tar.read_bytes()
    finally:
        tar.unlink()
