# SPDX-License-Identifier: Apache-2.0
"""A selection of a matrix in which every two values of different factors meet, where they can. Pure."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Row = tuple[str, ...]


def whole(factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Every row of the matrix that is allowed: a value of each factor, in their order."""
    return [row for row in product(*factors.values()) if allowed(row)]


def pairwise(rows: Sequence[Row]) -> list[Row]:
    """As few of `rows` as a greedy choice finds, with every pair of values that occurs in any of them."""
    missing = {pair for row in rows for pair in _pairs(row)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(missing & _pairs(row)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(row: Row) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(row), 2))
