# SPDX-License-Identifier: Apache-2.0
"""What the demo found: steps with figures, and how a terminal shows them. Knows nothing of the lab."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


class StepError(Exception):
    """A step did not show what it should; the message says what was seen instead."""


@dataclass
class Figure:
    """A table, with a bar in each row where `bar_of` names the column that is drawn."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bar_of: str = ""

    def share(self, row: Sequence[str]) -> float:
        """How long a row's bar is, of 1."""
        column = self.columns.index(self.bar_of)
        return float(row[column]) / max(1.0, *(float(other[column]) for other in self.rows))


@dataclass
class Step:
    """One thing that the demo shows.

    Attributes:
        title: what is shown, in a few words.
        claim: what should be seen.
        did: the commands or actions, as a reader would type them.
        seen: what was seen, in a sentence each.
        failure: why the step failed; "" where it did not.
    """

    title: str
    claim: str
    did: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    failure: str = ""
    took_s: float = 0.0


@dataclass(frozen=True)
class Box:
    """A node or a client in the picture: its name, what is written below it, and its pods as (name, address)."""

    name: str
    lines: Sequence[str]
    pods: Sequence[tuple[str, str]] = ()


@dataclass
class Report:
    """The whole demo."""

    title: str
    subtitle: str
    circumstances: str
    boxes: list[Box] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def failed(self) -> list[Step]:
        return [step for step in self.steps if step.failure]


def show_title(console: Console, report: Report) -> None:
    console.print()
    console.print(Text(report.title, style="bold"))
    console.print(Text(report.subtitle, style="dim"))
    console.print(Text(report.circumstances, style="dim"))


def show_step(console: Console, number: int, step: Step) -> None:
    """Prints a step once it is done."""
    mark = Text("✗", style="bold red") if step.failure else Text("✓", style="bold green")
    console.print()
    console.print(mark, Text(f"{number}. {step.title}", style="bold"), Text(f"{step.took_s:.1f} s", style="dim"))
    for text, style in ((step.claim, "italic"), *((f"$ {line}", "cyan") for line in step.did)):
        console.print(Padding(Text(text, style=style), (0, 0, 0, 4), expand=False))
    for figure in step.figures:
        console.print(Padding(_table(figure), (0, 0, 0, 4), expand=False))
    for line in step.seen:
        console.print(Padding(Text(f"→ {line}"), (0, 0, 0, 4), expand=False))
    if step.failure:
        console.print(Padding(Text(step.failure, style="red"), (0, 0, 0, 4), expand=False))


def show_end(console: Console, report: Report, page: str) -> None:
    console.print()
    if report.failed:
        console.print(Text(f"{len(report.failed)} of {len(report.steps)} steps failed", style="bold red"))
    else:
        console.print(Text(f"All {len(report.steps)} steps shown in {report.took_s:.0f} s", style="bold green"))
    console.print(Text(f"As a page: {page}", style="dim"))


def _table(figure: Figure) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in (*figure.columns, *([""] if figure.bar_of else [])):
        table.add_column(column)
    for row in figure.rows:
        bar = ["█" * round(30 * figure.share(row))] if figure.bar_of else []
        table.add_row(*row, *bar)
    return table
