# SPDX-License-Identifier: Apache-2.0
"""How a run is shown: a table by group, what was skipped and why, what does not pass."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from e2e.conformance import suite
from e2e.conformance.pending import FILE, Verdict
from e2e.conformance.results import FAILED, PASSED, SKIPPED, Result

STATES = (PASSED, FAILED, SKIPPED)


def show(
    console: Console, results: Iterable[Result], verdict: Verdict, pending: Mapping[str, str], took_s: float
) -> None:
    """Prints a run, which took so long."""
    results = sorted(results, key=lambda result: result.name)
    console.print(table(results))
    console.print(f"in {took_s / 60:.1f} minutes")
    _list(console, "skipped", ((result, result.why) for result in results if result.state == SKIPPED))
    _list(console, "does not pass yet", ((result, pending[result.name]) for result in verdict.expected))
    _list(console, f"passes: remove its line from {FILE.name}", ((result, "") for result in verdict.passing))
    _list(console, "failed", ((result, result.why) for result in verdict.unexpected))


def table(results: Iterable[Result]) -> Table:
    """Counts by group, and the time that its tests took together."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(suite.group(result.name), []).append(result)
    made = Table("group", *STATES, "time", show_footer=True)
    for name, members in groups.items():
        made.add_row(name, *_counts(members), _time(members))
    everything = [result for members in groups.values() for result in members]
    for column, footer in zip(made.columns, ("all", *_counts(everything), _time(everything)), strict=True):
        column.footer = footer
    for column in made.columns[1:]:
        column.justify = "right"
    return made


def unsteady(runs: Iterable[Iterable[Result]]) -> list[str]:
    """Tests that did not end alike in all runs."""
    states: dict[str, set[str]] = {}
    for results in runs:
        for result in results:
            states.setdefault(result.name, set()).add(result.state)
    return sorted(name for name, seen in states.items() if len(seen) > 1)


def _counts(results: list[Result]) -> list[str]:
    return [str(sum(result.state == state for result in results)) for state in STATES]


def _time(results: list[Result]) -> str:
    return f"{sum(result.took_s for result in results):,.0f} s"


def _list(console: Console, title: str, rows: Iterable[tuple[Result, str]]) -> None:
    rows = list(rows)
    if rows:
        console.print(f"\n{title}: {len(rows)}")
    for result, why in rows:
        console.print(f"  {result.name}", markup=False, soft_wrap=True)
        if why:
            console.print(f"      {why}", markup=False, soft_wrap=True)
