# SPDX-License-Identifier: Apache-2.0
"""The pod link: a veth pair, its addresses, routes and neighbours on both sides, and the programs at its host end.

The pod's end holds its addresses alone (/32, /128); all it sends goes to 169.254.1.1 or fe80::1, which exist nowhere
but as a permanent neighbour entry with the host end's MAC. The host has a route and a permanent neighbour entry for
each address. No end has a link-local address, so nothing waits for duplicate address detection. Both MACs are given in
the message that creates the pair: udev rewrites those that the kernel chose.
"""

import errno
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from bpf import attach, podlink
from cni import netlink
from cni.errors import DifferenceError, ExistsError, NodeError, VariableError
from cni.netlink import Netlink, NetlinkError
from cni.ranges import Address, Destination

# rtm_protocol of the routes of ours (the project's number everywhere) and of those within the pod (RTPROT_BOOT)
PROTOCOL, _BOOT = 206, 3
GATEWAYS = {4: bytes([169, 254, 1, 1]), 6: bytes.fromhex("fe80" + "00" * 13 + "01")}
# Reserved, hence nobody's: the way to them is the default route.
_NOWHERE = {4: bytes([240, 0, 0, 1]), 6: bytes.fromhex("2000" + "00" * 13 + "01")}
_MTU_DEFAULT = 1500


class HostEnd(NamedTuple):
    """What the kernel tells of a host end: its device index and MAC, and the MACs behind the pod's addresses."""

    ifindex: int
    mac: bytes
    neighbours: dict[Address, bytes]


class PodLink(NamedTuple):
    """What a pod link is to be, or is: names and MACs of its ends."""

    name: str
    mac: bytes
    pod_name: str
    pod_mac: bytes


def host_name(container_id: str, ifname: str) -> str:
    """The name of the host end."""
    return podlink.name(hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest())


def host_ends() -> list[str]:
    """The names of all pod links' host ends in this network namespace, also of those whose records were lost."""
    return [name for _, name in socket.if_nameindex() if podlink.is_name(name)]


def gateway(family: int) -> str:
    """The address to which a pod sends, in text form; family 4 or 6."""
    return str(ip_address(GATEWAYS[family]))


def planned(container_id: str, ifname: str) -> PodLink:
    """A link with new MACs."""
    return PodLink(host_name(container_id, ifname), _random_mac(), ifname, _random_mac())


def require_foreign(netns_fd: int) -> None:
    """Raises VariableError where the descriptor is of this process's own network namespace, or of none."""
    if not netlink.is_netns(netns_fd):
        raise VariableError("CNI_NETNS: it is not a network namespace")
    if os.fstat(netns_fd).st_ino == os.stat("/proc/self/ns/net").st_ino:
        raise VariableError("CNI_NETNS: it is the host's own network namespace")


def create(link: PodLink, netns_fd: int, mtu: int) -> int:
    """Creates the pair, both ends down; returns the device index of the host end.

    Raises:
        ExistsError: one of the names is taken.
        NodeError: the kernel refused.
    """
    with _explained(), Netlink() as host:
        peer = (link.pod_name, link.pod_mac, netns_fd)
        try:
            answers = host.call(netlink.add_veth(link.name, link.mac, peer, mtu), netlink.get_link(link.name))
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                raise ExistsError(f"{link.pod_name} in the pod, or {link.name} on the host, exists already") from error
            raise
        return netlink.device_of(answers[0])


def connect_host(
    link: PodLink, index: int, addresses: Sequence[Address], programs: Mapping[str, int], proc_sys: Path
) -> None:
    """Attaches the programs to the host end, then brings it up, with its routes. Raises NodeError."""
    messages = [netlink.no_link_local(index), *_attaching(index, programs), netlink.set_up(index)]
    for address in addresses:
        messages.append(netlink.set_neighbour(index, address.packed, link.pod_mac))
        messages.append(netlink.set_route(index, (address.packed, address.max_prefixlen), None, PROTOCOL))
    with _explained(), Netlink() as host:
        _refuse_advertisements(proc_sys, link.name)
        host.call(*messages)


def connect_pod(
    link: PodLink, netns_fd: int, addresses: Sequence[Address], destinations: Sequence[Destination], proc_sys: Path
) -> None:
    """Brings the pod's end up, with its addresses and routes. Raises NodeError."""
    families = sorted({address.version for address in addresses})
    with _explained(), netlink.inside(netns_fd):
        if 6 in families:
            _allow_ipv6(proc_sys, link.pod_name)
        pod = Netlink()
    with _explained(), pod:
        index = netlink.device_of(pod.call(netlink.get_link(link.pod_name))[0])
        messages = [netlink.no_link_local(index), netlink.set_up(index)]
        messages += [netlink.add_address(index, address.packed) for address in addresses]
        for family in families:
            messages.append(netlink.set_neighbour(index, GATEWAYS[family], link.mac))
        if 4 in families:
            messages.append(netlink.set_route(index, (GATEWAYS[4], 32), None, _BOOT))
        for destination in destinations:
            prefix = (destination.network_address.packed, destination.prefixlen)
            messages.append(netlink.set_route(index, prefix, GATEWAYS[destination.version], _BOOT))
        pod.call(*messages)


def delete(name: str) -> None:
    """Deletes a link by the name of its host end, if it is there. Raises NodeError."""
    with _explained(), Netlink() as host:
        host.call(netlink.delete_link(name))


def reattach(names: Sequence[str], programs: Mapping[str, int]) -> int:
    """Replaces the programs at the host ends of links; returns how many there were. Raises NodeError."""
    with _explained(), Netlink() as host:
        found = [netlink.device_of(answer) for name in names for answer in host.call(netlink.get_link(name))]
        for index in found:
            try:
                host.call(*_attaching(index, programs))
            except NetlinkError as error:
                if error.errno != errno.ENODEV:  # deleted meanwhile
                    raise
        return len(found)


def host_end(name: str, addresses: Sequence[Address]) -> HostEnd | None:
    """What a link that is there was made with; None where it is gone. Raises NodeError."""
    with _explained(), Netlink() as host:
        for index, _, found in netlink.links(host.call(netlink.get_link(name))):
            neighbours = {}
            for address in addresses:
                for answer in host.call(netlink.get_neighbour(index, address.packed)):
                    neighbours[address] = netlink.attributes(answer[12:])[netlink.NDA_LLADDR]
            return HostEnd(index, found[netlink.IFLA_ADDRESS], neighbours)
    return None


def device_mtu() -> int:
    """The MTU in bytes of the device that leads out of this node, else Ethernet's."""
    with _explained(), Netlink() as host:
        for family in (4, 6):
            for route in host.call(netlink.get_route(_NOWHERE[family])):
                index = netlink.attributes(route[12:]).get(netlink.RTA_OIF)
                if index:
                    for _, _, found in netlink.links(host.call(netlink.get_device(netlink.number(index)))):
                        return netlink.number(found[netlink.IFLA_MTU])
    return _MTU_DEFAULT


def check_host(link: PodLink, program_ids: Mapping[str, int]) -> int:
    """Checks the host end and its programs, and returns its device index.

    Raises:
        DifferenceError: it is not as it was made.
    """
    with _explained(), Netlink() as host:
        index = _check_device(host, link.name, link.mac)
        for hook, program_id in program_ids.items():
            if _attached(host, index, hook) != program_id:
                raise DifferenceError(f"{link.name}: the program {hook} is not attached to it")
    return index


def check_pod(link: PodLink, netns_fd: int, addresses: Sequence[Address]) -> None:
    """Checks the pod's end, its addresses and that they lead out.

    Raises:
        DifferenceError: it is not as it was made.
    """
    with _explained(), netlink.inside(netns_fd):
        pod = Netlink()
    with _explained(), pod:
        index = _check_device(pod, link.pod_name, link.pod_mac)
        present = set(netlink.addresses_of(pod.call(netlink.get_addresses()), index))
        for address in addresses:
            if address.packed not in present:
                raise DifferenceError(f"{link.pod_name}: the address {address} is gone")
            gateway = GATEWAYS[address.version]
            routes = [netlink.attributes(route[12:]) for route in pod.call(netlink.get_route(gateway))]
            if not any(netlink.number(route.get(netlink.RTA_OIF, b"\0" * 4)) == index for route in routes):
                raise DifferenceError(f"{link.pod_name}: no route leads through it")


def _check_device(where: Netlink, name: str, mac: bytes) -> int:
    for index, flags, found in netlink.links(where.call(netlink.get_link(name))):
        if found.get(netlink.IFLA_ADDRESS) != mac:
            raise DifferenceError(f"{name}: its MAC is another")
        if not flags & netlink.IFF_UP:
            raise DifferenceError(f"{name}: it is down")
        return index
    raise DifferenceError(f"{name}: there is no such link")


def _attached(host: Netlink, index: int, hook: str) -> int | None:
    """The id of the program at a hook."""
    parent = attach.INGRESS if hook.startswith("from_") else attach.EGRESS
    question = netlink.get_filter(index, parent, attach.PRIORITY, attach.ETH_P_ALL, attach.HANDLE)
    for answer in host.call(question):
        options = netlink.attributes(netlink.attributes(answer[20:]).get(netlink.TCA_OPTIONS, b""))
        return netlink.number(options[netlink.TCA_BPF_ID]) if netlink.TCA_BPF_ID in options else None
    return None


def _attaching(index: int, programs: Mapping[str, int]) -> list[netlink.Message]:
    collector = netlink.Collector()
    attach.add_clsact(collector, index)
    for hook, fd in programs.items():
        attach.attach_device(collector, index, hook, fd)
    return collector.messages


def _refuse_advertisements(proc_sys: Path, name: str) -> None:
    """A pod must not become this node's router: until forwarding is on, the kernel would listen to it."""
    with suppress(FileNotFoundError):  # a kernel without IPv6
        (proc_sys / f"net/ipv6/conf/{name}/accept_ra").write_text("0", encoding="ascii")


def _allow_ipv6(proc_sys: Path, name: str) -> None:
    """Some runtimes switch IPv6 off in new namespaces; who asks for an address wants it on. To be called inside."""
    switch = proc_sys / f"net/ipv6/conf/{name}/disable_ipv6"
    if switch.exists() and switch.read_text(encoding="ascii").strip() != "0":
        switch.write_text("0", encoding="ascii")


def _random_mac() -> bytes:
    """Unicast, locally administered."""
    drawn = bytearray(os.urandom(6))
    drawn[0] = drawn[0] & 0xFC | 0x02
    return bytes(drawn)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeError(str(error)) from error
