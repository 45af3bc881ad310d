# SPDX-License-Identifier: Apache-2.0
"""Devices, filters, routes and firewall tables as the commands see and remove them: their only importer of pyroute2."""

from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from bpf import attach, bpftool
from controller.nodes import OVERLAY_NAME
from controller.routes import PROTOCOL

__all__ = ["Attached", "Device", "Links", "NetlinkError", "attached", "firewall_chains"]

FILTER_PREFIX = "calico-ebpf/"
GONE = (2, 22)  # ENOENT, EINVAL: no such filter, or no clsact
AF_INET, AF_INET6 = 2, 10
ANY_FAMILY = 0


class Attached(NamedTuple):
    """A program of ours on a device; `hook` is its name."""

    device: str
    ifindex: int
    hook: str


class Device(NamedTuple):
    name: str
    ifindex: int
    mtu: int


def attached() -> list[Attached]:
    """Our programs on the devices of this network namespace. Raises BpftoolError."""
    found = [item for item in bpftool.filters() if str(item.get("name", "")).startswith(FILTER_PREFIX)]
    return [Attached(item["devname"], item["ifindex"], item["name"].removeprefix(FILTER_PREFIX)) for item in found]


class Links:
    """The caller's network namespace. Use it in a `with`."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *exception: object) -> None:
        self._netlink.close()

    def underlay(self, names: tuple[str, ...]) -> list[Device]:
        """The devices of these names; where there are none, those of the default routes."""
        devices = {link["index"]: _device(link) for link in self._netlink.get_links()}
        if names:
            return [device for device in devices.values() if device.name in names]
        found = {_out(route) for family in (AF_INET, AF_INET6) for route in self._default_routes(family)}
        return [devices[index] for index in sorted(found & devices.keys())]

    def device(self, name: str) -> Device | None:
        for link in self._netlink.get_links():
            if link.get_attr("IFLA_IFNAME") == name:
                return _device(link)
        return None

    def detach(self, attachment: Attached) -> None:
        """Takes a program of ours off its device; it is no error that it is gone."""
        try:
            attach.detach_device(self._netlink, attachment.ifindex, attachment.hook)
        except NetlinkError as error:
            if error.code not in GONE:
                raise

    def remove_clsact(self, ifindex: int) -> bool:
        """Removes a device's clsact where nobody's filter is left on it; returns whether it did."""
        if any(self._netlink.get_filters(ifindex, parent=parent) for parent in (attach.INGRESS, attach.EGRESS)):
            return False
        try:
            self._netlink.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in GONE:
                raise
            return False
        return True

    def remove_overlay(self) -> bool:
        """Removes the overlay device; returns whether there was one."""
        found = self.device(OVERLAY_NAME)
        if found:
            self._netlink.link("del", index=found.ifindex)
        return bool(found)

    def remove_routes(self) -> int:
        """Removes every route of ours; returns how many there were."""
        ours = [
            route
            for family in (AF_INET, AF_INET6)
            for route in self._netlink.get_routes(family=family)
            if route["proto"] == PROTOCOL
        ]
        for route in ours:
            self._netlink.route("del", **_identity(route))
        return len(ours)

    def _default_routes(self, family: int) -> list[Any]:
        routes = self._netlink.get_routes(family=family)
        return [route for route in routes if not route["dst_len"] and route["type"] == 1 and _table(route) == 254]


def firewall_chains(table: str, chain: str) -> list[str]:
    """The names of nftables' tables called `table`, and of chains called `chain` (iptables-nft's), here."""
    with NFTables(nfgen_family=ANY_FAMILY) as nft:
        tables = [found.get_attr("NFTA_TABLE_NAME") for found in nft.get_tables()]
        chains = [found.get_attr("NFTA_CHAIN_NAME") for found in nft.get_chains()]
    return sorted({name for name in tables if name == table} | {name for name in chains if name == chain})


def _device(link: Any) -> Device:
    return Device(link.get_attr("IFLA_IFNAME"), link["index"], link.get_attr("IFLA_MTU"))


def _out(route: Any) -> int:
    """The device of a route; of several next hops the first."""
    hops = route.get_attr("RTA_MULTIPATH")
    return int(hops[0]["oif"] if hops else route.get_attr("RTA_OIF") or 0)


def _table(route: Any) -> int:
    return int(route.get_attr("RTA_TABLE") or route["table"])


def _identity(route: Any) -> dict[str, Any]:
    """What names a route to the kernel."""
    anywhere = "::" if route["family"] == AF_INET6 else "0.0.0.0"
    return {
        "family": route["family"],
        "dst": f"{route.get_attr('RTA_DST') or anywhere}/{route['dst_len']}",
        "oif": _out(route),
        "table": _table(route),
        "type": route["type"],
        "scope": route["scope"],
        "proto": PROTOCOL,
    }
