# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about packets of flows: each reaches who has sent that packet, and quotes what that has sent."""

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.abi import Counter, DropReason, FlowState, FrontendFlag, PodKey
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
WAY_BACK = pytest.mark.parametrize("way_back", [0, FrontendFlag.DIRECT], ids=["entry", "direct"])
# What a router must quote of IPv4, which has UDP's checksum and not TCP's; and what it may.
QUOTED = pytest.mark.parametrize("quoted", [28, 1280], ids=["eight bytes", "everything"])
ROUTER = {V4: "198.18.0.254", V6: "2001:db8:f::fe"}
NODE_PORT, MTU = 30080, 1280
TO_POD = {"eth_src": dp.HOST_MAC, "eth_dst": dp.POD_MAC}
TO_SERVER = {"eth_src": dp.SERVER_HOST_MAC, "eth_dst": dp.SERVER_MAC}

Build = Callable[..., Packet]


def too_big(
    reporter: str,
    about: Packet,
    quoted: int = 1280,
    hops: int = 0,
    eth_src: str = dp.POD_MAC,
    eth_dst: str = dp.HOST_MAC,
) -> Packet:
    """The error of who could not send a packet on, `hops` on its way to who sent that; `quoted`: bytes of IPv4's, whose
    header is 20 bytes shorter than IPv6's."""
    frame = Ether(src=eth_src, dst=eth_dst)
    if IP in about:
        message = ICMP(type=3, code=4, nexthopmtu=MTU) / Raw(bytes(about[IP])[:quoted])
        return Ether(bytes(frame / IP(src=reporter, dst=about[IP].src, ttl=64 - hops) / message))
    quote = Raw(bytes(about[IPv6])[: quoted + 20])
    network = IPv6(src=reporter, dst=about[IPv6].src, hlim=64 - hops)
    return Ether(bytes(frame / network / ICMPv6PacketTooBig(mtu=MTU) / quote))


def node_port(datapath: Datapath, family: Family, build: Build, backend: str, flags: int = 0, local: int = 0) -> None:
    flags = FrontendFlag.EXTERNAL | FrontendFlag(flags)
    datapath.service(family.any_node, NODE_PORT, protocol_of(build), [(backend, 8080)], local=local, flags=flags)


class TestPods:
    """A pod of this node has sent what the error is about."""

    @BOTH
    @BUILD
    @QUOTED
    def test_backends_error_comes_from_the_service(
        self, datapath: Datapath, family: Family, build: Build, quoted: int
    ) -> None:
        """The other end of what the pod knows; without that it would not take the error for its own."""
        datapath.service(family.service, 80, protocol_of(build), [(family.server, 8080)])
        request = build(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        result = datapath.run("from_pod", too_big(family.server, seen, quoted))
        assert result.verdict == REDIRECT
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(family.service, wanted, quoted, 1, **TO_POD))

    @BOTH
    @BUILD
    @QUOTED
    @pytest.mark.parametrize("program", ["from_netdev", "from_overlay"])
    def test_routers_error_keeps_its_sender(
        self, datapath: Datapath, family: Family, build: Build, quoted: int, program: str
    ) -> None:
        """Somebody between the nodes, whom traceroute is to show."""
        datapath.service(family.service, 80, protocol_of(build), [(family.remote, 8080)])
        request = build(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        result = datapath.run(program, arriving(too_big(ROUTER[family], seen, quoted)))
        assert result.verdict == REDIRECT
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(ROUTER[family], wanted, quoted, 1, **TO_POD))

    @BOTH
    @BUILD
    @QUOTED
    def test_error_about_what_was_masqueraded(
        self, datapath: Datapath, family: Family, build: Build, quoted: int
    ) -> None:
        """It comes to the node's address and port, and goes to the pod's."""
        request = build(family, (family.client, 5000), (family.outside, 443))
        seen = datapath.run("from_pod", request).packet
        assert seen[family.ip].src == family.node
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen, quoted)))
        assert result.verdict == REDIRECT
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(ROUTER[family], wanted, quoted, 1, **TO_POD))

    @BOTH
    def test_error_about_the_first_of_fragments(self, datapath: Datapath, family: Family) -> None:
        """What is larger than the path, it may quote: the ports are there."""
        if family is V4:
            (first, *_) = fragment(IP(src=V4.client, dst=V4.outside, id=7) / UDP(sport=5000, dport=443) / bytes(3000))
        else:
            network = IPv6(src=V6.client, dst=V6.outside) / IPv6ExtHdrFragment(id=7)
            (first, *_) = fragment6(IPv6(bytes(network / UDP(sport=5000, dport=443) / bytes(3000))), 1400)
        request = Ether(bytes(dp.ethernet() / first))
        seen = datapath.run("from_pod", request).packet
        assert seen[family.ip].src == family.node
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen, 500)))
        assert result.verdict == REDIRECT
        network = request[family.ip]
        if family is V4:
            network.ttl, network.chksum = 63, None
        else:
            network.hlim = 63
        same(result.packet, too_big(ROUTER[family], Ether(bytes(request)), 500, 1, **TO_POD))

    def test_error_about_a_datagram_without_checksum(self, datapath: Datapath) -> None:
        """The quote has none either; IP options stand before its ports."""
        options = [IPOption_Router_Alert()]
        network = IP(src=V4.client, dst=V4.outside, options=options)
        request = Ether(bytes(dp.ethernet() / network / UDP(sport=5000, dport=443, chksum=0) / b"question"))
        seen = datapath.run("from_pod", request).packet
        assert (seen[IP].src, seen[UDP].chksum) == (V4.node, 0)
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[V4], seen)))
        assert result.verdict == REDIRECT
        request[IP].ttl, request[IP].chksum = 63, None
        same(result.packet, too_big(ROUTER[V4], Ether(bytes(request)), 1280, 1, **TO_POD))

    @BOTH
    @BUILD
    def test_error_about_what_a_pod_has_sent_to_itself(self, datapath: Datapath, family: Family, build: Build) -> None:
        """Both its addresses change: it sees the Service's as the client's."""
        datapath.service(family.service, 80, protocol_of(build), [(family.client, 8080)])
        request = build(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        assert seen[family.ip].src == family.service
        result = datapath.run("from_pod", too_big(family.client, seen))
        assert result.verdict == REDIRECT
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(family.service, wanted, 1280, 1, **TO_POD))

    @BOTH
    def test_pods_own_error_about_what_was_masqueraded(self, datapath: Datapath, family: Family) -> None:
        """It leaves under the node's address, and quotes what came to that."""
        request = udp(family, (family.client, 5000), (family.outside, 443))
        port = datapath.run("from_pod", request).packet[UDP].sport
        answer = arriving(udp(family, (family.outside, 443), (family.node, port)))
        seen = datapath.run("from_netdev", answer).packet
        result = datapath.run("from_pod", too_big(family.client, seen))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, too_big(family.node, expected(answer, hops=1), 1280, 1))

    @BOTH
    def test_error_about_a_masqueraded_echo(self, datapath: Datapath, family: Family) -> None:
        """Traceroute by ping: the identifier stands for the port."""
        echo = ICMP(id=7, seq=1) if family is V4 else ICMPv6EchoRequest(id=7, seq=1)
        request = Ether(bytes(dp.ethernet() / family.ip(src=family.client, dst=family.outside) / echo / b"ping"))
        seen = datapath.run("from_pod", request).packet
        assert seen[family.ip].src == family.node
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen)))
        assert result.verdict == REDIRECT
        same(result.packet, too_big(ROUTER[family], expected(request, hops=1), 1280, 1, **TO_POD))

    @BOTH
    @BUILD
    @QUOTED
    def test_stacks_own_error(self, datapath: Datapath, family: Family, build: Build, quoted: int) -> None:
        """What it cannot send on has been translated already."""
        datapath.service(family.service, 443, protocol_of(build), [(family.node, 6443)])
        request = build(family, (family.client, 40000), (family.service, 443))
        seen = datapath.run("from_pod", request)
        assert seen.verdict == PASS
        result = datapath.run("to_pod", too_big(family.node, seen.packet, quoted))
        assert result.verdict == PASS
        wanted = quoting(request, build, seen.packet)
        same(result.packet, too_big(family.service, wanted, quoted))

    @BOTH
    def test_error_about_answers_reaches_the_backend(self, datapath: Datapath, family: Family) -> None:
        """The client's, and of who stands before it."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        datapath.run("from_pod", tcp(family, (family.client, 40000), (family.service, 80)))
        answer = tcp(family, (family.server, 8080), (family.client, 40000), "SA")
        seen = datapath.run("from_pod", answer).packet
        result = datapath.run("from_pod", too_big(family.client, seen))
        assert result.verdict == REDIRECT
        same(result.packet, too_big(family.client, expected(answer, hops=1), 1280, 1, **TO_SERVER))


class TestOutsideClients:
    """A client outside has sent it, or a backend to that."""

    @BOTH
    @BUILD
    @QUOTED
    def test_error_of_a_backend_here(self, datapath: Datapath, family: Family, build: Build, quoted: int) -> None:
        """The client hears it from the address that it talks to."""
        node_port(datapath, family, build, family.server, local=1)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        seen = datapath.run("from_netdev", request).packet
        result = datapath.run("from_pod", too_big(family.server, seen, quoted))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(family.node, wanted, quoted, 1))

    @BOTH
    @BUILD
    @QUOTED
    def test_error_from_beyond_a_handover(self, datapath: Datapath, family: Family, build: Build, quoted: int) -> None:
        """The backend's node sends it to the entry node, which translates it for the client."""
        node_port(datapath, family, build, family.remote)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        seen = datapath.run("from_netdev", request).packet
        result = datapath.run("from_netdev", arriving(too_big(family.remote, seen, quoted), dp.PEER_MAC))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        wanted = quoting(expected(request, hops=1), build, seen)
        same(result.packet, too_big(family.node, wanted, quoted, 1, dp.PEER_MAC, LO_MAC))

    @BOTH
    @BUILD
    @QUOTED
    @WAY_BACK
    def test_error_about_answers_is_handed_over(
        self, datapath: Datapath, family: Family, build: Build, quoted: int, way_back: int
    ) -> None:
        """A router that wants smaller answers writes to the entry node, of whose address they are."""
        node_port(datapath, family, build, family.remote, way_back)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        datapath.run("from_netdev", request)
        seen = build(family, (family.node, NODE_PORT), (family.outside, 5000))
        error = arriving(too_big(ROUTER[family], seen, quoted))
        result = datapath.run("from_netdev", error)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        wanted = seen
        if not way_back:
            wanted = quoting(build(family, (family.remote, 8080), (family.outside, 5000)), build, seen)
        same(result.packet, too_big(ROUTER[family], wanted, quoted, 1, dp.ROUTER_MAC, LO_MAC))

    @BOTH
    @BUILD
    @QUOTED
    @WAY_BACK
    def test_error_that_was_handed_over_reaches_the_backend(
        self, datapath: Datapath, family: Family, build: Build, quoted: int, way_back: int
    ) -> None:
        """From the entry node, whichever it is; the answers go on to the one that has handed the packets over."""
        client, other = (family.outside, 5000), "02:00:00:00:00:07"
        datapath.peer(other)
        node_port(datapath, family, build, family.server, way_back, local=1)
        asked = (family.other_node, NODE_PORT) if way_back else (family.server, 8080)
        datapath.run("from_netdev", arriving(build(family, client, asked), dp.PEER_MAC))
        answer = build(family, (family.server, 8080), client)
        seen = datapath.run("from_pod", answer).packet
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen, quoted), other))
        assert result.verdict == REDIRECT
        wanted = quoting(expected(answer, hops=1), build, seen)
        same(result.packet, too_big(ROUTER[family], wanted, quoted, 1, **TO_SERVER))
        if not way_back:
            assert datapath.run("from_pod", answer).packet[Ether].dst == dp.PEER_MAC

    @BOTH
    @BUILD
    def test_error_of_a_backend_in_the_hosts_network(self, datapath: Datapath, family: Family, build: Build) -> None:
        """A closed port of a process, which the host's stack tells."""
        node_port(datapath, family, build, family.node, local=1)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        seen = datapath.run("from_netdev", request)
        assert seen.verdict == PASS
        result = datapath.run("to_netdev", too_big(family.node, seen.packet))
        assert result.verdict == PASS
        same(result.packet, too_big(family.node, quoting(request, build, seen.packet)))

    @BOTH
    @BUILD
    @pytest.mark.parametrize("program", ["to_netdev", "to_overlay"])
    def test_error_of_a_hosts_backend_goes_by_the_entry_node(
        self, datapath: Datapath, family: Family, build: Build, program: str
    ) -> None:
        """By whatever device the host's stack would send it: there it is translated."""
        datapath.run("from_netdev", arriving(build(family, (family.outside, 5000), (family.node, 8080)), dp.PEER_MAC))
        seen = build(family, (family.outside, 5000), (family.node, 8080))
        result = datapath.run(program, too_big(family.node, seen))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, too_big(family.node, seen, eth_src=LO_MAC, eth_dst=dp.PEER_MAC))


class TestHost:
    """A process of the host has sent it, past the socket hooks."""

    @BOTH
    @BUILD
    def test_error_comes_in_by_the_device_by_which_the_host_asked(
        self, datapath: Datapath, family: Family, build: Build
    ) -> None:
        """As an answer does."""
        datapath.service(family.service, 80, protocol_of(build), [(family.remote, 8080)])
        request = build(family, (family.node, 40000), (family.service, 80))
        seen = datapath.run("to_netdev", request).packet
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen)))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, too_big(ROUTER[family], quoting(request, build, seen), **TO_POD))


class TestOthers:
    """What is no error of a flow, or changes none."""

    @BOTH
    @pytest.mark.parametrize("program", ["from_pod", "to_pod", "from_netdev", "from_overlay", "to_netdev"])
    def test_error_about_no_flow_is_left_as_it_is(self, datapath: Datapath, family: Family, program: str) -> None:
        """Also one whose receiver is not who has sent what it quotes: it could be aimed at another's flow."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        request = tcp(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        stranger = arriving(too_big(family.client, tcp(family, (family.node, 1), (family.outside, 2))))
        aimed = arriving(too_big(family.client, seen))
        aimed[family.ip].dst = family.node
        for error in (stranger, Ether(bytes(aimed))):
            result = datapath.run(program, error, summed=False)
            assert result.verdict == PASS
            same(result.packet, error)

    @BOTH
    @pytest.mark.parametrize("sender", [dp.PEER_MAC, dp.ROUTER_MAC], ids=["another node", "a router"])
    @pytest.mark.parametrize("kind", ["balancer", "other_node"])
    def test_error_that_was_handed_over_is_not_routed_on(
        self, datapath: Datapath, family: Family, sender: str, kind: str
    ) -> None:
        """Its flow has ended here, and not yet at the entry node, to which it would come back."""
        address = getattr(family, kind)
        error = arriving(too_big(ROUTER[family], tcp(family, (address, NODE_PORT), (family.outside, 5000))), sender)
        result = datapath.run("from_netdev", error)
        assert result.verdict == (SHOT if sender == dp.PEER_MAC else PASS)
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == (sender == dp.PEER_MAC)

    @BOTH
    def test_error_in_fragments_stays_together(self, datapath: Datapath, family: Family) -> None:
        """Its later fragments could not be led after the first one."""
        request = udp(family, (family.client, 5000), (family.outside, 443))
        seen = datapath.run("from_pod", request).packet
        whole = arriving(too_big(ROUTER[family], seen))
        if family is V4:
            whole[IP].flags, whole[IP].chksum = "MF", None
        else:
            network, message = whole[IPv6].copy(), whole[IPv6].payload
            network.remove_payload()
            network.plen = None
            whole = Ether(src=whole.src, dst=whole.dst) / network / IPv6ExtHdrFragment(m=1, id=7) / message
        error = Ether(bytes(whole))
        result = datapath.run("from_netdev", error, summed=False)
        assert result.verdict == PASS
        same(result.packet, error)

    @BOTH
    def test_error_does_not_change_the_flow(self, datapath: Datapath, family: Family) -> None:
        """A connection that nobody has answered is not established by it, and none is begun."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        request = tcp(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        datapath.run("from_pod", too_big(family.server, seen))
        for at in (
            key((family.client, 40000), (family.service, 80)),
            key((family.server, 8080), (family.client, 40000)),
        ):
            flow = datapath.flow(at)
            assert flow is not None
            assert flow.state == FlowState.NEW
        assert datapath.counter(Counter.FLOWS_CREATED) == 1

    @BOTH
    def test_error_about_a_flow_that_is_over_is_left_as_it_is(self, datapath: Datapath, family: Family) -> None:
        """An expired entry is absent, whenever it is looked at."""
        datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
        request = tcp(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        answers = key((family.server, 8080), (family.client, 40000))
        flow = datapath.flow(answers)
        assert flow is not None
        datapath.write_flow(answers, flow._replace(expires_ns=1))
        result = datapath.run("from_pod", too_big(family.server, seen))
        assert result.verdict == REDIRECT
        same(result.packet, too_big(family.server, seen, 1280, 1, **TO_POD))

    @BOTH
    def test_error_for_a_pod_that_is_gone_is_dropped(self, datapath: Datapath, family: Family) -> None:
        """And counted; an error is never answered."""
        node_port(datapath, family, tcp, family.server, local=1)
        datapath.run("from_netdev", arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT))))
        seen = datapath.run("from_pod", tcp(family, (family.server, 8080), (family.outside, 5000), "SA")).packet
        datapath.delete("pods", PodKey(packed(family.server)).pack())
        result = datapath.run("from_netdev", arriving(too_big(ROUTER[family], seen)))
        assert result.verdict == SHOT
        assert datapath.dropped(DropReason.NO_POD) == 1
        assert datapath.counter(Counter.REFUSALS) == 0

    @BOTH
    @BUILD
    def test_truncated_error_is_never_translated_in_part(
        self, datapath: Datapath, family: Family, build: Build
    ) -> None:
        """Cut off at every byte, with lengths that say so or not: the packet passes whole as it is, or translated."""
        datapath.service(family.service, 80, protocol_of(build), [(family.server, 8080)])
        request = build(family, (family.client, 40000), (family.service, 80))
        seen = datapath.run("from_pod", request).packet
        error = too_big(family.server, seen)
        header = 20 if family is V4 else 40
        for size in range(14 + header, len(error)):
            cut = Ether(bytes(error)[:size])
            if family is V4:
                cut[IP].len, cut[IP].chksum = size - 14, None
            else:
                cut[IPv6].plen = size - 14 - header
            for packet in (bytes(error)[:size], bytes(Ether(bytes(cut))), bytes(Ether(bytes(cut))) + bytes(len(error))):
                result = datapath.run("from_pod", packet, summed=False)
                whole = size >= 14 + header + 8 + header + 8
                if not whole and result.verdict == REDIRECT:
                    assert bytes(result.packet)[14 + header :] == packet[14 + header :]
                assert result.verdict in (REDIRECT, SHOT)


def quoting(sent: Packet, build: Build, seen: Packet) -> Packet:
    """What was sent as an error about `seen` quotes it: an SCTP checksum, over what is not quoted, stays as it was."""
    if build is not sctp:
        return sent
    packet = sent.copy()
    packet["SCTP"].chksum = seen["SCTP"].chksum
    return Ether(bytes(packet))
