# SPDX-License-Identifier: Apache-2.0
"""SCTP: associations are followed like connections, and where a port changes, the checksum changes with it."""

import pytest
from scapy.layers.inet import ICMP, IP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)
from scapy.packet import Packet, Raw

from bpf.abi import Counter, DropReason, FlowState, FrontendFlag, PodKey
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests.datapath import BOTH, REDIRECT, SHOT, V4, V6, Datapath, Family, arriving, expected, key, same, sctp

pytestmark = pytest.mark.root

CLIENT, SERVER = 40000, 8080
NO_MAC = "00:00:00:00:00:00"  # that of lo


def forth(family: Family, chunk: Packet) -> Packet:
    return sctp(family, (family.client, CLIENT), (family.service, 80), chunk)


def back(family: Family, chunk: Packet) -> Packet:
    return sctp(family, (family.server, SERVER), (family.client, CLIENT), chunk)


def to_server(packet: Packet, **changes: str | int) -> Packet:
    return expected(packet, hops=1, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC, **changes)


@pytest.fixture
def served(datapath: Datapath) -> Datapath:
    """With a Service of each family whose backend listens at another port."""
    for number, family in enumerate((V4, V6), 1):
        datapath.service(family.service, 80, dp.SCTP_PROTOCOL, [(family.server, SERVER)], number)
    return datapath


def exchange(datapath: Datapath, family: Family, *chunks: tuple[str, Packet]) -> FlowState:
    """Sends chunks to (>) the Service and from (<) its backend, each packet to be translated whole; the flow's state
    afterwards."""
    for direction, chunk in chunks:
        packet = forth(family, chunk) if direction == ">" else back(family, chunk)
        result = datapath.run("from_pod", packet)
        assert result.verdict == REDIRECT
        if direction == ">":
            same(result.packet, to_server(packet, dst=family.server, dport=SERVER))
        else:
            link = {"eth_src": dp.HOST_MAC, "eth_dst": dp.POD_MAC}
            same(result.packet, expected(packet, hops=1, src=family.service, sport=80, **link))
    flow = datapath.flow(key((family.client, CLIENT), (family.service, 80), dp.SCTP_PROTOCOL))
    assert flow
    return FlowState(flow.state)


OPENED = (
    (">", SCTPChunkInit(init_tag=5)),
    ("<", SCTPChunkInitAck(init_tag=6)),
    (">", SCTPChunkCookieEcho(cookie=b"cookie")),
    ("<", SCTPChunkCookieAck()),
)


@BOTH
def test_association_with_a_service_is_translated_both_ways(served: Datapath, family: Family) -> None:
    """Each packet whole, with its checksum."""
    assert exchange(served, family, *OPENED[:1]) == FlowState.NEW
    assert exchange(served, family, *OPENED[1:], (">", SCTPChunkData(data=b"odd"))) == FlowState.ESTABLISHED
    assert served.counter(Counter.FLOWS_CREATED) == 1


@BOTH
@pytest.mark.parametrize(
    ("chunks", "state"),
    [
        (((">", SCTPChunkShutdown()),), FlowState.CLOSING),
        (((">", SCTPChunkShutdown()), ("<", SCTPChunkShutdownAck())), FlowState.CLOSED),
        (
            (("<", SCTPChunkShutdown()), (">", SCTPChunkShutdownAck()), ("<", SCTPChunkShutdownComplete())),
            FlowState.CLOSED,
        ),
        ((("<", SCTPChunkAbort()),), FlowState.RESET),
    ],
    ids=["one side", "both sides", "the server first", "abort"],
)
def test_end_of_an_association_is_seen(
    served: Datapath, family: Family, chunks: tuple[tuple[str, Packet], ...], state: FlowState
) -> None:
    """By its chunks, as of a connection by its flags; all of them get through."""
    assert exchange(served, family, *OPENED, *chunks) == state


@pytest.mark.parametrize("size", [1, 2, 3, 4, 255, 256, 1001, 1400])
def test_checksum_is_right_at_any_length(served: Datapath, size: int) -> None:
    """What a change of ports adds to it depends on how much comes behind them."""
    assert exchange(served, V4, *OPENED, (">", SCTPChunkData(data=(bytes(range(256)) * 6)[:size]))) is not None


@BOTH
def test_checksum_that_the_device_is_to_make_stays_away(served: Datapath, family: Family) -> None:
    """0, as a local socket leaves it: the device sums up what stands there."""
    packet = forth(family, SCTPChunkInit(init_tag=5))
    packet[SCTP].chksum = 0
    wanted = to_server(packet, dst=family.server, dport=SERVER)
    wanted[SCTP].chksum = 0
    same(served.run("from_pod", packet).packet, wanted)


@BOTH
def test_service_without_backend_is_refused_with_port_unreachable(datapath: Datapath, family: Family) -> None:
    """As from kube-proxy; an ABORT, which RFC 9260 would allow, is not made. An ABORT itself gets no answer."""
    datapath.service(family.service, 80, dp.SCTP_PROTOCOL, [])
    packet = forth(family, SCTPChunkInit(init_tag=5))
    result = datapath.run("from_pod", packet, summed=False)
    assert result.verdict == REDIRECT
    error = ICMP(type=3, code=3) if family is V4 else ICMPv6DestUnreach(code=4)
    quoted = Raw(bytes(packet[family.ip])[: len(family.ip()) + 8])
    assert bytes(result.packet[type(error)])[8:] == bytes(quoted)
    assert result.packet[family.ip].src == family.service
    assert datapath.run("from_pod", forth(family, SCTPChunkAbort())).verdict == SHOT
    assert datapath.dropped(DropReason.NO_BACKEND) == 2


@BOTH
def test_association_with_a_pod_that_is_gone_is_refused(datapath: Datapath, family: Family) -> None:
    """With the client's packet as it has sent it in the quote: of another its kernel would know nothing."""
    datapath.service(family.any_node, 30080, dp.SCTP_PROTOCOL, [(family.server, SERVER)], flags=FrontendFlag(0))
    ends = (family.outside, CLIENT), (family.node, 30080)
    datapath.run("from_netdev", arriving(sctp(family, *ends)))
    datapath.delete("pods", PodKey(packed(family.server)).pack())
    packet = arriving(sctp(family, *ends, SCTPChunkData(data=b"data")))
    result = datapath.run("from_netdev", packet, summed=False)
    assert result.verdict == REDIRECT
    error = ICMP if family is V4 else ICMPv6DestUnreach
    assert bytes(result.packet[error])[8:] == bytes(packet[family.ip])[: len(family.ip()) + 8]
    assert result.packet[family.ip].src == family.node
    assert datapath.dropped(DropReason.NO_POD) == 1


@BOTH
def test_association_whose_flow_is_lost_is_refused(served: Datapath, family: Family) -> None:
    """Another backend would not know it."""
    result = served.run("from_pod", forth(family, SCTPChunkData(data=b"data")), summed=False)
    assert result.verdict == REDIRECT
    assert served.dropped(DropReason.NO_FLOW) == 1


@BOTH
def test_two_associations_of_one_port_are_kept_apart(served: Datapath, family: Family) -> None:
    """One to the Service, one straight to its backend: the second gets another port, and a checksum for it."""
    exchange(served, family, *OPENED)
    packet = sctp(family, (family.client, CLIENT), (family.server, SERVER), SCTPChunkInit(init_tag=9))
    result = served.run("from_pod", packet)
    port = result.packet[SCTP].sport
    assert port != CLIENT
    same(result.packet, to_server(packet, sport=port))
    assert served.counter(Counter.PORTS_REWRITTEN) >= 1


@BOTH
def test_association_leaves_the_cluster_under_the_nodes_address(datapath: Datapath, family: Family) -> None:
    """From a port of masquerade's, and its answer finds the pod."""
    packet = sctp(family, (family.client, CLIENT), (family.outside, 5000), SCTPChunkInit(init_tag=5))
    result = datapath.run("from_pod", packet)
    assert result.verdict == REDIRECT
    port = result.packet[SCTP].sport
    same(result.packet, expected(packet, hops=1, src=family.node, sport=port))
    answer = sctp(family, (family.outside, 5000), (family.node, port), SCTPChunkInitAck(init_tag=6))
    answer = expected(answer, eth_dst=NO_MAC)
    result = datapath.run("from_netdev", answer)
    assert result.verdict == REDIRECT
    link = {"eth_src": dp.HOST_MAC, "eth_dst": dp.POD_MAC}
    same(result.packet, expected(answer, hops=1, dst=family.client, dport=CLIENT, **link))


@BOTH
def test_client_outside_reaches_a_node_port(datapath: Datapath, family: Family) -> None:
    """With its own address."""
    datapath.service(family.any_node, 30080, dp.SCTP_PROTOCOL, [(family.server, SERVER)], flags=FrontendFlag(0))
    packet = sctp(family, (family.outside, CLIENT), (family.node, 30080), SCTPChunkInit(init_tag=5))
    packet = expected(packet, eth_dst=NO_MAC)
    result = datapath.run("from_netdev", packet)
    assert result.verdict == REDIRECT
    same(result.packet, to_server(packet, dst=family.server, dport=SERVER))


def test_fragment_whose_port_would_change_is_dropped(served: Datapath) -> None:
    """Its checksum is over the whole, of which it does not know the length. SCTP itself makes no fragments."""
    whole = IP(src=V4.client, dst=V4.service) / SCTP(sport=CLIENT, dport=80) / SCTPChunkInit() / Raw(bytes(3000))
    first = Ether(bytes(dp.ethernet() / fragment(whole, 1400)[0]))
    assert served.run("from_pod", first).verdict == SHOT
    assert served.dropped(DropReason.REWRITE_FAILED) == 1


def test_scapys_checksum_is_that_of_the_standard() -> None:
    """RFC 9260's CRC32c, bit by bit: the other tests are no worth without."""
    packet = bytes(forth(V6, SCTPChunkData(data=b"123456789"))[SCTP])
    state = 0xFFFFFFFF
    for octet in packet[:8] + bytes(4) + packet[12:]:
        state ^= octet
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert (state ^ 0xFFFFFFFF).to_bytes(4, "little") == packet[8:12]
    assert IPv6 in forth(V6, SCTPChunkAbort())
