# SPDX-License-Identifier: Apache-2.0
"""Devices, filters and routes as the commands see and remove them; here alone do they use pyroute2."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf import attach, bpftool, podlink, syscall
from controller import devices
from controller.devices import Device
from controller.errors import NetworkError
from controller.nodes import OVERLAY_NAME
from controller.routes import PROTOCOL, Netlink, Snapshot

GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)  # no such filter, no clsact, no device


# What stands for a hook of TC.
XDP = "xdp"


class Attached(NamedTuple):
    """A program of ours on a device; `hook` is its name, `program` the id of one of XDP, or 0."""

    device: str
    ifindex: int
    hook: str
    program: int = 0


def attached() -> list[Attached]:
    """Our programs on the devices of this network namespace. Raises BpftoolError."""
    found = [item for item in bpftool.filters() if str(item.get("name", "")).startswith(attach.FILTER_PREFIX)]
    early = [item for item in bpftool.xdp_programs() if item["name"] == attach.XDP_PROGRAM]
    return [
        *(
            Attached(item["devname"], item["ifindex"], item["name"].removeprefix(attach.FILTER_PREFIX))
            for item in found
        ),
        *(Attached(item["devname"], item["ifindex"], XDP, item["id"]) for item in early),
    ]


def seen() -> Snapshot:
    """Devices and routes as the controller sees them. Raises NetworkError."""
    netlink = Netlink()
    try:
        return netlink.snapshot()
    finally:
        netlink.close()


def underlay(snapshot: Snapshot, names: tuple[str, ...]) -> list[Device]:
    """The devices of these names; where none are named, those of the default routes."""
    if names:
        return [device for device in snapshot.devices.values() if device.name in names]
    found = devices.underlay(snapshot.devices, None, snapshot.hops, snapshot.addresses)
    return [snapshot.devices[index] for index in sorted(found)]


class Links:
    """Removes what is ours from the caller's network namespace. Use it in a `with`; methods raise NetworkError."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *exception: object) -> None:
        self._netlink.close()

    def detach(self, attachment: Attached) -> None:
        """Takes a program of ours off its device; it is no error that it is gone."""
        what = f"detaching {attachment.hook} from {attachment.device}"
        if attachment.hook != XDP:
            with _named(what, *GONE):
                attach.detach_device(self._netlink, attachment.ifindex, attachment.hook)
            return
        with _named(what, *attach.XDP_GONE), syscall.opened_by_id(attachment.program) as program:
            if program is not None:
                attach.detach_xdp(self._netlink, attachment.ifindex, program)

    def remove_clsact(self, ifindex: int) -> None:
        """Removes a device's clsact where nobody's filter is left on it."""
        with _named(f"removing clsact from device {ifindex}", *GONE):
            if not any(self._netlink.get_filters(ifindex, parent=parent) for parent in (attach.INGRESS, attach.EGRESS)):
                self._netlink.tc("del", "clsact", ifindex)

    def remove_overlay(self) -> bool:
        """Removes the overlay device; returns whether there was one."""
        with _named(f"removing {OVERLAY_NAME}"):
            found = self._netlink.link_lookup(ifname=OVERLAY_NAME)
            for ifindex in found:
                self._netlink.link("del", index=ifindex)
        return bool(found)

    def remove_pod_links(self) -> None:
        """Removes both ends of every pod link."""
        with _named("looking for pod links"):
            found = [
                link["index"] for link in self._netlink.get_links() if podlink.is_name(link.get_attr("IFLA_IFNAME"))
            ]
        for ifindex in found:
            with _named(f"removing device {ifindex}", errno.ENODEV):
                self._netlink.link("del", index=ifindex)

    def remove_routes(self) -> int:
        """Removes every route of ours; returns how many there were."""
        with _named("removing routes"):
            ours = [
                route
                for family in (AF_INET, AF_INET6)
                for route in self._netlink.get_routes(family=family)
                if route["proto"] == PROTOCOL
            ]
            for route in ours:
                self._netlink.route("del", **_identity(route))
        return len(ours)


@contextmanager
def _named(what: str, *ignored: int) -> Iterator[None]:
    """Turns netlink's errors, but for those ignored, into one that says what was done."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in ignored:
            raise NetworkError(f"{what}: {error}") from error


def _table(route: Any) -> int:
    return int(route.get_attr("RTA_TABLE") or route["table"])


def _identity(route: Any) -> dict[str, Any]:
    """What names a route to the kernel."""
    anywhere = "::" if route["family"] == AF_INET6 else "0.0.0.0"
    return {
        "family": route["family"],
        "dst": f"{route.get_attr('RTA_DST') or anywhere}/{route['dst_len']}",
        "oif": route.get_attr("RTA_OIF"),
        "table": _table(route),
        "type": route["type"],
        "scope": route["scope"],
        "proto": PROTOCOL,
    }
