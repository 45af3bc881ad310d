# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: what the paper promises of them, and what the map is told."""

from collections import Counter
from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.abi import Backend
from bpf.address import packed
from bpf.settings import describe
from controller import maglev

SIZES = [int(size) for setting in describe() if setting.name == "maglev_table_size" for size in setting.meta.choices]


def _backends(count: int) -> list[bytes]:
    """As the plan names them: a struct backend but for its flags."""
    return [Backend(packed(f"203.0.113.{number}"), 8080, 6, 0).pack()[:-1] for number in range(count)]


def _owners(backends: list[bytes], size: int) -> list[bytes]:
    """The backend of each place, read back from the rows."""
    ids = {one: number for number, one in enumerate(backends, 1)}
    rows = maglev.rows(backends, [ids[one] for one in backends], size)
    assert len(rows) == maglev.row_count(size)
    places = [place for row in rows for place in unpack("<32I", row)]
    assert set(places[size:]) <= {0}
    return [backends[place - 1] for place in places[:size]]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_to_choose_from_are_primes(size: int) -> None:
    """Else a backend's order would not come by all places."""
    assert all(size % factor for factor in range(2, int(size**0.5) + 1))


@given(st.permutations(_backends(7)), st.integers(1, 7))
def test_table_is_the_same_whatever_the_order_of_backends(shuffled: list[bytes], count: int) -> None:
    """Nodes hear of endpoints in any order, and number them each for itself."""
    backends = shuffled[:count]
    assert _owners(backends, 251) == _owners(sorted(backends), 251)


@pytest.mark.parametrize(("count", "size"), [(1, 251), (2, 251), (251, 251), (40, 4093), (100, 4093)])
def test_backends_have_equal_shares(count: int, size: int) -> None:
    """To a place or two: each takes one in turn, until none is free."""
    shares = Counter(_owners([b"%d" % number for number in range(count)], size)).values()
    assert len(shares) == count
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("count", [3, 10, 40])
def test_backend_that_goes_moves_few_places_of_others(count: int) -> None:
    """Its own go to others; of theirs, a few per cent move as well."""
    backends, size = _backends(count), 4093
    before, after = _owners(backends, size), _owners(backends[1:], size)
    stayed = [one == other for one, other in zip(before, after, strict=True) if one != backends[0]]
    assert backends[0] not in after
    assert stayed.count(False) <= 0.05 * len(stayed)


def test_table_is_that_of_every_version() -> None:
    """While nodes are upgraded one after the other, both versions have to agree."""
    owners = _owners(_backends(3), 251)
    assert (
        "".join(str(_backends(3).index(one)) for one in owners[:64])
        == "1121121221210212001201200210200111211012212220110012012002102021"
    )
