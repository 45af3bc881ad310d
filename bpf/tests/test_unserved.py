# SPDX-License-Identifier: Apache-2.0
"""Packets for Services' addresses that no frontend takes, on the real programs: a port that the Service of a cluster IP
does not have is refused, an address of the ranges that no Service has swallows everything, and so does what comes in
for a port that a load balancer's address does not have.
"""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from bpf.abi import Counter, DropReason, FrontendFlag, RemoteFlag
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
    same,
    tcp,
    udp,
)

pytestmark = pytest.mark.root

WAYS_IN = pytest.mark.parametrize("program", ["from_pod", "from_netdev", "from_overlay", "to_netdev"])
RANGE = {V4: ("10.96.0.0", 16), V6: ("fd00:10:96::", 112)}
UNUSED = {V4: "10.96.7.7", V6: "fd00:10:96::707"}
BALANCER = {V4: "198.51.100.8", V6: "2001:db8:1b::8"}
ELSEWHERE = {V4: "198.51.100.7", V6: "2001:db8:1b::7"}


@pytest.fixture
def datapath(programs: Datapath) -> Datapath:
    """Each family has a Service with TCP port 80, in the range of Services, and one outside of it."""
    programs.reset()
    for number, family in enumerate((V4, V6), 1):
        programs.service_range(RANGE[family])
        for address in (family.service, ELSEWHERE[family]):
            programs.service(address, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], number)
            programs.cluster_ip(address)
    return programs


def asker(program: str, family: Family) -> str:
    """Who sends what the program sees."""
    return {"from_pod": family.client, "to_netdev": family.node}.get(program, family.outside)


def asked(program: str, family: Family, transport: Packet, address: str) -> Packet:
    """A packet to an address, as the program sees it."""
    source, target = (dp.POD_MAC, dp.HOST_MAC) if program in ("from_pod", "to_netdev") else (dp.ROUTER_MAC, LO_MAC)
    network = family.ip(src=asker(program, family), dst=address)
    return Ether(bytes(Ether(src=source, dst=target) / network / transport))


def echo(family: Family) -> Packet:
    return ICMP(id=7) / b"ping" if family is V4 else ICMPv6EchoRequest(id=7, data=b"ping")


def sctp() -> Packet:
    return SCTP(sport=5000, dport=80) / SCTPChunkInit()


def unreachable(family: Family, packet: Packet) -> Packet:
    """The ICMP error about a packet, from the address asked, without its frame."""
    there, back = packet[family.ip].dst, packet[family.ip].src
    if family is V4:
        quoted = Raw(bytes(packet[IP])[:28])
        return IP(src=there, dst=back, flags="DF", id=0) / ICMP(type=3, code=3) / quoted
    return IPv6(src=there, dst=back) / ICMPv6DestUnreach(code=4) / Raw(bytes(packet[IPv6])[:48])


def turned(packet: Packet, answer: Packet) -> Packet:
    return Ether(bytes(Ether(src=packet.dst, dst=packet.src) / answer))


class TestPortThatTheServiceDoesNotHave:
    """Its cluster IP, another port or protocol."""

    @BOTH
    @WAYS_IN
    @pytest.mark.parametrize("address", ["in the range", "of no known range"])
    def test_syn_is_answered_with_rst(self, datapath: Datapath, family: Family, program: str, address: str) -> None:
        """At once, from the address asked, to pods, the host and clients outside."""
        service = family.service if address == "in the range" else ELSEWHERE[family]
        packet = asked(program, family, TCP(sport=5000, dport=81, flags="S", seq=1000), service)
        result = datapath.run(program, packet)
        assert result.verdict == REDIRECT
        network = family.ip(src=service, dst=asker(program, family))
        if family is V4:
            network.flags, network.id = "DF", 0
        rst = TCP(sport=81, dport=5000, flags="RA", seq=0, ack=1001, window=0)
        same(result.packet, turned(packet, network / rst))
        assert datapath.dropped(DropReason.NO_SUCH_PORT) == 1
        assert datapath.counter(Counter.REFUSALS) == 1
        assert datapath.flow(key((asker(program, family), 5000), (service, 81))) is None

    @BOTH
    @WAYS_IN
    @pytest.mark.parametrize("what", ["udp", "ping", "sctp"])
    def test_everything_else_is_answered_with_port_unreachable(
        self, datapath: Datapath, family: Family, program: str, what: str
    ) -> None:
        """The Service's own port number in another protocol, ping, and what the programs do not follow."""
        transport = {"udp": UDP(sport=5000, dport=80) / b"question", "ping": echo(family), "sctp": sctp()}[what]
        packet = asked(program, family, transport, family.service)
        result = datapath.run(program, packet, summed=False)
        assert result.verdict == REDIRECT
        same(result.packet, turned(packet, unreachable(family, packet)))
        assert datapath.dropped(DropReason.NO_SUCH_PORT) == 1

    @BOTH
    @WAYS_IN
    def test_icmp_error_gets_no_answer(self, datapath: Datapath, family: Family, program: str) -> None:
        """About what a Service's address sent, as a pod sees that asks itself: neither answered nor sent on."""
        error = ICMP(type=3, code=3) if family is V4 else ICMPv6DestUnreach(code=4)
        packet = asked(program, family, error / Raw(bytes(48)), family.service)
        assert datapath.run(program, packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_SUCH_PORT) == 1
        assert datapath.counter(Counter.REFUSALS) == 0

    @BOTH
    @WAYS_IN
    def test_rst_gets_no_answer(self, datapath: Datapath, family: Family, program: str) -> None:
        """It is never answered; the host's own, of no connection that can be, is not looked at."""
        packet = asked(program, family, TCP(sport=5000, dport=81, flags="R"), family.service)
        assert datapath.run(program, packet).verdict == (PASS if program == "to_netdev" else SHOT)
        assert datapath.counter(Counter.REFUSALS) == 0

    @WAYS_IN
    def test_later_fragment_ends_here(self, datapath: Datapath, program: str) -> None:
        """It has no port by which it could be translated or refused, and must not leave the node."""
        whole = IP(src=asker(program, V4), dst=V4.service, id=7) / UDP(sport=5000, dport=53) / bytes(64)
        later = fragment(whole, 40)[1]
        packet = asked(program, V4, later.payload, V4.service)
        packet[IP].frag, packet[IP].proto = later.frag, later.proto
        del packet[IP].chksum
        assert datapath.run(program, Ether(bytes(packet))).verdict == SHOT
        six = IPv6ExtHdrFragment(offset=8, m=0, nh=17) / bytes(40)
        assert datapath.run(program, asked(program, V6, six, V6.service)).verdict == SHOT
        assert datapath.dropped(DropReason.FRAGMENT) == 2

    @BOTH
    def test_mid_stream_waits_while_flows_are_taken_over(self, datapath: Datapath, family: Family) -> None:
        """A connection may be older than the port's going; from then on it is refused."""
        packet = tcp(family, (family.client, 5000), (family.service, 81), "PA", ack=777)
        datapath.taking_over()
        assert datapath.run("from_pod", packet).verdict == SHOT
        assert datapath.dropped(DropReason.TAKING_OVER) == 1
        datapath.taking_over(0)
        result = datapath.run("from_pod", packet)
        assert (result.verdict, result.packet[TCP].flags, result.packet[TCP].seq) == (REDIRECT, "R", 777)

    @BOTH
    def test_connection_outlives_its_port(self, datapath: Datapath, family: Family) -> None:
        """What was established when the Service lost the port goes on; a new one is refused."""
        through = (family.client, 5000), (family.service, 80)
        datapath.run("from_pod", tcp(family, *through))
        datapath.run("from_pod", tcp(family, (family.server, 8080), (family.client, 5000), "SA"))
        datapath.no_frontend(family.service, 80, dp.TCP_PROTOCOL)
        result = datapath.run("from_pod", tcp(family, *through, "PA"))
        assert (result.verdict, result.packet[family.ip].dst) == (REDIRECT, family.server)
        result = datapath.run("from_pod", tcp(family, (family.client, 5001), (family.service, 80)))
        assert (result.verdict, result.packet[TCP].flags) == (REDIRECT, "RA")

    @BOTH
    def test_backend_at_anothers_cluster_ip_is_refused(self, datapath: Datapath, family: Family) -> None:
        """Of a Service whose endpoint is another Service's address, at a port that it does not have."""
        datapath.service(family.service, 82, dp.TCP_PROTOCOL, [(ELSEWHERE[family], 81)], number=7)
        result = datapath.run("from_pod", tcp(family, (family.client, 5000), (family.service, 82)))
        assert (result.verdict, result.packet[family.ip].src) == (REDIRECT, family.service)
        assert datapath.dropped(DropReason.NO_SUCH_PORT) == 1

    @BOTH
    def test_external_addresses_have_other_ports_of_their_own(self, datapath: Datapath, family: Family) -> None:
        """An external IP may be a host's, whose other ports are not the Service's."""
        address = "198.51.100.8" if family is V4 else "2001:db8:1b::8"
        datapath.service(address, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], 8, flags=FrontendFlag.EXTERNAL)
        for program in ("from_netdev", "to_netdev"):
            packet = asked(program, family, TCP(sport=5000, dport=81), address)
            assert datapath.run(program, packet).verdict == PASS


class TestPortThatALoadBalancerDoesNotHave:
    """Its address, another port or protocol."""

    @pytest.fixture
    def balancer(self, datapath: Datapath) -> Datapath:
        for number, family in enumerate((V4, V6), 8):
            address = BALANCER[family]
            datapath.service(address, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], number, flags=FrontendFlag.EXTERNAL)
            datapath.service(address, 0, 0, [], number, flags=FrontendFlag.EXTERNAL)
        return datapath

    @BOTH
    @pytest.mark.parametrize("program", ["from_netdev", "from_other", "from_overlay"])
    @pytest.mark.parametrize("what", ["tcp", "mid-stream", "rst", "udp", "ping", "sctp"])
    def test_what_comes_in_is_dropped(self, balancer: Datapath, family: Family, program: str, what: str) -> None:
        """Routes would lead it back to where it came from; nothing is said, as XDP drops it before that."""
        transport = {
            "tcp": TCP(sport=5000, dport=81),
            "mid-stream": TCP(sport=5000, dport=81, flags="PA"),
            "rst": TCP(sport=5000, dport=81, flags="R"),
            "udp": UDP(sport=5000, dport=80) / b"?",
            "ping": echo(family),
            "sctp": sctp(),
        }
        packet = asked(program, family, transport[what], BALANCER[family])
        result = balancer.run(program, packet)
        assert result.verdict == SHOT
        same(result.packet, packet)
        assert balancer.dropped(DropReason.NO_SERVICE) == 1
        assert balancer.counter(Counter.REFUSALS) == 0

    @BOTH
    def test_what_this_node_sends_goes_by_its_routes(self, balancer: Datapath, family: Family) -> None:
        """Another machine may have the address, with other ports."""
        for program, verdict in (("from_pod", REDIRECT), ("to_netdev", PASS)):
            packet = asked(program, family, TCP(sport=5000, dport=81), BALANCER[family])
            result = balancer.run(program, packet)
            assert (result.verdict, result.packet[family.ip].dst) == (verdict, BALANCER[family])

    @BOTH
    def test_what_the_host_has_there_is_the_hosts(self, balancer: Datapath, family: Family) -> None:
        """By a local route, as some clouds' agents make it: load balancers ask there for the node's health."""
        packet = asked("from_netdev", family, TCP(sport=5000, dport=10256), BALANCER[family])
        with dp.local_route(BALANCER[family]):
            assert balancer.run("from_netdev", packet).verdict == PASS
        assert balancer.run("from_netdev", packet).verdict == SHOT

    def test_neighbour_is_asked_at_its_address(self, balancer: Datapath) -> None:
        """Whoever answers for it: a router asks, now and then, whether it still does."""
        network = IPv6(src=V6.outside, dst=BALANCER[V6], hlim=255)
        packet = arriving(Ether(bytes(Ether() / network / ICMPv6ND_NS(tgt=BALANCER[V6]))))
        assert balancer.run("from_netdev", packet).verdict == PASS

    @BOTH
    def test_address_that_is_a_nodes_is_the_nodes(self, balancer: Datapath, family: Family) -> None:
        """Some load balancers hand out nodes' addresses, also such as no pod knows a way to."""
        external = "192.0.2.99" if family is V4 else "2001:db8::99"
        balancer.node(external, own=False)
        for address in (family.node, family.other_node, external):
            balancer.service(address, 0, 0, [], flags=FrontendFlag.EXTERNAL)
            packet = asked("from_netdev", family, TCP(sport=5000, dport=81), address)
            assert balancer.run("from_netdev", packet).verdict == PASS


class TestAddressThatNoServiceHas:
    """It lies in a range of Services."""

    @BOTH
    @WAYS_IN
    @pytest.mark.parametrize("what", ["tcp", "udp", "ping", "sctp"])
    def test_nothing_leaves_and_nothing_is_said(
        self, datapath: Datapath, family: Family, program: str, what: str
    ) -> None:
        """The address may be a Service's in a moment."""
        transport = {
            "tcp": TCP(sport=5000, dport=80),
            "udp": UDP(sport=5000) / b"?",
            "ping": echo(family),
            "sctp": sctp(),
        }
        packet = asked(program, family, transport[what], UNUSED[family])
        result = datapath.run(program, packet)
        assert result.verdict == SHOT
        same(result.packet, packet)
        assert datapath.dropped(DropReason.NO_SERVICE) == 1
        assert datapath.counter(Counter.REFUSALS) == 0

    @BOTH
    def test_later_fragments_do_not_leave_either(self, datapath: Datapath, family: Family) -> None:
        """They go with the first one."""
        for program in ("from_pod", "from_netdev", "to_netdev"):
            piece = IPv6ExtHdrFragment(offset=8, m=0, nh=17) / bytes(40) if family is V6 else Raw(bytes(40))
            packet = asked(program, family, piece, UNUSED[family])
            if family is V4:
                packet[IP].frag, packet[IP].proto = 8, 17
                del packet[IP].chksum
            assert datapath.run(program, Ether(bytes(packet))).verdict == SHOT
        assert datapath.dropped(DropReason.NO_SERVICE) == 3

    @BOTH
    def test_flow_of_before_ends_with_the_range(self, datapath: Datapath, family: Family) -> None:
        """One that a pod began by its destination when the range was not known."""
        target = ELSEWHERE[family]
        datapath.no_frontend(target, 0, 0)
        datapath.delete("devices", (dp.LO).to_bytes(4, "little"))
        packet = udp(family, (family.client, 5000), (target, 53))
        assert datapath.run("from_pod", packet).verdict == PASS
        datapath.service_range((target, 32 if family is V4 else 128))
        assert datapath.run("from_pod", packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_SERVICE) == 1

    @BOTH
    def test_longer_prefix_of_a_node_wins(self, datapath: Datapath, family: Family) -> None:
        """Pods and nodes that lie in the range are reached, and are of the cluster."""
        datapath.remote((UNUSED[family], 32 if family is V4 else 128), family.other_node)
        result = datapath.run("from_pod", tcp(family, (family.client, 5000), (UNUSED[family], 80)))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)

    @BOTH
    def test_range_is_no_way_to_a_backend(self, datapath: Datapath, family: Family) -> None:
        """An endpoint that no pod and no node has: a pod's packet is dropped, an outside client's not handed over."""
        port = FrontendFlag.EXTERNAL
        for address, flags in ((family.service, FrontendFlag.CLUSTER_IP), (ELSEWHERE[family], port)):
            datapath.service(address, 82, dp.TCP_PROTOCOL, [(UNUSED[family], 8080)], number=7, flags=flags)
        packet = tcp(family, (family.client, 5000), (family.service, 82))
        assert datapath.run("from_pod", packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_SERVICE) == 1
        packet = asked("from_netdev", family, TCP(sport=5000, dport=82), ELSEWHERE[family])
        assert datapath.run("from_netdev", packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_HANDOVER) == 1

    @BOTH
    def test_overlay_has_no_end_for_it(self, datapath: Datapath, family: Family) -> None:
        """A host's route that leads a Service's address into the overlay leads nowhere."""
        packet = asked("to_overlay", family, TCP(sport=5000, dport=80), UNUSED[family])
        assert datapath.run("to_overlay", packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_REMOTE) == 1

    @BOTH
    def test_source_in_the_range_is_not_of_the_cluster(self, datapath: Datapath, family: Family) -> None:
        """What bears such a source and comes from a node was handed over, like any outside client's."""
        packet = tcp(family, (UNUSED[family], 5000), (family.server, 8080))
        datapath.run("from_netdev", expected(packet, eth_src=dp.PEER_MAC, eth_dst=LO_MAC))
        flow = datapath.flow(key((UNUSED[family], 5000), (family.server, 8080)))
        assert flow is not None
        assert flow.flags


@BOTH
def test_hosts_own_traffic_is_not_looked_at(datapath: Datapath, family: Family) -> None:
    """Nodes, pods and outside are reached from the host as before, and mid-stream TCP wherever it goes."""
    datapath.remote(family.remote_range, family.other_node, RemoteFlag.OVERLAY)
    for target in (family.other_node, family.remote, family.outside):
        for packet in (tcp(family, (family.node, 5000), (target, 81)), udp(family, (family.node, 5000), (target, 81))):
            result = datapath.run("to_netdev", packet)
            assert result.verdict == PASS
            same(result.packet, packet)
    assert datapath.run("to_netdev", tcp(family, (family.node, 5000), (UNUSED[family], 80), "PA")).verdict == PASS
