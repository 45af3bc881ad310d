# SPDX-License-Identifier: Apache-2.0
"""controller/SERVICES.md names a test for each line of the contract, and each of them is there."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "controller" / "SERVICES.md"
# Stands where a line has no test.
MISSING = "not done"
COLUMNS = 6


def lines() -> Iterator[list[str]]:
    """The rows of all tables, heads aside."""
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] != "contract" and not cells[0].startswith("---"):
            yield cells


@cache
def names_of(path: str) -> set[str]:
    """What a file's tests are called: NAME, or CLASS::NAME."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("cells", [pytest.param(cells, id=cells[0]) for cells in lines()])
def test_line_of_the_contract_names_tests_that_are_there(cells: list[str]) -> None:
    """Or says that it has none."""
    assert len(cells) == COLUMNS, cells
    named = re.findall(r"`([^`]+)`", cells[2])
    assert bool(named) != (cells[2] == MISSING), cells[2]
    for one in named:
        path, _, name = one.partition("::")
        assert name in names_of(path), one
