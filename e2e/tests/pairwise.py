# SPDX-License-Identifier: Apache-2.0
"""A selection of a matrix in which every two values of different factors meet, where they can. Pure."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TypeVar

Row = TypeVar("Row", bound=tuple[str, ...])
Pair = tuple[tuple[int, str], ...]


def pairwise(rows: Sequence[Row]) -> list[Row]:
    """As few of `rows` as a greedy choice finds, with every pair of values that occurs in any of them."""
    numbers: dict[Pair, int] = {}
    # The pairs of each row as the bits of a number: there are thousands of rows, of which each choice asks again.
    found = [sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs(row)) for row in rows]
    missing = (1 << len(numbers)) - 1
    chosen = []
    while missing:
        best = max(range(len(rows)), key=lambda index: (missing & found[index]).bit_count())
        chosen.append(rows[best])
        missing &= ~found[best]
    return chosen


def pairs(row: tuple[str, ...]) -> Iterator[Pair]:
    """Each two values of a row, with the places of their factors."""
    return combinations(enumerate(row), 2)
