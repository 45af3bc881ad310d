# SPDX-License-Identifier: Apache-2.0
"""Every TC entry on built packets: verdict, whole packet, mark, counts. What a redirect reaches is the lab's to see."""

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from bpf.abi import BackendKey, Counter, DropReason, Flow, FlowFlag, FlowState, FrontendFlag, RemoteFlag
from bpf.tests import datapath as dp
from bpf.tests.datapath import (
    BOTH,
    PASS,
    REDIRECT,
    SHOT,
    V4,
    V6,
    Datapath,
    Family,
    Result,
    expected,
    key,
    loaded,
    same,
    tcp,
    udp,
)

pytestmark = pytest.mark.root

SECOND = 10**9
INTERNAL_LOCAL = FrontendFlag.CLUSTER_IP | FrontendFlag.LOCAL


@pytest.fixture(scope="module")
def programs() -> Iterator[Datapath]:
    with loaded() as programs:
        yield programs


def to_server(packet: Packet, **changes: str | int) -> Packet:
    """The packet as the server's pod gets it from this node: one hop on, its own link's addresses."""
    return expected(packet, hops=1, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC, **changes)


def to_client(packet: Packet, **changes: str | int) -> Packet:
    return expected(packet, hops=1, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC, **changes)


def to_host(packet: Packet) -> Packet:
    """The packet with lo's own MAC as its destination, without which the kernel says that it is for another host."""
    return expected(packet, eth_dst="00:00:00:00:00:00")


def open_connection(datapath: Datapath, family: Family, client: tuple[str, int], through: tuple[str, int]) -> int:
    """A SYN from the client's pod and the server's answer at port 8080; returns the source port that the server saw."""
    seen = datapath.run("from_pod", tcp(family, client, through, "S"))
    assert seen.verdict == REDIRECT
    port = int(seen.packet[TCP].sport)
    source = seen.packet[family.ip].src
    answer = datapath.run("from_pod", tcp(family, (family.server, 8080), (source, port), "SA"))
    assert answer.verdict == REDIRECT
    return port


def answered(build: object) -> dict[str, str]:
    """What makes a segment a server's first one."""
    return {"flags": "SA"} if build is tcp else {}


class TestFromPod:
    """from_pod: what a pod sends."""

    @BOTH
    def test_pod_on_this_node_is_reached_directly(self, datapath: Datapath, family: Family) -> None:
        """A SYN to a pod's own address is delivered with the addresses of that pod's link, one hop on."""
        packet = tcp(family, (family.client, 40000), (family.server, 8080))
        result = datapath.run("from_pod", packet)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(packet))

    @BOTH
    @pytest.mark.parametrize("build", [tcp, udp])
    def test_service_is_translated_both_ways(self, datapath: Datapath, family: Family, build: object) -> None:
        """A packet to a cluster IP reaches the backend, and the answer comes from the cluster IP."""
        protocol = dp.TCP_PROTOCOL if build is tcp else dp.UDP_PROTOCOL
        datapath.service(family.service, 80, protocol, [(family.server, 8080)])
        request = build(family, (family.client, 40000), (family.service, 80))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(request, dst=family.server, dport=8080))
        answer = build(family, (family.server, 8080), (family.client, 40000), **answered(build))
        result = datapath.run("from_pod", answer)
        assert result.verdict == REDIRECT
        same(result.packet, to_client(answer, src=family.service, sport=80))

    def test_udp_without_checksum_is_translated_and_stays_without(self, datapath: Datapath) -> None:
        """IPv4 UDP may carry checksum 0, which means none, and is left so."""
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [(V4.server, 5353)])
        request = udp(V4, (V4.client, 40000), (V4.service, 53))
        request[UDP].chksum = 0
        result = datapath.run("from_pod", request)
        wanted = to_server(request, dst=V4.server, dport=5353)
        wanted[UDP].chksum = 0
        same(result.packet, wanted)

    def test_ip_options_are_kept_through_translation(self, datapath: Datapath) -> None:
        """A packet with IP options is translated like any other."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        ip = IP(src=V4.client, dst=V4.service, options=[IPOption_Router_Alert()])
        request = Ether(bytes(dp.ethernet() / ip / TCP(sport=40000, dport=80, flags="S")))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(request, dst=V4.server, dport=8080))

    def test_ipv6_extension_headers_are_kept_through_translation(self, datapath: Datapath) -> None:
        """The transport header is found behind extension headers."""
        datapath.service(V6.service, 80, dp.TCP_PROTOCOL, [(V6.server, 8080)])
        ip = IPv6(src=V6.client, dst=V6.service) / IPv6ExtHdrDestOpt()
        request = Ether(bytes(dp.ethernet() / ip / TCP(sport=40000, dport=80, flags="S")))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(request, dst=V6.server, dport=8080))

    @BOTH
    def test_pod_that_reaches_itself_sees_the_services_address(self, datapath: Datapath, family: Family) -> None:
        """Hairpin: the source becomes the cluster IP on the way in, and the pod's own on the way back."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.client, 8080)])
        request = tcp(family, (family.client, 40000), (family.service, 80))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        same(result.packet, to_client(request, src=family.service, dst=family.client, dport=8080))
        answer = tcp(family, (family.client, 8080), (family.service, 40000), "SA")
        result = datapath.run("from_pod", answer)
        same(result.packet, to_client(answer, src=family.service, sport=80, dst=family.client))

    @BOTH
    def test_remote_pod_goes_to_its_node(self, datapath: Datapath, family: Family) -> None:
        """A packet to another node's pod is redirected to that node, marked as ours; the kernel adds the MACs."""
        packet = tcp(family, (family.client, 40000), (family.remote, 8080))
        result = datapath.run("from_pod", packet)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(packet, hops=1))

    @BOTH
    def test_remote_pod_through_the_overlay_gets_the_overlays_addresses(
        self, datapath: Datapath, family: Family
    ) -> None:
        """In the tunnel a frame is for the address that all overlay devices share, from one that none of them has."""
        datapath.remote(family.remote_range, family.other_node, flags=RemoteFlag.OVERLAY)
        packet = tcp(family, (family.client, 40000), (family.remote, 8080))
        result = datapath.run("from_pod", packet)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(packet, hops=1, eth_src=dp.OVERLAY_SOURCE_MAC, eth_dst=dp.OVERLAY_MAC))

    @BOTH
    def test_remote_backend_is_translated_and_sent_to_its_node(self, datapath: Datapath, family: Family) -> None:
        """A Service's backend on another node gets the packet with the client's address."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.remote, 8080)])
        packet = tcp(family, (family.client, 40000), (family.service, 80))
        result = datapath.run("from_pod", packet)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(packet, hops=1, dst=family.remote, dport=8080))

    @BOTH
    def test_outside_goes_to_the_stack_untouched(self, datapath: Datapath, family: Family) -> None:
        """What is neither a pod nor a Service is the host's to route."""
        packet = tcp(family, (family.client, 40000), (family.outside, 443))
        result = datapath.run("from_pod", packet)
        assert result.verdict == PASS
        same(result.packet, packet)

    @BOTH
    def test_service_without_backend_is_refused_with_rst(self, datapath: Datapath, family: Family) -> None:
        """TCP gets an RST from the cluster IP that acknowledges the SYN, byte for byte."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [])
        packet = tcp(family, (family.client, 40000), (family.service, 80), "S", seq=1000)
        result = datapath.run("from_pod", packet)
        assert result.verdict == REDIRECT
        ip = family.ip(src=family.service, dst=family.client)
        if family is V4:
            ip.flags, ip.id = "DF", 0
        rst = TCP(sport=80, dport=40000, flags="RA", seq=0, ack=1001, window=0)
        same(result.packet, Ether(bytes(dp.ethernet(dp.HOST_MAC, dp.POD_MAC) / ip / rst)))
        assert datapath.dropped(DropReason.NO_BACKEND) == 1
        assert datapath.counter(Counter.REFUSALS) == 1

    def test_service_without_backend_refuses_ipv4_udp_with_port_unreachable(self, datapath: Datapath) -> None:
        """UDP gets ICMP port unreachable that quotes the IP header and the ports."""
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [])
        packet = udp(V4, (V4.client, 40000), (V4.service, 53))
        result = datapath.run("from_pod", packet, summed=False)
        assert result.verdict == REDIRECT
        error = IP(src=V4.service, dst=V4.client, flags="DF", id=0) / ICMP(type=3, code=3) / Raw(bytes(packet[IP])[:28])
        same(result.packet, Ether(bytes(dp.ethernet(dp.HOST_MAC, dp.POD_MAC) / error)))

    def test_service_without_backend_refuses_ipv6_udp_with_port_unreachable(self, datapath: Datapath) -> None:
        """The same by ICMPv6, whose checksum covers the addresses."""
        datapath.service(V6.service, 53, dp.UDP_PROTOCOL, [])
        packet = udp(V6, (V6.client, 40000), (V6.service, 53))
        result = datapath.run("from_pod", packet, summed=False)
        assert result.verdict == REDIRECT
        error = IPv6(src=V6.service, dst=V6.client) / ICMPv6DestUnreach(code=4) / Raw(bytes(packet[IPv6])[:48])
        same(result.packet, Ether(bytes(dp.ethernet(dp.HOST_MAC, dp.POD_MAC) / error)))

    @BOTH
    @pytest.mark.parametrize("flags", [INTERNAL_LOCAL, FrontendFlag.CLUSTER_IP], ids=["local", "cluster"])
    def test_internal_policy_says_which_set_a_cluster_ip_draws_from(
        self, datapath: Datapath, family: Family, flags: FrontendFlag
    ) -> None:
        """Of three backends the first is in the Local set alone, the second in both, the third in the Cluster set."""
        backends = [(family.server, 1), (family.server, 2), (family.remote, 3)]
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, backends, local=2, flags=flags, start=1)
        syns = [tcp(family, (family.client, port), (family.service, 80)) for port in range(40000, 40060)]
        found = {int(datapath.run("from_pod", syn).packet[TCP].dport) for syn in syns}
        assert found == ({1, 2} if flags == INTERNAL_LOCAL else {2, 3})

    @BOTH
    def test_internal_policy_local_without_local_backend_drops(self, datapath: Datapath, family: Family) -> None:
        """Neither another node's backend nor a refusal, and no flow; with no endpoint anywhere it is refused."""
        request = (family.client, 40000), (family.service, 80)
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.remote, 8080)], flags=INTERNAL_LOCAL)
        assert datapath.run("from_pod", tcp(family, *request)).verdict == SHOT
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1
        assert datapath.flow(key(*request)) is None
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [], flags=INTERNAL_LOCAL)
        assert datapath.run("from_pod", tcp(family, *request)).packet[TCP].flags == "RA"

    @BOTH
    def test_established_flow_stays_with_its_backend_when_the_policy_becomes_local(
        self, datapath: Datapath, family: Family
    ) -> None:
        """TCP and UDP alike: the policy is for new flows."""
        for build, protocol in ((tcp, dp.TCP_PROTOCOL), (udp, dp.UDP_PROTOCOL)):
            service = (family.service, 80, protocol, [(family.remote, 8080)])
            datapath.service(*service)
            request = (family.client, 40000), (family.service, 80)
            assert datapath.run("from_pod", build(family, *request)).verdict == REDIRECT
            datapath.service(*service, flags=INTERNAL_LOCAL)
            packet = tcp(family, *request, "A") if build is tcp else udp(family, *request)
            assert datapath.run("from_pod", packet).packet[family.ip].dst == family.remote

    @BOTH
    def test_mid_stream_to_a_service_without_flow_is_refused(self, datapath: Datapath, family: Family) -> None:
        """Nobody knows the backend any more: RST with the sequence number that the segment acknowledges."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        packet = tcp(family, (family.client, 40000), (family.service, 80), "PA", seq=5, ack=777)
        result = datapath.run("from_pod", packet)
        assert result.verdict == REDIRECT
        assert result.packet[TCP].flags == "R"
        assert result.packet[TCP].seq == 777
        assert datapath.dropped(DropReason.NO_FLOW) == 1

    def test_rst_to_a_service_without_flow_is_dropped_in_silence(self, datapath: Datapath) -> None:
        """An RST is never answered."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        result = datapath.run("from_pod", tcp(V4, (V4.client, 40000), (V4.service, 80), "R"))
        assert result.verdict == SHOT
        assert datapath.dropped(DropReason.NO_FLOW) == 1

    @BOTH
    @pytest.mark.parametrize("flags", ["PA", "SA", "FA"])
    def test_mid_stream_without_flow_waits_while_flows_are_taken_over(
        self, datapath: Datapath, family: Family, flags: str
    ) -> None:
        """For a Service, and from a pod that may be its backend: no refusal, nothing untranslated, no flow."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        datapath.taking_over()
        for destination in ((family.service, 80), (family.server, 8080), (family.remote, 8080)):
            assert datapath.run("from_pod", tcp(family, (family.client, 40000), destination, flags)).verdict == SHOT
            assert datapath.flow(key((family.client, 40000), destination)) is None
        assert datapath.dropped(DropReason.TAKING_OVER) == 3
        assert datapath.run("from_pod", tcp(family, (family.client, 40000), (family.service, 80))).verdict == REDIRECT

    @BOTH
    def test_closing_flow_leads_nowhere_while_flows_are_taken_over(self, datapath: Datapath, family: Family) -> None:
        """Its port may be that of a newer connection by now, whose flow stands in the other layout."""
        client, service, server = (family.client, 40000), (family.service, 80), (family.server, 8080)
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [server])
        open_connection(datapath, family, client, service)
        datapath.run("from_pod", tcp(family, client, service, "FA"))
        datapath.taking_over()
        assert datapath.run("from_pod", tcp(family, client, service, "PA")).verdict == SHOT
        assert datapath.run("from_pod", tcp(family, server, client, "A")).verdict == SHOT
        assert datapath.dropped(DropReason.TAKING_OVER) == 2
        datapath.taking_over(0)
        assert datapath.run("from_pod", tcp(family, client, service, "PA")).verdict == REDIRECT

    @BOTH
    def test_spoofed_source_is_dropped(self, datapath: Datapath, family: Family) -> None:
        """A pod cannot send with an address that is not its own: neither an unknown one nor another pod's."""
        datapath.pod(family.server, 99, dp.SERVER_MAC, dp.SERVER_HOST_MAC)
        for source in (family.outside, family.server):
            result = datapath.run("from_pod", tcp(family, (source, 40000), (family.client, 8080)))
            assert result.verdict == SHOT
        assert datapath.dropped(DropReason.SPOOFED) == 2

    def test_link_scoped_addresses_do_not_hide_a_forged_source(self, datapath: Datapath) -> None:
        """A source is checked whatever the destination; an IPv4 one is never link-local."""
        forged = [
            (V4, V4.outside, "169.254.169.254"),
            (V4, V4.server, "224.0.0.251"),
            (V4, "169.254.7.7", V4.server),
            (V4, "240.0.0.1", V4.outside),
            (V6, V6.outside, "ff02::1"),
            (V6, "fe80::7", V6.server),
        ]
        datapath.pod(V4.server, 99, dp.SERVER_MAC, dp.SERVER_HOST_MAC)
        for family, source, destination in forged:
            assert datapath.run("from_pod", udp(family, (source, 1), (destination, 2))).verdict == SHOT
        assert datapath.dropped(DropReason.SPOOFED) == len(forged)
        own = udp(V4, (V4.client, 1), ("224.0.0.251", 5353))
        assert datapath.run("from_pod", own).verdict == PASS

    def test_refusal_quotes_the_ports_behind_ip_options(self, datapath: Datapath) -> None:
        """Without them no socket could be told of it."""
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [])
        ip = IP(src=V4.client, dst=V4.service, options=[IPOption_Router_Alert()])
        packet = Ether(bytes(dp.ethernet() / ip / UDP(sport=40000, dport=53) / b"question"))
        result = datapath.run("from_pod", packet, summed=False)
        error = IP(src=V4.service, dst=V4.client, flags="DF", id=0) / ICMP(type=3, code=3) / Raw(bytes(packet[IP])[:32])
        same(result.packet, Ether(bytes(dp.ethernet(dp.HOST_MAC, dp.POD_MAC) / error)))

    def test_refusal_acknowledges_no_padding(self, datapath: Datapath) -> None:
        """Bytes behind the packet's own end, which a short frame may have, are not its payload."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [])
        packet = bytes(tcp(V4, (V4.client, 40000), (V4.service, 80), "S", seq=1000)) + bytes(6)
        assert datapath.run("from_pod", packet).packet[TCP].ack == 1001

    def test_ipv6_fragment_header_alone_makes_no_fragment(self, datapath: Datapath) -> None:
        """An atomic fragment is a whole packet, and is translated."""
        datapath.service(V6.service, 80, dp.TCP_PROTOCOL, [(V6.server, 8080)])
        ip = IPv6(src=V6.client, dst=V6.service) / IPv6ExtHdrFragment(offset=0, m=0)
        request = Ether(bytes(dp.ethernet() / ip / TCP(sport=40000, dport=80, flags="S")))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        assert result.packet[IPv6].dst == V6.server

    def test_ping_between_pods_is_delivered(self, datapath: Datapath) -> None:
        """ICMP echo needs no flow."""
        echo = Ether(bytes(dp.ethernet() / IP(src=V4.client, dst=V4.server) / ICMP() / b"ping"))
        result = datapath.run("from_pod", echo)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(echo))
        echo = Ether(bytes(dp.ethernet() / IPv6(src=V6.client, dst=V6.server) / ICMPv6EchoRequest(data=b"ping")))
        result = datapath.run("from_pod", echo)
        assert result.verdict == REDIRECT
        same(result.packet, to_server(echo))

    def test_arp_and_neighbour_discovery_are_the_stacks(self, datapath: Datapath) -> None:
        """What is not routed passes, whatever its source."""
        arp = Ether(bytes(dp.ethernet() / ARP(psrc=V4.client, pdst="169.254.1.1")))
        solicitation = dp.ethernet() / IPv6(src="fe80::2", dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fe80::1")
        for packet in (arp, Ether(bytes(solicitation))):
            result = datapath.run("from_pod", packet)
            assert result.verdict == PASS
            same(result.packet, packet)

    @BOTH
    def test_truncated_headers_are_dropped_at_every_length(self, datapath: Datapath, family: Family) -> None:
        """No cut makes a program forward what it could not read."""
        packet = bytes(tcp(family, (family.client, 40000), (family.server, 8080)))
        network = 14 + len(family.ip())  # the kernel runs no program on less
        for length in range(network, len(packet)):
            assert datapath.run("from_pod", packet[:length]).verdict == SHOT, length
        assert datapath.dropped(DropReason.TRUNCATED) == len(packet) - network

    def test_bad_version_and_header_length_are_dropped(self, datapath: Datapath) -> None:
        """A header that cannot be is not guessed at."""
        packet = bytearray(bytes(tcp(V4, (V4.client, 40000), (V4.server, 8080))))
        for first in (0x44, 0x65, 0x05):
            packet[14] = first
            assert datapath.run("from_pod", bytes(packet)).verdict == SHOT
        assert datapath.dropped(DropReason.BAD_HEADER) == 3


class TestFlows:
    """The flow table, driven through from_pod."""

    @BOTH
    def test_two_entries_carry_each_others_key(self, datapath: Datapath, family: Family) -> None:
        """A connection through a Service is two entries; the answer's SYN establishes both."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        client, server, service = (family.client, 40000), (family.server, 8080), (family.service, 80)
        open_connection(datapath, family, client, service)
        forward, reply = datapath.flow(key(client, service)), datapath.flow(key(server, client))
        assert forward is not None
        assert reply is not None
        assert (forward.twin, reply.twin) == (key(server, client), key(client, service))
        assert (forward.flags, reply.flags) == (FlowFlag.FROM_HERE, FlowFlag.FROM_HERE | FlowFlag.REPLY)
        assert {forward.state, reply.state} == {FlowState.ESTABLISHED}
        assert {forward.backend_id, reply.backend_id} == {10}

    def test_connection_sticks_to_its_backend(self, datapath: Datapath) -> None:
        """Every packet of a flow goes to the backend that the first one chose, whatever becomes of the Service."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        open_connection(datapath, V4, (V4.client, 40000), (V4.service, 80))
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.remote, 9)], number=2)
        packet = tcp(V4, (V4.client, 40000), (V4.service, 80), "PA", seq=1)
        result = datapath.run("from_pod", packet)
        same(result.packet, to_server(packet, dst=V4.server, dport=8080))

    def test_syn_again_keeps_its_backend_while_that_exists(self, datapath: Datapath) -> None:
        """A retransmitted SYN is no second connection; when its backend has gone it may choose again."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        syn = tcp(V4, (V4.client, 40000), (V4.service, 80))
        datapath.run("from_pod", syn)
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.remote, 9)], number=2)
        assert datapath.run("from_pod", syn).packet[IP].dst == V4.server
        datapath.delete("backends", (10).to_bytes(4, "little"))
        assert datapath.run("from_pod", syn).packet[IP].dst == V4.remote

    def test_udp_follows_its_backends_at_once(self, datapath: Datapath) -> None:
        """A UDP flow to a backend that has gone is given another with its next datagram."""
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [(V4.server, 5353)])
        question = udp(V4, (V4.client, 40000), (V4.service, 53))
        assert datapath.run("from_pod", question).packet[IP].dst == V4.server
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [(V4.remote, 53)], number=2)
        assert datapath.run("from_pod", question).packet[IP].dst == V4.server
        datapath.delete("backends", (10).to_bytes(4, "little"))
        assert datapath.run("from_pod", question).packet[IP].dst == V4.remote

    def test_udp_that_began_before_its_service_is_served_by_it(self, datapath: Datapath) -> None:
        """A sender that never rests is not stuck with what there was before: nothing."""
        question = udp(V4, (V4.client, 40000), (V4.service, 53))
        assert datapath.run("from_pod", question).verdict == PASS
        datapath.service(V4.service, 53, dp.UDP_PROTOCOL, [(V4.server, 5353)])
        assert datapath.run("from_pod", question).packet[IP].dst == V4.server

    def test_closing_is_followed_and_a_syn_starts_anew(self, datapath: Datapath) -> None:
        """FIN from either side, then CLOSED; the next SYN is a new flow."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server, service = (V4.client, 40000), (V4.server, 8080), (V4.service, 80)
        open_connection(datapath, V4, client, service)
        datapath.run("from_pod", tcp(V4, client, service, "FA"))
        assert _state(datapath, key(client, service)) == FlowState.CLOSING
        datapath.run("from_pod", tcp(V4, server, client, "FA"))
        datapath.run("from_pod", tcp(V4, client, service, "A"))
        assert _state(datapath, key(client, service)) == FlowState.CLOSED
        assert _state(datapath, key(server, client)) == FlowState.CLOSED
        datapath.run("from_pod", tcp(V4, client, service, "S"))
        assert _state(datapath, key(client, service)) == FlowState.NEW

    def test_rst_closes_and_a_later_segment_revives(self, datapath: Datapath) -> None:
        """An RST that the other side did not accept leaves the connection alive."""
        client, server = (V4.client, 40000), (V4.server, 8080)
        open_connection(datapath, V4, client, server)
        datapath.run("from_pod", tcp(V4, server, client, "R"))
        assert _state(datapath, key(client, server)) == FlowState.RESET
        datapath.run("from_pod", tcp(V4, client, server, "PA"))
        assert _state(datapath, key(client, server)) == FlowState.ESTABLISHED

    @pytest.mark.parametrize("order", [1, -1], ids=["server's", "client's"])
    def test_syn_after_an_rst_that_was_crossed_starts_anew(self, datapath: Datapath, order: int) -> None:
        """Who has not heard of the RST sends on, and revives the flow; but the client knows that it is over."""
        client, server = (V4.client, 40000), (V4.server, 8080)
        open_connection(datapath, V4, client, server)
        sender, other = (server, client)[::order]
        datapath.run("from_pod", tcp(V4, sender, other, "R"))
        datapath.run("from_pod", tcp(V4, other, sender, "A"))
        assert _state(datapath, key(client, server)) == FlowState.ESTABLISHED
        datapath.run("from_pod", tcp(V4, client, server))
        assert _state(datapath, key(client, server)) == FlowState.NEW

    @pytest.mark.parametrize("order", [1, -1], ids=["server's", "client's"])
    def test_rst_is_disproved_by_a_second_of_traffic(self, datapath: Datapath, order: int) -> None:
        """A SYN in the midst of a connection that goes on is a part of it."""
        client, server = (V4.client, 40000), (V4.server, 8080)
        open_connection(datapath, V4, client, server)
        sender, other = (server, client)[::order]
        datapath.run("from_pod", tcp(V4, sender, other, "R"))
        datapath.run("from_pod", tcp(V4, other, sender, "A"))
        for one in (key(client, server), key(server, client)):
            _age(datapath, one, 2 * SECOND)
        datapath.run("from_pod", tcp(V4, other, sender, "PA"))
        datapath.run("from_pod", tcp(V4, client, server))
        assert _state(datapath, key(client, server)) == FlowState.ESTABLISHED

    def test_dying_connections_ack_and_its_rst_leave_the_new_flow_open(self, datapath: Datapath) -> None:
        """Neither the server's ACK out of its TIME_WAIT nor the client's RST that answers it ends what a SYN began."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server, service = (V4.client, 40000), (V4.server, 8080), (V4.service, 80)
        datapath.run("from_pod", tcp(V4, client, service, "S"))
        ack = tcp(V4, server, client, "A", seq=9)
        same(datapath.run("from_pod", ack).packet, to_client(ack, src=V4.service, sport=80))
        rst = tcp(V4, client, service, "R", seq=9)
        same(datapath.run("from_pod", rst).packet, to_server(rst, dst=V4.server, dport=8080))
        assert _state(datapath, key(client, service)) == FlowState.NEW

    @BOTH
    def test_direct_and_service_connections_never_share_a_tuple(self, datapath: Datapath, family: Family) -> None:
        """The second of two that would meet at the server on the same five-tuple is given another source port."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        client, server, service = (family.client, 40000), (family.server, 8080), (family.service, 80)
        assert open_connection(datapath, family, client, service) == 40000
        syn = tcp(family, client, server)
        result = datapath.run("from_pod", syn)
        port = int(result.packet[TCP].sport)
        assert port != 40000
        same(result.packet, to_server(syn, sport=port))
        answer = tcp(family, server, (family.client, port), "SA")
        same(datapath.run("from_pod", answer).packet, to_client(answer, dport=40000))
        answer = tcp(family, server, client, "PA")
        same(datapath.run("from_pod", answer).packet, to_client(answer, src=family.service, sport=80))
        assert datapath.counter(Counter.PORTS_REWRITTEN) >= 1

    def test_closed_connection_keeps_its_tuple_until_it_expires(self, datapath: Datapath) -> None:
        """A direct connection right after a Service's on one port avoids the server's TIME_WAIT; later it need not."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server, service = (V4.client, 40000), (V4.server, 8080), (V4.service, 80)
        open_connection(datapath, V4, client, service)
        for packet in (tcp(V4, client, service, "FA"), tcp(V4, server, client, "FA")):
            datapath.run("from_pod", packet)
        assert datapath.run("from_pod", tcp(V4, client, server)).packet[TCP].sport != 40000
        _age(datapath, key(server, client), 31 * SECOND)
        _age(datapath, key(client, server), 3600 * SECOND)
        assert datapath.run("from_pod", tcp(V4, client, server)).packet[TCP].sport == 40000

    def test_expired_flow_is_absent(self, datapath: Datapath) -> None:
        """An entry past its time-out counts for nothing, though it still stands in the table."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, service = (V4.client, 40000), (V4.service, 80)
        open_connection(datapath, V4, client, service)
        _age(datapath, key(client, service), 3601 * SECOND)
        assert datapath.run("from_pod", tcp(V4, client, service, "PA")).packet[TCP].flags == "R"
        assert datapath.dropped(DropReason.NO_FLOW) == 1

    def test_evicted_twin_is_restored_and_counted(self, datapath: Datapath) -> None:
        """A refresh that misses the other direction's entry puts it back."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server, service = (V4.client, 40000), (V4.server, 8080), (V4.service, 80)
        open_connection(datapath, V4, client, service)
        reply = datapath.flow(key(server, client))
        datapath.delete_flow(key(server, client))
        _age(datapath, key(client, service), 2 * SECOND)
        datapath.run("from_pod", tcp(V4, client, service, "PA"))
        restored = datapath.flow(key(server, client))
        assert reply is not None
        assert restored is not None
        assert _undated(restored) == _undated(reply)
        assert datapath.counter(Counter.FLOWS_RESTORED) == 1

    def test_mid_stream_between_pods_is_picked_up(self, datapath: Datapath) -> None:
        """A connection older than the table goes on, and is followed from here."""
        packet = tcp(V4, (V4.client, 40000), (V4.server, 8080), "PA")
        same(datapath.run("from_pod", packet).packet, to_server(packet))
        assert _state(datapath, key((V4.client, 40000), (V4.server, 8080))) == FlowState.ESTABLISHED
        assert datapath.counter(Counter.FLOWS_PICKED_UP) == 1

    def test_end_of_an_unknown_flow_passes_without_an_entry(self, datapath: Datapath) -> None:
        """A late FIN or RST starts nothing."""
        for flags in ("FA", "R"):
            packet = tcp(V4, (V4.client, 40000), (V4.server, 8080), flags)
            same(datapath.run("from_pod", packet).packet, to_server(packet))
        assert datapath.flow(key((V4.client, 40000), (V4.server, 8080))) is None

    def test_every_port_taken_is_a_counted_drop(self, datapath: Datapath) -> None:
        """A colliding connection that finds no free port is dropped for that reason, and overwrites nobody."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server = (V4.client, 40000), (V4.server, 8080)
        open_connection(datapath, V4, client, (V4.service, 80))
        taken = datapath.flow(key(server, client))
        assert taken is not None
        datapath.write_flows((key(server, (V4.client, port)), taken) for port in range(1024, 65536))
        assert datapath.run("from_pod", tcp(V4, client, server)).verdict == SHOT
        assert datapath.dropped(DropReason.NO_FREE_PORT) == 1
        assert datapath.flow(key(server, client)) == taken

    @pytest.mark.parametrize("state", [FlowState.CLOSED, FlowState.RESET])
    def test_where_no_port_is_free_that_of_a_flow_that_is_over_will_do(
        self, datapath: Datapath, state: FlowState
    ) -> None:
        """A client that opens and closes thousands of connections a second; but never the one that has its own port."""
        datapath.service(V4.service, 80, dp.TCP_PROTOCOL, [(V4.server, 8080)])
        client, server = (V4.client, 40000), (V4.server, 8080)
        open_connection(datapath, V4, client, (V4.service, 80))
        taken = datapath.flow(key(server, client))
        assert taken is not None
        over = taken._replace(state=state)
        datapath.write_flows((key(server, (V4.client, port)), over) for port in range(1024, 65536) if port != client[1])
        request = tcp(V4, client, server)
        result = datapath.run("from_pod", request)
        port = int(result.packet[TCP].sport)
        assert port != client[1]
        same(result.packet, to_server(expected(request, sport=port)))
        assert datapath.flow(key(server, client)) == taken


class TestToPod:
    """to_pod: what the host's stack sends into a pod."""

    @BOTH
    def test_hosts_packet_passes_untouched(self, datapath: Datapath, family: Family) -> None:
        """A probe from the node reaches its pod as it is."""
        packet = tcp(family, (family.node, 50000), (family.client, 8080))
        result = datapath.run("to_pod", packet)
        assert result.verdict == PASS
        same(result.packet, packet)

    @BOTH
    def test_hosts_answer_behind_a_service_is_translated_back(self, datapath: Datapath, family: Family) -> None:
        """A backend in the host's own network answers from the Service's address."""
        datapath.service(family.service, 443, dp.TCP_PROTOCOL, [(family.node, 6443)])
        request = tcp(family, (family.client, 40000), (family.service, 443))
        result = datapath.run("from_pod", request)
        assert result.verdict == PASS
        same(result.packet, expected(request, dst=family.node, dport=6443))
        answer = tcp(family, (family.node, 6443), (family.client, 40000), "SA")
        result = datapath.run("to_pod", answer)
        assert result.verdict == PASS
        same(result.packet, expected(answer, src=family.service, sport=443))


class TestFromNetdev:
    """from_netdev and from_overlay: what comes from other nodes and from outside."""

    @BOTH
    @pytest.mark.parametrize("program", ["from_netdev", "from_overlay"])
    def test_pod_of_this_node_is_reached_directly(self, datapath: Datapath, family: Family, program: str) -> None:
        """A packet for a pod here goes into its link, past the host's stack."""
        packet = to_host(tcp(family, (family.remote, 40000), (family.client, 8080)))
        result = datapath.run(program, packet)
        assert result.verdict == REDIRECT
        same(result.packet, to_client(packet))

    @BOTH
    @pytest.mark.parametrize("program", ["from_netdev", "from_overlay"])
    def test_answer_from_a_remote_backend_is_translated_back(
        self, datapath: Datapath, family: Family, program: str
    ) -> None:
        """The client's pod sees the Service's address, whichever way the answer came."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.remote, 8080)])
        datapath.run("from_pod", tcp(family, (family.client, 40000), (family.service, 80)))
        answer = to_host(tcp(family, (family.remote, 8080), (family.client, 40000), "SA"))
        result = datapath.run(program, answer)
        assert result.verdict == REDIRECT
        same(result.packet, to_client(answer, src=family.service, sport=80))

    @BOTH
    @pytest.mark.parametrize("program", ["from_netdev", "from_overlay"])
    def test_what_is_not_for_a_pod_is_the_stacks(self, datapath: Datapath, family: Family, program: str) -> None:
        """The node's own traffic is not looked into, broken packets included."""
        packet = to_host(tcp(family, (family.outside, 40000), (family.node, 22)))
        result = datapath.run(program, packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        assert datapath.run(program, bytes(packet)[:-1]).verdict == PASS

    @BOTH
    def test_frame_for_another_host_is_left_alone(self, datapath: Datapath, family: Family) -> None:
        """A frame that a bridge floods is not taken from the host that it is for."""
        packet = tcp(family, (family.remote, 40000), (family.client, 8080))
        result = datapath.run("from_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)


class TestToNetdev:
    """to_netdev: what leaves by the underlay."""

    @BOTH
    def test_hosts_packet_to_a_service_without_backend_is_refused(self, datapath: Datapath, family: Family) -> None:
        """The host's own process gets its RST as a pod does."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [])
        result = datapath.run("to_netdev", tcp(family, (family.node, 40000), (family.service, 80)))
        assert result.verdict == REDIRECT
        assert result.packet[TCP].flags == "RA"
        assert result.packet[family.ip].src == family.service
        assert datapath.dropped(DropReason.NO_BACKEND) == 1

    @BOTH
    @pytest.mark.parametrize(
        ("backends", "local", "verdict", "reason"),
        [
            pytest.param([], 0, REDIRECT, DropReason.NO_BACKEND, id="no endpoint anywhere"),
            pytest.param([8080], 0, SHOT, DropReason.NO_LOCAL_BACKEND, id="none here"),
            pytest.param([8080], 1, REDIRECT, None, id="one here"),
        ],
    )
    def test_hosts_packet_under_internal_policy_local(
        self,
        datapath: Datapath,
        family: Family,
        backends: list[int],
        local: int,
        verdict: int,
        reason: DropReason | None,
    ) -> None:
        """Refused where there is no endpoint anywhere; dropped in silence where there is none here."""
        targets = [(family.server, port) for port in backends]
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, targets, local=local, flags=INTERNAL_LOCAL)
        packet = tcp(family, (family.node, 40000), (family.service, 80))
        assert datapath.run("to_netdev", packet).verdict == verdict
        assert [one for one in DropReason if datapath.dropped(one)] == ([reason] if reason else [])

    @BOTH
    @pytest.mark.parametrize("build", [tcp, udp])
    @pytest.mark.parametrize("comes_in", ["from_netdev", "from_overlay"])
    @pytest.mark.parametrize("kind", ["cluster IP", "load balancer", "another node's NodePort"])
    def test_hosts_packet_past_the_socket_hooks_is_translated(
        self, datapath: Datapath, family: Family, build: Callable[..., Packet], comes_in: str, kind: str
    ) -> None:
        """To another node's backend as the host itself would send it, and its answer comes from where it has asked."""
        protocol = dp.TCP_PROTOCOL if build is tcp else dp.UDP_PROTOCOL
        asked, frontend, flags = {
            "cluster IP": ((family.service, 80), family.service, FrontendFlag.CLUSTER_IP),
            "load balancer": ((family.balancer, 80), family.balancer, FrontendFlag.EXTERNAL),
            "another node's NodePort": ((family.other_node, 30080), family.any_node, FrontendFlag.EXTERNAL),
        }[kind]
        datapath.service(frontend, asked[1], protocol, [(family.remote, 8080)], flags=flags)
        packet = build(family, (family.node, 40000), asked)
        for _ in range(2):  # the second is of the flow
            result = datapath.run("to_netdev", packet)
            assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
            same(result.packet, expected(packet, dst=family.remote, dport=8080))
        answer = to_host(build(family, (family.remote, 8080), (family.node, 40000), **answered(build)))
        comes_back(datapath, datapath.run(comes_in, answer), answer, asked)
        assert datapath.counter(Counter.FLOWS_CREATED) == 1

    @BOTH
    def test_hosts_packet_past_the_socket_hooks_reaches_a_pod_here(self, datapath: Datapath, family: Family) -> None:
        """By its link, where to_pod lets it pass."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        packet = tcp(family, (family.node, 40000), (family.service, 80))
        result = datapath.run("to_netdev", packet)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        link = {"eth_src": dp.SERVER_HOST_MAC, "eth_dst": dp.SERVER_MAC}
        same(result.packet, expected(packet, dst=family.server, dport=8080, **link))
        passed = datapath.run("to_pod", result.packet, mark=dp.MARK)
        assert passed.verdict == PASS
        same(passed.packet, result.packet)
        answer = tcp(family, (family.server, 8080), (family.node, 40000), "SA")
        comes_back(datapath, datapath.run("from_pod", answer), answer)
        assert datapath.counter(Counter.FLOWS_CREATED) == 1

    @BOTH
    def test_hosts_datagram_follows_its_backends(self, datapath: Datapath, family: Family) -> None:
        """A connected socket goes on with another backend when its own is gone."""
        packet = udp(family, (family.node, 40000), (family.service, 53))
        for number, port in enumerate((5353, 5354), 1):
            datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, port)], number)
            assert datapath.run("to_netdev", packet).packet[UDP].dport == port
            assert datapath.delete("backends", BackendKey(10 * number).pack())

    @BOTH
    def test_answer_whose_entry_was_evicted_comes_back_all_the_same(self, datapath: Datapath, family: Family) -> None:
        """The host's next packet restores it, with its way into the stack."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        asked, answers = (family.node, 40000), (family.server, 8080)
        datapath.run("to_netdev", tcp(family, asked, (family.service, 80)))
        datapath.delete_flow(key(answers, asked))
        _age(datapath, key(asked, (family.service, 80)), 2 * SECOND)
        datapath.run("to_netdev", tcp(family, asked, (family.service, 80), "A"))
        assert datapath.counter(Counter.FLOWS_RESTORED) == 1
        answer = tcp(family, answers, asked, "A")
        comes_back(datapath, datapath.run("from_pod", answer), answer)

    @BOTH
    @pytest.mark.parametrize("affinity_s", [0, 60])
    def test_hosts_packet_goes_to_others_than_the_host_itself(
        self, datapath: Datapath, family: Family, affinity_s: int
    ) -> None:
        """Where a Service has such; by affinity as well, which remembers none that cannot be reached."""
        backends = [(family.node, 8080), (family.remote, 8080), (family.remote, 8081), (family.remote, 8082)]
        datapath.service(family.service, 80, dp.UDP_PROTOCOL, backends, affinity_s=affinity_s)
        packets = [udp(family, (family.node, port), (family.service, 80)) for port in range(40000, 40060)]
        results = [datapath.run("to_netdev", packet, summed=False) for packet in packets]
        # of three draws all are in vain once in 64 times, which is refused
        served = [result.packet for result in results if result.packet[family.ip].dst != family.node]
        assert {packet[family.ip].dst for packet in served} == {family.remote}
        assert len(served) >= 50
        assert len({packet[UDP].dport for packet in served}) == (1 if affinity_s else 3)

    @BOTH
    def test_hosts_packet_to_a_backend_of_the_host_itself_is_refused(self, datapath: Datapath, family: Family) -> None:
        """From here nothing leads back into the host's stack; the reason says that the socket was not translated."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.node, 8080)])
        result = datapath.run("to_netdev", tcp(family, (family.node, 40000), (family.service, 80)))
        assert result.verdict == REDIRECT
        assert result.packet[TCP].flags == "RA"
        assert datapath.dropped(DropReason.UNTRANSLATED) == 1

    @BOTH
    def test_everything_else_passes(self, datapath: Datapath, family: Family) -> None:
        """Other traffic is untouched, and what the programs themselves send is not looked at."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [])
        packet = tcp(family, (family.node, 40000), (family.outside, 443))
        result = datapath.run("to_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        ours = tcp(family, (family.node, 40000), (family.service, 80))
        assert datapath.run("to_netdev", ours, mark=dp.MARK).verdict == PASS


def comes_back(datapath: Datapath, result: Result, answer: Packet, asked: tuple[str, int] | None = None) -> None:
    """Asserts that an answer to the host comes from where it has asked, in by the device by which it did: from another
    one rp_filter would not take it. There nothing looks at it again."""
    assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
    address, port = asked or ((V4 if IP in answer else V6).service, 80)
    link = {"eth_src": dp.HOST_MAC, "eth_dst": dp.POD_MAC}
    same(result.packet, expected(answer, src=address, sport=port, **link))
    passed = datapath.run("from_netdev", to_host(result.packet), mark=dp.MARK)
    assert (passed.verdict, passed.mark) == (PASS, 0)
    same(passed.packet, to_host(result.packet))


class TestToOverlay:
    """to_overlay: the host's packets into the tunnel."""

    @BOTH
    def test_known_node_passes_and_unknown_is_dropped(self, datapath: Datapath, family: Family) -> None:
        """The tunnel's end is set for another node's pod; an address that no node has goes nowhere."""
        packet = tcp(family, (family.node, 40000), (family.remote, 8080))
        result = datapath.run("to_overlay", packet)
        assert result.verdict == PASS
        same(result.packet, expected(packet, eth_src=dp.OVERLAY_SOURCE_MAC, eth_dst=dp.OVERLAY_MAC))
        assert datapath.run("to_overlay", tcp(family, (family.node, 1), (family.outside, 2))).verdict == SHOT
        assert datapath.dropped(DropReason.NO_REMOTE) == 1


def _state(datapath: Datapath, flow_key: object) -> int:
    flow = datapath.flow(flow_key)
    assert flow is not None
    return flow.state


def _age(datapath: Datapath, flow_key: object, nanoseconds: int) -> None:
    """Makes an entry look as if it had last been seen so much earlier."""
    flow = datapath.flow(flow_key)
    assert flow is not None
    datapath.write_flow(flow_key, _older(flow, nanoseconds))


def _older(flow: Flow, nanoseconds: int) -> Flow:
    return flow._replace(
        seen_ns=(flow.seen_ns - nanoseconds) % 2**64, expires_ns=(flow.expires_ns - nanoseconds) % 2**64
    )


def _undated(flow: Flow) -> Flow:
    return flow._replace(seen_ns=0, expires_ns=0)
