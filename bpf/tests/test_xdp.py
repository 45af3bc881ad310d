# SPDX-License-Identifier: Apache-2.0
"""The XDP program on single frames, beside from_netdev on the same maps: what it does, TC would have done; all else it
passes as it came. MACs of next hops are lo's, which are zero; those of real ones are e2e's to see."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.abi import DropReason, FlowFlag, FlowState, FrontendFlag, Tuple, Way, WayKind
from bpf.tests import datapath as dp
from bpf.tests import kernel
from bpf.tests.datapath import (
    BOTH,
    BUILD,
    LO_MAC,
    REDIRECT,
    SHOT,
    V4,
    V6,
    XDP_DROP,
    XDP_PASS,
    XDP_TX,
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

Build = Callable[..., Packet]

PORT = 5000
EXTERNAL = FrontendFlag.EXTERNAL


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Everything is reached by lo, and the other node has been."""
    with dp.routed_namespace():
        dp.run_on(kernel.know_neighbours, [V4.other_node, V6.other_node, V4.outside, V6.outside])
        yield


def asking(family: Family, build: Build, port: int = PORT) -> Packet:
    """A client's packet for a load balancer's address; of TCP in mid-stream."""
    more = {"flags": "PA"} if build is tcp else {}
    return arriving(build(family, (family.outside, port), (family.balancer, 80), **more))


def carrying(packet: Packet, payload: bytes) -> Packet:
    """The packet with more payload, its lengths and checksums as they are then."""
    longer = packet / payload
    for layer, field in ((IP, "len"), (IPv6, "plen"), (UDP, "len")):
        if layer in longer:
            delattr(longer[layer], field)
    return expected(longer)


def answering(family: Family, build: Build, port: int = PORT) -> Packet:
    """What the other node's backend answers."""
    more = {"flags": "PA"} if build is tcp else {}
    return arriving(build(family, (family.remote, 8080), (family.outside, port), **more), dp.PEER_MAC)


def begin(datapath: Datapath, family: Family, build: Build, port: int = PORT) -> Tuple:
    """Has TC begin a flow of an outside client with a backend on the other node, and see its answer; its key."""
    flags = EXTERNAL
    datapath.service(family.balancer, 80, protocol_of(build), [(family.remote, 8080)], flags=flags)
    first = build(family, (family.outside, port), (family.balancer, 80))
    assert datapath.run("from_netdev", arriving(first)).verdict == REDIRECT
    more = {"flags": "SA"} if build is tcp else {}
    answer = build(family, (family.remote, 8080), (family.outside, port), **more)
    assert datapath.run("from_netdev", arriving(answer, dp.PEER_MAC)).verdict == REDIRECT
    entry = key((family.outside, port), (family.balancer, 80), protocol_of(build))
    flow = datapath.flow(entry)
    assert flow
    answers = datapath.flow(flow.twin)
    assert answers
    # a second of this machine's may be over before the test is
    for one, value in ((entry, flow), (flow.twin, answers)):
        datapath.write_flow(one, value._replace(seen_ns=value.seen_ns + 3600 * 10**9))
    return entry


def assert_passed(datapath: Datapath, packet: Packet) -> None:
    result = datapath.run_xdp(packet)
    assert result.verdict == XDP_PASS
    same(result.packet, packet)


@BOTH
@BUILD
def test_middle_of_a_flow_is_sent_on_both_ways_as_tc_does(datapath: Datapath, family: Family, build: Build) -> None:
    """To the other node under the backend's address, and back under the Service's; one hop less, checksums right."""
    begin(datapath, family, build)
    there = expected(asking(family, build), hops=1, dst=family.remote, dport=8080, eth_src=LO_MAC)
    back = expected(answering(family, build), hops=1, src=family.balancer, sport=80, eth_src=LO_MAC)
    both = (asking(family, build), there), (answering(family, build), back)
    for packet, wanted in both:
        result = datapath.run_xdp(packet)
        assert result.verdict == XDP_TX
        same(result.packet, wanted)
    for packet, wanted in both:
        by_tc = datapath.run("from_netdev", packet)
        assert by_tc.verdict == REDIRECT
        same(expected(by_tc.packet, eth_src=LO_MAC, eth_dst=LO_MAC), wanted)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 65535), st.binary(min_size=0, max_size=33), st.sampled_from([V4, V6]), st.sampled_from([tcp, udp])
)
def test_checksums_are_right_whatever_is_translated(
    datapath: Datapath, port: int, payload: bytes, family: Family, build: Build
) -> None:
    """As anew, of any port and payload."""
    datapath.reset()
    begin(datapath, family, build, port)
    packet = carrying(asking(family, build, port), payload)
    result = datapath.run_xdp(packet)
    assert result.verdict == XDP_TX
    same(result.packet, expected(packet, hops=1, dst=family.remote, dport=8080, eth_src=LO_MAC))


def test_udp_without_checksum_keeps_none(datapath: Datapath) -> None:
    """IPv4's may have none."""
    begin(datapath, V4, udp)
    packet = asking(V4, udp)
    packet[UDP].chksum = 0
    wanted = expected(packet, hops=1, dst=V4.remote, dport=8080, eth_src=LO_MAC)
    wanted[UDP].chksum = 0
    result = datapath.run_xdp(packet)
    assert result.verdict == XDP_TX
    same(result.packet, wanted)


@BOTH
@pytest.mark.parametrize("flags", ["S", "FA", "RA", "SA"])
def test_what_opens_and_closes_is_tcs(datapath: Datapath, family: Family, flags: str) -> None:
    """It changes the flow's state."""
    begin(datapath, family, tcp)
    assert_passed(datapath, arriving(tcp(family, (family.outside, PORT), (family.balancer, 80), flags=flags)))


@BOTH
@BUILD
@pytest.mark.parametrize(
    "change",
    [
        {"state": FlowState.NEW},
        {"state": FlowState.CLOSING},
        {"flags": FlowFlag.HANDED_OVER},
        {"flags": FlowFlag.RST},
        {"seen_ns": 0},
        {"expires_ns": 0},
        *({"way": Way(dp.LO, kind, bytes(16))} for kind in WayKind if kind not in (WayKind.ROUTE, WayKind.NODE)),
    ],
    ids=[
        "new",
        "closing",
        "handed over",
        "reset lately",
        "not seen for a second",
        "expired",
        *(f"way {kind.name.lower()}" for kind in WayKind if kind not in (WayKind.ROUTE, WayKind.NODE)),
    ],
)
def test_flow_of_which_tc_must_hear_is_tcs(
    datapath: Datapath, family: Family, build: Build, change: dict[str, Any]
) -> None:
    """Whose state may change, whose sender is noted, whose entry is to be written again; whose way is another."""
    entry = begin(datapath, family, build)
    flow = datapath.flow(entry)
    assert flow
    datapath.write_flow(entry, flow._replace(**change))
    assert_passed(datapath, asking(family, build))


@BOTH
def test_udp_whose_backend_is_gone_is_tcs(datapath: Datapath, family: Family) -> None:
    """It is given another one; a connection stays, and so do answers."""
    begin(datapath, family, udp)
    begin(datapath, family, tcp, PORT + 1)
    datapath.delete("backends", (10).to_bytes(4, "little"))
    assert_passed(datapath, asking(family, udp))
    assert datapath.run_xdp(answering(family, udp)).verdict == XDP_TX
    assert datapath.run_xdp(asking(family, tcp, PORT + 1)).verdict == XDP_TX


@BOTH
def test_udp_of_no_service_is_tcs(datapath: Datapath, family: Family) -> None:
    """A Service may come, which it then asks."""
    entry = begin(datapath, family, udp)
    flow = datapath.flow(entry)
    assert flow
    datapath.write_flow(entry, flow._replace(backend_id=0))
    assert_passed(datapath, asking(family, udp))


@BOTH
def test_udp_checksum_is_never_zero(datapath: Datapath, family: Family) -> None:
    """That would say that there is none (RFC 768): a datagram whose sum comes to it."""
    begin(datapath, family, udp)

    def sent_on(payload: bytes) -> Packet:
        packet = carrying(asking(family, udp), payload)
        return expected(packet, hops=1, dst=family.remote, dport=8080, eth_src=LO_MAC)

    payload = int(sent_on(bytes(2))[UDP].chksum).to_bytes(2, "big")
    assert sent_on(payload)[UDP].chksum == 0xFFFF
    result = datapath.run_xdp(carrying(asking(family, udp), payload))
    assert result.verdict == XDP_TX
    same(result.packet, sent_on(payload))


@BOTH
@BUILD
def test_frames_that_need_more_than_translation_are_tcs(datapath: Datapath, family: Family, build: Build) -> None:
    """From another node, for another host, at their last hop, too large, with options or extensions, fragments."""
    begin(datapath, family, build)
    packet = asking(family, build)
    last, optional = packet.copy(), packet.copy()
    large = carrying(packet, bytes(1501 - len(packet) + 14))
    if family is V4:
        last[IP].ttl, optional[IP].options = 1, b"\x01\x01\x01\x01"
        for one in (last, optional):
            del one[IP].chksum
        optional[IP].ihl = None
        first, later = packet.copy(), packet.copy()
        first[IP].flags, later[IP].frag = "MF", 8
        for one in (first, later):
            del one[IP].chksum
        others = [first, later]
    else:
        last[IPv6].hlim = 1
        inner = optional[IPv6].payload
        optional[IPv6].remove_payload()
        optional[IPv6].nh = 0
        optional = optional / IPv6ExtHdrHopByHop(nh=inner.overload_fields.get(IPv6, {}).get("nh", 6)) / inner
        others = []
    others += [last, large, optional, expected(packet, eth_src=dp.PEER_MAC), expected(packet, eth_dst=dp.ROUTER_MAC)]
    for one in others:
        assert_passed(datapath, Ether(bytes(one)))


@BOTH
def test_frame_whose_headers_contradict_each_other_is_tcs(datapath: Datapath, family: Family) -> None:
    """Longer than what came, a header or a datagram that does not fit into the packet, IPv4's addresses in IPv6."""
    begin(datapath, family, tcp)
    begin(datapath, family, udp)
    cut, offset, short, long = (asking(family, one) for one in (tcp, tcp, udp, udp))
    setattr(cut[family.ip], "len" if family is V4 else "plen", 1000)
    if family is V4:
        del cut[IP].chksum
    offset[TCP].dataofs, short[UDP].len, long[UDP].len = 6, 7, 100
    for one in (cut, offset, short, long):
        assert_passed(datapath, Ether(bytes(one)))
    mapped = asking(V6, tcp)
    mapped[IPv6].src, mapped[IPv6].dst = f"::ffff:{V4.outside}", f"::ffff:{V4.balancer}"
    assert_passed(datapath, Ether(bytes(mapped)))


@BOTH
@BUILD
def test_denied_frame_is_dropped_as_tc_drops_it(datapath: Datapath, family: Family, build: Build) -> None:
    """Of an open connection, too; for others of the switch it is not judged."""
    begin(datapath, family, build)
    datapath.deny((family.outside, 32 if family is V4 else 128))
    packet = asking(family, build)
    assert datapath.run_xdp(packet).verdict == XDP_DROP
    assert datapath.dropped(DropReason.DENIED) == 1
    assert datapath.run("from_netdev", packet).verdict == SHOT
    assert datapath.dropped(DropReason.DENIED) == 2
    assert_passed(datapath, expected(packet, eth_dst=dp.ROUTER_MAC))


@BOTH
@BUILD
def test_frame_from_outside_the_source_ranges_is_dropped(datapath: Datapath, family: Family, build: Build) -> None:
    """Where TC drops it: not of a flow that has begun, not what a node hands over, not at an address of this node's,
    where the host may have a connection."""
    begin(datapath, family, build)
    sources = EXTERNAL | FrontendFlag.SOURCES
    for address in (family.balancer, family.node):
        datapath.service(address, 80, protocol_of(build), [(family.remote, 8080)], flags=sources)
    datapath.allow(family.balancer, 80, protocol_of(build), (family.remote, 32 if family is V4 else 128))
    assert datapath.run_xdp(asking(family, build, PORT + 1)).verdict == XDP_DROP
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1
    assert datapath.run("from_netdev", asking(family, build, PORT + 1)).verdict == SHOT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 2
    assert datapath.run_xdp(asking(family, build)).verdict == XDP_TX
    assert_passed(datapath, expected(asking(family, build, PORT + 1), eth_src=dp.PEER_MAC))
    assert_passed(datapath, arriving(build(family, (family.outside, PORT + 1), (family.node, 80))))
    assert_passed(datapath, arriving(build(family, (family.remote, PORT + 1), (family.balancer, 80))))


@BOTH
@BUILD
def test_frame_for_no_service_is_dropped_as_tc_drops_it(datapath: Datapath, family: Family, build: Build) -> None:
    """A port that a load balancer's address does not have, an address of the ranges of Services that none has. Not
    what is to be refused, nor what another node sends, nor what is for a node."""
    addresses = {V4: ("198.51.100.7", "10.96.7.7"), V6: ("2001:db8:1b::7", "fd00:10:96::707")}
    balancer, unused = addresses[family]
    datapath.service_range(("10.96.0.0", 16) if family is V4 else ("fd00:10:96::", 112))
    datapath.cluster_ip(family.service)
    for address in (balancer, family.node, family.other_node):
        datapath.service(address, 0, 0, [], flags=EXTERNAL)
    for dropped, address in enumerate((balancer, unused)):
        packet = arriving(build(family, (family.outside, PORT), (address, 81)))
        assert datapath.run_xdp(packet).verdict == XDP_DROP
        assert datapath.dropped(DropReason.NO_SERVICE) == 2 * dropped + 1
        assert datapath.run("from_netdev", packet).verdict == SHOT
        assert datapath.dropped(DropReason.NO_SERVICE) == 2 * dropped + 2
        assert_passed(datapath, expected(packet, eth_src=dp.PEER_MAC))
    external = "192.0.2.99" if family is V4 else "2001:db8::99"
    datapath.node(external, own=False)
    datapath.service(external, 0, 0, [], flags=EXTERNAL)
    nodes = (family.node, family.other_node, external)
    for address in (*nodes, family.service, family.client, family.remote, family.outside):
        assert_passed(datapath, arriving(build(family, (family.outside, PORT), (address, 81))))
    with dp.local_route(balancer):
        assert_passed(datapath, arriving(build(family, (family.outside, PORT), (balancer, 81))))


@BOTH
@BUILD
def test_pod_in_a_range_of_services_is_a_pod(datapath: Datapath, family: Family, build: Build) -> None:
    """A cluster whose ranges overlap."""
    datapath.service_range((family.client, 24 if family is V4 else 112))
    assert_passed(datapath, arriving(build(family, (family.outside, PORT), (family.client, 81))))


@BUILD
def test_router_before_a_node_is_tcs(datapath: Datapath, build: Build) -> None:
    """A packet for a node goes to its MAC; the kernel may have a router on the way there. IPv6 takes none at lo."""
    begin(datapath, V4, build)
    assert datapath.run_xdp(asking(V4, build)).verdict == XDP_TX
    router = "203.0.113.254"
    dp.run_on(kernel.know_neighbours, [router])
    dp.run_on(kernel.route_by, V4.other_node, router)
    assert_passed(datapath, asking(V4, build))


@BOTH
@BUILD
def test_flow_that_leaves_by_another_device_is_tcs(datapath: Datapath, family: Family, build: Build) -> None:
    """A driver may not send what another one has received, whether or not the next hop there is known."""
    entry = begin(datapath, family, build)
    flow = datapath.flow(entry)
    assert flow
    with dp.another_device(family.other_node) as index:
        datapath.write_flow(entry, flow._replace(way=flow.way._replace(ifindex=index)))
        for known in (False, True):
            if known:
                dp.run_on(kernel.know_neighbours, [family.other_node], "out0")
            assert_passed(datapath, asking(family, build))
    datapath.write_flow(entry, flow)
    assert datapath.run_xdp(asking(family, build)).verdict == XDP_TX
