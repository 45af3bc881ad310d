# SPDX-License-Identifier: Apache-2.0
"""What this node, as a router, does not send on: its sender is told that it is too big, or that its TTL has run out."""

import os
import time
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Jumbo,
    PadN,
    fragment6,
)
from scapy.layers.l2 import GRE, Ether
from scapy.packet import Packet, Raw

from bpf.abi import Counter, DropReason, FrontendFlag, PodKey, RemoteFlag, Way, WayKind
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests.datapath import (
    BOTH,
    LO_MAC,
    PASS,
    REDIRECT,
    SHOT,
    V4,
    V6,
    Datapath,
    Family,
    arriving,
    expected,
    key,
    protocol_of,
    same,
    sctp,
    tcp,
    udp,
)

pytestmark = pytest.mark.root

BUILD = pytest.mark.parametrize("build", [tcp, udp, sctp], ids=["tcp", "udp", "sctp"])
TUNNEL = pytest.mark.parametrize("flags", [RemoteFlag(0), RemoteFlag.TUNNEL_HANDOVER], ids=["l2", "tunnel"])
MTU, NODE_PORT = 1400, 30080

Build = Callable[..., Packet]


def sized(packet: Packet, size: int, whole: bool = True) -> Packet:
    """The packet with a payload that makes its IP packet so large; `whole`: IPv4's says that it is not to be cut up."""
    copy = packet.copy()
    network = copy[IP] if IP in copy else copy[IPv6]
    if IP in copy:
        network.flags = "DF" if whole else 0
        del network.len, network.chksum
    else:
        del network.plen
    transport = next((copy[layer] for layer in (TCP, UDP) if layer in copy), None)
    if transport is not None:
        del transport.chksum
        if UDP in copy:
            del transport.len
    used = len(bytes(network))
    copy = copy / Raw(bytes(size - used))
    built = Ether(bytes(copy))
    assert len(built) == 14 + size
    return built


def last_hop(packet: Packet) -> Packet:
    return expected(packet, hops=(packet[IP].ttl if IP in packet else packet[IPv6].hlim) - 1)


def told(
    reporter: str,
    about: Packet,
    *,
    mtu: int = 0,
    extensions: int = 0,
    eth_src: str = dp.HOST_MAC,
    eth_dst: str = dp.POD_MAC,
) -> Packet:
    """Too big, where an MTU is given, else that its TTL has run out: with all its headers, so many bytes of IPv6's
    extensions among them, and eight bytes more."""
    frame = Ether(src=eth_src, dst=eth_dst)
    if IP in about:
        message = ICMP(type=3, code=4, nexthopmtu=mtu) if mtu else ICMP(type=11, code=0)
        quote = Raw(bytes(about[IP])[: about[IP].ihl * 4 + 8])
        return Ether(bytes(frame / IP(src=reporter, dst=about[IP].src, flags="DF", id=0) / message / quote))
    quote = Raw(bytes(about[IPv6])[: 48 + extensions])
    error = ICMPv6PacketTooBig(mtu=mtu) if mtu else ICMPv6TimeExceeded()
    return Ether(bytes(frame / IPv6(src=reporter, dst=about[IPv6].src) / error / quote))


def node_port(datapath: Datapath, family: Family, build: Build, backend: str, flags: int = 0, local: int = 0) -> None:
    flags = FrontendFlag.EXTERNAL | FrontendFlag(flags)
    datapath.service(family.any_node, NODE_PORT, protocol_of(build), [(backend, 8080)], local=local, flags=flags)


class TestTooBig:
    """The devices take 1,400 bytes; IPv4 packets are not to be cut up, unless a test says so."""

    @pytest.fixture(autouse=True)
    def narrow(self, datapath: Datapath) -> None:
        datapath.device(dp.LO, MTU)

    @BOTH
    @TUNNEL
    @pytest.mark.parametrize("way_back", [0, FrontendFlag.DIRECT], ids=["entry", "direct"])
    @pytest.mark.parametrize("build", [tcp, udp], ids=["tcp", "udp"])
    def test_handed_over(
        self, datapath: Datapath, family: Family, flags: RemoteFlag, way_back: int, build: Build
    ) -> None:
        """The client hears it from the address to which it talks; what fits to the byte goes on."""
        datapath.remote(family.remote_range, family.other_node, flags)
        node_port(datapath, family, build, family.remote, way_back)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        large = sized(request, MTU + 1)
        result = datapath.run("from_netdev", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.node, large, mtu=MTU, eth_src=LO_MAC, eth_dst=dp.ROUTER_MAC))
        assert (datapath.dropped(DropReason.TOO_BIG), datapath.counter(Counter.REFUSALS)) == (1, 1)
        result = datapath.run("from_netdev", sized(request, MTU), summed=not flags)
        assert (result.verdict, len(result.packet)) == (REDIRECT, 14 + MTU)
        assert datapath.dropped(DropReason.TOO_BIG) == 1

    @BOTH
    @pytest.mark.parametrize("flags", [RemoteFlag(0), RemoteFlag.OVERLAY], ids=["routed", "overlay"])
    def test_from_a_pod_through_a_service(self, datapath: Datapath, family: Family, flags: RemoteFlag) -> None:
        """The pod hears it from the Service."""
        datapath.remote(family.remote_range, family.other_node, flags)
        datapath.service(family.service, 80, dp.UDP_PROTOCOL, [(family.remote, 8080)])
        large = sized(udp(family, (family.client, 5000), (family.service, 80)), MTU + 1)
        result = datapath.run("from_pod", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.service, large, mtu=MTU))

    @BOTH
    def test_answer_on_its_way_to_the_entry_node(self, datapath: Datapath, family: Family) -> None:
        """A pod's backend that answers by another node hears it from the client."""
        request = arriving(tcp(family, (family.outside, 5000), (family.server, 8080)), dp.PEER_MAC)
        assert datapath.run("from_netdev", request).verdict == REDIRECT
        answer = tcp(family, (family.server, 8080), (family.outside, 5000), "A")
        large = sized(expected(answer, eth_src=dp.SERVER_MAC, eth_dst=dp.SERVER_HOST_MAC), MTU + 1)
        result = datapath.run("from_pod", large, summed=False)
        assert result.verdict == REDIRECT
        swapped = {"eth_src": dp.SERVER_HOST_MAC, "eth_dst": dp.SERVER_MAC}
        same(result.packet, told(family.outside, large, mtu=MTU, **swapped))

    @BOTH
    def test_masqueraded(self, datapath: Datapath, family: Family) -> None:
        """Before it goes under the node's address: the pod hears of what it has sent."""
        large = sized(udp(family, (family.client, 5000), (family.outside, 443)), MTU + 1)
        result = datapath.run("from_pod", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.outside, large, mtu=MTU))

    @BOTH
    def test_host_backend_answering_by_the_entry_node(self, datapath: Datapath, family: Family) -> None:
        """Its socket hears it from the client: it knows the device's MTU, and nothing of the tunnel's."""
        request = expected(
            tcp(family, (family.outside, 5000), (family.node, 8080)), eth_src=dp.PEER_MAC, eth_dst=LO_MAC
        )
        datapath.device(dp.LO, 1500)
        assert datapath.run("from_netdev", request).verdict == PASS
        datapath.device(dp.LO, MTU)
        large = sized(tcp(family, (family.node, 8080), (family.outside, 5000), "A"), MTU + 1)
        result = datapath.run("to_netdev", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.outside, large, mtu=MTU))

    @BOTH
    def test_host_packet_for_a_pod(self, datapath: Datapath, family: Family) -> None:
        """Past the socket hooks, by a device that takes more than the pod's link does."""
        datapath.device(dp.LO, 1500)
        datapath.device(dp.POD_LINKS, 1450)
        datapath.service(family.service, 80, dp.UDP_PROTOCOL, [(family.server, 8080)])
        request = udp(family, (family.node, 5000), (family.service, 80))
        large = sized(request, 1451)
        result = datapath.run("to_netdev", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.service, large, mtu=1450))
        assert datapath.run("to_netdev", sized(request, 1450)).verdict == REDIRECT
        assert datapath.dropped(DropReason.TOO_BIG) == 1

    @BOTH
    def test_pod_of_this_node_takes_what_came_this_far(self, datapath: Datapath, family: Family) -> None:
        """A link's MTU is about what is sent by it; redirect_peer() sends nothing."""
        datapath.device(dp.POD_LINKS, MTU)
        large = sized(udp(family, (family.client, 5000), (family.server, 8080)), MTU + 1)
        result = datapath.run("from_pod", large)
        assert (result.verdict, len(result.packet)) == (REDIRECT, 14 + MTU + 1)

    @TUNNEL
    def test_what_may_be_cut_up_is_left_to_ipv4_tunnels(self, datapath: Datapath, flags: RemoteFlag) -> None:
        """The kernel cuts the tunnel's packet. Elsewhere nobody does: it is dropped, and there is nobody to tell."""
        datapath.remote(V4.remote_range, V4.other_node, flags)
        node_port(datapath, V4, udp, V4.remote)
        large = sized(arriving(udp(V4, (V4.outside, 5000), (V4.node, NODE_PORT))), MTU + 1, whole=False)
        verdict = datapath.run("from_netdev", large, summed=False).verdict
        assert verdict == (REDIRECT if flags else SHOT)
        assert datapath.dropped(DropReason.TOO_BIG) == (0 if flags else 1)
        assert datapath.counter(Counter.REFUSALS) == 0

    def test_nothing_is_cut_for_ipv6_tunnels(self, datapath: Datapath) -> None:
        """The kernel drops there what is too large."""
        datapath.remote(V4.remote_range, V6.other_node, RemoteFlag.TUNNEL_HANDOVER)
        node_port(datapath, V4, udp, V4.remote)
        large = sized(arriving(udp(V4, (V4.outside, 5000), (V4.node, NODE_PORT))), MTU + 1, whole=False)
        assert datapath.run("from_netdev", large, summed=False).verdict == SHOT
        assert datapath.dropped(DropReason.TOO_BIG) == 1

    @BOTH
    @pytest.mark.parametrize("build", [tcp, udp], ids=["tcp", "udp"])
    def test_what_the_device_cuts_counts_by_its_parts(self, datapath: Datapath, family: Family, build: Build) -> None:
        """Segmentation offload: many packets in one, of which each must fit, headers and options and all."""
        datapath.service(family.service, 80, protocol_of(build), [(family.remote, 8080)])
        options = {"options": [("NOP", None)] * 12} if build is tcp else {}
        first = build(family, (family.client, 5000), (family.service, 80))
        datapath.run("from_pod", first)
        flags = {"flags": "A", **options} if build is tcp else {}
        large = sized(build(family, (family.client, 5000), (family.service, 80), **flags), 3000)
        headers = (20 if family is V4 else 40) + (32 if build is tcp else 8)
        result = datapath.run("from_pod", large, summed=False, gso_size=MTU - headers)
        assert (result.verdict, len(result.packet)) == (REDIRECT, 3014)
        result = datapath.run("from_pod", large, summed=False, gso_size=MTU - headers + 1)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.service, large, mtu=MTU))

    @BOTH
    def test_chunks_that_a_device_puts_into_packets_are_their_senders_matter(
        self, datapath: Datapath, family: Family
    ) -> None:
        """SCTP says where it may be cut, and has looked at the path."""
        datapath.service(family.service, 80, dp.SCTP_PROTOCOL, [(family.remote, 8080)])
        large = sized(sctp(family, (family.client, 5000), (family.service, 80)), 3000)
        assert len(datapath.run("from_pod", large, summed=False, gso_size=0xFFFF).packet) == 3014

    @BOTH
    def test_of_fragments_the_first_one_is_answered(self, datapath: Datapath, family: Family) -> None:
        """Which has the ports; the others are dropped in silence (RFC 1122, 3.2.2)."""
        if family is V4:
            whole = IP(src=V4.client, dst=V4.remote, id=7, flags="DF") / UDP(sport=5000, dport=443) / bytes(3000)
            parts = [Ether(bytes(dp.ethernet() / part)) for part in fragment(whole, 1440)]
            for part in parts[:-1]:
                part[IP].flags = "DF+MF"
                del part[IP].chksum
        else:
            network = IPv6(src=V6.client, dst=V6.remote) / IPv6ExtHdrFragment(id=7)
            whole = IPv6(bytes(network / UDP(sport=5000, dport=443) / bytes(3000)))
            parts = [Ether(bytes(dp.ethernet() / part)) for part in fragment6(whole, 1460)]
        first, second = (Ether(bytes(part)) for part in parts[:2])
        result = datapath.run("from_pod", first, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.remote, first, mtu=MTU, extensions=0 if family is V4 else 8))
        assert datapath.run("from_pod", second, summed=False).verdict == SHOT
        assert (datapath.dropped(DropReason.TOO_BIG), datapath.counter(Counter.REFUSALS)) == (2, 1)

    def test_options_are_quoted(self, datapath: Datapath) -> None:
        """The ports stand behind them."""
        network = IP(src=V4.client, dst=V4.remote, flags="DF", options=[IPOption_NOP() for _ in range(4)])
        large = Ether(bytes(dp.ethernet() / network / UDP(sport=5000, dport=443) / bytes(MTU)))
        result = datapath.run("from_pod", large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(V4.remote, large, mtu=MTU))

    def test_more_extensions_than_are_quoted(self, datapath: Datapath) -> None:
        """Without ports its sender could not tell which packet is meant: it is counted, and not answered."""
        network = IPv6(src=V6.client, dst=V6.remote) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(28))])
        large = Ether(bytes(dp.ethernet() / network / UDP(sport=5000, dport=443) / bytes(MTU)))
        assert datapath.run("from_pod", large, summed=False).verdict == SHOT
        assert datapath.dropped(DropReason.TOO_BIG) == 1

    @BOTH
    def test_overlay_takes_less_than_the_underlay(self, datapath: Datapath, family: Family) -> None:
        """The MTU is that of the device by which the packet leaves."""
        overlay = 77
        datapath.device(overlay, 1350)
        datapath.remote(family.remote_range, family.other_node, RemoteFlag.OVERLAY, overlay=overlay)
        large = sized(udp(family, (family.client, 5000), (family.remote, 443)), 1351)
        same(datapath.run("from_pod", large, summed=False).packet, told(family.remote, large, mtu=1350))
        datapath.remote(family.remote_range, family.other_node, overlay=overlay)
        assert datapath.run("from_pod", large).verdict == REDIRECT
        assert datapath.dropped(DropReason.TOO_BIG) == 1

    @BOTH
    @pytest.mark.parametrize("program", ["to_netdev", "to_overlay"])
    def test_host_backend_answering_by_a_tunnel(self, datapath: Datapath, family: Family, program: str) -> None:
        """By whatever device the stack would have sent its answer."""
        datapath.device(77, 1350)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, 8080)), dp.PEER_MAC)
        assert datapath.run("from_netdev", request).verdict == PASS
        answers = key((family.node, 8080), (family.outside, 5000))
        flow = datapath.flow(answers)
        assert flow is not None
        datapath.write_flow(answers, flow._replace(way=Way(77, WayKind.TUNNEL, packed(family.other_node))))
        large = sized(tcp(family, (family.node, 8080), (family.outside, 5000), "A"), 1351)
        result = datapath.run(program, large, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.outside, large, mtu=1350))

    @BOTH
    def test_what_a_link_layer_has_put_behind_a_packet_does_not_count(self, datapath: Datapath, family: Family) -> None:
        """The kernel cuts it off behind us."""
        large = sized(udp(family, (family.client, 5000), (family.server, 8080)), MTU)
        datapath.remote((family.server, 32 if family is V4 else 128), family.other_node)
        datapath.delete("pods", PodKey(packed(family.server)).pack())
        assert datapath.run("from_pod", bytes(large) + bytes(4), summed=False).verdict == REDIRECT
        assert datapath.dropped(DropReason.TOO_BIG) == 0

    def test_header_of_a_jumbo_is_not_in_its_parts(self, datapath: Datapath) -> None:
        """Linux's own, of TCP in more than 64 KB, which goes when the device cuts it up."""
        network = IPv6(src=V6.client, dst=V6.remote, plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)])
        segment = TCP(sport=5000, dport=443, flags="A") / bytes(2000)
        large = Ether(bytes(dp.ethernet() / network / segment))
        result = datapath.run("from_pod", large, summed=False, gso_size=MTU - 60)
        assert result.verdict == REDIRECT
        assert datapath.dropped(DropReason.TOO_BIG) == 0

    @BOTH
    def test_device_that_is_not_known_takes_everything(self, datapath: Datapath, family: Family) -> None:
        """Between its coming and what the controller writes of it."""
        datapath.delete("devices", dp.LO.to_bytes(4, "little"))
        large = sized(udp(family, (family.client, 5000), (family.remote, 8080)), MTU + 1)
        assert len(datapath.run("from_pod", large).packet) == 14 + MTU + 1


class TestLastHop:
    """The TTL is 1: this node is where it ends, and traceroute is to show it."""

    @BOTH
    @BUILD
    def test_from_a_pod(self, datapath: Datapath, family: Family, build: Build) -> None:
        """Of TCP as well there is an ICMP error, no RST: it says where the packet ended, not that nobody listens."""
        datapath.service(family.service, 80, protocol_of(build), [(family.remote, 8080)])
        packet = last_hop(build(family, (family.client, 40000), (family.service, 80)))
        result = datapath.run("from_pod", packet, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.node, packet))
        assert (datapath.dropped(DropReason.TTL_EXPIRED), datapath.counter(Counter.REFUSALS)) == (1, 1)

    @BOTH
    @pytest.mark.parametrize("known", [False, True])
    def test_pod_link_has_no_address_of_its_own(self, datapath: Datapath, family: Family, known: bool) -> None:
        """The node speaks under the one that stands for all of these links; so it does where a device has none of the
        family."""
        datapath.device(dp.POD_LINKS, addresses=("198.18.9.9", "2001:db8:9::9"))
        if known:
            datapath.device(dp.LO, addresses=("::", "::"))
        else:
            datapath.delete("devices", dp.LO.to_bytes(4, "little"))
        packet = last_hop(udp(family, (family.client, 40000), (family.server, 8080)))
        same(
            datapath.run("from_pod", packet, summed=False).packet,
            told("198.18.9.9" if family is V4 else "2001:db8:9::9", packet),
        )

    @BOTH
    def test_node_without_address_is_silent(self, datapath: Datapath, family: Family) -> None:
        """It has nothing to say it from, neither there nor otherwise."""
        datapath.device(dp.LO, addresses=("::", "::"))
        datapath.device(dp.POD_LINKS, addresses=("::", "::"))
        packet = last_hop(udp(family, (family.client, 40000), (family.server, 8080)))
        assert datapath.run("from_pod", packet, summed=False).verdict == SHOT
        assert (datapath.dropped(DropReason.TTL_EXPIRED), datapath.counter(Counter.REFUSALS)) == (1, 0)

    @BOTH
    @TUNNEL
    @BUILD
    def test_at_the_entry_node(self, datapath: Datapath, family: Family, flags: RemoteFlag, build: Build) -> None:
        """What is to be handed over."""
        datapath.remote(family.remote_range, family.other_node, flags)
        node_port(datapath, family, build, family.remote)
        packet = last_hop(arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT))))
        result = datapath.run("from_netdev", packet, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.node, packet, eth_src=LO_MAC, eth_dst=dp.ROUTER_MAC))

    @BOTH
    def test_at_the_backends_node(self, datapath: Datapath, family: Family) -> None:
        """What was handed over: back to who has done so, which makes it one for the client."""
        packet = last_hop(
            expected(tcp(family, (family.outside, 5000), (family.server, 8080)), eth_src=dp.PEER_MAC, eth_dst=LO_MAC)
        )
        result = datapath.run("from_netdev", packet, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.node, packet, eth_src=LO_MAC, eth_dst=dp.PEER_MAC))

    @BOTH
    def test_backends_nodes_error_at_the_entry_node(self, datapath: Datapath, family: Family) -> None:
        """It keeps its sender, and quotes what the client has sent."""
        node_port(datapath, family, udp, family.remote)
        request = arriving(udp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        handed_over = datapath.run("from_netdev", request).packet
        error = told(family.other_node, handed_over, eth_src=dp.PEER_MAC, eth_dst=LO_MAC)
        result = datapath.run("from_netdev", error)
        assert result.verdict == REDIRECT
        network = result.packet[family.ip]
        assert (network.src, network.dst) == (family.other_node, family.outside)
        wanted = expected(request, hops=1)
        quote = bytes(told(family.other_node, wanted)[family.ip].payload)
        assert bytes(network.payload)[8:] == quote[8:]

    @pytest.mark.parametrize(
        "source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "ff0e::1"]
    )
    def test_sender_that_cannot_be_is_not_answered(self, datapath: Datapath, source: str) -> None:
        """RFC 1122, 3.2.2; RFC 4443, 2.4."""
        family = V6 if ":" in source else V4
        node_port(datapath, family, udp, family.remote)
        packet = last_hop(arriving(udp(family, (source, 5000), (family.node, NODE_PORT))))
        assert datapath.run("from_netdev", packet, summed=False).verdict == SHOT
        assert datapath.counter(Counter.REFUSALS) == 0

    @BOTH
    def test_what_has_no_flow_is_answered_by_its_own_way(self, datapath: Datapath, family: Family) -> None:
        """Not by that of the packet before it, which another node has handed over."""
        datapath.run("from_netdev", arriving(tcp(family, (family.outside, 5000), (family.server, 8080)), dp.PEER_MAC))
        other = Ether(bytes(dp.ethernet() / family.ip(src=family.outside, dst=family.server) / GRE() / b"whatever"))
        packet = last_hop(arriving(other))
        result = datapath.run("from_netdev", packet, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, told(family.node, packet, eth_src=LO_MAC, eth_dst=dp.ROUTER_MAC))

    @BOTH
    def test_error_is_not_answered_by_another(self, datapath: Datapath, family: Family) -> None:
        """RFC 1122, 3.2.2; RFC 4443, 2.4."""
        datapath.service(family.service, 80, dp.UDP_PROTOCOL, [(family.server, 8080)])
        seen = datapath.run("from_pod", udp(family, (family.client, 5000), (family.service, 80))).packet
        error = last_hop(told(family.server, seen, mtu=1280, eth_src=dp.SERVER_MAC, eth_dst=dp.SERVER_HOST_MAC))
        assert datapath.run("from_pod", error, summed=False).verdict == SHOT
        assert (datapath.dropped(DropReason.TTL_EXPIRED), datapath.counter(Counter.REFUSALS)) == (1, 0)


class TestLimit:
    """On each CPU a thousand ICMP errors a second, and a hundred at once; what is not told is counted all the same."""

    MANY = 1000

    def send(self, datapath: Datapath, packet: Packet) -> float:
        """Sends a pod's packet so often, on one CPU; how many seconds that took."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            began = time.monotonic()
            for _ in range(self.MANY):
                datapath.run("from_pod", packet, summed=False)
            return time.monotonic() - began
        finally:
            os.sched_setaffinity(0, before)

    @BOTH
    @pytest.mark.parametrize("reason", [DropReason.TTL_EXPIRED, DropReason.NO_BACKEND], ids=["last hop", "refused"])
    def test_errors_are_limited(self, datapath: Datapath, reason: DropReason, family: Family) -> None:
        """RFC 1812, 4.3.2.8; RFC 4443, 2.4: who forges a source would have this node answer each packet to another."""
        datapath.service(family.service, 53, dp.UDP_PROTOCOL, [])
        packet = udp(family, (family.client, 40000), (family.service, 53))
        if reason == DropReason.TTL_EXPIRED:
            packet = last_hop(udp(family, (family.client, 40000), (family.server, 8080)))
        elapsed_s = self.send(datapath, packet)
        assert 0 < datapath.counter(Counter.REFUSALS) <= 110 + 1000 * elapsed_s  # of a clock that ticks
        assert datapath.dropped(reason) == self.MANY

    @BOTH
    def test_refusals_leave_room_for_path_mtu_discovery(self, datapath: Datapath, family: Family) -> None:
        """Who is refused often, whoever it is, makes nobody's large packets vanish unsaid."""
        datapath.service(family.service, 53, dp.UDP_PROTOCOL, [])
        self.send(datapath, udp(family, (family.client, 40000), (family.service, 53)))
        refused = datapath.counter(Counter.REFUSALS)
        packet = last_hop(udp(family, (family.client, 40000), (family.server, 8080)))
        datapath.run("from_pod", packet, summed=False)
        assert datapath.counter(Counter.REFUSALS) == refused + 1

    @BOTH
    def test_resets_are_not(self, datapath: Datapath, family: Family) -> None:
        """As with Linux: each closes a connection that somebody waits for."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [])
        self.send(datapath, tcp(family, (family.client, 40000), (family.service, 80)))
        assert datapath.counter(Counter.REFUSALS) == self.MANY
