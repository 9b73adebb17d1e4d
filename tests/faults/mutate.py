"""Shows that each fault test guards its line: ``python -m tests.faults.mutate [NUMBER…]``.

Each entry of ``mutations/*.yaml`` is applied to a copy of the tree, in which the one test is run:
it has to fail there. ``--table`` writes the entries into README.md instead.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COPIED = ("headstart", "proxy", "mount", "tests", "pyproject.toml", "config.yaml", "README.md")
MOST_SECONDS = 240.0
TABLE = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One line that a test guards, and what replaces it; the fields are those of the YAML."""

    fault: str
    test: str
    """Node id, from the root of the repository."""
    file: str
    guard: str
    """Text that occurs exactly once in the file."""
    mutant: str
    fails: str
    """What is seen then, in words."""

    def mutated(self, text: str) -> str:
        """The file's text with the mutation. Raises ValueError where the guard is not found."""
        if text.count(self.guard) != 1:
            raise ValueError(f"{self.file}: {self.guard!r} is there {text.count(self.guard)} times")
        return text.replace(self.guard, self.mutant)


def mutations() -> Iterator[Mutation]:
    """All entries, by file and in order."""
    for path in sorted((HERE / "mutations").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()):
            yield Mutation(**{name: str(text).rstrip("\n") for name, text in entry.items()})


def table() -> str:
    """The entries as a table in Markdown, ordered by fault."""
    rows = [
        "| fault | test | guarding line | mutation | what then fails |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(mutations(), key=lambda entry: _number(entry.fault)):
        test = one.test.partition("::")[2]
        guard = f"`{one.file}`: {_code(one.guard)}"
        rows.append(f"| {one.fault} | `{test}` | {guard} | {_code(one.mutant)} | {one.fails} |")
    return "\n".join(rows) + "\n"


def _number(fault: str) -> tuple[int, str]:
    found = re.match(r"\d+", fault)
    return (int(found[0]) if found else 0, fault)


def _code(text: str) -> str:
    lines = [line.strip().replace("|", "\\|") for line in text.splitlines() if line.strip()]
    return "<br>".join(f"`{line}`" for line in lines) or "(removed)"


def copy_tree(target: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, target / name)


def outcome(tree: Path, test: str) -> str:
    """``killed``, ``survived`` or, when the test did not get to run, ``broken``; and the end."""
    # The children run with -P, which leaves PYTHONPATH in force: before the installed project.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    where = "import headstart, proxy; print(headstart.__file__, proxy.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where], env=environment, text=True, capture_output=True
    ).stdout.split()
    if not found or not all(name.startswith(str(tree)) for name in found):
        return f"broken: the copy is not what runs: {found}"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status = run.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            # As Control-C: pytest ends what its fixtures have started.
            run.send_signal(signal.SIGINT)
            try:
                run.wait(MOST_SECONDS)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            return f"killed: still hanging after {MOST_SECONDS:g} s"
        output.seek(0)
        lines = output.read().splitlines()
    if status == 0:
        return "survived"
    summary = next((line for line in reversed(lines) if re.search(r"\d+ \w+ in ", line)), "")
    if status != 1 or "failed" not in summary or "error" in summary:
        return "broken: " + "\n".join(lines[-30:])
    reason = next((line[2:].strip() for line in lines if line.startswith("E  ")), summary)
    return f"killed: {reason[:150]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations of the faults that are named, or all; 1 when one is not killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutate")
    parser.add_argument("faults", nargs="*", help="numbers of faults; none: all")
    parser.add_argument("--table", action="store_true", help="write the table in README.md")
    given = parser.parse_args(arguments)
    if given.table:
        readme = HERE / "README.md"
        readme.write_text(TABLE.sub(lambda _: table(), readme.read_text()))
        return 0
    chosen = [one for one in mutations() if not given.faults or one.fault in given.faults]
    alive = 0
    for one in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
            tree = Path(directory)
            copy_tree(tree)
            mutated = tree / one.file
            try:
                mutated.write_text(one.mutated(mutated.read_text()))
            except ValueError as error:
                result = f"broken: {error}"
            else:
                result = outcome(tree, one.test)
        alive += not result.startswith("killed")
        seconds = time.monotonic() - began
        name = one.test.partition("::")[2]
        print(f"{one.fault:>4}  {name}  {seconds:.0f} s  {result}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} mutations were killed")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
