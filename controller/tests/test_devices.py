# SPDX-License-Identifier: Apache-2.0
"""Devices and routes to the underlay, and to other devices by which clients come."""

import pytest

from bpf.address import packed
from controller.devices import LOOPBACK, Device, has_vlans, leading_out, may_have_routers, others, underlay
from controller.nodes import Hop, NodeFacts

OWN = NodeFacts("own", (packed("192.0.2.1"), packed("2001:db8::1")), ("10.244.0.0/24",), True)
UP, OTHER = 4, 7
TUN = 65534  # WireGuard's as well


def _hop(prefix: str, ifindex: int) -> Hop:
    address, _, length = prefix.partition("/")
    return Hop(packed(address), int(length), ifindex, b"", 0)


def _devices(*found: Device) -> dict[int, Device]:
    return {device.ifindex: device for device in found}


def test_underlay_is_where_own_addresses_and_default_routes_are() -> None:
    """However the devices are named."""
    devices = _devices(*(Device(ifindex, f"d{ifindex}", 1500, True) for ifindex in (4, 5, 6)))
    addresses = {packed("192.0.2.1"): 4, packed("198.51.100.1"): 5}
    hops = (_hop("0.0.0.0/0", 6), _hop("192.0.2.0/24", 4))
    assert underlay(devices, OWN, hops, addresses) == {4, 6}
    assert underlay(devices, None, hops, addresses) == {6}


def test_underlay_of_a_routed_host_is_its_links() -> None:
    """Its address stands at lo, where nothing comes in from other nodes."""
    devices = _devices(Device(1, "lo", 65536, True, link_type=LOOPBACK), Device(4, "a", 1500, True))
    assert underlay(devices, OWN, (_hop("0.0.0.0/0", 4),), {packed("192.0.2.1"): 1}) == {4}


def test_devices_that_lead_out_are_those_of_networks() -> None:
    """Neither those of containers, to which single addresses are routed, nor those of link-local routes."""
    routes = {
        2: "0.0.0.0/0",
        3: "192.0.2.0/24",
        4: "2001:db8::/64",
        5: "fe80::/64",
        6: "169.254.0.0/16",
        7: "10.88.0.7/32",
        8: "2001:db8::7/128",
    }
    hops = [_hop(prefix, ifindex) for ifindex, prefix in routes.items()]
    assert leading_out(_devices(*(Device(ifindex, "", 1500, True) for ifindex in routes)), hops) == {2, 3, 4}
    assert leading_out(_devices(*(Device(ifindex, "", 1500, True, link_type=TUN) for ifindex in routes)), hops) == {
        2, 3, 4, 7, 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("device", "route", "expected"),
    [
        (Device(OTHER, "eth1", 1500, True), "198.51.100.0/24", True),
        (Device(OTHER, "eth1", 1500, True), "2001:db8:1::/64", True),
        (Device(OTHER, "eth1", 1500, True), "fe80::/64", False),
        (Device(OTHER, "docker0", 1500, True, kind="bridge"), "172.17.0.0/16", True),
        (Device(OTHER, "bond1", 1500, True, kind="bond"), "198.51.100.0/24", True),
        (Device(OTHER, "eth1.7", 1500, True, kind="vlan"), "198.51.100.0/24", True),
        (Device(OTHER, "tun0", 1500, True, link_type=TUN, kind="tun"), "10.8.0.0/24", True),
        (Device(OTHER, "wg0", 1420, True, link_type=TUN, kind="wireguard"), "10.9.0.2/32", True),
        (Device(OTHER, "wireguard.cali", 1420, True, link_type=TUN), "10.244.0.0/16", False),
        (Device(OTHER, "tunl0", 1480, True, link_type=768, kind="ipip"), "10.244.0.0/16", False),
        (Device(OTHER, "eth1", 1500, True, master=9), "198.51.100.0/24", False),
        (Device(OTHER, "veth0", 1500, True, kind="veth"), "10.88.0.7/32", False),
        (Device(OTHER, "lo", 65536, True, link_type=LOOPBACK), "203.0.113.0/24", False),
        (Device(OTHER, "dummy0", 1500, True, kind="dummy"), "198.51.100.0/24", False),
        (Device(OTHER, "calico-vxlan", 1450, True, overlay_port=4789), "10.244.0.0/16", False),
        (Device(OTHER, "ib0", 2044, True, link_type=32), "198.51.100.0/24", False),
        *(
            (Device(OTHER, name, 1500, True), "10.244.0.0/16", False)
            for name in ("cali0123456789a", "vxlan.calico", "cilium_host", "lxc01", "flannel.1", "cni0", "kube-bridge")
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else str(value),
)
def test_clients_come_by_what_leads_to_networks(device: Device, route: str, expected: bool) -> None:
    """A second network, a bridge, a bond at its master, a VLAN; not their parts, nor what other plugins have made."""
    devices = _devices(Device(UP, "eth0", 1500, True), device)
    hops = (_hop("192.0.2.0/24", UP), _hop(route, OTHER))
    assert others(devices, {UP}, hops) == ({OTHER} if expected else set())
    assert others(devices, {UP, OTHER}, hops) == set()


def test_vlans_are_known_by_the_device_that_they_stand_on() -> None:
    """Not by other kinds, whose device below is another's index where that one is in another namespace (veth)."""
    devices = _devices(
        Device(2, "eth0", 1500, True),
        Device(3, "eth1", 1500, True),
        Device(4, "eth1.7", 1500, True, kind="vlan", lower=3),
    )
    assert [has_vlans(devices, ifindex) for ifindex in devices] == [False, True, False]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *(("", True), ("bond", True), ("vlan", True), ("macvlan", True)),
        *(("bridge", False), ("veth", False), ("tun", False), ("openvswitch", False), ("vxlan", False)),
    ],
)
def test_routers_may_be_behind_cards_and_what_stands_on_them(kind: str, expected: bool) -> None:
    """Behind the others are containers and machines of this node, and what these send is not believed."""
    assert may_have_routers(Device(OTHER, "eth1", 1500, True, kind=kind)) == expected


def test_no_router_is_behind_a_part_or_what_is_no_card() -> None:
    """Nor behind another plugin's device."""
    assert not may_have_routers(Device(OTHER, "eth1", 1500, True, master=UP))
    assert not may_have_routers(Device(OTHER, "wg0", 1500, True, link_type=TUN))
    assert not may_have_routers(Device(OTHER, "cilium_host", 1500, True))
