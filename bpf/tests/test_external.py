# SPDX-License-Identifier: Apache-2.0
"""Packets of outside clients and to the outside, on the real programs: entry and backend's node, both ways back, by
layer 2 and in the tunnel, and masquerade. What a tunnel's metadata says is the lab's to see."""

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.abi import (
    Counter,
    DeviceKey,
    DropReason,
    FlowFlag,
    FlowState,
    FrontendFlag,
    PodKey,
    RemoteFlag,
    Tuple,
    WayKind,
)
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests import kernel
from bpf.tests.datapath import (
    BOTH,
    BUILD,
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
    tcp,
    udp,
)

pytestmark = pytest.mark.root

EXTERNAL, LOCAL, DIRECT = FrontendFlag.EXTERNAL, FrontendFlag.LOCAL, FrontendFlag.DIRECT
NODE_PORT = 30080
HOUR_NS = 3600 * 10**9


def node_port(datapath: Datapath, family: Family, protocol: int, backend: str, flags: int = 0, local: int = 0) -> None:
    datapath.service(
        family.any_node, NODE_PORT, protocol, [(backend, 8080)], local=local, flags=EXTERNAL | FrontendFlag(flags)
    )


def answer_flags(build: object) -> dict[str, str]:
    return {"flags": "SA"} if build is tcp else {}


class TestLocalBackend:
    """The backend is on the node that the client talks to."""

    @BOTH
    @BUILD
    @pytest.mark.parametrize(
        ("program", "policy"),
        [("from_netdev", 0), ("from_netdev", LOCAL), ("from_other", 0)],
        ids=["cluster", "local", "other device"],
    )
    def test_client_keeps_its_address_both_ways(
        self, datapath: Datapath, family: Family, build: object, program: str, policy: int
    ) -> None:
        """The pod sees the client, and its answer leaves from the node's address and port by the kernel's route."""
        datapath.device(dp.LO, other=program == "from_other")
        node_port(datapath, family, protocol_of(build), family.server, policy, local=1)
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.node, NODE_PORT)))
        result = datapath.run(program, request)
        assert result.verdict == REDIRECT
        wanted = expected(
            request, hops=1, dst=family.server, dport=8080, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC
        )
        same(result.packet, wanted)
        answer = build(family, (family.server, 8080), client, **answer_flags(build))
        result = datapath.run("from_pod", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(answer, hops=1, src=family.node, sport=NODE_PORT))

    @BOTH
    def test_load_balancer_address_is_met_like_a_node_port(self, datapath: Datapath, family: Family) -> None:
        """An address that no node has is a frontend of its own."""
        address = family.balancer
        datapath.service(address, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], local=1, flags=EXTERNAL)
        request = arriving(tcp(family, (family.outside, 5000), (address, 80)))
        result = datapath.run("from_netdev", request)
        assert result.verdict == REDIRECT
        assert result.packet[family.ip].dst == family.server

    @BOTH
    def test_local_policy_without_local_backend_drops(self, datapath: Datapath, family: Family) -> None:
        """externalTrafficPolicy Local: neither handed over nor refused."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote, LOCAL)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1

    @BOTH
    def test_local_policy_is_for_clients_outside_alone(self, datapath: Datapath, family: Family) -> None:
        """A pod gets the Cluster set by a NodePort of its own node and by any other address, a client the Local set."""
        backends = [(family.server, 1), (family.server, 2), (family.remote, 3)]
        for number, (address, port) in enumerate([(family.any_node, NODE_PORT), (family.balancer, 80)], 1):
            flags = EXTERNAL | LOCAL
            datapath.service(address, port, dp.TCP_PROTOCOL, backends, number, local=2, flags=flags, start=1)
            asked = (family.node if address == family.any_node else address, port)
            inside, outside = set(), set()
            for source in range(5000, 5060):
                request = tcp(family, (family.client, source), asked)
                inside.add(int(datapath.run("from_pod", request).packet[TCP].dport))
                request = arriving(tcp(family, (family.outside, source), asked))
                outside.add(int(datapath.run("from_netdev", request).packet[TCP].dport))
            assert (inside, outside) == ({2, 3}, {1, 2})

    @BOTH
    def test_service_without_backend_is_refused(self, datapath: Datapath, family: Family) -> None:
        """An outside client gets its RST from the address that it talked to."""
        datapath.service(family.any_node, NODE_PORT, dp.TCP_PROTOCOL, [], flags=EXTERNAL)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        assert (result.packet[TCP].flags, result.packet[family.ip].src) == ("RA", family.node)
        assert datapath.dropped(DropReason.NO_BACKEND) == 1

    @BOTH
    def test_other_ports_of_the_node_are_the_stacks(self, datapath: Datapath, family: Family) -> None:
        """A packet to a port that is no NodePort passes untouched, and leaves no flow."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        packet = arriving(tcp(family, (family.outside, 5000), (family.node, 22)))
        result = datapath.run("from_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        assert datapath.flow(key((family.outside, 5000), (family.node, 22))) is None

    @BOTH
    def test_address_without_node_ports_is_the_stacks(self, datapath: Datapath, family: Family) -> None:
        """A port of it that is a NodePort elsewhere passes untouched; a host port is met there all the same."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        datapath.node(family.node, own=True, node_ports=False)
        packet = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server, FrontendFlag.HOST_PORT)
        assert datapath.run("from_netdev", packet).verdict == REDIRECT

    @BOTH
    @pytest.mark.parametrize(("program", "side"), [("from_netdev", "outside"), ("from_pod", "client")])
    def test_loopback_address_is_for_the_nodes_own_processes(
        self, datapath: Datapath, family: Family, program: str, side: str
    ) -> None:
        """It is one of the node's own; who sends to it from elsewhere is left to the stack, which drops that."""
        loopback = "127.0.0.1" if family is V4 else "::1"
        datapath.node(loopback, own=True)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        packet = arriving(tcp(family, (getattr(family, side), 5000), (loopback, NODE_PORT)))
        result = datapath.run(program, packet)
        assert result.verdict == PASS
        same(result.packet, packet)

    @BOTH
    def test_tunnels_of_this_node_are_the_stacks(self, datapath: Datapath, family: Family) -> None:
        """What another node sends in the overlay passes, whatever Service claims the port; what goes on does not."""
        for address in (family.any_node, family.balancer):
            datapath.service(address, 4789, dp.UDP_PROTOCOL, [(family.server, 8080)], local=1, flags=EXTERNAL)
        packet = arriving(udp(family, (family.other_node, 5000), (family.node, 4789)), dp.PEER_MAC)
        result = datapath.run("from_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        packet = arriving(udp(family, (family.outside, 5000), (family.balancer, 4789)))
        assert datapath.run("from_netdev", packet).verdict == REDIRECT


class TestEntryNode:
    """The backend is on another node: this one hands over."""

    @BOTH
    @BUILD
    def test_return_by_entry_is_translated_both_ways(self, datapath: Datapath, family: Family, build: object) -> None:
        """The packet goes to the backend with the client's address; the answer comes back and leaves here."""
        node_port(datapath, family, protocol_of(build), family.remote)
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(request, hops=1, dst=family.remote, dport=8080))
        answer = arriving(build(family, (family.remote, 8080), client, **answer_flags(build)), dp.PEER_MAC)
        result = datapath.run("from_netdev", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(answer, hops=1, src=family.node, sport=NODE_PORT))
        assert datapath.counter(Counter.HANDED_OVER) == 1

    @BOTH
    @BUILD
    def test_direct_return_leaves_the_destination(self, datapath: Datapath, family: Family, build: object) -> None:
        """The packet goes to the backend's node as the client sent it; so do those that follow."""
        node_port(datapath, family, protocol_of(build), family.remote, DIRECT)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        for _ in range(2):
            result = datapath.run("from_netdev", request)
            assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
            same(result.packet, expected(request, hops=1))
        flow = datapath.flow(key((family.outside, 5000), (family.node, NODE_PORT), protocol_of(build)))
        assert flow is not None
        assert flow.way.kind == WayKind.NODE

    @BOTH
    @pytest.mark.parametrize("way_back", [0, DIRECT], ids=["entry", "direct"])
    def test_tunnel_hands_over_in_the_overlays_frame(self, datapath: Datapath, family: Family, way_back: int) -> None:
        """Where frames for foreign addresses do not pass, the overlay carries them."""
        datapath.remote(family.remote_range, family.other_node, flags=RemoteFlag.TUNNEL_HANDOVER)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote, way_back)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        wanted = expected(request, hops=1, eth_src=dp.OVERLAY_SOURCE_MAC, eth_dst=dp.OVERLAY_MAC)
        same(result.packet, wanted if way_back else expected(wanted, dst=family.remote, dport=8080))

    @BOTH
    def test_tunnel_ends_at_the_node_and_not_at_the_router_before_it(self, datapath: Datapath, family: Family) -> None:
        """Pods' packets go to that node by plain routes; a client's, handed to the router, would be lost there."""
        router = "192.0.2.254" if family is V4 else "2001:db8::fe"
        datapath.remote(family.remote_range, family.other_node, RemoteFlag.TUNNEL_HANDOVER, router)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        assert datapath.run("from_netdev", request).verdict == REDIRECT
        flow = datapath.flow(key((family.outside, 5000), (family.node, NODE_PORT)))
        assert flow is not None
        assert (flow.way.kind, flow.way.end) == (WayKind.TUNNEL, packed(family.other_node))

    @BOTH
    @BUILD
    @pytest.mark.parametrize("way_back", [0, DIRECT], ids=["entry", "direct"])
    def test_node_that_cannot_be_handed_packets_gets_none(
        self, datapath: Datapath, family: Family, build: object, way_back: int
    ) -> None:
        """Neither layer 2 nor a tunnel leads there: a drop with a reason, and no flow that would hold on to it."""
        datapath.remote(family.remote_range, family.other_node, RemoteFlag.NO_HANDOVER)
        node_port(datapath, family, protocol_of(build), family.remote, way_back)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_HANDOVER) == 1
        assert datapath.counter(Counter.HANDED_OVER) == 0
        assert datapath.flow(key((family.outside, 5000), (family.node, NODE_PORT), protocol_of(build))) is None

    @BOTH
    def test_node_that_cannot_be_handed_packets_gets_those_of_pods(self, datapath: Datapath, family: Family) -> None:
        """Plain routes carry them."""
        datapath.remote(family.remote_range, family.other_node, RemoteFlag.NO_HANDOVER)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote)
        request = tcp(family, (family.client, 5000), (family.node, NODE_PORT))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        same(result.packet, expected(request, hops=1, dst=family.remote, dport=8080))

    @BOTH
    @pytest.mark.parametrize(("way_back", "state"), [(0, FlowState.NEW), (DIRECT, FlowState.ESTABLISHED)])
    def test_udp_whose_answers_go_another_way_counts_as_answered(
        self, datapath: Datapath, family: Family, way_back: int, state: int
    ) -> None:
        """The entry node keeps to its choice as long as the backend's node keeps its flow."""
        node_port(datapath, family, dp.UDP_PROTOCOL, family.remote, way_back)
        datapath.run("from_netdev", arriving(udp(family, (family.outside, 5000), (family.node, NODE_PORT))))
        flow = datapath.flow(key((family.outside, 5000), (family.node, NODE_PORT), dp.UDP_PROTOCOL))
        assert flow is not None
        assert flow.state == state


class TestOtherDevice:
    """The client comes by a device beside the underlay: what is otherwise there."""

    @BOTH
    @BUILD
    def test_pods_own_address_is_the_host_stacks(self, datapath: Datapath, family: Family, build: object) -> None:
        """Whether or not the flow is known, which to_pod has begun."""
        client, server = (family.outside, 5000), (family.server, 8080)
        for flags in ("S", "A"):
            request = arriving(build(family, client, server, **({"flags": flags} if build is tcp else {})))
            result = datapath.run("from_other", request)
            assert result.verdict == PASS
            same(result.packet, request)
            assert datapath.run("to_pod", request).verdict == PASS
        assert datapath.flow(key(client, server, protocol_of(build)))

    @BOTH
    @BUILD
    @pytest.mark.parametrize("other", [True, False], ids=["other", "underlay"])
    def test_direct_return_is_by_the_underlay_alone(
        self, datapath: Datapath, family: Family, build: object, other: bool
    ) -> None:
        """The backend's node may have no way to the client: it is handed the packet to answer through this one."""
        datapath.device(dp.LO, other=other)
        node_port(datapath, family, protocol_of(build), family.remote, DIRECT)
        request = arriving(build(family, (family.outside, 5000), (family.node, NODE_PORT)))
        result = datapath.run("from_other" if other else "from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(request, hops=1, **({"dst": family.remote, "dport": 8080} if other else {})))


class TestBackendNode:
    """Another node has handed over."""

    @BOTH
    @BUILD
    def test_answer_goes_back_to_the_sender(self, datapath: Datapath, family: Family, build: object) -> None:
        """Return by the entry node: untranslated, to the MAC that handed over, whichever that is by now."""
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.server, 8080)), dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == REDIRECT
        same(result.packet, expected(request, hops=1, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC))
        answer = build(family, (family.server, 8080), client, **answer_flags(build))
        result = datapath.run("from_pod", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(answer, hops=1, eth_src=LO_MAC, eth_dst=dp.PEER_MAC))

    @BOTH
    def test_answers_follow_another_entry_node(self, datapath: Datapath, family: Family) -> None:
        """The client's packets now come by another peer: so do the answers go."""
        client, other = (family.outside, 5000), "02:00:00:00:00:07"
        datapath.peer(other)
        datapath.run("from_netdev", arriving(tcp(family, client, (family.server, 8080)), dp.PEER_MAC))
        datapath.run("from_netdev", arriving(tcp(family, client, (family.server, 8080), "A"), other))
        result = datapath.run("from_pod", tcp(family, (family.server, 8080), client, "A"))
        assert result.packet[Ether].dst == other

    @BOTH
    @BUILD
    def test_direct_return_answers_from_the_entrys_address(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """What was handed over with the client's destination is served by a backend here, and answered from here."""
        node_port(datapath, family, protocol_of(build), family.server, DIRECT, local=1)
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.other_node, NODE_PORT)), dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == REDIRECT
        wanted = expected(
            request, hops=1, dst=family.server, dport=8080, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC
        )
        same(result.packet, wanted)
        answer = build(family, (family.server, 8080), client, **answer_flags(build))
        result = datapath.run("from_pod", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(answer, hops=1, src=family.other_node, sport=NODE_PORT))
        flow = datapath.flow(key((family.server, 8080), client, protocol_of(build)))
        assert flow is not None
        assert flow.way.kind == WayKind.ROUTE

    @BOTH
    def test_handed_over_is_never_handed_over_again(self, datapath: Datapath, family: Family) -> None:
        """Without a backend here it is dropped, and counted, though another node has one: who asks again is led to that
        by the entry node."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote, DIRECT)
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)), dp.PEER_MAC)
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1

    @BOTH
    def test_handed_over_for_a_pod_that_has_gone_ends_here(self, datapath: Datapath, family: Family) -> None:
        """Nothing goes on to the stack. What begins is dropped; a connection is refused, back to the entry node, which
        translates that."""
        gone = "10.244.0.99" if family is V4 else "fd00:10:244::99"
        asked = (family.outside, 5000), (gone, 8080)
        assert datapath.run("from_netdev", arriving(tcp(family, *asked), dp.PEER_MAC)).verdict == SHOT
        result = datapath.run("from_netdev", arriving(tcp(family, *asked, "A"), dp.PEER_MAC))
        assert result.verdict == REDIRECT
        assert (result.packet[TCP].flags, result.packet[Ether].dst) == ("R", dp.PEER_MAC)
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 2

    @BOTH
    def test_clusters_own_traffic_is_not_handed_over(self, datapath: Datapath, family: Family) -> None:
        """Another node's pod that talks to a pod here is answered by destination."""
        datapath.run("from_netdev", arriving(tcp(family, (family.remote, 5000), (family.server, 8080)), dp.PEER_MAC))
        flow = datapath.flow(key((family.remote, 5000), (family.server, 8080)))
        assert flow is not None
        assert (flow.flags & FlowFlag.HANDED_OVER, flow.way.kind) == (0, WayKind.DESTINATION)

    @BOTH
    @pytest.mark.parametrize("flags", ["S", "A"])
    def test_what_would_be_handed_over_again_ends_here(self, datapath: Datapath, family: Family, flags: str) -> None:
        """A client's flow that this node hands over is not followed when its packets come by another node."""
        address, client = family.balancer, (family.outside, 5000)
        datapath.service(address, 80, dp.TCP_PROTOCOL, [(family.remote, 8080)], flags=EXTERNAL | DIRECT)
        assert datapath.run("from_netdev", arriving(tcp(family, client, (address, 80)))).verdict == REDIRECT
        assert datapath.counter(Counter.HANDED_OVER) == 1
        result = datapath.run("from_netdev", arriving(tcp(family, client, (address, 80), flags), dp.PEER_MAC))
        if flags == "S":
            assert result.verdict == SHOT
        else:
            assert (result.verdict, result.packet[family.ip].src) == (REDIRECT, address)
            assert result.packet[TCP].flags & 0x04
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1

    @BOTH
    def test_flow_whose_answers_take_the_tunnel_is_followed(self, datapath: Datapath, family: Family) -> None:
        """It is not taken for one that this node hands over, and not begun anew with each packet."""
        client, server = (family.outside, 5000), (family.server, 8080)
        datapath.run("from_netdev", arriving(tcp(family, client, server), dp.PEER_MAC))
        flow = datapath.flow(key(client, server))
        assert flow is not None
        datapath.write_flow(key(client, server), flow._replace(way=flow.way._replace(kind=WayKind.TUNNEL)))
        assert datapath.run("from_netdev", arriving(tcp(family, client, server, "A"), dp.PEER_MAC)).verdict == REDIRECT
        assert datapath.counter(Counter.FLOWS_CREATED) == 1

    @BOTH
    @BUILD
    def test_handed_over_for_an_unknown_service_of_another_node_ends_here(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """This node has not heard of it yet, or the entry node not that it is gone: nothing goes back to that."""
        request = arriving(build(family, (family.outside, 5000), (family.other_node, NODE_PORT)), dp.PEER_MAC)
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1

    @BOTH
    @BUILD
    @pytest.mark.parametrize("sender", [dp.PEER_MAC, dp.ROUTER_MAC], ids=["handed over", "straight"])
    def test_flow_of_a_pod_that_is_gone_leaves_the_node_no_more(
        self, datapath: Datapath, family: Family, sender: str, build: object
    ) -> None:
        """The host's stack would send its packets on by the default route."""
        first = arriving(build(family, (family.outside, 5000), (family.server, 8080)), sender)
        assert datapath.run("from_netdev", first).verdict == REDIRECT
        datapath.delete("pods", PodKey(packed(family.server)).pack())
        assert datapath.run("from_netdev", first).verdict == SHOT
        assert datapath.dropped(DropReason.NO_POD) == 1

    @BOTH
    @pytest.mark.parametrize("sender", [dp.PEER_MAC, dp.ROUTER_MAC], ids=["handed over", "straight"])
    def test_connection_to_a_pod_that_is_gone_is_reset(self, datapath: Datapath, family: Family, sender: str) -> None:
        """Its client hears so, in place of waiting, and by whom it has been handed over; of an RST nobody hears."""
        client, server = (family.outside, 5000), (family.server, 8080)
        assert datapath.run("from_netdev", arriving(tcp(family, client, server), sender)).verdict == REDIRECT
        datapath.delete("pods", PodKey(packed(family.server)).pack())
        result = datapath.run("from_netdev", arriving(tcp(family, client, server, "PA", seq=7, ack=9), sender))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        assert result.packet[family.ip].src == family.server
        assert (result.packet[TCP].flags, result.packet[TCP].seq, result.packet[TCP].dport) == ("R", 9, 5000)
        if sender == dp.PEER_MAC:
            assert result.packet[Ether].dst == dp.PEER_MAC
        assert datapath.run("from_netdev", arriving(tcp(family, client, server, "R"), sender)).verdict == SHOT
        assert datapath.dropped(DropReason.NO_POD) == 2

    @BOTH
    def test_second_connection_of_one_client_port_is_refused(self, datapath: Datapath, family: Family) -> None:
        """By two entry nodes to one backend they are one connection for the pod: the first one stays as it is."""
        client, other = (family.outside, 5000), "02:00:00:00:00:07"
        datapath.peer(other)
        datapath.run("from_netdev", arriving(tcp(family, client, (family.server, 8080)), dp.PEER_MAC))
        datapath.run("from_pod", tcp(family, (family.server, 8080), client, "SA"))
        result = datapath.run("from_netdev", arriving(tcp(family, client, (family.server, 8080)), other))
        assert (result.verdict, result.packet[Ether].dst, result.packet[TCP].flags) == (REDIRECT, other, "RA")
        assert datapath.dropped(DropReason.NO_FREE_PORT) == 1
        result = datapath.run("from_pod", tcp(family, (family.server, 8080), client, "A"))
        assert result.packet[Ether].dst == dp.PEER_MAC

    @BOTH
    @pytest.mark.parametrize("order", [1, -1], ids=["straight first", "handed over first"])
    def test_client_port_reused_by_another_way_is_another_one_for_the_pod(
        self, datapath: Datapath, family: Family, order: int
    ) -> None:
        """Straight to a pod and through an entry node a client knows it by two names, from one port: to the pod's
        TIME_WAIT of one a connection by the other would be an old segment. Last answers of the first go its own way."""
        client, server = (family.outside, 5000), (family.server, 8080)
        first, second = (dp.ROUTER_MAC, dp.PEER_MAC)[::order]
        for flags in ("S", "A", "FA"):
            datapath.run("from_netdev", arriving(tcp(family, client, server, flags), first))
        last = tcp(family, server, client, "FA")
        datapath.run("from_pod", last)
        syn = arriving(tcp(family, client, server), second)
        packet = datapath.run("from_netdev", syn).packet
        port = int(packet[TCP].sport)
        assert port != 5000
        same(packet, expected(syn, hops=1, sport=port, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC))
        answer = tcp(family, server, (family.outside, port), "SA")
        for sent, sender in ((answer, second), (last, first)):
            result = datapath.run("from_pod", sent)
            if sender == dp.PEER_MAC:
                assert result.verdict == REDIRECT
                same(result.packet, expected(sent, hops=1, dport=5000, eth_src=LO_MAC, eth_dst=dp.PEER_MAC))
            else:
                assert result.verdict == PASS
                same(result.packet, expected(sent, dport=5000))

    @BOTH
    @pytest.mark.parametrize("sender", [dp.PEER_MAC, dp.ROUTER_MAC], ids=["handed over", "straight"])
    def test_client_port_reused_by_the_same_way_is_kept(self, datapath: Datapath, family: Family, sender: str) -> None:
        """Client and pod are of one mind about it: nothing is changed."""
        client, server = (family.outside, 5000), (family.server, 8080)
        for flags in ("S", "A", "FA", "S"):
            packet = arriving(tcp(family, client, server, flags), sender)
            wanted = expected(packet, hops=1, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)
            same(datapath.run("from_netdev", packet).packet, wanted)
        assert datapath.counter(Counter.PORTS_REWRITTEN) == 0

    @BOTH
    @pytest.mark.parametrize("order", [1, -1], ids=["straight first", "handed over first"])
    def test_second_connection_by_another_way_is_refused(self, datapath: Datapath, family: Family, order: int) -> None:
        """As between two entry nodes: to the pod, which has answered the first, it would be a stray SYN of that one."""
        client, server = (family.outside, 5000), (family.server, 8080)
        first, second = (dp.ROUTER_MAC, dp.PEER_MAC)[::order]
        datapath.run("from_netdev", arriving(tcp(family, client, server), first))
        datapath.run("from_pod", tcp(family, server, client, "SA"))
        result = datapath.run("from_netdev", arriving(tcp(family, client, server), second))
        assert (result.verdict, result.packet[Ether].dst, result.packet[TCP].flags) == (REDIRECT, second, "RA")
        assert datapath.dropped(DropReason.NO_FREE_PORT) == 1
        for sender in (first, first):
            assert datapath.run("from_netdev", arriving(tcp(family, client, server, "A"), sender)).verdict == REDIRECT

    @BOTH
    def test_sender_is_known_from_the_first_packet_on(self, datapath: Datapath, family: Family) -> None:
        """Only another one is looked up."""
        client, server = (family.outside, 5000), (family.server, 8080)
        datapath.run("from_netdev", arriving(tcp(family, client, server), dp.PEER_MAC))
        ways = [datapath.flow(found).way for found in (key(client, server), key(server, client))]  # type: ignore[union-attr]
        assert ways[0] == ways[1]
        assert (ways[0].kind, ways[0].end[:6]) == (WayKind.MAC, dp.mac(dp.PEER_MAC))


class TestForgedSources:
    """Nobody outside sends under an address of this node's or of its pods: not a packet that begins a flow, and none of
    a flow whose packets come from here."""

    @BOTH
    @pytest.mark.parametrize("source", ["client", "node"])
    @pytest.mark.parametrize("program", ["from_netdev", "from_overlay"])
    def test_no_flow_begins(self, datapath: Datapath, family: Family, source: str, program: str) -> None:
        """Neither straight to a pod, nor to a Service, its backend here or on another node, which would not see that it
        was handed over."""
        forged = (getattr(family, source), 5000)
        for count, (backend, asked) in enumerate(
            [
                (family.server, (family.server, 8080)),
                (family.server, (family.node, NODE_PORT)),
                (family.remote, (family.node, NODE_PORT)),
            ],
            1,
        ):
            node_port(datapath, family, dp.TCP_PROTOCOL, backend)
            assert datapath.run(program, arriving(tcp(family, forged, asked))).verdict == SHOT
            assert datapath.dropped(DropReason.SPOOFED) == count
        assert datapath.flow(key(forged, (family.server, 8080))) is None

    @BOTH
    @BUILD
    def test_nothing_is_the_hosts_own_that_comes_from_outside(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """Neither to a pod that the host has asked, nor to the host, which believes IPv6 from its own address."""
        ours = (family.node, 50000)
        datapath.run("to_pod", build(family, ours, (family.server, 8080)))
        before = datapath.flow(key(ours, (family.server, 8080), protocol_of(build)))
        assert before is not None
        forged = [build(family, ours, (family.server, 8080)), build(family, (family.server, 8080), (family.node, 9))]
        forged.append(build(family, ours, (family.node, 9)))
        if build is tcp:
            forged.append(tcp(family, ours, (family.server, 8080), "R"))
        for count, packet in enumerate(forged, 1):
            assert datapath.run("from_netdev", arriving(packet)).verdict == SHOT
            assert datapath.dropped(DropReason.SPOOFED) == count
        assert datapath.flow(key(ours, (family.server, 8080), protocol_of(build))) == before

    @BOTH
    def test_nor_beside_the_underlay(self, datapath: Datapath, family: Family) -> None:
        """Where what is for a pod goes on by the host's stack, which routes it wherever its filters are loose."""
        datapath.device(dp.LO, other=True)
        for source in (family.client, family.node):
            forged = udp(family, (source, 53), (family.server, 5000))
            assert datapath.run("from_other", arriving(forged)).verdict == SHOT
        assert datapath.dropped(DropReason.SPOOFED) == 2

    @BOTH
    @BUILD
    def test_answers_of_a_pod_come_from_it(self, datapath: Datapath, family: Family, build: object) -> None:
        """A resolver's to another pod, say; and no RST from outside ends what is between two pods of a node."""
        asker, server, protocol = (family.client, 5000), (family.server, 8080), protocol_of(build)
        datapath.service(family.service, 80, protocol, [(family.server, 8080)])
        datapath.run("from_pod", build(family, asker, (family.service, 80)))
        before = datapath.flow(key(server, asker, protocol))
        assert before is not None
        for flags in ("SA", "R") if build is tcp else ("",):
            answer = build(family, server, asker, *filter(None, [flags]))
            assert datapath.run("from_netdev", arriving(answer)).verdict == SHOT
        assert datapath.flow(key(server, asker, protocol)) == before
        assert datapath.dropped(DropReason.SPOOFED) == (2 if build is tcp else 1)

    @BOTH
    @BUILD
    def test_nobody_speaks_under_the_nodes_address_for_a_pod(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """What bears a pod's address is not masqueraded for who sends it from outside."""
        pod, server = (family.client, 5000), (family.outside, 443)
        assert datapath.run("from_pod", build(family, pod, server)).packet[family.ip].src == family.node
        forged = arriving(build(family, pod, server))
        result = datapath.run("from_netdev", forged)
        assert result.verdict == PASS
        same(result.packet, forged)

    @BOTH
    def test_who_has_gone_elsewhere_is_heard_from_there(self, datapath: Datapath, family: Family) -> None:
        """An address that has moved to another node is not this one's any more, whatever flows say."""
        asker, server = (family.client, 5000), (family.server, 8080)
        datapath.run("from_pod", tcp(family, asker, server))
        datapath.delete("pods", packed(family.server))
        datapath.remote((family.server, 32 if family is V4 else 128), family.other_node)
        answer = arriving(tcp(family, server, asker, "SA"), dp.PEER_MAC)
        result = datapath.run("from_netdev", answer)
        assert result.verdict == REDIRECT
        same(result.packet, expected(answer, hops=1, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC))


class TestMappedAddress:
    """An ExternalIP of this node that none of its devices has: a router translates to it, and what leaves."""

    @pytest.fixture
    def mapped(self, datapath: Datapath, family: Family) -> str:
        address = "203.0.113.200" if family is V4 else "2001:db8:203::200"
        datapath.node(address, own=False, node_ports=False, mapped=True)
        return address

    @BOTH
    def test_what_comes_under_it_is_a_client_outside(self, datapath: Datapath, family: Family, mapped: str) -> None:
        """This node's own connection to a load balancer beyond that router, which comes back here."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        packet = arriving(tcp(family, (mapped, 5000), (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", packet)
        assert result.verdict == REDIRECT
        wanted = expected(
            packet, hops=1, dst=family.server, dport=8080, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC
        )
        same(result.packet, wanted)
        answer = tcp(family, (family.server, 8080), (mapped, 5000), "SA")
        left = datapath.run("from_pod", answer)
        assert left.verdict == REDIRECT
        same(left.packet, expected(answer, hops=1, src=family.node, sport=NODE_PORT))

    @BOTH
    def test_pod_reaches_it_like_any_place_outside(self, datapath: Datapath, family: Family, mapped: str) -> None:
        """Under the node's address: no router translates a pod's."""
        asked = tcp(family, (family.client, 5000), (mapped, 443))
        assert datapath.run("from_pod", asked).packet[family.ip].src == family.node

    @BOTH
    @pytest.mark.parametrize("met", [False, True])
    def test_its_node_ports_are_this_nodes(self, datapath: Datapath, family: Family, mapped: str, met: bool) -> None:
        """Also under externalTrafficPolicy Local, where another node's would answer for themselves."""
        datapath.node(mapped, own=False, mapped=True, node_ports=met)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server, LOCAL, local=1)
        asked = tcp(family, (family.client, 5000), (mapped, NODE_PORT))
        reached = datapath.run("from_pod", asked).packet[family.ip].dst
        assert reached == (family.server if met else mapped)


class TestAnotherNodesNodePort:
    """Under externalTrafficPolicy Local pods and processes are clients from outside at every node but their own."""

    @BOTH
    @BUILD
    @pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
    def test_pods_packet_goes_there_as_it_is(
        self, datapath: Datapath, family: Family, build: object, overlay: bool
    ) -> None:
        """Whatever this node knows of endpoints; the answer comes from there, and later packets are of one flow."""
        bits = 32 if family is V4 else 128
        if overlay:
            datapath.remote((family.other_node, bits), family.other_node, RemoteFlag.OVERLAY)
        node_port(datapath, family, protocol_of(build), family.server, LOCAL, local=1)
        request = build(family, (family.client, 5000), (family.other_node, NODE_PORT))
        frame = {"eth_src": dp.OVERLAY_SOURCE_MAC, "eth_dst": dp.OVERLAY_MAC} if overlay else {}
        for _ in range(2):
            result = datapath.run("from_pod", request)
            assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
            same(result.packet, expected(request, hops=1, **frame))
        answer = build(family, (family.other_node, NODE_PORT), (family.client, 5000), **answer_flags(build))
        answer = arriving(answer, dp.PEER_MAC)
        result = datapath.run("from_overlay" if overlay else "from_netdev", answer)
        assert result.verdict == REDIRECT
        same(result.packet, expected(answer, hops=1, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC))
        assert datapath.counter(Counter.FLOWS_CREATED) == 1

    @BOTH
    @BUILD
    @pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
    @pytest.mark.parametrize("client", ["remote", "other_node"])
    def test_node_that_is_asked_answers_by_destination(
        self, datapath: Datapath, family: Family, build: object, overlay: bool, client: str
    ) -> None:
        """The pod sees who asked, and its answer leaves from the NodePort as all packets for that pod or node do."""
        asker = (getattr(family, client), 5000)
        if overlay:
            datapath.remote(family.remote_range, family.other_node, RemoteFlag.OVERLAY)
            datapath.remote((family.other_node, 32 if family is V4 else 128), family.other_node, RemoteFlag.OVERLAY)
        node_port(datapath, family, protocol_of(build), family.server, LOCAL, local=1)
        request = arriving(build(family, asker, (family.node, NODE_PORT)), dp.PEER_MAC)
        result = datapath.run("from_overlay" if overlay else "from_netdev", request)
        assert result.verdict == REDIRECT
        wanted = expected(
            request, hops=1, dst=family.server, dport=8080, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC
        )
        same(result.packet, wanted)
        answer = build(family, (family.server, 8080), asker, **answer_flags(build))
        result = datapath.run("from_pod", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        frame = {"eth_src": dp.OVERLAY_SOURCE_MAC, "eth_dst": dp.OVERLAY_MAC} if overlay else {}
        same(result.packet, expected(answer, hops=1, src=family.node, sport=NODE_PORT, **frame))

    @BOTH
    @BUILD
    @pytest.mark.parametrize("program", ["to_netdev", "to_overlay"])
    def test_answer_of_the_hosts_network_comes_from_the_node_port(
        self, datapath: Datapath, family: Family, build: object, program: str
    ) -> None:
        """The host's stack sends it to another node's pod by plain routes, or into the overlay."""
        node_port(datapath, family, protocol_of(build), family.node, LOCAL, local=1)
        asker = (family.remote, 5000)
        request = arriving(build(family, asker, (family.node, NODE_PORT)), dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == PASS
        same(result.packet, expected(request, dport=8080))
        answer = build(family, (family.node, 8080), asker, **answer_flags(build))
        result = datapath.run(program, answer)
        assert result.verdict == PASS
        overlay = program == "to_overlay"
        frame = {"eth_src": dp.OVERLAY_SOURCE_MAC, "eth_dst": dp.OVERLAY_MAC} if overlay else {}
        same(result.packet, expected(answer, sport=NODE_PORT, **frame))

    @BOTH
    @pytest.mark.parametrize("policy", [0, LOCAL], ids=["cluster", "local"])
    def test_node_that_is_asked_has_no_other_nodes_backend_for_the_cluster(
        self, datapath: Datapath, family: Family, policy: int
    ) -> None:
        """Not under policy Cluster either, of which the asker's node has not heard yet."""
        backends = [(family.server, 8080), (family.remote, 8080)]
        flags = EXTERNAL | FrontendFlag(policy)
        datapath.service(family.any_node, NODE_PORT, dp.TCP_PROTOCOL, backends, local=1, flags=flags)
        for port in range(5000, 5020):
            request = arriving(tcp(family, (family.remote, port), (family.node, NODE_PORT)), dp.PEER_MAC)
            assert datapath.run("from_netdev", request).packet[family.ip].dst == family.server
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote, policy)
        request = arriving(tcp(family, (family.remote, 6000), (family.node, NODE_PORT)), dp.PEER_MAC)
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_LOCAL_BACKEND) == 1

    @BOTH
    @pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
    def test_service_without_backend_refuses_another_nodes_pod(
        self, datapath: Datapath, family: Family, overlay: bool
    ) -> None:
        """The refusal goes by destination, into the overlay where that pod's packets do."""
        if overlay:
            datapath.remote(family.remote_range, family.other_node, RemoteFlag.OVERLAY)
        datapath.service(family.any_node, NODE_PORT, dp.TCP_PROTOCOL, [], flags=EXTERNAL | LOCAL)
        request = arriving(tcp(family, (family.remote, 5000), (family.node, NODE_PORT)), dp.PEER_MAC)
        result = datapath.run("from_overlay" if overlay else "from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        refusal = result.packet
        assert (refusal[TCP].flags, refusal[family.ip].src, refusal[family.ip].dst) == (
            "RA",
            family.node,
            family.remote,
        )
        assert (refusal[Ether].dst == dp.OVERLAY_MAC) == overlay
        assert datapath.dropped(DropReason.NO_BACKEND) == 1

    @BOTH
    @BUILD
    def test_policy_that_changes_is_for_new_connections(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """What went to the other node goes on going there under policy Cluster, but UDP, which follows its Service."""
        asked = (family.other_node, NODE_PORT)
        node_port(datapath, family, protocol_of(build), family.remote, LOCAL)
        datapath.run("from_pod", build(family, (family.client, 5000), asked))
        node_port(datapath, family, protocol_of(build), family.remote)
        later = {"flags": "A"} if build is tcp else {}
        result = datapath.run("from_pod", build(family, (family.client, 5000), asked, **later))
        assert result.packet[family.ip].dst == (family.other_node if build is tcp else family.remote)
        result = datapath.run("from_pod", build(family, (family.client, 5001), asked))
        assert result.packet[family.ip].dst == family.remote
        node_port(datapath, family, protocol_of(build), family.remote, LOCAL)
        result = datapath.run("from_pod", build(family, (family.client, 5001), asked, **later))
        assert result.packet[family.ip].dst == family.remote

    @BOTH
    @BUILD
    def test_hosts_packet_passes(self, datapath: Datapath, family: Family, build: object) -> None:
        """The socket programs have left it as it was."""
        node_port(datapath, family, protocol_of(build), family.remote, LOCAL)
        packet = build(family, (family.node, 40000), (family.other_node, NODE_PORT))
        result = datapath.run("to_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)


class TestWayOfAnswers:
    """On a node with several devices."""

    @BOTH
    @pytest.mark.parametrize("handed_over", [False, True], ids=["entry", "direct"])
    def test_answers_leave_by_the_route_to_the_client(
        self, datapath: Datapath, family: Family, handed_over: bool
    ) -> None:
        """Whichever device the client's packet came by: handed over, it came by one between nodes."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server, DIRECT, local=1)
        client = (family.outside, 5000)
        node, sender = (family.other_node, dp.PEER_MAC) if handed_over else (family.node, dp.ROUTER_MAC)
        request = arriving(tcp(family, client, (node, NODE_PORT)), sender)
        with dp.another_device(family.outside) as ifindex:
            assert datapath.run("from_netdev", request).verdict == REDIRECT
        flow = datapath.flow(key((family.server, 8080), client, dp.TCP_PROTOCOL))
        assert flow is not None
        assert (flow.way.kind, flow.way.ifindex) == (WayKind.ROUTE, ifindex)


class TestDeviceThatGoes:
    """Under flows that stay."""

    @BOTH
    @pytest.mark.parametrize("by", ["request", "answer"])
    @pytest.mark.parametrize("at", ["node", "balancer"])
    def test_answers_take_the_device_that_has_its_route(
        self, datapath: Datapath, family: Family, by: str, at: str
    ) -> None:
        """A VPN that was set up anew is another device: within a second a packet of either side finds it. While the
        old one stands, and while no route leads to one that is known, nothing changes."""
        server, pod = (getattr(family, at), NODE_PORT), (family.server, 8080)
        client = (family.outside, 5000)
        datapath.service(family.any_node if at == "node" else server[0], NODE_PORT, dp.TCP_PROTOCOL, [pod])
        there, back = key(client, server), key(pod, client)
        packets = {
            "request": ("from_netdev", arriving(tcp(family, client, server, "PA"))),
            "answer": ("from_pod", expected(tcp(family, pod, client, "PA"), eth_src=dp.SERVER_MAC)),
        }
        datapath.run("from_netdev", arriving(tcp(family, client, server)))
        datapath.run("from_pod", expected(tcp(family, pod, client, "SA"), eth_src=dp.SERVER_MAC))

        def device() -> int:
            for entry in (there, back):
                flow = datapath.flow(entry)
                assert flow
                datapath.write_flow(entry, flow._replace(seen_ns=0))
            datapath.run(*packets[by])
            flow = datapath.flow(back)
            assert flow
            assert flow.way.kind == WayKind.ROUTE
            return flow.way.ifindex

        with dp.another_device(family.outside) as ifindex:
            datapath.device(ifindex)
            assert device() == dp.LO
            datapath.delete("devices", DeviceKey(ifindex).pack())
            datapath.delete("devices", DeviceKey(dp.LO).pack())
            assert device() == dp.LO
            datapath.device(ifindex)
            assert device() == ifindex


class TestEvictedEntry:
    """Half of a flow was evicted: what is left of it restores it as it was."""

    @BOTH
    @pytest.mark.parametrize("backend", ["remote", "server"])
    def test_answers_to_outside_leave_as_before(self, datapath: Datapath, family: Family, backend: str) -> None:
        """By the kernel's route, from the node's port."""
        pod, client = (getattr(family, backend), 8080), (family.outside, 5000)
        node_port(datapath, family, dp.TCP_PROTOCOL, pod[0])
        request = (client, (family.node, NODE_PORT))
        datapath.run("from_netdev", arriving(tcp(family, *request)))
        self._evict(datapath, key(*request), key(pod, client))
        datapath.run("from_netdev", arriving(tcp(family, *request, "A")))
        answer = tcp(family, pod, client, "A")
        hook = "from_pod" if backend == "server" else "from_netdev"
        result = datapath.run(hook, answer if backend == "server" else arriving(answer, dp.PEER_MAC))
        assert (result.verdict, result.packet[family.ip].src) == (REDIRECT, family.node)
        assert datapath.counter(Counter.FLOWS_RESTORED) == 1

    @BOTH
    def test_answers_take_the_route_to_the_client(self, datapath: Datapath, family: Family) -> None:
        """Direct return: the packet that restores came by another device, one between nodes."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server, DIRECT, local=1)
        client, pod = (family.outside, 5000), (family.server, 8080)
        request = (client, (family.other_node, NODE_PORT))
        with dp.another_device(family.outside) as ifindex:
            datapath.run("from_netdev", arriving(tcp(family, *request), dp.PEER_MAC))
            self._evict(datapath, key(*request), key(pod, client))
            datapath.run("from_netdev", arriving(tcp(family, *request, "A"), dp.PEER_MAC))
        flow = datapath.flow(key(pod, client))
        assert flow is not None
        assert (flow.way.kind, flow.way.ifindex) == (WayKind.ROUTE, ifindex)

    @BOTH
    @pytest.mark.parametrize("flags", [RemoteFlag(0), RemoteFlag.TUNNEL_HANDOVER], ids=["layer 2", "tunnel"])
    def test_packets_that_were_handed_over_are_so_again(
        self, datapath: Datapath, family: Family, flags: RemoteFlag
    ) -> None:
        """The answer came first, and restored them: by the way on which the backend's node sees that they are."""
        datapath.remote(family.remote_range, family.other_node, flags=flags)
        node_port(datapath, family, dp.TCP_PROTOCOL, family.remote)
        request, pod = (family.outside, 5000), (family.remote, 8080)
        asked = (family.node, NODE_PORT)
        datapath.run("from_netdev", arriving(tcp(family, request, asked)))
        before = datapath.flow(key(request, asked))
        assert before is not None
        self._evict(datapath, key(pod, request), key(request, asked))
        datapath.run("from_netdev", arriving(tcp(family, pod, request, "A"), dp.PEER_MAC))
        after = datapath.flow(key(request, asked))
        assert after is not None
        assert (after.way, after.flags, after.twin) == (before.way, before.flags, before.twin)

    @BOTH
    def test_senders_of_what_is_handed_over_are_followed_as_before(self, datapath: Datapath, family: Family) -> None:
        """The answer came first: the entry for what is handed over knows that it is, and by whom."""
        client, server, other = (family.outside, 5000), (family.server, 8080), "02:00:00:00:00:07"
        datapath.peer(other)
        datapath.run("from_netdev", arriving(tcp(family, client, server), dp.PEER_MAC))
        datapath.run("from_pod", tcp(family, server, client, "SA"))
        before = datapath.flow(key(client, server))
        assert before is not None
        self._evict(datapath, key(server, client), key(client, server))
        datapath.run("from_pod", tcp(family, server, client, "A"))
        after = datapath.flow(key(client, server))
        assert after is not None
        assert (after.way, after.flags) == (before.way, before.flags)
        datapath.run("from_netdev", arriving(tcp(family, client, server, "A"), other))
        assert datapath.run("from_pod", tcp(family, server, client, "A")).packet[Ether].dst == other

    @BOTH
    def test_masqueraded_packets_leave_as_before(self, datapath: Datapath, family: Family) -> None:
        """By the kernel's route, under the node's address."""
        pod, server = (family.client, 5000), (family.outside, 443)
        port = int(datapath.run("from_pod", tcp(family, pod, server)).packet[TCP].sport)
        self._evict(datapath, key(server, (family.node, port)), key(pod, server))
        datapath.run("from_netdev", arriving(tcp(family, server, (family.node, port), "SA")))
        result = datapath.run("from_pod", tcp(family, pod, server, "A"))
        assert (result.verdict, result.packet[family.ip].src) == (REDIRECT, family.node)
        assert result.packet[TCP].sport == port

    def _evict(self, datapath: Datapath, kept: Tuple, gone: Tuple) -> None:
        """The other entry is due for a refresh."""
        flow = datapath.flow(kept)
        assert flow is not None
        datapath.write_flow(kept, flow._replace(seen_ns=1))
        datapath.delete_flow(gone)


class TestBackendInTheHostsNetwork:
    """The backend is a process of a node: the host's stack takes its packets, and to_netdev sees its answers."""

    @BOTH
    @BUILD
    def test_answer_of_the_entry_nodes_own_is_translated(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """In by the node's port, out as from the node's port."""
        node_port(datapath, family, protocol_of(build), family.node, local=1)
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.node, NODE_PORT)))
        result = datapath.run("from_netdev", request)
        assert result.verdict == PASS
        same(result.packet, expected(request, dport=8080))
        answer = build(family, (family.node, 8080), client, **answer_flags(build))
        result = datapath.run("to_netdev", answer)
        assert result.verdict == PASS
        same(result.packet, expected(answer, sport=NODE_PORT))

    @BOTH
    @BUILD
    def test_answer_to_what_was_handed_over_goes_back_to_the_sender(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """Return by the entry node: it translates."""
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.node, 8080)), dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == PASS
        same(result.packet, request)
        answer = build(family, (family.node, 8080), client, **answer_flags(build))
        result = datapath.run("to_netdev", answer)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(answer, eth_src=LO_MAC, eth_dst=dp.PEER_MAC))

    @BOTH
    @BUILD
    def test_direct_answer_bears_the_entrys_address(self, datapath: Datapath, family: Family, build: object) -> None:
        """Direct return: it leaves by the route that the stack has found."""
        node_port(datapath, family, protocol_of(build), family.node, DIRECT, local=1)
        client = (family.outside, 5000)
        request = arriving(build(family, client, (family.other_node, NODE_PORT)), dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == PASS
        same(result.packet, expected(request, dst=family.node, dport=8080))
        answer = build(family, (family.node, 8080), client, **answer_flags(build))
        result = datapath.run("to_netdev", answer)
        assert result.verdict == PASS
        same(result.packet, expected(answer, src=family.other_node, sport=NODE_PORT))

    @BOTH
    @BUILD
    @pytest.mark.parametrize("asker", ["outside", "remote"])
    def test_client_port_that_asks_the_host_itself_as_well_is_exchanged(
        self, datapath: Datapath, family: Family, build: object, asker: str
    ) -> None:
        """While its flow to the NodePort lasts: either is answered from where it has asked."""
        node_port(datapath, family, protocol_of(build), family.node, LOCAL, local=1)
        client, itself = (getattr(family, asker), 5000), (family.node, 8080)
        datapath.run("from_netdev", arriving(build(family, client, (family.node, NODE_PORT))))
        request = arriving(build(family, client, itself))
        result = datapath.run("from_netdev", request)
        assert result.verdict == PASS
        port = int(result.packet.sport)
        assert port != client[1]
        same(result.packet, expected(request, sport=port))
        for asked_by, change in ((port, {"dport": client[1]}), (client[1], {"sport": NODE_PORT})):
            answer = build(family, itself, (client[0], asked_by), **answer_flags(build))
            result = datapath.run("to_netdev", answer)
            assert result.verdict == PASS
            same(result.packet, expected(answer, **change))

    @BOTH
    def test_client_port_that_is_connected_with_the_host_itself_is_exchanged(
        self, datapath: Datapath, family: Family
    ) -> None:
        """Its SYN to the NodePort would end that connection; the socket that takes new ones is no hindrance."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.node, local=1)
        client, itself = (family.outside, 5000), (family.node, 8080)
        request = arriving(tcp(family, client, (family.node, NODE_PORT)))
        with dp.host_socket(kernel.listen_tcp, itself[1]):
            same(datapath.run("from_netdev", request).packet, expected(request, dport=8080))
            datapath.delete_flow(key(client, (family.node, NODE_PORT)))
        with dp.host_socket(kernel.connect_tcp, itself, client):
            result = datapath.run("from_netdev", request)
        port = int(result.packet[TCP].sport)
        assert port != client[1]
        assert result.verdict == PASS
        same(result.packet, expected(request, sport=port, dport=8080))
        answer = tcp(family, itself, (client[0], port), "SA")
        result = datapath.run("to_netdev", answer)
        assert result.verdict == PASS
        same(result.packet, expected(answer, sport=NODE_PORT, dport=client[1]))

    @BOTH
    @BUILD
    def test_client_port_whose_flow_to_the_node_port_is_over_is_its_own(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """What asks the host itself passes then as it is, leaves no flow, and is answered likewise."""
        node_port(datapath, family, protocol_of(build), family.node, local=1)
        client, itself = (family.outside, 5000), (family.node, 8080)
        datapath.run("from_netdev", arriving(build(family, client, (family.node, NODE_PORT))))
        answered = key(itself, client, protocol_of(build))
        flow = datapath.flow(answered)
        assert flow is not None
        datapath.write_flow(answered, flow._replace(expires_ns=1))
        for program, packet in (
            ("from_netdev", arriving(build(family, client, itself))),
            ("to_netdev", build(family, itself, client, **answer_flags(build))),
        ):
            result = datapath.run(program, packet)
            assert result.verdict == PASS
            same(result.packet, packet)
        assert datapath.flow(key(client, itself, protocol_of(build))) is None

    @BOTH
    def test_answer_to_a_port_that_is_a_node_port_as_well_passes(self, datapath: Datapath, family: Family) -> None:
        """Another node's process has it for its own connection."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        answer = tcp(family, (family.node, 10250), (family.other_node, NODE_PORT), "SA")
        assert datapath.run("to_netdev", answer).verdict == PASS

    @BOTH
    def test_hosts_own_connections_are_left_alone(self, datapath: Datapath, family: Family) -> None:
        """What the node sends without a flow passes, and leaves none."""
        packet = tcp(family, (family.node, 40000), (family.outside, 443))
        result = datapath.run("to_netdev", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        assert datapath.flow(key((family.node, 40000), (family.outside, 443))) is None

    @BOTH
    def test_host_says_nothing_of_flows_that_are_taken_over(self, datapath: Datapath, family: Family) -> None:
        """To its NodePort, or a port of the masquerade: dropped; its own connections go on."""
        node_port(datapath, family, dp.TCP_PROTOCOL, family.server)
        datapath.taking_over()
        masqueraded = dp.CONFIG.masquerade_port_min + dp.CONFIG.masquerade_port_count - 1
        for port, verdict in ((NODE_PORT, SHOT), (masqueraded, SHOT), (masqueraded + 1, PASS), (22, PASS)):
            packet = arriving(tcp(family, (family.outside, 5000), (family.node, port), "PA"))
            assert datapath.run("from_netdev", packet).verdict == verdict
        assert datapath.dropped(DropReason.TAKING_OVER) == 2


class TestMasquerade:
    """What pods send out of the cluster."""

    @BOTH
    @BUILD
    def test_node_stands_for_the_pod(self, datapath: Datapath, family: Family, build: object) -> None:
        """The packet leaves under the node's address and a port of the range; the answer finds the pod."""
        request = build(family, (family.client, 5000), (family.outside, 443))
        result = datapath.run("from_pod", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        port = int(result.packet[TCP if build is tcp else UDP].sport)
        assert port in range(40000, 60000)
        same(result.packet, expected(request, hops=1, src=family.node, sport=port))
        answer = arriving(build(family, (family.outside, 443), (family.node, port), **answer_flags(build)))
        result = datapath.run("from_netdev", answer)
        assert result.verdict == REDIRECT
        wanted = expected(answer, hops=1, dst=family.client, dport=5000, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC)
        same(result.packet, wanted)

    @BOTH
    @BUILD
    def test_service_with_its_backend_outside_is_asked_by_the_node(
        self, datapath: Datapath, family: Family, build: object
    ) -> None:
        """As the API server's is, whose answer would never find a pod; the pod knows the Service alone."""
        service = (family.balancer, 443)
        datapath.service(*service, protocol_of(build), [(family.outside, 6443)])
        request = build(family, (family.client, 5000), service)
        result = datapath.run("from_pod", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        port = int(result.packet[TCP if build is tcp else UDP].sport)
        assert port in range(40000, 60000)
        same(result.packet, expected(request, hops=1, src=family.node, sport=port, dst=family.outside, dport=6443))
        answer = arriving(build(family, (family.outside, 6443), (family.node, port), **answer_flags(build)))
        result = datapath.run("from_netdev", answer)
        assert result.verdict == REDIRECT
        changes = {"src": service[0], "sport": service[1], "dst": family.client, "dport": 5000}
        same(result.packet, expected(answer, hops=1, **changes, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC))

    @BUILD
    def test_metadata_server_is_asked_by_the_node(self, datapath: Datapath, build: object) -> None:
        """A cloud's, at an address that is link-local by its number, and knows the cloud's machines alone."""
        server = ("169.254.169.254", 80)
        request = build(V4, (V4.client, 5000), server)
        result = datapath.run("from_pod", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        port = int(result.packet[TCP if build is tcp else UDP].sport)
        same(result.packet, expected(request, hops=1, src=V4.node, sport=port))
        answer = arriving(build(V4, server, (V4.node, port), **answer_flags(build)))
        result = datapath.run("from_netdev", answer)
        assert result.verdict == REDIRECT
        wanted = expected(answer, hops=1, dst=V4.client, dport=5000, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC)
        same(result.packet, wanted)

    @BUILD
    def test_link_local_address_of_the_hosts_is_asked_by_the_pod(self, datapath: Datapath, build: object) -> None:
        """A resolver's for this node alone: what it says passes as it is, both ways."""
        resolver = ("169.254.20.10", 53)
        request = build(V4, (V4.client, 5000), resolver)
        answer = build(V4, resolver, (V4.client, 5000), **answer_flags(build))
        with dp.local_route(resolver[0]):
            for program, packet in (("from_pod", request), ("to_pod", answer)):
                result = datapath.run(program, packet)
                assert result.verdict == PASS
                same(result.packet, packet)

    def test_ipv4_echo_keeps_an_identifier_of_its_own(self, datapath: Datapath) -> None:
        """Ping: the identifier stands for the port."""
        request = Ether(bytes(dp.ethernet() / IP(src=V4.client, dst=V4.outside) / ICMP(id=7, seq=1) / b"ping"))
        result = datapath.run("from_pod", request)
        assert result.verdict == REDIRECT
        identifier = int(result.packet[ICMP].id)
        assert identifier in range(40000, 60000)
        wanted = IP(src=V4.node, dst=V4.outside, ttl=63) / ICMP(id=identifier, seq=1) / b"ping"
        same(result.packet, Ether(bytes(dp.ethernet() / wanted)))
        reply = IP(src=V4.outside, dst=V4.node) / ICMP(type=0, id=identifier, seq=1) / b"ping"
        result = datapath.run("from_netdev", Ether(bytes(Ether(src=dp.ROUTER_MAC, dst=LO_MAC) / reply)))
        wanted = IP(src=V4.outside, dst=V4.client, ttl=63) / ICMP(type=0, id=7, seq=1) / b"ping"
        same(result.packet, Ether(bytes(Ether(src=dp.HOST_MAC, dst=dp.POD_MAC) / wanted)))

    def test_ipv6_echo_keeps_an_identifier_of_its_own(self, datapath: Datapath) -> None:
        """The same by ICMPv6, whose checksum covers the addresses."""
        request = IPv6(src=V6.client, dst=V6.outside) / ICMPv6EchoRequest(id=7, seq=1, data=b"ping")
        result = datapath.run("from_pod", Ether(bytes(dp.ethernet() / request)))
        assert result.verdict == REDIRECT
        identifier = int(result.packet[ICMPv6EchoRequest].id)
        wanted = IPv6(src=V6.node, dst=V6.outside, hlim=63) / ICMPv6EchoRequest(id=identifier, seq=1, data=b"ping")
        same(result.packet, Ether(bytes(dp.ethernet() / wanted)))
        reply = IPv6(src=V6.outside, dst=V6.node) / ICMPv6EchoReply(id=identifier, seq=1, data=b"ping")
        result = datapath.run("from_netdev", Ether(bytes(Ether(src=dp.ROUTER_MAC, dst=LO_MAC) / reply)))
        wanted = IPv6(src=V6.outside, dst=V6.client, hlim=63) / ICMPv6EchoReply(id=7, seq=1, data=b"ping")
        same(result.packet, Ether(bytes(Ether(src=dp.HOST_MAC, dst=dp.POD_MAC) / wanted)))

    @BOTH
    def test_tunnels_packet_keeps_the_pods_address(self, datapath: Datapath, family: Family) -> None:
        """Under the node's a pod could speak for the node in the overlay."""
        packet = udp(family, (family.client, 5000), (family.outside, 4789))
        result = datapath.run("from_pod", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.outside, 4789)])
        packet = udp(family, (family.client, 5000), (family.service, 53))
        assert datapath.run("from_pod", packet).packet[family.ip].src == family.client

    @BOTH
    def test_backend_that_is_nowhere_in_the_cluster_is_not_asked_for_a_client_outside(
        self, datapath: Datapath, family: Family
    ) -> None:
        """Its answers would not come by here."""
        node_port(datapath, family, dp.TCP_PROTOCOL, "203.0.113.77" if family is V4 else "2001:db8:77::1")
        request = arriving(tcp(family, (family.outside, 5000), (family.node, NODE_PORT)))
        assert datapath.run("from_netdev", request).verdict == SHOT
        assert datapath.dropped(DropReason.NO_HANDOVER) == 1

    @BOTH
    @pytest.mark.parametrize(("flags", "verdict"), [("A", REDIRECT), ("SA", REDIRECT), ("FA", REDIRECT), ("R", SHOT)])
    def test_unknown_connection_does_not_leave(
        self, datapath: Datapath, family: Family, flags: str, verdict: int
    ) -> None:
        """The other end knows it by a port that nothing tells here: it is answered with RST, an RST with nothing."""
        packet = tcp(family, (family.client, 5000), (family.outside, 443), flags)
        assert datapath.run("from_pod", packet).verdict == verdict
        assert datapath.dropped(DropReason.NO_FLOW) == 1
        assert datapath.counter(Counter.MASQUERADED) == 0

    @BOTH
    def test_nodes_and_pods_see_the_pods_own_address(self, datapath: Datapath, family: Family) -> None:
        """Nothing within the cluster is masqueraded."""
        for address, verdict in ((family.node, PASS), (family.other_node, REDIRECT), (family.remote, REDIRECT)):
            result = datapath.run("from_pod", tcp(family, (family.client, 5000), (address, 443)))
            assert (result.verdict, result.packet[family.ip].src) == (verdict, family.client)

    @BOTH
    @pytest.mark.parametrize("protocol", [tcp, udp])
    def test_range_that_knows_pods_sees_their_addresses(
        self, datapath: Datapath, family: Family, protocol: Callable[..., Packet]
    ) -> None:
        """The host's stack routes it as it is, and the answer comes to the pod; others are masqueraded as before, and
        so is what has begun before."""
        elsewhere = "198.18.7.7" if family is V4 else "2001:db8:7::7"
        begun = protocol(family, (family.client, 4000), (family.outside, 443))
        assert datapath.run("from_pod", begun).packet[family.ip].src == family.node
        datapath.unmasqueraded("203.0.113.0/24" if family is V4 else "2001:db8:ffff::/48")
        packet = protocol(family, (family.client, 5000), (family.outside, 443))
        result = datapath.run("from_pod", packet)
        assert result.verdict == PASS
        same(result.packet, packet)
        answer = arriving(protocol(family, (family.outside, 443), (family.client, 5000)))
        result = datapath.run("from_netdev", answer)
        assert result.verdict == REDIRECT
        same(result.packet, expected(answer, hops=1, eth_src=dp.HOST_MAC, eth_dst=dp.POD_MAC))
        for other in (begun, protocol(family, (family.client, 5000), (elsewhere, 443))):
            assert datapath.run("from_pod", other).packet[family.ip].src == family.node

    @pytest.mark.parametrize("known", [V4, V6], ids=["IPv4", "IPv6"])
    def test_all_of_a_family_that_knows_pods_is_nothing_of_the_other(self, datapath: Datapath, known: Family) -> None:
        """IPv4's addresses have a place among IPv6's in the maps."""
        datapath.unmasqueraded("0.0.0.0/0" if known is V4 else "::/0")
        for family in (V4, V6):
            sent = datapath.run("from_pod", tcp(family, (family.client, 5000), (family.outside, 443))).packet
            assert sent[family.ip].src == (family.client if family is known else family.node)

    def test_unknown_device_is_left_to_the_stack(self, datapath: Datapath) -> None:
        """Traffic that leaves by a device which is not of the underlay is not ours to masquerade."""
        datapath.delete("devices", struct.pack("=I", dp.LO))
        packet = tcp(V4, (V4.client, 5000), (V4.outside, 443))
        result = datapath.run("from_pod", packet)
        assert result.verdict == PASS
        same(result.packet, packet)

    def test_exhausted_ports_are_a_counted_drop(self, datapath: Datapath) -> None:
        """Of 20,000 ports to one destination none is left: the reason is counted."""
        datapath.run("from_pod", tcp(V4, (V4.client, 5000), (V4.outside, 443)))
        flow = datapath.flow(key((V4.client, 5000), (V4.outside, 443)))
        assert flow is not None
        held = datapath.flow(flow.twin)
        assert held is not None
        lasting = held._replace(expires_ns=held.expires_ns + HOUR_NS)
        datapath.write_flows((flow.twin._replace(dport=port), lasting) for port in range(40000, 60000))
        assert datapath.run("from_pod", tcp(V4, (V4.client, 5001), (V4.outside, 443))).verdict == SHOT
        assert datapath.dropped(DropReason.PORTS_EXHAUSTED) == 1

    def test_ports_of_closed_connections_are_used_where_no_other_is_left(self, datapath: Datapath) -> None:
        """Else a node's pods could open 667 connections a second to one address and port, and no more."""
        datapath.run("from_pod", tcp(V4, (V4.client, 5000), (V4.outside, 443)))
        flow = datapath.flow(key((V4.client, 5000), (V4.outside, 443)))
        assert flow is not None
        held = datapath.flow(flow.twin)
        assert held is not None
        closed = held._replace(state=FlowState.CLOSED)
        datapath.write_flows((flow.twin._replace(dport=port), closed) for port in range(40000, 60000))
        request = tcp(V4, (V4.client, 5001), (V4.outside, 443))
        packet = datapath.run("from_pod", request).packet
        assert 40000 <= packet[TCP].sport < 60000
        same(packet, expected(request, hops=1, src=V4.node, sport=int(packet[TCP].sport)))

    def test_last_five_per_cent_of_the_ports_are_found(self, datapath: Datapath) -> None:
        """With 19,000 of 20,000 taken, a new flow still finds a port: 256 draws miss them once in 500,000 times."""
        datapath.run("from_pod", tcp(V4, (V4.client, 5000), (V4.outside, 443)))
        flow = datapath.flow(key((V4.client, 5000), (V4.outside, 443)))
        assert flow is not None
        held = datapath.flow(flow.twin)
        assert held is not None
        lasting = held._replace(expires_ns=held.expires_ns + HOUR_NS)
        datapath.write_flows((flow.twin._replace(dport=port), lasting) for port in range(40000, 59000))
        found = [
            datapath.run("from_pod", tcp(V4, (V4.client, port), (V4.outside, 443))).verdict
            for port in range(6000, 6200)
        ]
        assert found.count(REDIRECT) >= 199

    def test_port_of_a_hosts_socket_is_not_used(self, datapath: Datapath) -> None:
        """A flow of a pod never takes the answers of the host's own socket."""
        taken = set()
        with dp.host_socket(kernel.bind_udp, 40123):
            # All but two ports are taken: the host's, and one more.
            datapath.run("from_pod", udp(V4, (V4.client, 5000), (V4.outside, 53)))
            flow = datapath.flow(key((V4.client, 5000), (V4.outside, 53), dp.UDP_PROTOCOL))
            assert flow is not None
            held = datapath.flow(flow.twin)
            assert held is not None
            lasting = held._replace(expires_ns=held.expires_ns + HOUR_NS)
            ports = set(range(40000, 60000)) - {40123, 50123}
            datapath.write_flows((flow.twin._replace(dport=port), lasting) for port in ports)
            for port in range(6000, 7000):
                result = datapath.run("from_pod", udp(V4, (V4.client, port), (V4.outside, 53)))
                if result.verdict == REDIRECT:
                    taken.add(int(result.packet[UDP].sport))
        assert taken == {50123}
