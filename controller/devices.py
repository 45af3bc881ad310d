# SPDX-License-Identifier: Apache-2.0
"""The node's devices: those that join it to other nodes (the underlay), and other ones by which clients come.

Pure: devices, routes and addresses come in as values. Of routes, those of the main table count.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controller.nodes import OVERLAY_NAME, Hop, NodeFacts, link_local

# ARPHRD_* of linux/if_arp.h.
ETHERNET, LOOPBACK = 1, 772
# Of devices without a link-layer header, as the kernel tells them (dev_is_mac_header_xmit): tunnels of IP in IP and in
# GRE, WireGuard and TUN, modems.
LAYER_3 = frozenset((768, 769, 776, 778, 823, 65534, 519))

# Kinds of devices.
BOND, VLAN = "bond", "vlan"

# Kinds behind which a network's own routers may be: cards, which have none, and what stands on them. Behind a bridge, a
# pair or a TUN are containers and machines of this node.
OF_CARDS = frozenset(("", BOND, "team", VLAN, "macvlan"))

# How other network plugins name what is theirs: their pods' ends, bridges and tunnels.
OTHER_PLUGINS = (
    *("cali", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali", "tunl"),  # Calico
    *("cilium_", "lxc"),  # Cilium
    *("flannel", "cni", "cbr"),  # Flannel, the plugin bridge, kubenet
    *("antrea-", "genev_sys", "vxlan_sys", "ovn-", "br-int", "weave", "vethwe", "kube-", "nodelocaldns"),
)


class Device(NamedTuple):
    """A link of this network namespace.

    Attributes:
        up: its administrative state.
        mac: 6 bytes, or others where it is no Ethernet device.
        overlay_port: the UDP port of the overlay device; 0: this is not it.
        link_type: ARPHRD_*.
        kind: of a virtual one, as `ip -details link` names it.
        master: ifindex of the bond or bridge that it is a part of; 0: it is its own.
        lower: ifindex of the device that a VLAN's stands on; 0: it is no VLAN's, or that one is in another namespace.
        plain: it bears the overlay device's name, but is a tunnel to far ends of its own.
    """

    ifindex: int
    name: str
    mtu: int
    up: bool
    mac: bytes = b""
    overlay_port: int = 0
    link_type: int = ETHERNET
    kind: str = ""
    master: int = 0
    lower: int = 0
    plain: bool = False

    @property
    def layer_3(self) -> bool:
        """Whether its packets have no link-layer header."""
        return self.link_type in LAYER_3


def underlay(
    devices: Mapping[int, Device], own: NodeFacts | None, hops: Iterable[Hop], addresses: Mapping[bytes, int]
) -> set[int]:
    """The devices that join this node to others: those that hold its addresses, and those of default routes.

    Args:
        devices: by ifindex.
        addresses: each address of the node -> ifindex.
    """
    holding = {addresses[address] for address in (own.addresses if own else ()) if address in addresses}
    found = holding | {hop.ifindex for hop in hops if hop.length == 0}
    # An address of the node's that no link knows, as where its links are numbered otherwise or not at all, is at lo.
    return {ifindex for ifindex in found & devices.keys() if devices[ifindex].link_type != LOOPBACK}


def leading_out(devices: Mapping[int, Device], hops: Iterable[Hop]) -> set[int]:
    """The devices by which networks are reached. One that leads to single hosts is somebody's container, unless it has
    no link layer: a VPN's may lead to each of its hosts by itself."""
    return {
        hop.ifindex
        for hop in hops
        if hop.ifindex in devices and not link_local(hop.prefix) and (hop.to_network or devices[hop.ifindex].layer_3)
    }


def others(devices: Mapping[int, Device], underlay: set[int], hops: Iterable[Hop]) -> set[int]:
    """Those besides the underlay by which networks are reached whose hosts may be clients: of a second network card, of
    a bridge with containers or machines behind it, of a VPN.

    Not what is part of another device, nor what another network plugin uses.
    """
    found = leading_out(devices, hops) - underlay
    return {ifindex for ifindex in found if may_have_clients(devices[ifindex])}


def has_vlans(devices: Mapping[int, Device], ifindex: int) -> bool:
    """Whether VLANs' devices stand on this one. Those in other network namespaces are not seen from here."""
    return any(device.kind == VLAN and device.lower == ifindex for device in devices.values())


def may_have_clients(device: Device) -> bool:
    """Whether hosts or routers may be behind it: not where it is a part of another one, or another plugin's."""
    if device.master or device.kind == "dummy" or device.name == OVERLAY_NAME:
        return False
    return (device.link_type == ETHERNET or device.layer_3) and not device.name.startswith(OTHER_PLUGINS)


def may_have_routers(device: Device) -> bool:
    """Whether router advertisements that come in by a device beside the underlay may be believed: a container that
    sends them must not become this node's router (CVE-2020-10749)."""
    return may_have_clients(device) and device.kind in OF_CARDS and device.link_type == ETHERNET
