# SPDX-License-Identifier: Apache-2.0
"""Load-balancer addresses that are for some clients alone, on the real programs."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from bpf.abi import DropReason, FrontendFlag
from bpf.tests import datapath as dp
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
    expected,
    key,
    same,
    tcp,
    udp,
)

pytestmark = pytest.mark.root

EXTERNAL, SOURCES, DIRECT = FrontendFlag.EXTERNAL, FrontendFlag.SOURCES, FrontendFlag.DIRECT
BALANCED = {V4: "198.51.100.7", V6: "2001:db8:1b::7"}
CLIENTS = {V4: ("203.0.113.0", 28), V6: ("2001:db8:ffff::", 124)}
STRANGER = {V4: "203.0.113.16", V6: "2001:db8:ffff::10"}


def arriving(packet: object, source: str = dp.ROUTER_MAC) -> dp.Packet:
    return expected(packet, eth_src=source, eth_dst=LO_MAC)


def balanced(
    datapath: Datapath, family: Family, build: object = tcp, flags: FrontendFlag = SOURCES, backend: str = ""
) -> tuple[str, int]:
    """A load-balancer address for CLIENTS alone, its backend a pod here; where it is met."""
    protocol = dp.TCP_PROTOCOL if build is tcp else dp.UDP_PROTOCOL
    address = BALANCED[family]
    datapath.service(address, 80, protocol, [(backend or family.server, 8080)], local=1, flags=EXTERNAL | flags)
    datapath.allow(address, 80, protocol, CLIENTS[family])
    return address, 80


@BOTH
@BUILD
def test_client_in_a_range_is_served_and_another_is_dropped(datapath: Datapath, family: Family, build: object) -> None:
    """Before anything is done to its packet: nothing is said to it, and no flow begins."""
    address = balanced(datapath, family, build)
    assert datapath.run("from_netdev", arriving(build(family, (family.outside, 5000), address))).verdict == REDIRECT
    packet = arriving(build(family, (STRANGER[family], 5000), address))
    result = datapath.run("from_netdev", packet)
    assert result.verdict == SHOT
    same(result.packet, packet)
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1
    protocol = dp.TCP_PROTOCOL if build is tcp else dp.UDP_PROTOCOL
    assert datapath.flow(key((STRANGER[family], 5000), address, protocol)) is None


@BOTH
def test_address_that_has_no_ranges_is_for_nobody(datapath: Datapath, family: Family) -> None:
    """As while the map is too small for them."""
    address = balanced(datapath, family)
    for protocol, port in ((dp.TCP_PROTOCOL, 81), (dp.UDP_PROTOCOL, 80)):
        datapath.service(BALANCED[family], port, protocol, [(family.server, 1)], flags=EXTERNAL | SOURCES)
    for build, port in ((tcp, 81), (udp, 80)):
        packet = arriving(build(family, (family.outside, 5000), (address[0], port)))
        assert datapath.run("from_netdev", packet).verdict == SHOT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 2


@BOTH
def test_pods_are_subject_to_the_ranges(datapath: Datapath, family: Family) -> None:
    """By their own addresses."""
    address = balanced(datapath, family)
    packet = tcp(family, (family.client, 5000), address)
    assert datapath.run("from_pod", packet).verdict == SHOT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1
    datapath.allow(*address, dp.TCP_PROTOCOL, (family.client, 32 if family is V4 else 128))
    assert datapath.run("from_pod", packet).verdict == REDIRECT


@BOTH
def test_address_without_endpoints_is_silent_to_strangers(datapath: Datapath, family: Family) -> None:
    """Only who may use it is told that nobody is there; likewise of a connection that nobody knows."""
    address = balanced(datapath, family)
    middle = arriving(tcp(family, (STRANGER[family], 5000), address, "PA"))
    assert datapath.run("from_netdev", middle).verdict == SHOT
    datapath.service(*address, dp.TCP_PROTOCOL, [], flags=EXTERNAL | SOURCES)
    assert datapath.run("from_netdev", arriving(tcp(family, (STRANGER[family], 5000), address))).verdict == SHOT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 2
    result = datapath.run("from_netdev", arriving(tcp(family, (family.outside, 5000), address)))
    assert (result.verdict, result.packet[TCP].flags) == (REDIRECT, "RA")


@BOTH
@BUILD
def test_connection_goes_on_when_its_client_is_shut_out(datapath: Datapath, family: Family, build: object) -> None:
    """Ranges are asked for what begins."""
    address = balanced(datapath, family, build)
    protocol = dp.TCP_PROTOCOL if build is tcp else dp.UDP_PROTOCOL
    client = (STRANGER[family], 5000)
    datapath.allow(*address, protocol, (STRANGER[family], 32 if family is V4 else 128))
    assert datapath.run("from_netdev", arriving(build(family, client, address))).verdict == REDIRECT
    datapath.shut_out(*address, protocol, (STRANGER[family], 32 if family is V4 else 128))
    later = build(family, client, address, "PA") if build is tcp else build(family, client, address)
    assert datapath.run("from_netdev", arriving(later)).verdict == REDIRECT
    assert datapath.run("from_netdev", arriving(build(family, (client[0], 5001), address))).verdict == SHOT


@BOTH
@pytest.mark.parametrize("way_back", [FrontendFlag(0), DIRECT], ids=["entry", "direct"])
def test_ranges_are_asked_at_the_entry_node_alone(datapath: Datapath, family: Family, way_back: FrontendFlag) -> None:
    """Before a hand-over; what was handed over has been let in, and with direct return bears the address again."""
    address = balanced(datapath, family, flags=SOURCES | way_back, backend=family.remote)
    stranger = tcp(family, (STRANGER[family], 5000), address)
    assert datapath.run("from_netdev", arriving(stranger)).verdict == SHOT
    assert datapath.run("from_netdev", arriving(tcp(family, (family.outside, 5000), address))).verdict == REDIRECT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1
    balanced(datapath, family, flags=SOURCES | way_back)
    assert datapath.run("from_netdev", arriving(stranger, dp.PEER_MAC)).verdict == REDIRECT
    assert datapath.dropped(DropReason.SOURCE_RANGE) == 1


@BOTH
@pytest.mark.parametrize(
    ("flags", "verdict"),
    [(SOURCES, SHOT), (SOURCES | FrontendFlag.HOST_ALLOWED, REDIRECT)],
    ids=["not for the host", "for the host"],
)
def test_hosts_packet_is_dropped_where_the_address_is_not_for_it(
    datapath: Datapath, family: Family, flags: FrontendFlag, verdict: int
) -> None:
    """Where it is, it gets a backend; a connection that is none of ours goes on either way."""
    address = balanced(datapath, family, flags=flags)
    assert datapath.run("to_netdev", tcp(family, (family.node, 5000), address)).verdict == verdict
    assert datapath.dropped(DropReason.SOURCE_RANGE) == (verdict == SHOT)
    assert datapath.run("to_netdev", tcp(family, (family.node, 5001), address, "A")).verdict == PASS


NETWORKS = st.builds(
    lambda number, length: ip_network((0xCB007100 + number, length), strict=False),
    st.integers(0, 255),
    st.integers(1, 32),
)
ADDRESSES = st.integers(0, 255).map(lambda number: ip_address(0xCB007100 + number))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([80, 81]), NETWORKS), max_size=5), ADDRESSES, st.sampled_from([80, 81]))
def test_ranges_hold_whom_they_should(
    datapath: Datapath, ranges: list[tuple[int, object]], client: object, port: int
) -> None:
    """Those of one port are not another's; as Python's own module says."""
    datapath.reset()
    for one in (80, 81):
        datapath.service(BALANCED[V4], one, dp.TCP_PROTOCOL, [(V4.server, 8080)], flags=EXTERNAL | SOURCES)
    for one, network in ranges:
        address, _, length = str(network).partition("/")
        datapath.allow(BALANCED[V4], one, dp.TCP_PROTOCOL, (address, int(length)))
    result = datapath.run("from_netdev", arriving(tcp(V4, (str(client), 5000), (BALANCED[V4], port))))
    wanted = any(one == port and ip_address(str(client)) in ip_network(str(network)) for one, network in ranges)
    assert (result.verdict == REDIRECT) == wanted
