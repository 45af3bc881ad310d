# SPDX-License-Identifier: Apache-2.0
"""Devices of a node's besides its underlay: clients of Services behind them, as they come and go."""

import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from e2e.lab import addresses, runtime
from e2e.lab.addresses import Dual
from e2e.lab.node import Node
from e2e.lab.space import Space
from e2e.lab.taps import captured
from e2e.tests.outside import EXTERNAL_IP, KINDS, NODE_PORT, SERVICES, Exposed, Outside, target, transfer
from e2e.tests.stage import FAMILIES, PORT, PROTOCOLS, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

MODES = ("l2-entry", "vxlan-direct")
CLIENT_TTL = 64
GUARD = "table inet guard { chain forward { type filter hook forward priority 0; iifname docker0 drop; }; }"


class Behind(NamedTuple):
    """A network behind a node: nobody else knows a way there.

    Attributes:
        device: the node's, by which it is reached.
        port: what of the node's the host behind it is wired to: the device, or a part of it; "" where it has no link
            layer.
        gateway: the node's address on the device.
        host: that of the one host there, a namespace by the device's name.
        lengths: of the prefixes.
    """

    device: str
    port: str
    gateway: Dual
    host: Dual
    lengths: tuple[int, int]

    def make(self, node: Node) -> Space:
        """The device, with an address, and the host."""
        node.space.run("ip", "netns", "add", self.device)
        host = node.space.sandbox(self.device)
        host.group.mkdir(exist_ok=True)
        self.plug(node, host)
        return host

    def plug(self, node: Node, host: Space) -> None:
        """The device alone, made anew."""
        if self.port:
            self._wire(node)
        else:
            self._join(node, host)
        _batch(node.space, *_configured(self.device, self.gateway, self.lengths))
        routes = [f"route add default via {gateway}" for gateway in self.gateway]
        _batch(host, "link set lo up", *_configured("eth0", self.host, self.lengths), *routes)

    def remove(self, node: Node) -> None:
        node.space.run("ip", "link", "del", self.device)
        node.space.run("ip", "netns", "del", self.device)

    def met(self, node: Node) -> bool:
        """Whether programs stand there for clients."""
        hook = "from_other" if self.port else "from_l3"
        shown = node.space.run("tc", "filter", "show", "dev", self.device, "ingress", check=False).stdout
        return f"calico-ebpf/{hook}" in shown

    def _wire(self, node: Node) -> None:
        wire = f"link add {self.port} type veth peer name eth0 netns {self.device}"
        if self.port == self.device:
            _batch(node.space, wire)
        else:
            bridge = f"link add {self.device} type bridge"
            _batch(node.space, bridge, wire, f"link set {self.port} master {self.device} up")

    def _join(self, node: Node, host: Space) -> None:
        _batch(node.space, f"tuntap add {self.device} mode tun")
        _batch(host, "tuntap add eth0 mode tun")
        vpn = node.space.start(*runtime.tool("vpn", self.device, f"/run/netns/{self.device}", "eth0"))
        assert vpn.stdout
        assert vpn.stdout.readline() == "ready\n", vpn.communicate()[1]


NETWORK = Behind("eth1", "eth1", Dual("192.168.207.1", "fd00:207::1"), Dual("192.168.207.2", "fd00:207::2"), (24, 64))
CONTAINERS = Behind("docker0", "box", Dual("172.17.0.1", "fd00:172::1"), Dual("172.17.0.2", "fd00:172::2"), (16, 64))
VPN = Behind("tun0", "", Dual("10.8.0.1", "fd00:8::1"), Dual("10.8.0.2", "fd00:8::2"), (24, 64))
BEHIND = (NETWORK, CONTAINERS, VPN)
# By one connection, and the second time when it is told to.
ASKING_TWICE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as server:
    server.settimeout(20)
    for _ in range(2):
        server.sendall(b"?\\n")
        assert server.recv(2000)
        print("asked", flush=True)
        sys.stdin.readline()
"""
# Of a host of either, to be reached over the default route.
ELSEWHERE = Dual("198.18.0.1", "2001:db8:18::1")
ROWS = [(MODES[0], NETWORK), (MODES[1], CONTAINERS), (MODES[0], VPN), (MODES[1], VPN)]


def _batch(space: Space, *commands: str) -> None:
    """Runs lines of ip(8)."""
    space.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")


def _configured(device: str, address: Dual, lengths: tuple[int, int]) -> list[str]:
    return [
        f"link set {device} up",
        f"addr add {address.v4}/{lengths[0]} dev {device}",
        f"addr add {address.v6}/{lengths[1]} dev {device} nodad",
    ]


@pytest.fixture(scope="module")
def _behind(_outsides: Callable[[str], Outside]) -> Iterator[Callable[[str], dict[str, Space]]]:
    """The hosts behind node1's devices by mode, made when the controller has long been running."""
    made: dict[str, dict[str, Space]] = {}

    def behind(mode: str) -> dict[str, Space]:
        if mode not in made:
            node = _outsides(mode).node(1)
            made[mode] = {one.device: one.make(node) for one in BEHIND}
            for one in BEHIND:
                wait(lambda there=one: there.met(node))  # type: ignore[misc]
        return made[mode]

    yield behind
    for mode in made:
        for one in BEHIND:
            one.remove(_outsides(mode).node(1))


@pytest.fixture
def hosts(mode: str, _behind: Callable[[str], dict[str, Space]]) -> dict[str, Space]:
    return _behind(mode)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mode", "behind"), ROWS, ids=lambda one: getattr(one, "device", one))
def test_clients_behind_another_device_are_served_and_seen(
    outside: Outside, hosts: dict[str, Space], behind: Behind, family: str
) -> None:
    """By each kind of address, backend here or elsewhere, and with direct return, too, by the node that alone knows the
    way to them."""
    entry = outside.node(1)
    for name in ("near", "far", "host-near", "host-far"):
        exposed = SERVICES[name]
        cluster_ip = pick(addresses.service(exposed.number), family), PORT
        for address, port in (*(target(entry, exposed, kind, family) for kind in KINDS[:2]), cluster_ip):
            # a UDP server on the node itself answers under the address that the node has there
            for protocol in PROTOCOLS if name != "host-near" else PROTOCOLS[:1]:
                (answer,) = ask(hosts[behind.device], protocol, address, port)
                seen = (answer.get("name"), answer.get("peer"), answer.get("believed_peer"))
                assert seen == (exposed.pods[0], pick(behind.host, family), address), (name, address, protocol, answer)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("protocol", "family"), [("tcp", "IPv4"), ("udp", "IPv6")])
def test_packets_from_behind_are_handed_over_once_and_come_back_by_their_node(
    outside: Outside, hosts: dict[str, Space], protocol: str, family: str
) -> None:
    """What a container sends arrives once at the backend's node, and each answer goes by the node of the container."""
    entry, host = outside.node(1), hosts[CONTAINERS.device]
    address, port = target(entry, SERVICES["far"], NODE_PORT, family)
    with captured({"host": host, "entry": entry.space, "far": outside.node(2).space}, (port, runtime.PORT)) as seen:
        (answer,) = ask(host, protocol, address, port)
    assert answer.get("name") == "web-2", answer
    pod, client = (
        (pick(outside.pod("web-2").address, family), runtime.PORT),
        (pick(CONTAINERS.host, family), answer["peer_port"]),
    )
    ways = {hop: [(one["src"], one["sport"], one["dst"], one["dport"]) for one in seen[hop]] for hop in seen}
    requests = [one for one in seen["host"] if one["way"] == "out"]
    for hop in ("entry", "far"):
        assert ways[hop].count((*client, *pod)) == len(requests) > 0
        assert ways[hop].count((*pod, *client)) == len(seen["host"]) - len(requests) > 0
        assert set(ways[hop]) == {(*client, *pod), (*pod, *client)}
    assert {one["ttl"] for one in seen["far"] if one["src"] == client[0]} == {CLIENT_TTL - 1}
    assert set(ways["host"]) == {(*client, address, port), (address, port, *client)}


@pytest.mark.parametrize("mode", MODES[:1])
def test_hosts_filters_are_asked_about_what_goes_to_a_pods_own_address(
    outside: Outside, hosts: dict[str, Space]
) -> None:
    """Containers are kept off the pods, and not off the Services."""
    node, host, pod = outside.node(1), hosts[CONTAINERS.device], outside.pod("web-1").address
    assert names(ask(host, "tcp", pod.v4, runtime.PORT)) == {"web-1"}
    node.space.run("nft", "-f", "-", stdin=GUARD)
    try:
        for protocol in PROTOCOLS:
            for family in FAMILIES:
                (answer,) = ask(host, protocol, pick(pod, family), runtime.PORT, timeout_s=0.5)
                assert answer.get("error") == "ETIMEDOUT", answer
                assert names(ask(host, protocol, *target(node, SERVICES["near"], EXTERNAL_IP, family))) == {"web-1"}
    finally:
        node.space.run("nft", "delete", "table", "inet", "guard")


@pytest.mark.parametrize("mode", MODES[:1])
def test_device_that_is_made_again_serves_again(outside: Outside, hosts: dict[str, Space]) -> None:
    """Under its name, with another index."""
    node, address = outside.node(1), target(outside.node(1), SERVICES["far"], NODE_PORT, "IPv4")
    for _ in range(2):
        NETWORK.remove(node)
        NETWORK.make(node)
        wait(lambda: NETWORK.met(node))
        assert names(ask(hosts[NETWORK.device], "tcp", *address)) == {"web-2"}


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize("name", ["near", "far"])
def test_connection_outlives_its_device(outside: Outside, hosts: dict[str, Space], name: str) -> None:
    """A network that is unplugged and plugged in again comes by another device."""
    node, host = outside.node(1), hosts[NETWORK.device]
    server = target(node, SERVICES[name], NODE_PORT, "IPv4")
    with host.start("python3", "-I", "-S", "-c", ASKING_TWICE, *map(str, server), stdin=subprocess.PIPE) as asking:
        assert asking.stdin
        assert asking.stdout
        assert asking.stdout.readline() == "asked\n"
        node.space.run("ip", "link", "del", NETWORK.device)
        NETWORK.plug(node, host)
        wait(lambda: NETWORK.met(node))
        asking.stdin.write("again\n")
        asking.stdin.flush()
        assert asking.stdout.readline() == "asked\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["near", "far", "host-near"])
def test_large_transfer_over_a_vpn_arrives_whole(
    outside: Outside, hosts: dict[str, Space], name: str, family: str
) -> None:
    """A megabyte each way, in packets of full size, to and from a device without a link layer."""
    transfer(hosts[VPN.device], target(outside.node(1), SERVICES[name], NODE_PORT, family))


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("behind", BEHIND, ids=lambda one: one.device)
def test_service_without_endpoints_refuses_who_is_behind(
    outside: Outside, hosts: dict[str, Space], behind: Behind, family: str
) -> None:
    """At once, also where there is no link layer to answer by."""
    exposed = Exposed(32, [], "Cluster")
    outside.expose_outside("behind-empty", exposed)
    address, port = target(outside.node(1), exposed, NODE_PORT, family)
    try:
        wait(lambda: f":{port}" in outside.node(1).calico("services"))
        for protocol in PROTOCOLS:
            assert names(ask(hosts[behind.device], protocol, address, port)) == {"ECONNREFUSED"}
    finally:
        outside.source.delete("behind-empty")


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize("behind", [NETWORK, VPN], ids=lambda one: one.device)
def test_default_route_that_moves_takes_masquerade_along(
    outside: Outside, hosts: dict[str, Space], behind: Behind
) -> None:
    """What pods send out leaves by the device to which it leads now, under the node's address there, and back."""
    node, pod, host = outside.node(1), outside.pod("ask-1").space, hosts[behind.device]
    before = [node.space.run("ip", family, "route", "show", "default").stdout.strip() for family in ("-4", "-6")]
    _batch(host, *(f"addr add {address} dev lo" for address in ELSEWHERE))
    answered = [f"{asker} dev eth0 src {address}" for asker, address in zip(behind.gateway, ELSEWHERE, strict=True)]
    _batch(host, *(f"route add {route}" for route in answered))
    runtime.serve(host, "elsewhere", 9300)

    def seen_as(protocol: str, family: str) -> set[object]:
        answers = ask(pod, protocol, pick(ELSEWHERE, family), 9300, timeout_s=0.5)
        return {answer.get("peer", answer.get("error")) for answer in answers}

    try:
        _batch(node.space, *(f"route replace default via {there} dev {behind.device}" for there in behind.host))
        wait(lambda: seen_as("tcp", "IPv4") == {behind.gateway.v4})
        for family in FAMILIES:
            for protocol in PROTOCOLS:
                assert seen_as(protocol, family) == {pick(behind.gateway, family)}
    finally:
        _batch(node.space, *(f"route replace {route}" for route in before))
        _batch(host, *(f"route del {route}" for route in answered))
        _batch(host, *(f"addr del {address} dev lo" for address in ELSEWHERE))
    wait(lambda: behind.met(node))
    assert names(ask(host, "tcp", *target(node, SERVICES["near"], NODE_PORT, "IPv4"))) == {"web-1"}
