# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses as text, compared often enough that what they say is kept. Pure."""

from collections.abc import Iterable
from functools import lru_cache

from bpf.prefixes import parse_range


def is_range(cidr: str) -> bool:
    try:
        _span(cidr)
    except ValueError:
        return False
    return True


def overlaps(cidr: str, others: Iterable[str]) -> bool:
    """Whether a range has an address of one of the others. Raises ValueError."""
    version, first, last = _span(cidr)
    return any(
        version == other_version and first <= other_last and other_first <= last
        for other_version, other_first, other_last in map(_span, others)
    )


@lru_cache(maxsize=2**16)
def _span(cidr: str) -> tuple[int, int, int]:
    """The version of a range, and its first and last address as numbers. Raises ValueError."""
    found = parse_range(cidr)
    return found.version, int(found.network_address), int(found.broadcast_address)
