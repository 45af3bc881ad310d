# SPDX-License-Identifier: Apache-2.0
"""Refusals of what comes in with its checksum left to a device, as a virtual machine next door sends it, or put
together of segments (GRO): they leave as they were written, by a device that finishes what is left to it."""

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import checksum

from e2e.lab import network
from e2e.lab.runtime import tool
from e2e.tests.outside import CLIENT, NODE_PORT, SERVICES, Exposed, Outside, target
from e2e.tests.stage import FAMILIES, ask, names, pick, wait
from e2e.tests.test_malformed import heard, mac

# Tunnels, which take less than the underlay.
MODE, TUNNELS_MTU = "vxlan-entry", 1430
pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.parametrize("mode", [MODE])]

NOBODY = Exposed(37, [], "Cluster")
PORT = 41000
# A payload that fits the underlay, and no tunnel.
FULL = 1430
# <linux/virtio_net.h>
NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6 = 1, 1, 4

LAST_HOP = ICMP(type=11, code=0), ICMPv6TimeExceeded()
TOO_BIG = ICMP(type=3, code=4, nexthopmtu=TUNNELS_MTU), ICMPv6PacketTooBig(mtu=TUNNELS_MTU)
REFUSED = ICMP(type=3, code=3), ICMPv6DestUnreach(code=4)


class Case(NamedTuple):
    """What the client sends to a Service, and what it is told, in IPv4 and in IPv6.

    Attributes:
        size: of the payload; more than FULL: in segments that are put together.
    """

    exposed: Exposed
    transport: Packet
    size: int
    hops: int
    told: tuple[Packet, Packet]


CASES = {
    "segment on its last hop": Case(SERVICES["near"], TCP(), FULL, 1, LAST_HOP),
    "segments on their last hop": Case(SERVICES["near"], TCP(), 3 * FULL, 1, LAST_HOP),
    "segment that is too big": Case(SERVICES["far"], TCP(), FULL, 64, TOO_BIG),
    "segments that are too big": Case(SERVICES["far"], TCP(), 3 * FULL, 64, TOO_BIG),
    "datagram that is too big": Case(SERVICES["far"], UDP(), FULL, 64, TOO_BIG),
    "datagram for nobody": Case(NOBODY, UDP(), 1, 64, REFUSED),
}


@pytest.fixture(autouse=True)
def _finishing(outside: Outside) -> Iterator[None]:
    """A node whose device finishes checksums; a Service without endpoints."""
    node = outside.node(1)
    outside.expose_outside("nobody", NOBODY)
    node.space.run(*tool("offloads", network.DEVICE, "tx=off"))
    try:
        wait(lambda: str(NOBODY.node_port) in node.calico("services"))
        yield
    finally:
        node.space.run(*tool("offloads", network.DEVICE, "tx=on"))
        outside.source.delete("nobody")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_client_next_door_is_refused_at_once(outside: Outside, protocol: str, family: str) -> None:
    """Real sockets, which do not hear what is wrong."""
    assert names(ask(outside.client, protocol, *target(outside.node(1), NOBODY, NODE_PORT, family))) == {"ECONNREFUSED"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [FULL, 3 * FULL])
def test_connection_is_reset(outside: Outside, size: int, family: str) -> None:
    """By a segment that is right to the byte."""
    asked = frame(outside, family, Case(NOBODY, TCP(flags="S", seq=7), size, 64, REFUSED))
    reset = TCP(sport=NOBODY.node_port, dport=PORT, flags="RA", seq=0, ack=8 + size, window=0)
    assert answer(outside, asked)[:16] == bytes(reset)[:16]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sender_is_told(outside: Outside, case: Case, family: str) -> None:
    """By an ICMP error that quotes what the client has sent."""
    asked = frame(outside, family, case)
    message, headers = bytes(case.told[FAMILIES.index(family)]), 20 if family == "IPv4" else 40
    told = answer(outside, asked)
    assert told[:2] + told[4:8] == message[:2] + message[4:8]
    assert told[8:] == bytes(asked.payload)[: headers + 8]


def frame(outside: Outside, family: str, case: Case) -> Packet:
    """The client's, by the first node. For a checksum it has the pseudo header's sum, as a socket leaves it."""
    node = outside.node(1)
    address, port = target(node, case.exposed, NODE_PORT, family)
    client = pick(CLIENT, family)
    transport = case.transport.copy()
    transport.sport, transport.dport = PORT, port
    headers: Packet
    if family == "IPv4":
        headers = IP(src=client, dst=address, ttl=case.hops, flags="DF")
    else:
        headers = IPv6(src=client, dst=address, hlim=case.hops)
    macs = Ether(src=mac(outside.client), dst=mac(node.space))
    packet = Ether(bytes(macs / headers / transport / bytes(case.size)))
    packet.payload.payload.chksum = ~checksum(pseudo_header(packet)) & 0xFFFF
    return Ether(bytes(packet))


def left(packet: Packet) -> bytes:
    """What is left to a device: struct virtio_net_hdr."""
    start = len(packet) - len(packet.payload.payload)
    checksum_at = 16 if TCP in packet else 6
    headers = len(packet) - len(packet.lastlayer())
    if len(packet.lastlayer()) <= FULL:
        return struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, start, checksum_at)
    segments = GSO_TCPV4 if IP in packet else GSO_TCPV6
    return struct.pack("=BBHHHH", NEEDS_CSUM, segments, headers, FULL, start, checksum_at)


def answer(outside: Outside, asked: Packet) -> bytes:
    """What the client gets for a frame, from the transport header on; that its checksums are right is seen to here."""
    line = (left(asked) + bytes(asked)).hex()
    with heard({"client": (outside.client, network.DEVICE)}, CLIENT) as seen:
        outside.client.run(*tool("frames", "send", network.DEVICE, "--left"), stdin=f"{line}\n")
    port = PORT.to_bytes(2, "big")
    found = [packet for packet in seen["client"] if packet.src == asked.dst and port in bytes(packet.payload.payload)]
    assert len(found) == 1, found
    (got,) = found
    assert IPv6 in got or checksum(bytes(got)[14:34]) == 0
    transport = bytes(got.payload.payload)
    assert checksum((b"" if ICMP in got else pseudo_header(got)) + transport) == 0, got
    return transport


def pseudo_header(packet: Packet) -> bytes:
    """What a checksum covers beside the transport header and what is behind it."""
    network, size = packet.payload, len(packet.payload.payload)
    ends = ip_address(network.src).packed + ip_address(network.dst).packed
    return ends + struct.pack("!II", size, network.proto if IP in packet else network.nh)
