# SPDX-License-Identifier: Apache-2.0
"""The lab's address plan. Each address exists in namespaces of the lab alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

T = TypeVar("T")

UNDERLAY = (IPv4Network("192.168.206.0/24"), IPv6Network("fd00:206::/64"))
PODS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:10:244::/56"))
SERVICES = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112"))

# Of Services, from outside: externalIPs, and a load balancer's. The client routes the first half through the first,
# the second half through the second node.
EXTERNAL = (IPv4Network("203.0.113.0/24"), IPv6Network("2001:db8:206::/120"))
BALANCER = (IPv4Network("198.51.100.0/24"), IPv6Network("2001:db8:207::/120"))
HALF = 128

# The families that a cluster has: IPv4, IPv6.
STACKS = {"dual": (True, True), "ipv4": (True, False), "ipv6": (False, True)}
DUAL = "dual"

SERVICE_BLOCK = 206
SWITCH = 1
FIRST_NODE = 11
CLIENT = 200
DNS = 10
NODES_MAX = CLIENT - FIRST_NODE


@dataclass(frozen=True)
class Dual:
    """An address of either family."""

    v4: str
    v6: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.v4, self.v6))


def of(stack: str, pair: Iterable[T]) -> list[T]:
    """Those of a pair, one for each family, that a cluster of that stack has. STACKS are the words."""
    return [item for item, whether in zip(pair, STACKS[stack], strict=True) if whether]


def underlay(host: int) -> Dual:
    """The addresses of a host: 192.168.206.11 and fd00:206::11 for 11."""
    return Dual(str(UNDERLAY[0][host]), str(UNDERLAY[1][_as_hex(host)]))


def pod_ranges(node: int) -> Dual:
    """The podCIDRs of a node: a /24 and a /64. Nodes count from 1."""
    return Dual(
        str(IPv4Network((int(PODS[0][0]) + (node << 8), 24))), str(IPv6Network((int(PODS[1][0]) + (node << 64), 64)))
    )


def service(number: int) -> Dual:
    """The cluster IPs of the lab's Service of that number, 1 to 255, where clusters have none of their own."""
    return Dual(str(SERVICES[0][SERVICE_BLOCK * 256 + number]), str(SERVICES[1][SERVICE_BLOCK * 256 + number]))


def cluster_dns() -> Dual:
    """The cluster IPs of the cluster's name server."""
    return Dual(str(SERVICES[0][DNS]), str(SERVICES[1][_as_hex(DNS)]))


def outside(network: tuple[IPv4Network, IPv6Network], entry: int, number: int) -> Dual:
    """The addresses of EXTERNAL or BALANCER that a Service of that number, 1 to 127, has by way of a node, 1 or 2."""
    place = HALF * (entry - 1) + number
    return Dual(str(network[0][place]), str(network[1][place]))


def _as_hex(number: int) -> int:
    """The number whose hexadecimal digits are those of `number`: both families' addresses then look alike."""
    return int(str(number), 16)
