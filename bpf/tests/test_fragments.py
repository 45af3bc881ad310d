# SPDX-License-Identifier: Apache-2.0
"""Datagrams in fragments: what leaves is the fragments of the datagram as it would have left whole."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import GRE, Ether
from scapy.packet import Packet

from bpf.abi import Counter, DropReason, FragmentKey, FrontendFlag
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests.datapath import BOTH, PASS, REDIRECT, SHOT, V4, V6, Datapath, Family, same

pytestmark = pytest.mark.root

NO_MAC = "00:00:00:00:00:00"  # that of lo
PAYLOAD = bytes(range(256)) * 20
ID = 7
SERVER_MACS = (dp.SERVER_HOST_MAC, dp.SERVER_MAC)
CLIENT_MACS = (dp.HOST_MAC, dp.POD_MAC)


def pieces(family: Family, source: str, destination: str, transport: Packet, hops: int = 0) -> list[Packet]:
    """A datagram's fragments, `hops` on their way, without their frames' headers."""
    if family is V4:
        return fragment(IP(src=source, dst=destination, id=ID, ttl=64 - hops) / transport, 1400)
    network = IPv6(src=source, dst=destination, hlim=64 - hops)
    # built, so that the checksum is over the whole
    whole = IPv6(bytes(network / IPv6ExtHdrFragment(id=ID) / transport))
    return fragment6(whole, 1450)


def framed(piece: Packet, macs: tuple[str, str] = (dp.POD_MAC, dp.HOST_MAC)) -> Packet:
    """macs: the sender's and the receiver's."""
    return Ether(bytes(dp.ethernet(*macs) / piece))


def question(family: Family, destination: tuple[str, int], hops: int = 0, port: int = 40000) -> list[Packet]:
    return pieces(family, family.client, destination[0], UDP(sport=port, dport=destination[1]) / PAYLOAD, hops)


def sent(datapath: Datapath, arriving: list[Packet], leaving: list[Packet], macs: tuple[str, str]) -> None:
    """Sends fragments from a pod; asserts what becomes of each."""
    assert len(arriving) == len(leaving) > 2
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("from_pod", framed(piece))
        assert result.verdict == REDIRECT
        same(result.packet, framed(wanted, macs))


@BOTH
def test_datagram_to_a_service_and_its_answer_are_translated(datapath: Datapath, family: Family) -> None:
    """Address by address and port by port, with the checksum of the whole in the first fragment."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, 5353)])
    sent(datapath, question(family, (family.service, 53)), question(family, (family.server, 5353), 1), SERVER_MACS)
    answer = UDP(sport=5353, dport=40000) / PAYLOAD, UDP(sport=53, dport=40000) / PAYLOAD
    arriving = pieces(family, family.server, family.client, answer[0])
    sent(datapath, arriving, pieces(family, family.service, family.client, answer[1], 1), CLIENT_MACS)
    assert datapath.counter(Counter.FLOWS_CREATED) == 1


@BOTH
def test_hosts_datagram_past_the_socket_hooks_is_translated(datapath: Datapath, family: Family) -> None:
    """Each fragment goes where the first one does."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.remote, 5353)])
    arriving = pieces(family, family.node, family.service, UDP(sport=40000, dport=53) / PAYLOAD)
    leaving = pieces(family, family.node, family.remote, UDP(sport=40000, dport=5353) / PAYLOAD)
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("to_netdev", framed(piece))
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, framed(wanted))
    assert datapath.counter(Counter.FLOWS_CREATED) == 1


@BOTH
def test_datagram_between_pods_is_delivered(datapath: Datapath, family: Family) -> None:
    """As it is, in any order; behind the first one they are a flow's."""
    arriving, leaving = (question(family, (family.server, 5353), hops) for hops in (0, 1))
    sent(datapath, arriving[::-1], leaving[::-1], SERVER_MACS)


@BOTH
def test_datagrams_of_one_port_with_others_between_are_kept_apart(datapath: Datapath, family: Family) -> None:
    """By their identification, not by who came last."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, 5353)])
    one, other = (question(family, (family.service, 53), port=port) for port in (40000, 40001))
    for piece in other:
        if family is V4:
            piece[IP].id = ID + 1
        else:
            piece[IPv6ExtHdrFragment].id = ID + 1
    for piece in (piece for pair in zip(one, other, strict=True) for piece in pair):
        result = datapath.run("from_pod", framed(piece))
        assert (result.verdict, result.packet[family.ip].dst) == (REDIRECT, family.server)


@BOTH
def test_later_fragment_whose_first_was_refused_ends_here(datapath: Datapath, family: Family) -> None:
    """It is dropped and counted, and only the first one gets an answer."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [])
    datapath.cluster_ip(family.service)
    arriving = question(family, (family.service, 53))
    verdicts = [datapath.run("from_pod", framed(piece), summed=False).verdict for piece in arriving]
    assert verdicts == [REDIRECT] + [SHOT] * (len(verdicts) - 1)
    assert datapath.dropped(DropReason.NO_BACKEND) == 1
    assert datapath.dropped(DropReason.FRAGMENT) == len(verdicts) - 1
    assert datapath.counter(Counter.REFUSALS) == 1


@BOTH
def test_ping_in_fragments_between_pods_is_delivered(datapath: Datapath, family: Family) -> None:
    """An echo's identifier is a port."""
    echo = ICMP(id=9) if family is V4 else ICMPv6EchoRequest(id=9)
    arriving, leaving = (pieces(family, family.client, family.server, echo / PAYLOAD, hops) for hops in (0, 1))
    sent(datapath, arriving, leaving, SERVER_MACS)


@BOTH
def test_answer_of_a_pod_is_translated_at_its_client(datapath: Datapath, family: Family) -> None:
    """What comes to a pod by the host's stack is translated at the pod's link, fragment by fragment."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, 5353)])
    for piece in question(family, (family.service, 53)):
        datapath.run("from_pod", framed(piece))
    arriving = pieces(family, family.server, family.client, UDP(sport=5353, dport=40000) / PAYLOAD)
    leaving = pieces(family, family.service, family.client, UDP(sport=53, dport=40000) / PAYLOAD)
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("to_pod", framed(piece))
        assert result.verdict == PASS
        same(result.packet, framed(wanted))


@BOTH
def test_ping_in_fragments_leaves_the_cluster_under_the_nodes_address(datapath: Datapath, family: Family) -> None:
    """Its answer's fragments find the pod; the identifier is exchanged in the first one of either."""
    ask, answer = (ICMP, {"type": 0}) if family is V4 else (ICMPv6EchoRequest, {"type": 129})
    seen = [
        datapath.run("from_pod", framed(piece))
        for piece in pieces(family, family.client, family.outside, ask(id=9) / PAYLOAD)
    ]
    assert {(one.verdict, one.packet[family.ip].src) for one in seen} == {(REDIRECT, family.node)}
    identifier = seen[0].packet[ask].id
    arriving = pieces(family, family.outside, family.node, ask(id=identifier, **answer) / PAYLOAD)
    leaving = pieces(family, family.outside, family.client, ask(id=9, **answer) / PAYLOAD, 1)
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("from_netdev", framed(piece, (dp.ROUTER_MAC, NO_MAC)))
        assert result.verdict == REDIRECT
        same(result.packet, framed(wanted, CLIENT_MACS))


@BOTH
def test_forged_first_fragment_misdirects_nothing(datapath: Datapath, family: Family) -> None:
    """What another pod sends under the client's address is dropped before it is noted."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, 5353)])
    arriving, leaving = question(family, (family.service, 53)), question(family, (family.server, 5353), 1)
    forged = question(family, (family.service, 53), port=50000)[0]
    datapath.run("from_pod", framed(arriving[0]))
    with dp.another_device() as device:
        assert datapath.run("from_pod", framed(forged), ifindex=device).verdict == SHOT
        assert datapath.dropped(DropReason.SPOOFED, device) == 1
    sent(datapath, arriving[1:], leaving[1:], SERVER_MACS)


@BOTH
def test_identification_is_free_again_once_nobody_waits_for_the_rest(datapath: Datapath, family: Family) -> None:
    """After 30 s a note is of another datagram; its later fragment to a cluster IP ends here."""
    datapath.service(family.service, 53, dp.UDP_PROTOCOL, [(family.server, 5353)])
    datapath.cluster_ip(family.service)
    first, second, *_ = question(family, (family.service, 53))
    datapath.run("from_pod", framed(first))
    protocol, identification = (dp.UDP_PROTOCOL, ID << 8) if family is V4 else (0, ID << 24)
    note = FragmentKey(packed(family.client), packed(family.service), identification, protocol)
    datapath.age_fragments([note], 29 * 10**9)
    assert datapath.run("from_pod", framed(second)).verdict == REDIRECT
    datapath.age_fragments([note], 2 * 10**9)
    assert datapath.run("from_pod", framed(second)).verdict == SHOT
    assert datapath.dropped(DropReason.FRAGMENT) == 1


def test_extension_header_in_the_fragments_is_no_port(datapath: Datapath) -> None:
    """What stands behind the fragment header stands there in the first one alone; in the others it is payload."""
    datapath.service(V6.service, 53, dp.UDP_PROTOCOL, [(V6.server, 5353)])

    def with_options(destination: tuple[str, int], hops: int) -> list[Packet]:
        datagram = IPv6ExtHdrDestOpt() / UDP(sport=40000, dport=destination[1]) / PAYLOAD
        return pieces(V6, V6.client, destination[0], datagram, hops)

    sent(datapath, with_options((V6.service, 53), 0), with_options((V6.server, 5353), 1), SERVER_MACS)


@BOTH
def test_later_fragment_does_not_leave_the_cluster_under_the_pods_address(datapath: Datapath, family: Family) -> None:
    """Without its first one's flow it would go past masquerade."""
    _, *later = question(family, (family.outside, 53))
    assert {datapath.run("from_pod", framed(piece)).verdict for piece in later} == {SHOT}
    assert datapath.dropped(DropReason.FRAGMENT) == len(later)


@BOTH
def test_fragments_of_what_has_no_ports_leave_as_they_are(datapath: Datapath, family: Family) -> None:
    """GRE say: the host's stack's, the first one and, as far as it can be told, the others."""
    arriving = [Ether(bytes(framed(piece))) for piece in pieces(family, family.client, family.outside, GRE() / PAYLOAD)]
    for piece in arriving:
        result = datapath.run("from_pod", piece)
        assert result.verdict == PASS
        same(result.packet, piece)


@BOTH
def test_later_fragment_refused_at_a_load_balancers_address_is_not_routed_back(
    datapath: Datapath, family: Family
) -> None:
    """Its first one was dropped, as the client is in no source range; the host's stack would forward this one."""
    address = "198.51.100.5" if family is V4 else "2001:db8:5::5"
    datapath.service(address, 53, dp.UDP_PROTOCOL, [(family.server, 5353)], flags=FrontendFlag.SOURCES)
    arriving = pieces(family, family.outside, address, UDP(sport=40000, dport=53) / PAYLOAD)
    frames = [framed(piece, (dp.ROUTER_MAC, NO_MAC)) for piece in arriving]
    assert {datapath.run("from_netdev", frame).verdict for frame in frames} == {SHOT}
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1
    assert datapath.dropped(DropReason.FRAGMENT) == len(frames) - 1


@BOTH
def test_fragments_of_an_outside_client_reach_a_backend_here(datapath: Datapath, family: Family) -> None:
    """At a NodePort, with the client's address; the answer's fragments leave from the node's."""
    datapath.service(family.any_node, 30053, dp.UDP_PROTOCOL, [(family.server, 5353)], flags=FrontendFlag(0))
    ask = UDP(sport=40000, dport=30053) / PAYLOAD, UDP(sport=40000, dport=5353) / PAYLOAD
    arriving = pieces(family, family.outside, family.node, ask[0])
    leaving = pieces(family, family.outside, family.server, ask[1], 1)
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("from_netdev", framed(piece, (dp.ROUTER_MAC, NO_MAC)))
        assert result.verdict == REDIRECT
        same(result.packet, framed(wanted, SERVER_MACS))
    answer = UDP(sport=5353, dport=40000) / PAYLOAD, UDP(sport=30053, dport=40000) / PAYLOAD
    arriving = pieces(family, family.server, family.outside, answer[0])
    leaving = pieces(family, family.node, family.outside, answer[1], 1)
    sent(datapath, arriving, leaving, (dp.POD_MAC, dp.HOST_MAC))


@BOTH
def test_fragments_of_a_host_backends_answer_leave_as_the_services(datapath: Datapath, family: Family) -> None:
    """A NodePort whose backend is in the host's network: to_netdev translates what the host's stack has fragmented."""
    datapath.service(family.any_node, 30053, dp.UDP_PROTOCOL, [(family.node, 5353)], flags=FrontendFlag(0))
    for piece in pieces(family, family.outside, family.node, UDP(sport=40000, dport=30053) / PAYLOAD):
        assert datapath.run("from_netdev", framed(piece, (dp.ROUTER_MAC, NO_MAC))).verdict == PASS
    arriving = pieces(family, family.node, family.outside, UDP(sport=5353, dport=40000) / PAYLOAD)
    leaving = pieces(family, family.node, family.outside, UDP(sport=30053, dport=40000) / PAYLOAD)
    for piece, wanted in zip(arriving, leaving, strict=True):
        result = datapath.run("to_netdev", framed(piece))
        assert result.verdict == PASS
        same(result.packet, framed(wanted))


@BOTH
def test_stream_in_fragments_is_translated(datapath: Datapath, family: Family) -> None:
    """TCP, too: a segment of a connection that is known."""
    datapath.service(family.service, 80, dp.TCP_PROTOCOL, [(family.server, 8080)])
    datapath.run("from_pod", dp.tcp(family, (family.client, 40000), (family.service, 80)))

    def segment(destination: tuple[str, int], hops: int) -> list[Packet]:
        return pieces(
            family, family.client, destination[0], TCP(sport=40000, dport=destination[1], flags="A") / PAYLOAD, hops
        )

    sent(datapath, segment((family.service, 80), 0), segment((family.server, 8080), 1), SERVER_MACS)
