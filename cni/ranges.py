# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses, as host-local understands them. Pure.

A network has several range sets; a pod gets one address of each. A range set has several ranges of one family, taken in
turn. A range is a subnet, of which the network's and broadcast address and the gateway are never given out; unless
`gateway` is set that is the first address. Our pods do not use it, but host-local leaves it out, and may take over.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import NamedTuple

from cni.config import Json
from cni.errors import ConfigError

Address = IPv4Address | IPv6Address
Destination = IPv4Network | IPv6Network

_FIELDS = frozenset(("subnet", "rangeStart", "rangeEnd", "gateway"))


class Range(NamedTuple):
    """Addresses from `first` to `last`, both included, but for `gateway`; numbers, of the subnet's family."""

    subnet: Destination
    first: int
    last: int
    gateway: int

    def __contains__(self, address: object) -> bool:
        return (
            isinstance(address, Address)
            and address.version == self.subnet.version
            and self.first <= int(address) <= self.last
        )

    def __str__(self) -> str:
        kind = type(self.subnet.network_address)
        return f"{kind(self.first)}-{kind(self.last)}"


RangeSet = tuple[Range, ...]


def range_sets(ipam: Json) -> list[RangeSet]:
    """The range sets of a configuration: `ranges`, and before them the one that stands beside `type`, of old.

    Raises:
        ConfigError: one is malformed, or two overlap.
    """
    lists = ipam.get("ranges", [])
    if not isinstance(lists, list) or not all(isinstance(ranges, list) for ranges in lists):
        raise ConfigError(f"ipam.ranges: expected a list of lists of ranges, not {lists!r}")
    if "subnet" in ipam:
        lists = [[{name: ipam[name] for name in _FIELDS & ipam.keys()}], *lists]
    elif _FIELDS & ipam.keys():
        raise ConfigError(f"ipam.{min(_FIELDS & ipam.keys())}: without ipam.subnet")
    sets = [_range_set(ranges) for ranges in lists]
    _refuse_overlap([item for range_set in sets for item in range_set])
    return sets


def of_subnets(subnets: Sequence[str]) -> list[RangeSet]:
    """A range set for each of a node's pod ranges. Raises ConfigError."""
    return range_sets({"ranges": [[{"subnet": subnet}] for subnet in subnets]})


def candidates(range_set: RangeSet, last: Address | None) -> Iterator[Address]:
    """Every address that may be given out, once, in turn: after `last`, the one given out before, to `last` itself."""
    start = next((index for index, item in enumerate(range_set) if last in item), None)
    if start is None or last is None:
        for item in range_set:
            yield from _addresses(item, item.first, item.last)
        return
    current = range_set[start]
    yield from _addresses(current, int(last) + 1, current.last)
    for item in range_set[start + 1 :] + range_set[:start]:
        yield from _addresses(item, item.first, item.last)
    yield from _addresses(current, current.first, int(last))


def describe(range_set: RangeSet) -> str:
    return ", ".join(map(str, range_set))


def _addresses(item: Range, first: int, last: int) -> Iterator[Address]:
    kind = type(item.subnet.network_address)
    number = first
    while number <= last:
        if number != item.gateway:
            yield kind(number)
        number += 1


def _range_set(ranges: list[object]) -> RangeSet:
    if not ranges:
        raise ConfigError("ipam.ranges: a range set is empty")
    range_set = tuple(_range(item) for item in ranges)
    if len({item.subnet.version for item in range_set}) > 1:
        raise ConfigError(f"ipam.ranges: {describe(range_set)} are of both families")
    return range_set


def _range(data: object) -> Range:
    if not isinstance(data, dict) or not isinstance(data.get("subnet"), str):
        raise ConfigError(f'ipam.ranges: {data!r} is not an object with a "subnet"')
    unknown = sorted(data.keys() - _FIELDS)
    if unknown:
        raise ConfigError(f"ipam.ranges: {unknown[0]}: unknown field")
    try:
        subnet = ip_network(data["subnet"])
    except ValueError as error:
        raise ConfigError(f"ipam.ranges: subnet: {error}") from error
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise ConfigError(f"ipam.ranges: subnet {subnet} is too small to give out addresses")
    start, end = int(subnet.network_address) + 1, int(subnet.broadcast_address)
    usable = Range(subnet, start, end - (subnet.version == 4), start)
    first, last = (_bound(data, name, subnet) for name in ("rangeStart", "rangeEnd"))
    gateway = _address(data, "gateway")
    item = Range(
        subnet,
        max(usable.first, usable.first if first is None else int(first)),
        min(usable.last, usable.last if last is None else int(last)),
        usable.gateway if gateway is None else int(gateway),
    )
    if item.first > item.last:
        raise ConfigError(f"ipam.ranges: {item} has no address in it")
    return item


def _bound(data: Json, name: str, subnet: Destination) -> Address | None:
    address = _address(data, name)
    if address is not None and address not in subnet:
        raise ConfigError(f"ipam.ranges: {name} {address} is not in {subnet}")
    return address


def _address(data: Json, name: str) -> Address | None:
    if name not in data:
        return None
    try:
        return ip_address(str(data[name]))
    except ValueError as error:
        raise ConfigError(f"ipam.ranges: {name}: {error}") from error


def _refuse_overlap(ranges: list[Range]) -> None:
    for left, right in pairwise(sorted(ranges, key=lambda item: (item.subnet.version, item.first))):
        if left.subnet.version == right.subnet.version and right.first <= left.last:
            raise ConfigError(f"ipam.ranges: {left} and {right} overlap")
