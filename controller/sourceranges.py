# SPDX-License-Identifier: Apache-2.0
"""loadBalancerSourceRanges: for which clients the load-balancer addresses of a Service are. Pure.

Source: pkg/proxy of Kubernetes, but for ranges that make no sense: there they are as if they had not been named.
"""

from collections.abc import Iterable

from bpf.address import packed, prefix_bits
from bpf.prefixes import Prefix, parse_range

Ranges = tuple[Prefix, ...]


def allowed(texts: Iterable[str], problems: list[str]) -> dict[int, Ranges]:
    """The clients of each family that is not for everybody.

    A family is for everybody where no range is of it, or one that holds everything. A range that makes no sense holds
    nobody, but counts; for both families where it could be of either.
    """
    found: dict[int, set[Prefix]] = {}
    everybody = set()
    for text in filter(None, map(str.strip, texts)):
        try:
            version, length, address = _parsed(text)
        except ValueError as error:
            problems.append(f"loadBalancerSourceRanges: {error}")
            for family in _families(text):
                found.setdefault(family, set())
            continue
        if not length:
            everybody.add(version)
        found.setdefault(version, set()).add((prefix_bits(address, length), address))
    return {family: tuple(sorted(ranges)) for family, ranges in found.items() if family not in everybody}


def holds(ranges: Iterable[Prefix], address: bytes) -> bool:
    """Whether an address of 16 bytes is in one of the ranges."""
    number = int.from_bytes(address, "big")
    return any(number >> 128 - bits == int.from_bytes(prefix, "big") >> 128 - bits for bits, prefix in ranges)


def _parsed(text: str) -> tuple[int, int, bytes]:
    """Version, length and first address of a range. Raises ValueError."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no length")
    found = parse_range(text, strict=False)
    return found.version, found.prefixlen, packed(str(found.network_address))


def _families(text: str) -> tuple[int, ...]:
    return tuple(family for mark, family in ((".", 4), (":", 6)) if mark in text) or (4, 6)
