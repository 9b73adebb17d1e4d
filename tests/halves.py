"""Runs the suite in two halves side by side: ``python -m tests.halves``.

One half mostly waits, for deadlines, restarts and slow upstreams; beside it the other one computes.
On two cores that is half the time. What the first half says comes when both have ended.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAITING = (
    "command",
    "control",
    "convert",
    "faults",
    "parts",
    "proxy",
    "pulls",
    "registry",
    "serve",
    "warm",
)
"""Folders of the half that waits; what looks at all mounts of the machine is in the other one."""


def pytest(folders: list[str], *options: str) -> list[str]:
    """The command for some folders."""
    return [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in folders)]


def main() -> int:
    """Run both; the exit status is 0 when both passed."""
    present = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    present |= {path.parts[-3] for path in (ROOT / "tests").glob("*/*/test_*.py")}
    working = sorted(present - set(WAITING))
    with tempfile.TemporaryFile("w+") as printed:
        waits = subprocess.Popen(
            # Two that write one cache of results would lose what the other has written.
            pytest(list(WAITING), "-p", "no:cacheprovider"),
            cwd=ROOT,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            status = subprocess.run(pytest(working), cwd=ROOT).returncode
            waited = waits.wait()
        except BaseException:
            waits.terminate()
            waits.wait()
            raise
        printed.seek(0)
        sys.stdout.write(f"\n=== beside it: {', '.join(WAITING)}\n")
        sys.stdout.writelines(printed)
        sys.stdout.flush()
    return status or waited


if __name__ == "__main__":
    raise SystemExit(main())
