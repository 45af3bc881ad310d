# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses, and the prefixes that stand for them in the maps, whose addresses are those of `bpf.address`.

IPv4's are a part of IPv6's there, ::ffff:0:0/96, which no prefix of IPv6 may meet. Every range that is to become a key,
or to be compared with one, is read here. Pure.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from bpf.address import V4_PREFIX, is_v4, prefix_bits

Range = IPv4Network | IPv6Network

# (bits that count, address), of addresses of 16 bytes.
Prefix = tuple[int, bytes]

_V4_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_range(text: str, strict: bool = True) -> Range:
    """A range by its text; an address is the range that holds it alone.

    Args:
        strict: it must have no bits of a host.

    Raises:
        ValueError: it is none, or of one device alone, or IPv4's in the form of IPv6, which could be meant for either
            family.
    """
    if "%" in text:
        raise ValueError(f"{text!r} is of one device")
    found = ip_network(text, strict)
    first = found.network_address.packed
    if is_v4(first):  # of 16 bytes: IPv4's own have 4 here
        meant = IPv4Network((first[12:], found.prefixlen - _V4_MAPPED.prefixlen))
        raise ValueError(f"{text} is IPv4 in the form of IPv6: write {meant}")
    return found


def prefixes(texts: Iterable[str]) -> list[Prefix]:
    """What holds the addresses of these ranges and no others: a prefix for each; but for an IPv6 range in which IPv4's
    addresses would be, up to 96, those beside the way to ::ffff:0:0/96. Raises ValueError, as `parse_range`."""
    return [_prefix(part) for text in texts for part in _parts(parse_range(text))]


def _parts(cidr: Range) -> Iterator[Range]:
    if isinstance(cidr, IPv6Network) and cidr.supernet_of(_V4_MAPPED):
        yield from cidr.address_exclude(_V4_MAPPED)
    else:
        yield cidr


def _prefix(cidr: Range) -> Prefix:
    first = cidr.network_address.packed
    address = first if cidr.version == 6 else V4_PREFIX + first
    return prefix_bits(address, cidr.prefixlen), address
