"""Wanted lines, tables on a terminal, the JSON beside them, plots."""

import io
import json
from pathlib import Path

from rich.console import Console

from bench.measure import MB, MIB, Comparison, Sample, Summary
from bench.report import Report, Rows, Wanted, compared, failures, number, plot_bars


def test_a_wanted_line_says_met_or_what_is_missing() -> None:
    assert Wanted("rate", 0.95, 0.9).line() == "rate: 0.95 (wanted >= 0.90): met"
    assert Wanted("rate", 0.7, 0.9).verdict == "short by 0.20"
    assert Wanted("delay", 2.5, 2.0, at_least=False, unit="s").line() == (
        "delay: 2.50 s (wanted <= 2.00 s): short by 0.50 s"
    )
    assert Wanted("delay", 2.0, 2.0, at_least=False).met
    missing = Wanted("rate", None, 0.9)
    assert (missing.met, missing.line()) == (False, "rate: (wanted >= 0.90): not measured")


def test_numbers_keep_the_figures_that_mean_something() -> None:
    assert [number(value) for value in (4660.4, 97.34, 0.214, 0.0042, 5)] == [
        "4660",
        "97.3",
        "0.21",
        "0.0042",
        "5",
    ]


def test_a_comparison_is_a_table_with_ratios_and_failures() -> None:
    legs = {
        "nginx": Summary.of([Sample(1.0, 100 * MB, 0.1, 2 * MIB)]),
        "curl": Summary.of([Sample(2.0, 100 * MB)]),
    }
    comparison = Comparison(legs, {"headstart": "it did not start"})
    rows = compared("warm", comparison, "nginx")
    assert rows.columns[-1] == "ratio"
    assert rows.rows[0] == ["nginx", 100, 100, 100, 1, 2, 1]
    assert rows.rows[1] == ["curl", 50, 50, 50, None, None, 0.5]
    assert rows.rows[2][:2] == ["headstart", "failed"]
    assert {len(row) for row in rows.rows} == {len(rows.columns)}
    assert failures(comparison) == ["headstart failed: it did not start"]


def test_a_report_is_shown_and_written(tmp_path: Path) -> None:
    report = Report("pull", [Rows("a table", ["", "MB/s"], [["leg", 12.0], ["other", None]])])
    report.wanted.append(Wanted("rate", 0.7, 0.9))
    report.notes.append("a note [with brackets]")
    printed = io.StringIO()
    report.show(Console(file=printed, width=100))
    for part in ("a table", "12.0", "short by 0.20", "a note [with brackets]"):
        assert part in printed.getvalue()
    written = json.loads(report.write(tmp_path / "results").read_text())
    assert written["benchmark"] == "pull"
    assert written["wanted"][0]["verdict"] == "short by 0.20"
    assert written["tables"][0]["rows"][0] == ["leg", 12.0]
    assert written["machine"]["cores"] >= 1


def test_bars_are_drawn_without_a_display(tmp_path: Path) -> None:
    groups = {"warm": {"headstart": 4000.0, "nginx": 4200.0}, "cold": {}}
    plot_bars(tmp_path / "plots/pull.png", "a blob", groups, "MB/s")
    assert (tmp_path / "plots/pull.png").read_bytes().startswith(b"\x89PNG")
