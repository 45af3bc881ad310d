# SPDX-License-Identifier: Apache-2.0
"""Nodes to the ways that lead to them: entries of the remotes map, and kernel routes for the host's own processes.

Pure: the node's devices and routes come in as values (`Network`), what should be there goes out. Policy routing is not
followed: the ways to other nodes are those of the main table.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from bpf.abi import Remote, RemoteFlag, RemoteKey
from bpf.address import is_v4, packed, prefix_bits, text
from controller.model import Node
from controller.source import Problem

OVERLAY_NAME = "calico-vxlan"
POD_LINK = re.compile(r"ce[0-9a-f]{11}")
# What VXLAN adds to a packet, by the family of the nodes' addresses: IP, UDP, VXLAN and inner Ethernet headers.
OVERLAY_BYTES = {4: 50, 6: 70}

# kubelet's way to say that a load balancer should let go of a node that is about to vanish.
TAINT_DELETED = "ToBeDeletedByClusterAutoscaler"


class NodeFacts(NamedTuple):
    """What counts of a Node.

    Attributes:
        addresses: InternalIPs, 16 bytes each, in the Node's order.
        pod_cidrs: as text.
        eligible: whether load balancers may send it traffic.
    """

    name: str
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[str, ...]
    eligible: bool


class Hop(NamedTuple):
    """A route of the main table: gateway 16 bytes, or b"" where the destination is on-link."""

    prefix: bytes
    length: int
    ifindex: int
    gateway: bytes
    metric: int


class Network(NamedTuple):
    """What of the node's own network decides the ways.

    Attributes:
        hops: routes of others than this project.
        overlay_ifindex: the overlay device's; 0: there is none.
        addresses: those that this node has, whatever its Node says.
    """

    hops: tuple[Hop, ...]
    overlay_ifindex: int = 0
    addresses: frozenset[bytes] = frozenset()

    def way(self, address: bytes) -> Hop | None:
        """The route to an address: the longest prefix, then the smallest metric."""
        fitting = [hop for hop in self.hops if _covers(hop, address)]
        return max(fitting, key=lambda hop: (hop.length, -hop.metric), default=None)


class Route(NamedTuple):
    """A kernel route to pods; gateway b"": on-link, as through the overlay. source: preferred address, or b""."""

    cidr: str
    ifindex: int
    gateway: bytes
    source: bytes


class Ways(NamedTuple):
    """How one node is reached.

    Attributes:
        remotes: struct remote_key -> struct remote.
        overlay: whether some of it needs the overlay device.
    """

    remotes: dict[bytes, bytes]
    routes: tuple[Route, ...]
    overlay: bool
    problems: tuple[Problem, ...]


def facts(node: Node) -> tuple[NodeFacts, tuple[Problem, ...]]:
    """What counts of a Node, and what of it makes no sense."""
    problems: list[str] = []
    addresses = []
    for item in node.status.addresses or ():
        if item.type == "InternalIP":
            try:
                addresses.append(packed(item.address))
            except ValueError as error:
                problems.append(str(error))
    cidrs = []
    for cidr in node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else []):
        try:
            cidrs.append(str(ip_network(cidr)))
        except ValueError as error:
            problems.append(f"podCIDRs: {error}")
    taints = {taint.key for taint in node.spec.taints or ()}
    name = node.metadata.name
    eligible = node.metadata.deletion_timestamp is None and TAINT_DELETED not in taints
    found = NodeFacts(name, tuple(addresses), tuple(cidrs), eligible)
    return found, tuple(Problem(f"Node {name}", problem) for problem in problems)


def ways(node: NodeFacts, own: NodeFacts | None, network: Network, encapsulation: str) -> Ways:
    """How another node and its pods are reached.

    Args:
        own: this node, whose addresses are never remote, and are the host's own on its way to pods.
        encapsulation: auto, never or always. In auto, a node whose address is on-link needs none.
    """
    here = [address for address in node.addresses if address in network.addresses]
    if here:
        # It is this node by another name, or says that it is: its pods must not be looked for elsewhere.
        return Ways({}, (), False, (Problem(f"Node {node.name}", f"{text(here[0])} is an address of this node"),))
    reached = {address: hop for address in node.addresses if (hop := network.way(address))}
    remotes = {}
    for address, hop in reached.items():
        if own is None or address not in own.addresses:
            remotes[_key(address, 32 if is_v4(address) else 128)] = Remote(
                hop.gateway or address, hop.ifindex, 0
            ).pack()
    routes, problems, overlay = [], [], False
    for cidr in node.pod_cidrs:
        found = _way_to_pods(cidr, reached, own, encapsulation)
        if found is None:
            problems.append(
                Problem(f"Node {node.name}", f"no way to its pods {cidr}: no usable InternalIP, or no route")
            )
            continue
        address, hop, tunnelled = found
        overlay |= tunnelled
        ifindex = network.overlay_ifindex if tunnelled else hop.ifindex
        next_hop = address if tunnelled else hop.gateway or address
        if ifindex:
            flags = RemoteFlag.OVERLAY if tunnelled else 0
            remotes[_cidr_key(cidr)] = Remote(next_hop, ifindex, flags).pack()
            routes.append(Route(cidr, ifindex, b"" if tunnelled else next_hop, _source(own, cidr)))
    return Ways(remotes, tuple(routes), overlay, tuple(problems))


def merged(all_ways: Mapping[str, Ways]) -> tuple[dict[bytes, bytes], dict[str, Route], list[Problem]]:
    """All nodes' entries and routes. Where two nodes claim the same pods, the first by name has them."""
    remotes: dict[bytes, bytes] = {}
    routes: dict[str, Route] = {}
    problems: list[Problem] = []
    for name in sorted(all_ways):
        one = all_ways[name]
        problems += one.problems
        for route in one.routes:
            if routes.setdefault(route.cidr, route) is not route:
                problems.append(Problem(f"Node {name}", f"another node has the pods {route.cidr} as well"))
        for key, value in one.remotes.items():
            remotes.setdefault(key, value)
    return remotes, routes, problems


def underlay(own: NodeFacts | None, network: Network, addresses: Mapping[bytes, int]) -> set[int]:
    """The devices that join this node to others: those that hold its addresses, and those of default routes.

    Args:
        addresses: each address of the node -> ifindex.
    """
    holding = {addresses[address] for address in (own.addresses if own else ()) if address in addresses}
    return holding | {hop.ifindex for hop in network.hops if hop.length == 0}


def is_pod_link(name: str) -> bool:
    """Whether a device is the host end of a pod link: the CNI plugin names it ce and eleven hexadecimal digits."""
    return POD_LINK.fullmatch(name) is not None


def pod_mtu(underlay_mtus: Iterable[int], own: NodeFacts | None, encapsulation: str) -> int:
    """The MTU of pods' links: the smallest of the underlay's, less what the overlay adds where it may be used.

    A tunnel goes to the far node's address of the packet's own family first: with an IPv6 address here, IPv6 packets
    travel in IPv6 ones, and IPv4 packets may where the far node has no other.
    """
    mtu = min(underlay_mtus, default=1500)
    if encapsulation == "never":
        return mtu
    return mtu - overlay_bytes(own.addresses if own else ())


def overlay_bytes(addresses: Iterable[bytes]) -> int:
    """What a tunnel from a node with these addresses adds at most; with none known, the worst."""
    found = list(addresses)
    return OVERLAY_BYTES[4 if found and all(map(is_v4, found)) else 6]


def _way_to_pods(
    cidr: str, reached: Mapping[bytes, Hop], own: NodeFacts | None, encapsulation: str
) -> tuple[bytes, Hop, bool] | None:
    """(the node's address, the way to it, whether through the overlay). The same family comes first; the other one
    serves the overlay alone. A tunnel needs an address of its family at this end, too."""
    same = [(address, hop) for address, hop in reached.items() if is_v4(address) == ("." in cidr)]
    for address, hop in same:
        if encapsulation == "never" or (encapsulation == "auto" and not hop.gateway):
            return address, hop, False
    if encapsulation == "never":
        return None
    families = {is_v4(address) for address in own.addresses} if own else {True, False}
    ends = [end for end in [*same, *reached.items()] if is_v4(end[0]) in families]
    for address, hop in ends:
        return address, hop, True
    return None


def _source(own: NodeFacts | None, cidr: str) -> bytes:
    fitting = [one for one in (own.addresses if own else ()) if is_v4(one) == ("." in cidr)]
    return fitting[0] if fitting else b""


def _cidr_key(cidr: str) -> bytes:
    network: IPv4Network | IPv6Network = ip_network(cidr)
    return _key(packed(str(network.network_address)), network.prefixlen)


def _key(address: bytes, length: int) -> bytes:
    return RemoteKey(prefix_bits(address, length), address).pack()


def _covers(hop: Hop, address: bytes) -> bool:
    if is_v4(hop.prefix) != is_v4(address):
        return False
    bits = prefix_bits(hop.prefix, hop.length)
    shift = 128 - bits
    return int.from_bytes(hop.prefix, "big") >> shift == int.from_bytes(address, "big") >> shift
