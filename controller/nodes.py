# SPDX-License-Identifier: Apache-2.0
"""Nodes to the ways that lead to them: entries of the maps of the network, and kernel routes for the host's own
processes.

Pure: the node's devices and routes come in as values (`Network`), what should be there goes out. Policy routing is not
followed: the ways to other nodes are those of the main table.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from bpf.abi import (
    Device,
    DeviceFlag,
    DeviceKey,
    NodeFlag,
    NodeKey,
    Peer,
    PeerKey,
    Remote,
    RemoteFlag,
    RemoteKey,
    Unmasqueraded,
)
from bpf.abi import Node as NodeEntry
from bpf.address import is_v4, packed, prefix_bits, text
from bpf.prefixes import parse_range, prefixes
from controller.model import Node
from controller.source import Problem

# In place of ranges.
PRIMARY = "primary"

OVERLAY_NAME = "calico-vxlan"
# What VXLAN adds to a packet, by the family of the nodes' addresses: IP, UDP, VXLAN and inner Ethernet headers.
OVERLAY_BYTES = {4: 50, 6: 70}

# Own addresses of every node: the host's processes meet NodePorts there.
LOOPBACK = (packed("127.0.0.1"), packed("::1"))
NOBODY = bytes(16)

# In place of a device's index, in the devices map.
POD_LINKS = 0
NO_FLAGS = DeviceFlag(0)

# Why a node of the same subnet is reached in the tunnel, all the same.
SILENT = "has not answered the probe"
# Why a node cannot be handed outside clients' packets. A router would bring them there, but it is by their sender's MAC
# that they are known, and answered by the way they came.
NO_TUNNEL = "of another subnet, handover is l2 and encapsulation never"

# kubelet's way to say that a load balancer should let go of a node that is about to vanish.
TAINT_DELETED = "ToBeDeletedByClusterAutoscaler"


class NodeFacts(NamedTuple):
    """What counts of a Node.

    Attributes:
        addresses: InternalIPs, 16 bytes each, in the Node's order.
        outside: ExternalIPs.
        pod_cidrs: as text.
        eligible: whether load balancers may send it traffic.
    """

    name: str
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[str, ...]
    eligible: bool
    outside: tuple[bytes, ...] = ()


class Steering(NamedTuple):
    """What decides between ways.

    Attributes:
        encapsulation: of pods' packets: auto, never or always. In auto, a node whose address is on-link needs none.
        handover: of outside clients' packets: auto, l2 or vxlan. In auto, an address that has answered the probe needs
            no tunnel.
        answered: the addresses that have.
    """

    encapsulation: str
    handover: str = "l2"
    answered: frozenset[bytes] = frozenset()

    @property
    def tunnels(self) -> bool:
        """Whether anything may ever go through a tunnel: then nodes of other subnets are handed packets by it."""
        return self.encapsulation != "never" or self.handover != "l2"


class Handover(NamedTuple):
    """How outside clients' packets are handed over to an address of a node: `l2`, `vxlan` or `none`, and why."""

    address: bytes
    way: str
    why: str


class Hop(NamedTuple):
    """A route of the main table: gateway 16 bytes, of either family, or b"" where the destination is on-link."""

    prefix: bytes
    length: int
    ifindex: int
    gateway: bytes
    metric: int

    @property
    def to_network(self) -> bool:
        """Whether it leads to more than a single host."""
        return self.length < (32 if is_v4(self.prefix) else 128)


class Network(NamedTuple):
    """What of the node's own network decides the ways.

    Attributes:
        hops: routes of others than this project.
        overlay_ifindex: the overlay device's; 0: there is none.
        addresses: those that this node has, whatever its Node says.
        layer_3: the devices without a link layer.
    """

    hops: tuple[Hop, ...]
    overlay_ifindex: int = 0
    addresses: frozenset[bytes] = frozenset()
    layer_3: frozenset[int] = frozenset()

    def way(self, address: bytes) -> Hop | None:
        """The route to an address: the longest prefix, then the smallest metric."""
        fitting = [hop for hop in self.hops if _covers(hop, address)]
        return max(fitting, key=lambda hop: (hop.length, -hop.metric), default=None)

    def on_link(self, hop: Hop) -> bool:
        """Whether what it leads to shares a subnet with this node, and tells it by its MAC. A VPN without a link layer
        may let the nodes' own addresses through alone."""
        return not hop.gateway and hop.ifindex not in self.layer_3

    def taken_by(self, cidr: str) -> str:
        """What a route to a node's pods would take from this node; "": nothing that is known.

        A subnet around the range keeps what lies beside it; a route to a single host is to somebody's container.
        """
        first, last = _ends(cidr)
        length = int(cidr.rpartition("/")[2])
        for hop in self.hops:
            if hop.length == 0 and hop.gateway and first <= hop.gateway <= last:
                return f"it has the gateway of the default route, {text(hop.gateway)}"
            inside = hop.length >= length and first <= hop.prefix <= last
            if inside and hop.to_network and self.on_link(hop):
                return f"{text(hop.prefix)}/{hop.length} is on-link"
        return ""


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
        handovers: for each of its addresses that a route leads to.
        on_link: its addresses that are on-link -> ifindex.
    """

    remotes: dict[bytes, bytes]
    routes: tuple[Route, ...]
    overlay: bool
    problems: tuple[Problem, ...]
    handovers: tuple[Handover, ...] = ()
    on_link: Mapping[bytes, int] = {}


def facts(node: Node) -> tuple[NodeFacts, tuple[Problem, ...]]:
    """What counts of a Node, and what of it makes no sense."""
    problems: list[str] = []
    addresses: dict[str, list[bytes]] = {"InternalIP": [], "ExternalIP": []}
    for item in node.status.addresses or ():
        if item.type in addresses:
            try:
                addresses[item.type].append(packed(item.address))
            except ValueError as error:
                problems.append(str(error))
    cidrs = []
    for cidr in node.spec.ranges:
        try:
            found = parse_range(cidr)
        except ValueError as error:
            problems.append(f"podCIDRs: {error}")
            continue
        if found.prefixlen:
            cidrs.append(str(found))
        else:
            problems.append(f"podCIDRs: {found} is every address")
    taints = {taint.key for taint in node.spec.taints or ()}
    name = node.metadata.name
    eligible = node.metadata.deletion_timestamp is None and TAINT_DELETED not in taints
    told = NodeFacts(name, tuple(addresses["InternalIP"]), tuple(cidrs), eligible, tuple(addresses["ExternalIP"]))
    return told, tuple(Problem(f"Node {name}", problem) for problem in problems)


def ways(node: NodeFacts, own: NodeFacts | None, network: Network, steering: Steering) -> Ways:
    """How another node and its pods are reached.

    Args:
        own: this node, whose addresses are never remote, and are the host's own on its way to pods.
    """
    # One that is here as well does not lead to the other node, as a virtual one that has moved.
    elsewhere = [address for address in node.addresses if address not in network.addresses]
    here = _here(node, [address for address in node.addresses if address in network.addresses])
    if here and not elsewhere:
        # It is this node by another name, or says that it is: its pods must not be looked for elsewhere.
        return Ways({}, (), False, tuple(here))
    reached = {
        address: hop
        for address in elsewhere
        if (own is None or address not in own.addresses) and (hop := network.way(address))
    }
    on_link = {address: hop.ifindex for address, hop in reached.items() if network.on_link(hop)}
    # One among its own pods, as of their bridge, is reached as they are.
    among = {address for address in reached if any(_holds(cidr, address) for cidr in node.pod_cidrs)} - on_link.keys()
    reached = {address: hop for address, hop in reached.items() if address not in among} or reached
    handovers = {address: _handover(address, address in on_link, steering) for address in reached}
    remotes = {}
    for address, hop in reached.items():
        # A router may not let pods' addresses through to a node.
        tunnelled = address not in on_link and steering.encapsulation != "never" and network.overlay_ifindex != 0
        found = _remote(address, hop, network.overlay_ifindex, tunnelled, handovers[address])
        remotes[_address_key(address)] = found.pack()
    routes, lost, refused = [], [], []
    # In auto, the other node may find that it needs the tunnel whose end is here, whatever has come of our own probe.
    overlay = any(one.way == "vxlan" or steering.handover == "auto" for one in handovers.values())
    for cidr in node.pod_cidrs:
        if why := network.taken_by(cidr) or _end_within(cidr, reached):
            refused.append(_refused(node.name, cidr, why))
            continue
        way = _way_to_pods(cidr, reached, on_link, own, steering.encapsulation)
        if way is None:
            lost.append(cidr)
            continue
        address, hop, tunnelled = way
        overlay |= tunnelled
        if tunnelled and not network.overlay_ifindex:
            continue
        found = _remote(address, hop, network.overlay_ifindex, tunnelled, handovers[address])
        remotes |= dict.fromkeys(_keys([cidr]), found.pack())
        ifindex, gateway = (network.overlay_ifindex, b"") if tunnelled else (hop.ifindex, found.next_hop)
        routes.append(Route(cidr, ifindex, gateway, _source(own, cidr)))
    problems = [*here, *_cut_off(node, handovers.values()), *_lost(node.name, lost), *refused]
    return Ways(remotes, tuple(routes), overlay, tuple(problems), tuple(handovers.values()), on_link)


def _handover(address: bytes, on_link: bool, steering: Steering) -> Handover:
    if not on_link:
        return (
            Handover(address, "vxlan", "of another subnet")
            if steering.tunnels
            else Handover(address, "none", NO_TUNNEL)
        )
    if steering.handover == "l2":
        return Handover(address, "l2", "handover is l2")
    if steering.handover == "vxlan":
        return Handover(address, "vxlan", "handover is vxlan")
    if address in steering.answered:
        return Handover(address, "l2", "has answered the probe")
    return Handover(address, "vxlan", SILENT)


def _remote(address: bytes, hop: Hop, overlay_ifindex: int, tunnelled: bool, handover: Handover) -> Remote:
    """An entry for a node or its pods."""
    flags = RemoteFlag.OVERLAY if tunnelled else 0
    if handover.way != "l2":
        there = handover.way == "vxlan" and overlay_ifindex
        flags |= RemoteFlag.TUNNEL_HANDOVER if there else RemoteFlag.NO_HANDOVER
    return Remote(hop.gateway or address, address, hop.ifindex, overlay_ifindex, flags)


def _here(node: NodeFacts, addresses: Iterable[bytes]) -> list[Problem]:
    shared = ", ".join(map(text, addresses))
    return [Problem(f"Node {node.name}", f"this node has its address, too: {shared}")] if shared else []


def _cut_off(node: NodeFacts, handovers: Iterable[Handover]) -> list[Problem]:
    cut_off = [text(one.address) for one in handovers if one.way == "none"]
    message = f"outside clients' packets cannot be handed over to {', '.join(cut_off)}: {NO_TUNNEL}"
    return [Problem(f"Node {node.name}", message)] if cut_off else []


def _lost(name: str, cidrs: list[str]) -> list[Problem]:
    """One for all, which may be single addresses."""
    if not cidrs:
        return []
    return [Problem(f"Node {name}", f"no way to its pods {some(cidrs)}: no usable InternalIP, or no route")]


def _refused(name: str, cidr: str, why: str) -> Problem:
    return Problem(f"Node {name}", f"no way to its pods {cidr}: {why}")


def some(names: list[str]) -> str:
    """The first, and how many more there are: what a message has room for."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def node_entries(
    all_facts: Iterable[NodeFacts],
    own: NodeFacts | None,
    device_addresses: Iterable[bytes],
    node_port_ranges: Sequence[str] = (),
) -> dict[bytes, bytes]:
    """The nodes map: where NodePorts are met, and what is a node's.

    Args:
        device_addresses: this node's, on devices of the underlay and others by which clients come. Of its ExternalIPs
            those that are not among them are mapped: what bears one comes from outside.
        node_port_ranges: of the addresses at which NodePorts are met, all of a family that none is of; without any,
            or with PRIMARY, each Node's first of each family.
    """
    ranges = [parse_range(one) for one in node_port_ranges if one != PRIMARY]

    def flags(address: bytes, node: NodeFacts | None) -> int:
        # Without its Node nobody knows which address of this node is the first: it stays as open as it may be.
        primary = node is None or address == next(_of_family(address, node.addresses + node.outside), None)
        family = [one for one in ranges if one.version == (4 if is_v4(address) else 6)]
        met = any(ip_address(text(address)) in one for one in family) if family else primary or bool(ranges)
        return 0 if met or address in LOOPBACK else NodeFlag.NO_NODE_PORTS

    others = {address: flags(address, one) for one in all_facts for address in one.addresses + one.outside}
    held = [address for address in device_addresses if not link_local(address)]
    mine = [*LOOPBACK, *held, *(own.addresses if own else ())]
    found = others | {address: NodeFlag.MAPPED | flags(address, own) for address in (own.outside if own else ())}
    found |= {address: NodeFlag.OWN | flags(address, own) for address in mine}
    return {NodeKey(address).pack(): NodeEntry(value).pack() for address, value in found.items()}


def has_node_ports(entries: Mapping[bytes, bytes]) -> bool:
    """Whether NodePorts are met at an address of this node's, but for loopback; as long as it has any."""
    flags = [NodeEntry.unpack(value).flags for key, value in entries.items() if key not in LOOPBACK]
    own = [value for value in flags if value & NodeFlag.OWN]
    return not own or not all(value & NodeFlag.NO_NODE_PORTS for value in own)


def service_entries(ranges: Iterable[str]) -> dict[bytes, bytes]:
    """Entries of the remotes map for ranges of Services' addresses."""
    return dict.fromkeys(_keys(ranges), Remote(NOBODY, NOBODY, 0, 0, RemoteFlag.SERVICES).pack())


def unmasqueraded_entries(ranges: Iterable[str]) -> dict[bytes, bytes]:
    """The unmasqueraded map, for ranges outside the cluster."""
    return dict.fromkeys(_keys(ranges), Unmasqueraded(0).pack())


def device_entries(
    links: Mapping[int, tuple[int, bytes]],
    addresses: Mapping[bytes, int],
    own: NodeFacts | None,
    masquerade: str,
    flags: DeviceFlag = NO_FLAGS,
) -> dict[bytes, bytes]:
    """Entries of the devices map: this node's address on each device, its InternalIP before others, and where it has
    none there.

    Args:
        links: ifindex -> MTU in bytes, and MAC, of each device.
        addresses: each address of the node -> ifindex.
        masquerade: all, ipv4 or off.
        flags: of each entry, besides.
    """
    entries = {}
    for ifindex, (mtu, mac) in links.items():
        v4, v6 = (_spoken_under(ifindex, family, addresses, own) for family in (4, 6))
        found = flags
        if masquerade != "off" and v4 != NOBODY:
            found |= DeviceFlag.MASQUERADE_V4
        if masquerade == "all" and v6 != NOBODY:
            found |= DeviceFlag.MASQUERADE_V6
        entries[DeviceKey(ifindex).pack()] = Device(v4, v6, mtu, found, mac if len(mac) == 6 else bytes(6)).pack()
    return entries


def link_entry(ifindex: int, mtu: int, own: NodeFacts | None) -> dict[bytes, bytes]:
    """An entry of the devices map for links without addresses of their own: this node speaks under its InternalIPs.

    Args:
        ifindex: the overlay's, or POD_LINKS.
        mtu: in bytes.
    """
    v4, v6 = (_internal(family, own) for family in (4, 6))
    return {DeviceKey(ifindex).pack(): Device(v4, v6, mtu, NO_FLAGS, bytes(6)).pack()}


def address_on(ifindex: int, family: int, addresses: Mapping[bytes, int], own: NodeFacts | None) -> bytes:
    """This node's address on a device; NOBODY where it has none but link-local ones."""
    there = [
        address
        for address, holder in addresses.items()
        if holder == ifindex and is_v4(address) == (family == 4) and not link_local(address)
    ]
    internal = [address for address in (own.addresses if own else ()) if address in there]
    return next(iter([*internal, *there]), NOBODY)


def _spoken_under(ifindex: int, family: int, addresses: Mapping[bytes, int], own: NodeFacts | None) -> bytes:
    """Links between routers may have no addresses of their own: those of the node are at lo then."""
    found = address_on(ifindex, family, addresses, own)
    return found if found != NOBODY else _internal(family, own)


def _internal(family: int, own: NodeFacts | None) -> bytes:
    """This node's first InternalIP of a family; NOBODY where it has none."""
    return next((one for one in (own.addresses if own else ()) if is_v4(one) == (family == 4)), NOBODY)


def peer_entries(all_facts: Iterable[NodeFacts], macs: Mapping[bytes, bytes], handover: str) -> dict[bytes, bytes]:
    """The peers map: the MACs of other nodes, each with that node's first address behind it.

    Where nothing is handed over at layer 2 it is empty. A MAC that several nodes send from, as those of ipvlan on one
    machine do, tells none of them.
    """
    holders: dict[bytes, dict[str, bytes]] = {}
    for one in all_facts if handover != "vxlan" else ():
        for address in one.addresses:
            if address in macs:
                holders.setdefault(macs[address], {}).setdefault(one.name, address)
    return {PeerKey(mac).pack(): Peer(*found.values()).pack() for mac, found in holders.items() if len(found) == 1}


def merged(
    all_ways: Mapping[str, Ways], addresses: Iterable[tuple[bytes, str]]
) -> tuple[dict[bytes, bytes], dict[str, Route], list[Problem]]:
    """All nodes' entries and routes. Where two nodes claim the same pods, the first by name has them.

    A range that has an address of this node's, or another node's that is on-link, leads nowhere: that node would be
    looked for behind it. Another node's address that is not on-link is left out itself, with what leads by it: a Node
    says of its addresses what it likes, and must not take another's pods away.

    Args:
        addresses: the nodes' own, this one's among them, each with the node's name.
    """
    taken = sorted(addresses)
    ordered = [address for address, _ in taken]
    withdrawn: dict[tuple[str, str], bytes] = {}
    left_out: dict[str, dict[bytes, str]] = {}
    for name, one in all_ways.items():
        for route in one.routes:
            first, last = _ends(route.cidr)
            found = taken[bisect_left(ordered, first) : bisect_right(ordered, last)]
            others = [(address, holder) for address, holder in found if holder != name] if found else ()
            if not others:
                continue
            known = [address for address, holder in others if _known_here(address, all_ways.get(holder))]
            if known:
                withdrawn[name, route.cidr] = known[0]
                continue
            for address, holder in others:
                left_out.setdefault(holder, {})[address] = route.cidr
    remotes: dict[bytes, bytes] = {}
    routes: dict[str, Route] = {}
    problems: list[Problem] = []
    for name in sorted(all_ways):
        one, without = all_ways[name], left_out.get(name, {})
        problems += one.problems
        problems += [
            Problem(f"Node {name}", f"its address {text(address)} is left out: another node's pods are {cidr}")
            for address, cidr in sorted(without.items())
        ]
        refused = {key for key, value in one.remotes.items() if without and Remote.unpack(value).node in without}
        lost = [route.cidr for route in one.routes if refused and refused.intersection(_keys([route.cidr]))]
        problems += _lost(name, lost)
        for route in one.routes:
            if within := withdrawn.get((name, route.cidr)):
                refused |= set(_keys([route.cidr]))
                problems.append(_refused(name, route.cidr, f"it has {text(within)}, a node's own address"))
            elif route.cidr not in lost and routes.setdefault(route.cidr, route) is not route:
                problems.append(Problem(f"Node {name}", f"another node has the pods {route.cidr} as well"))
        for key, value in one.remotes.items():
            if key not in refused:
                remotes.setdefault(key, value)
    return remotes, routes, problems


def _known_here(address: bytes, holder: Ways | None) -> bool:
    """Whether this node can tell by itself that an address is a node's.

    Args:
        holder: the ways to the node; None: it is this one.
    """
    return holder is None or address in holder.on_link


def pod_mtu(underlay_mtus: Iterable[int], own: NodeFacts | None, steering: Steering) -> int:
    """The MTU of pods' links in bytes: the whole of the underlay's only where nothing may ever go through a tunnel.

    What is handed over must fit, too: it is as large as the pod allows the client to send.
    """
    mtus = list(underlay_mtus)
    return overlay_mtu(mtus, own) if steering.tunnels else _narrowest(mtus)


def overlay_mtu(underlay_mtus: Iterable[int], own: NodeFacts | None) -> int:
    """The MTU of the overlay device in bytes: the smallest of the underlay's, less what a tunnel adds.

    A tunnel goes to the far node's address of the packet's own family first: with an IPv6 address here, IPv6 packets
    travel in IPv6 ones, and IPv4 packets may where the far node has no other.
    """
    return _narrowest(underlay_mtus) - overlay_bytes(own.addresses if own else ())


def _narrowest(underlay_mtus: Iterable[int]) -> int:
    return min(underlay_mtus, default=1500)


def overlay_bytes(addresses: Iterable[bytes]) -> int:
    """What a tunnel from a node with these addresses adds at most; with none known, the worst."""
    found = list(addresses)
    return OVERLAY_BYTES[4 if found and all(map(is_v4, found)) else 6]


def _way_to_pods(
    cidr: str, reached: Mapping[bytes, Hop], on_link: Container[bytes], own: NodeFacts | None, encapsulation: str
) -> tuple[bytes, Hop, bool] | None:
    """(the node's address, the way to it, whether through the overlay). The same family comes first; the other one
    serves the overlay alone. A tunnel needs an address of its family at this end, too."""
    same = [(address, hop) for address, hop in reached.items() if is_v4(address) == ("." in cidr)]
    for address, hop in same:
        if encapsulation == "never" or (encapsulation == "auto" and address in on_link):
            return address, hop, False
    if encapsulation == "never":
        return None
    families = {is_v4(address) for address in own.addresses} if own else {True, False}
    ends = [end for end in [*same, *reached.items()] if is_v4(end[0]) in families]
    for address, hop in ends:
        return address, hop, True
    return None


def _of_family(address: bytes, addresses: Iterable[bytes]) -> Iterator[bytes]:
    return (one for one in addresses if is_v4(one) == is_v4(address))


def _source(own: NodeFacts | None, cidr: str) -> bytes:
    fitting = [one for one in (own.addresses if own else ()) if is_v4(one) == ("." in cidr)]
    return fitting[0] if fitting else b""


def link_local(address: bytes) -> bool:
    return address.startswith((b"\xfe\x80", packed("169.254.0.0")[:14]))


def _keys(cidrs: Iterable[str]) -> list[bytes]:
    return [RemoteKey(*prefix).pack() for prefix in prefixes(cidrs)]


def _address_key(address: bytes) -> bytes:
    return RemoteKey(128, address).pack()


def _holds(cidr: str, address: bytes) -> bool:
    first, last = _ends(cidr)
    return first <= address <= last


def _end_within(cidr: str, addresses: Iterable[bytes]) -> str:
    """Why a range has no way: its node would be looked for behind it; "": it would not."""
    found = next((address for address in addresses if _holds(cidr, address)), None)
    return f"it has {text(found)}, a node's own address" if found else ""


@lru_cache(maxsize=2**16)
def _ends(cidr: str) -> tuple[bytes, bytes]:
    """The first and the last address of a range."""
    found = parse_range(cidr)
    return packed(str(found.network_address)), packed(str(found.broadcast_address))


def _covers(hop: Hop, address: bytes) -> bool:
    if is_v4(hop.prefix) != is_v4(address):
        return False
    bits = prefix_bits(hop.prefix, hop.length)
    shift = 128 - bits
    return int.from_bytes(hop.prefix, "big") >> shift == int.from_bytes(address, "big") >> shift
