"""What a benchmark found: tables and wanted lines for the terminal, the same as JSON, plots."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.measure import MIB, Comparison

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A bound on a measured figure; ``measured`` None: it could not be measured."""

    what: str
    measured: float | None
    bound: float
    at_least: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def verdict(self) -> str:
        """``met``, ``short by …`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        if self.met:
            return "met"
        missing = abs(self.measured - self.bound)
        return f"short by {number(missing)}{self.unit and ' ' + self.unit}"

    def line(self) -> str:
        """What was wanted and what was found."""
        sign = ">=" if self.at_least else "<="
        unit = self.unit and f" {self.unit}"
        found = "" if self.measured is None else f"{number(self.measured)}{unit} "
        return f"{self.what}: {found}(wanted {sign} {number(self.bound)}{unit}): {self.verdict}"


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: every row has one cell a column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(slots=True)
class Report:
    """All that one benchmark found; ``figures`` are what a program would want to read."""

    name: str
    tables: list[Rows] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        """Print it."""
        for rows in self.tables:
            # Not the table's own title, which is folded at the table's width.
            console.print(Text(f"\n  {rows.title}", style="bold"))
            console.print(_table(rows))
        for line in self.wanted:
            colour = "green" if line.met else "red"
            console.print(Text(f"  {line.line()}", style=colour))
        for note in self.notes:
            console.print(Text(f"  {note}", style="dim"))

    def write(self, directory: Path) -> Path:
        """Write ``directory/NAME.json``; returns it."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{self.name}.json"
        file.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        return file

    def as_json(self) -> dict[str, object]:
        """Everything, with the machine that it was measured on."""
        return {
            "benchmark": self.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "tables": [asdict(rows) for rows in self.tables],
            "wanted": [{**asdict(line), "verdict": line.verdict} for line in self.wanted],
            "notes": self.notes,
            "figures": self.figures,
        }


def compared(title: str, comparison: Comparison, reference: str | None = None) -> Rows:
    """A comparison as a table: MB/s, CPU, memory, and the ratio to the leg ``reference``."""
    columns = ["", "MB/s", "least", "most", "CPU s/GB", "peak MiB"]
    base = comparison.rate(reference) if reference is not None else None
    if reference is not None:
        title += f"; ratios to {reference}"
        columns.append("ratio")
    rows: list[list[Cell]] = []
    for name, leg in comparison.legs.items():
        peak = None if leg.peak is None else leg.peak / MIB
        row: list[Cell] = [name, leg.rate, leg.slowest, leg.fastest, leg.cpu_per_gb, peak]
        if reference is not None:
            row.append(leg.rate / base if base else None)
        rows.append(row)
    rows += [[name, "failed", *[None] * (len(columns) - 2)] for name in comparison.failures]
    return Rows(title, columns, rows)


def failures(comparison: Comparison) -> list[str]:
    """A line for each leg that failed."""
    return [f"{name} failed: {reason}" for name, reason in comparison.failures.items()]


def number(value: float) -> str:
    """Three figures that mean something: 4660, 97.3, 0.21; a count as it is."""
    if isinstance(value, int) or value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def machine() -> dict[str, object]:
    """Kernel, processor and memory, without anything that names the machine."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def plot_bars(file: Path, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """One panel of horizontal bars a group, written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [max(1, len(bars)) for bars in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups),
        1,
        figsize=(8, 1.1 * len(groups) + 0.34 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, bars) in zip(axes[:, 0], groups.items(), strict=True):
        colours = ["tab:orange" if "headstart" in label else "tab:blue" for label in bars]
        drawn = axis.barh(list(bars), list(bars.values()), color=colours)
        axis.bar_label(drawn, [number(value) for value in bars.values()], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(name, loc="left", fontsize="medium")
    axes[-1, 0].set_xlabel(unit)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _table(rows: Rows) -> Table:
    table = Table()
    for position, column in enumerate(rows.columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows.rows:
        table.add_row(*(_shown(cell) for cell in row))
    return table


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else number(cell) if isinstance(cell, float) else str(cell)
