# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: the backend of each place. Pure.

Whoever has the same backends has the same table, whatever their order and ids. A backend that comes or goes takes or
leaves its share of the places, and few others change hands. Source: Eisenbud et al., Maglev, NSDI 2016, section 3.4.
"""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from bpf.abi import Maglev, MaglevRow

# Tables kept for a Service that is looked at again: one takes 10 ms at the default size, and 16 kB.
KEPT = 512


def rows(backends: Sequence[bytes], backend_ids: Sequence[int], size: int) -> list[bytes]:
    """A table as it stands in the map: a struct maglev_row each.

    Args:
        backends: what tells each from the others on every node; one at least, and no more than places.
        backend_ids: of each of them.
        size: places, a prime.
    """
    ordered = sorted(zip(backends, backend_ids, strict=True))
    places = array("I", [ordered[index][1] for index in table(tuple(one for one, _ in ordered), size)])
    places.extend([0] * (-size % Maglev.ROW))
    return [MaglevRow(places[at : at + Maglev.ROW].tobytes()).pack() for at in range(0, len(places), Maglev.ROW)]


@lru_cache(maxsize=KEPT)
def table(backends: Sequence[bytes], size: int) -> "array[int]":
    """For each place the index of its backend. In turn each takes the next free place of an order of its own."""
    orders = [_order(one, size) for one in backends]
    at = [offset for offset, _ in orders]
    owners = [-1] * size
    left = size
    while left:
        for index, (_, step) in enumerate(orders[:left]):
            place = at[index]
            while owners[place] >= 0:
                place = (place + step) % size
            owners[place], at[index] = index, place
        left -= min(left, len(orders))
    return array("I", owners)


def _order(backend: bytes, size: int) -> tuple[int, int]:
    """The first place of a backend's order, and how far each is from the one before."""
    digest = sha256(backend).digest()
    first, step = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
    return first % size, step % (size - 1) + 1


def row_count(size: int) -> int:
    return -(-size // Maglev.ROW)
