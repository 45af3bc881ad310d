# SPDX-License-Identifier: Apache-2.0
"""How the commands print: a table for people, JSON for programs.

Tables are plain padded text, whole when piped: a library that lays tables out cuts addresses at the terminal's width,
and needs minutes for the rows of a full flow table.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import click


class Column(NamedTuple):
    """A column of a table: its heading, and the text of an item in it."""

    heading: str
    text: Callable[[Any], str]


def show(output: str, items: Sequence[NamedTuple], columns: Sequence[Column]) -> None:
    """Prints items as a table, or as a JSON list of all their fields."""
    if output == "json":
        show_json([item._asdict() for item in items])
        return
    rows = [[column.text(item) for column in columns] for item in items]
    click.echo("\n".join(table([column.heading for column in columns], rows)))


def show_json(value: object) -> None:
    """Prints a value; a list has an item a line, so that it can be read while it is long."""
    if isinstance(value, list):
        lines = ",\n".join(json.dumps(item) for item in value)
        click.echo(f"[\n{lines}\n]" if value else "[]")
    else:
        click.echo(json.dumps(value, indent=2))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, with columns two spaces apart."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def duration(seconds: float) -> str:
    """A time span in the two units that matter: 850ms, 12s, 3m20s, 2h05m, 3d04h."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
