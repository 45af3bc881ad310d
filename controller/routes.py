# SPDX-License-Identifier: Apache-2.0
"""Devices, routes and attachments of this network namespace, by netlink: the controller's only importer of pyroute2
but for its commands' `links`.

Reads what is there as plain values, and carries out what others have decided. Routes of ours have protocol 206.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from pyroute2 import Ethtool, IPRoute
from pyroute2.ethtool.ioctl import EthtoolError
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from bpf import attach, podlink, syscall
from bpf.address import is_v4, packed, text
from bpf.pins import Pins
from controller.devices import VLAN, Device
from controller.errors import NetworkError
from controller.nodes import OVERLAY_NAME, Hop, Route

PROTOCOL = 206
_ANY_FAMILY = 0
MAIN_TABLE = 254
OVERLAY_MAC = "02:ce:00:00:00:01"
# Nobody is to talk to it, and every node has the same. Of a device without an IPv4 address the kernel takes no packet
# whose source is routed elsewhere, however loosely it is to check (fib_validate_source, `no_addr`).
OVERLAY_ADDRESS = "169.254.206.1"

# Behind a route of anybody else to the same addresses: that of another plugin's bridge, say.
UNREACHABLE_METRIC = 1 << 16
# Routes to single pods come behind those of pod links, which they must neither hide nor replace: an address that a pod
# has here may be told of another node for a while, when it was that of a pod there before.
POD_METRIC = 1 << 15

_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RTNH_F_ONLINK = 4
_SCOPE_LINK = 253


# Why a driver takes no XDP program, by the error's number: of EOPNOTSUPP and ENOMEM there are several (virtio_net).
XDP_REFUSALS = {
    errno.EOPNOTSUPP: "its driver has no XDP, or has offloads on that it cannot switch off",
    errno.EEXIST: "another's program is there",
    errno.EBUSY: "another's program is there",
    errno.EINVAL: "its driver takes none with this MTU, or these offloads",
    errno.ERANGE: "its MTU is too large for it",
    errno.ENOSPC: "it has too few queues",
    errno.ENOMEM: "there is no memory for its queues, or, before kernel 5.13, there are too few of them",
}


class Snapshot(NamedTuple):
    """Attributes:
    addresses: address -> ifindex.
    hops: unicast routes of the main table that are not ours.
    routes: ours that lead to other nodes' pods, by prefix; those of pod links are the CNI plugin's.
    unreachable: the prefixes that ours declare unreachable.
    """

    devices: dict[int, Device]
    addresses: dict[bytes, int]
    hops: tuple[Hop, ...]
    routes: dict[str, Route]
    unreachable: set[str]

    def overlay(self) -> Device | None:
        return next((device for device in self.devices.values() if device.overlay_port), None)


def firewall_chains(table: str, chain: str) -> list[str]:
    """The names of nftables' tables called `table`, and of chains called `chain` (iptables-nft's), sorted.

    Empty where the kernel has no nftables.
    """
    try:
        with NFTables(nfgen_family=_ANY_FAMILY) as nft:
            tables = [found.get_attr("NFTA_TABLE_NAME") for found in nft.get_tables()]
            chains = [found.get_attr("NFTA_CHAIN_NAME") for found in nft.get_chains()]
    except (NetlinkError, OSError):
        return []
    return sorted({name for name in tables if name == table} | {name for name in chains if name == chain})


class Netlink:
    """One netlink socket; for one thread. Methods raise NetworkError."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def snapshot(self) -> Snapshot:
        with _named("reading devices and routes"):
            devices = {link["index"]: _device(link) for link in self._netlink.get_links()}
            addresses = {
                packed(item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS")): item["index"]
                for item in self._netlink.get_addr()
            }
            messages = [
                message
                for family in (AF_INET, AF_INET6)
                for message in self._netlink.get_routes(family=family, table=MAIN_TABLE)
            ]
        hops, routes = [], {}
        for message in messages:
            for hop in _hops(message):
                if message["proto"] != PROTOCOL:
                    hops.append(hop)
                elif hop.ifindex in devices and not podlink.is_name(devices[hop.ifindex].name):
                    source = message.get_attr("RTA_PREFSRC")
                    cidr = f"{text(hop.prefix)}/{hop.length}"
                    routes[cidr] = Route(cidr, hop.ifindex, hop.gateway, packed(source) if source else b"")
        unreachable = {
            f"{message.get_attr('RTA_DST')}/{message['dst_len']}"
            for message in messages
            if message["proto"] == PROTOCOL and message["type"] == _RTN_UNREACHABLE
        }
        return Snapshot(devices, addresses, tuple(hops), routes, unreachable)

    def set_route(self, route: Route) -> None:
        """Adds a route, or changes the one to the same pods."""
        with _named(f"route to {route.cidr}"):
            self._netlink.route("replace", **_route_arguments(route))

    def remove_route(self, route: Route) -> None:
        """That it is gone already is no error."""
        with _named(f"removing the route to {route.cidr}"), _ignored(errno.ESRCH):
            self._netlink.route("del", **_route_arguments(route))

    def set_unreachable(self, cidr: str) -> None:
        """Has what no other route leads anywhere end here, and its sender told."""
        with _named(f"unreachable route to {cidr}"):
            self._netlink.route("replace", **_unreachable_arguments(cidr))

    def remove_unreachable(self, cidr: str) -> None:
        """That it is gone already is no error."""
        with _named(f"removing the unreachable route to {cidr}"), _ignored(errno.ESRCH):
            self._netlink.route("del", **_unreachable_arguments(cidr))

    def create_overlay(self, port: int, mtu: int, ifindex: int = 0) -> None:
        """Makes the overlay device, still down; index 0: any that is free. Its programs say where each packet goes."""
        with _named(f"making {OVERLAY_NAME}"):
            self._netlink.link(
                "add",
                index=ifindex,
                ifname=OVERLAY_NAME,
                kind="vxlan",
                address=OVERLAY_MAC,
                mtu=mtu,
                vxlan_port=port,
                vxlan_collect_metadata=True,
                vxlan_learning=False,
            )

    def remove_overlay(self, ifindex: int) -> None:
        """That it is gone already is no error."""
        with _named(f"removing {OVERLAY_NAME}"), _ignored(errno.ENODEV):
            self._netlink.link("del", index=ifindex)

    def set_up(self, ifindex: int) -> None:
        """Brings the overlay device up, without ARP."""
        with _named(f"bringing {OVERLAY_NAME} up"):
            self._netlink.link("set", index=ifindex, state="up", arp=False)

    def set_overlay_mac(self, ifindex: int) -> None:
        with _named(f"giving {OVERLAY_NAME} its MAC"):
            self._netlink.link("set", index=ifindex, address=OVERLAY_MAC)

    def set_overlay_address(self, ifindex: int) -> None:
        with _named(f"giving {OVERLAY_NAME} an address"), _ignored(errno.EEXIST):
            self._netlink.addr("add", index=ifindex, address=OVERLAY_ADDRESS, prefixlen=32, scope=_SCOPE_LINK)

    def set_mtu(self, ifindex: int, mtu: int) -> None:
        with _named("setting an MTU"):
            self._netlink.link("set", index=ifindex, mtu=mtu)

    def attach(self, ifindex: int, hook: str, pins: Pins) -> None:
        """Attaches a pinned program, or replaces what stands there.

        Raises:
            NotLoadedError: it is not pinned.
        """
        with pins.opened_program(hook) as program, _named(f"attaching {hook}"):
            with _ignored(errno.EEXIST):
                attach.add_clsact(self._netlink, ifindex)
            attach.attach_device(self._netlink, ifindex, hook, program)

    def attach_xdp(self, ifindex: int, pins: Pins, replaced: int) -> None:
        """Attaches the pinned XDP program in the device's driver, where none stands, or only the one with the id
        `replaced` (0: none). Raises NotLoadedError: it is not pinned."""
        with pins.opened_program(attach.XDP_PROGRAM) as program, syscall.opened_by_id(replaced) as before:
            try:
                attach.attach_xdp(self._netlink, ifindex, program, before)
            except NetlinkError as error:
                why = XDP_REFUSALS.get(error.code, str(error.args[-1]))
                raise NetworkError(f"no XDP: {why} ({error.code}); TC does its work") from error

    def detach_xdp(self, ifindex: int, program: int) -> None:
        """Takes the XDP program with this id off a device. That it is gone already is no error."""
        with _named("detaching XDP"), syscall.opened_by_id(program) as before, _ignored(*attach.XDP_GONE):
            if before is not None:
                attach.detach_xdp(self._netlink, ifindex, before)

    def takes_tags(self, device: str) -> bool:
        """Whether a device takes VLANs' tags out of the frames that come in, so that XDP does not see them; also where
        it does not tell."""
        try:
            with Ethtool() as ethtool:
                return bool(ethtool.get_features(device).features["rx-vlan-hw-parse"].enable)
        except (OSError, LookupError, NetlinkError, EthtoolError):
            return True

    def detach(self, ifindex: int, hook: str) -> None:
        """That it is gone already is no error."""
        with _named(f"detaching {hook}"), _ignored(errno.ENOENT, errno.EINVAL, errno.ENODEV):
            attach.detach_device(self._netlink, ifindex, hook)


def _device(link: Any) -> Device:
    mac = bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
    name, up = link.get_attr("IFLA_IFNAME"), bool(link["flags"] & 1)
    tunnel = "IFLA_LINKINFO", "IFLA_INFO_DATA"
    port = link.get_nested(*tunnel, "IFLA_VXLAN_PORT") if name == OVERLAY_NAME else None
    kind, master = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND"), link.get_attr("IFLA_MASTER")
    here = kind == VLAN and link.get_attr("IFLA_LINK_NETNSID") is None
    return Device(
        link["index"],
        name,
        link.get_attr("IFLA_MTU"),
        up,
        mac,
        port or 0,
        link["ifi_type"],
        kind or "",
        master or 0,
        link.get_attr("IFLA_LINK") if here else 0,
        bool(port) and not link.get_nested(*tunnel, "IFLA_VXLAN_COLLECT_METADATA"),
    )


def _hops(message: Any) -> Iterator[Hop]:
    """The ways of a route; one with several next hops has several."""
    if message["type"] != _RTN_UNICAST:
        return
    any_address = "0.0.0.0" if message["family"] == AF_INET else "::"
    prefix = packed(message.get_attr("RTA_DST") or any_address)
    if message["family"] == AF_INET6 and is_v4(prefix):
        return  # of a translator of addresses: as the maps have them, it would be one of IPv4 with 96 bits too many
    metric = message.get_attr("RTA_PRIORITY") or 0
    nexthops = message.get_attr("RTA_MULTIPATH") or [message]
    for nexthop in nexthops:
        gateway = nexthop.get_attr("RTA_GATEWAY") or (nexthop.get_attr("RTA_VIA") or {}).get("addr")
        ifindex = nexthop.get_attr("RTA_OIF") if nexthop is message else nexthop["oif"]
        if ifindex:
            yield Hop(prefix, message["dst_len"], ifindex, packed(gateway) if gateway else b"", metric)


def _route_arguments(route: Route) -> dict[str, Any]:
    arguments = {**_prefix_arguments(route.cidr), "oif": route.ifindex}
    if ip_network(route.cidr).num_addresses == 1:
        arguments["priority"] = POD_METRIC
    if route.gateway:
        address, family = text(route.gateway), AF_INET if is_v4(route.gateway) else AF_INET6
        another = family != arguments["family"]
        arguments |= {"via": {"family": family, "addr": address}} if another else {"gateway": address}
        arguments["flags"] = _RTNH_F_ONLINK
    elif arguments["family"] == AF_INET:
        arguments["scope"] = _SCOPE_LINK
    if route.source:
        arguments["prefsrc"] = text(route.source)
    return arguments


def _unreachable_arguments(cidr: str) -> dict[str, Any]:
    return {**_prefix_arguments(cidr), "type": "unreachable", "priority": UNREACHABLE_METRIC}


def _prefix_arguments(cidr: str) -> dict[str, Any]:
    family = AF_INET if ip_network(cidr).version == 4 else AF_INET6
    return {"family": family, "dst": cidr, "proto": PROTOCOL, "table": MAIN_TABLE}


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(f"{what}: {error.args[-1]} ({error.code})") from error


@contextmanager
def _ignored(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise
