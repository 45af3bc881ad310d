# SPDX-License-Identifier: Apache-2.0
"""The selection of a matrix."""

from itertools import combinations

from e2e.tests.pairwise import pairwise, whole

FACTORS = {"a": ("1", "2", "3"), "b": ("x", "y"), "c": ("p", "q"), "d": ("k", "l", "m")}


def test_pairwise_has_every_pair_in_far_fewer_rows() -> None:
    """Whatever two values meet in the matrix meet in the selection, which is about the product of the two longest."""
    rows = whole(FACTORS, lambda row: row[:2] != ("1", "y"))
    chosen = pairwise(rows)
    wanted, found = ({pair for row in some for pair in combinations(enumerate(row), 2)} for some in (rows, chosen))
    assert found == wanted
    assert len(chosen) <= 12 < len(rows)
    assert ((0, "1"), (1, "y")) not in found
