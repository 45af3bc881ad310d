# SPDX-License-Identifier: Apache-2.0
"""How outcomes are shown and kept: tables on the terminal, every sample in build/bench/report.json, and the figures as
build/bench/report.md, from which RESULTS.md is brought up to date."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from e2e.bench import stats
from e2e.bench.outcome import Figure, Outcome, Series

# Three significant digits are what these machines give.
DIGITS = 3

FIGURE_HEAD = ("figure", "value", "95 % interval", "bar", "aim", "")
MISSED, HELD, REACHED = "missed", "held", "aim reached"
COLOURS = {MISSED: "red", HELD: "green", REACHED: "green"}


def show(console: Console, outcome: Outcome) -> None:
    """Prints a case: what each contender took, the figures with their bars, what to know about them."""
    console.print(f"\n[bold]{outcome.title}[/bold]")
    if outcome.series:
        console.print(series_table(outcome.series))
    console.print(figures_table(outcome.figures))
    for note in outcome.notes:
        console.print(f"note: {note}", markup=False)
    for warning in outcome.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def series_table(series: list[Series]) -> Table:
    table = Table("measured", "contender", "rounds", "median", "p99", "spread of rounds")
    for one in series:
        for contender, rounds in one.samples.items():
            found = stats.summary(rounds)
            medians = (f"{number(value)} {one.unit}" for value in (found.median, found.p99))
            table.add_row(one.name, contender, str(len(rounds)), *medians, f"{found.spread:.0%}")
    return table


def figures_table(figures: list[Figure]) -> Table:
    table = Table(*FIGURE_HEAD)
    for figure in figures:
        *cells, judged = _row(figure)
        table.add_row(*cells, f"[{COLOURS[judged]}]{judged}[/]" if judged else "")
    return table


def verdict(figure: Figure) -> str:
    """What became of a figure, in a word or two; "" where it has no bar."""
    if figure.bar is None:
        return ""
    if figure.missed:
        return MISSED
    return REACHED if figure.aim and figure.high <= figure.aim else HELD


def number(value: float) -> str:
    """A number with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 10**DIGITS else f"{value:.{DIGITS}g}"


def write(path: Path, outcomes: Mapping[str, Outcome], machine: Mapping[str, str]) -> None:
    """Writes everything, samples included, and beside it a page with the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".next")
    scratch.write_text(json.dumps(as_json(outcomes, machine), indent=1))
    scratch.rename(path)
    path.with_suffix(".md").write_text(markdown(outcomes, machine))


def markdown(outcomes: Mapping[str, Outcome], machine: Mapping[str, str]) -> str:
    """The figures of a run as a page: what RESULTS.md keeps of it."""
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [f"{datetime.now(UTC):%Y-%m-%d}; {facts}."]
    for outcome in outcomes.values():
        versions = ", ".join(f"{key} {value}" for key, value in outcome.versions.items())
        lines += ["", f"### {outcome.title}", "", f"{versions}.", ""]
        lines += _table(("measured", "contender", "median", "p99"), _series_rows(outcome.series))
        lines += ["", *_table(FIGURE_HEAD, map(_row, outcome.figures))]
        lines += [""] * bool(outcome.warnings) + [f"- warning: {warning}" for warning in outcome.warnings]
    return "\n".join(lines) + "\n"


def _series_rows(series: list[Series]) -> Iterator[tuple[str, ...]]:
    for one in series:
        for contender, rounds in one.samples.items():
            found = stats.summary(rounds)
            yield one.name, contender, f"{number(found.median)} {one.unit}", f"{number(found.p99)} {one.unit}"


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        f"{number(figure.value)} {figure.unit}".strip(),
        "" if figure.low == figure.high else f"{number(figure.low)} to {number(figure.high)}",
        "" if figure.bar is None else number(figure.bar),
        "" if figure.aim is None else number(figure.aim),
        verdict(figure),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def as_json(outcomes: Mapping[str, Outcome], machine: Mapping[str, str]) -> dict[str, Any]:
    """What the report file holds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "cases": {name: _case(outcome) for name, outcome in outcomes.items()},
    }


def _case(outcome: Outcome) -> dict[str, Any]:
    return {
        "title": outcome.title,
        "figures": [figure._asdict() | {"missed": figure.missed} for figure in outcome.figures],
        "series": [{"name": one.name, "unit": one.unit, "rounds": one.samples} for one in outcome.series],
        "versions": outcome.versions,
        "warnings": outcome.warnings,
        "notes": outcome.notes,
    }
