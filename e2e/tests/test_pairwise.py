# SPDX-License-Identifier: Apache-2.0
"""The selection of a matrix."""

from itertools import product

from e2e.tests.pairwise import pairs, pairwise

FACTORS = (("1", "2", "3"), ("x", "y"), ("p", "q"), ("k", "l", "m"))


def test_pairwise_has_every_pair_in_far_fewer_rows() -> None:
    """Whatever two values meet in the matrix meet in the selection, which is about the product of the two longest."""
    rows = [row for row in product(*FACTORS) if row[:2] != ("1", "y")]
    chosen = pairwise(rows)
    wanted, found = ({pair for row in some for pair in pairs(row)} for some in (rows, chosen))
    assert found == wanted
    assert len(chosen) <= 12 < len(rows)
    assert ((0, "1"), (1, "y")) not in found
