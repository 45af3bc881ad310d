# SPDX-License-Identifier: Apache-2.0
"""Host ports on the real programs: whose address and port they are, and how the answers go back."""

import pytest

from bpf.abi import FrontendFlag, HostPort, RemoteFlag, WayKind
from bpf.tests import datapath as dp
from bpf.tests.datapath import (
    BOTH,
    BUILD,
    PASS,
    REDIRECT,
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

ANY = {V4: "0.0.0.0", V6: "::"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
PORT = 8053
FLAGS = FrontendFlag.EXTERNAL | FrontendFlag.HOST_PORT


def host_port(datapath: Datapath, family: Family, build: object, address: str = "") -> None:
    """Leads a port of an address of the host's, or of every one, to the pod `server`."""
    backends = [(family.server, 53)]
    number = HostPort.IDS // 10  # ids of backends are made of it
    datapath.service(address or ANY[family], PORT, protocol_of(build), backends, number, local=1, flags=FLAGS)


def answer_flags(build: object) -> dict[str, str]:
    return {"flags": "SA"} if build is tcp else {}


@BOTH
@BUILD
@pytest.mark.parametrize("specific", [False, True], ids=["any address", "one address"])
def test_client_outside_keeps_its_address_both_ways(
    datapath: Datapath, family: Family, build: object, specific: bool
) -> None:
    """The pod sees the client, and its answer leaves from the node's address and port."""
    host_port(datapath, family, build, family.node if specific else "")
    client = (family.outside, 5000)
    request = arriving(build(family, client, (family.node, PORT)))
    result = datapath.run("from_netdev", request)
    assert result.verdict == REDIRECT
    wanted = expected(request, hops=1, dst=family.server, dport=53, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)
    same(result.packet, wanted)
    answer = build(family, (family.server, 53), client, **answer_flags(build))
    result = datapath.run("from_pod", answer)
    assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
    same(result.packet, expected(answer, hops=1, src=family.node, sport=PORT))


@BOTH
@BUILD
def test_pod_asks_at_its_own_node(datapath: Datapath, family: Family, build: object) -> None:
    """It is led to the pod at once."""
    host_port(datapath, family, build)
    request = build(family, (family.client, 5000), (family.node, PORT))
    result = datapath.run("from_pod", request)
    assert result.verdict == REDIRECT
    wanted = expected(request, hops=1, dst=family.server, dport=53, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)
    same(result.packet, wanted)


@BOTH
@BUILD
def test_pod_that_asks_at_another_node_is_sent_there(datapath: Datapath, family: Family, build: object) -> None:
    """That node's port of the same number is another pod's, or nobody's: the packet leaves as it is."""
    host_port(datapath, family, build)
    request = build(family, (family.client, 5000), (family.other_node, PORT))
    result = datapath.run("from_pod", request)
    assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
    same(result.packet, expected(request, hops=1))


@BOTH
@BUILD
def test_packet_that_passes_through_to_another_node_is_left_alone(
    datapath: Datapath, family: Family, build: object
) -> None:
    """A client outside may have this node for its router."""
    host_port(datapath, family, build)
    request = arriving(build(family, (family.outside, 5000), (family.other_node, PORT)))
    result = datapath.run("from_netdev", request)
    assert result.verdict == PASS
    same(result.packet, request)


@BOTH
@BUILD
def test_process_of_the_host_that_asks_at_another_node_is_left_alone(
    datapath: Datapath, family: Family, build: object
) -> None:
    """Its packet is not taken for one to a frontend of this node."""
    host_port(datapath, family, build)
    request = build(family, (family.node, 5000), (family.other_node, PORT))
    result = datapath.run("to_netdev", request)
    assert result.verdict == PASS
    same(result.packet, request)


@BOTH
@BUILD
@pytest.mark.parametrize("way", [0, RemoteFlag.OVERLAY], ids=["routes", "overlay"])
def test_pod_of_another_node_is_answered_by_the_way_to_it(
    datapath: Datapath, family: Family, build: object, way: int
) -> None:
    """Through the overlay where that leads there: the kernel's route into it sets no tunnel."""
    datapath.remote(family.remote_range, family.other_node, way)
    host_port(datapath, family, build)
    asking = (family.remote, 5000)
    request = arriving(build(family, asking, (family.node, PORT)), dp.PEER_MAC)
    result = datapath.run("from_overlay" if way else "from_netdev", request)
    assert result.verdict == REDIRECT
    wanted = expected(request, hops=1, dst=family.server, dport=53, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)
    same(result.packet, wanted)
    answer = build(family, (family.server, 53), asking, **answer_flags(build))
    result = datapath.run("from_pod", answer)
    assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
    frame = {"eth_src": dp.OVERLAY_SOURCE_MAC, "eth_dst": dp.OVERLAY_MAC} if way else {}
    same(result.packet, expected(answer, hops=1, src=family.node, sport=PORT, **frame))
    flow = datapath.flow(key((family.server, 53), asking, protocol_of(build)))
    assert flow is not None
    assert flow.way.kind == WayKind.DESTINATION


@BOTH
@BUILD
@pytest.mark.parametrize("specific", [False, True], ids=["any address", "loopback"])
def test_loopback_address_is_for_the_nodes_own_processes(
    datapath: Datapath, family: Family, build: object, specific: bool
) -> None:
    """Who sends to it from outside or from a pod is left to the stack, which drops it."""
    datapath.node(LOOPBACK[family], own=True)
    host_port(datapath, family, build, LOOPBACK[family] if specific else "")
    for program, source in (("from_netdev", family.outside), ("from_pod", family.client)):
        request = arriving(build(family, (source, 5000), (LOOPBACK[family], PORT)))
        result = datapath.run(program, request)
        assert result.verdict == PASS
        same(result.packet, request)


@BOTH
def test_udp_flow_follows_to_the_next_pod(datapath: Datapath, family: Family) -> None:
    """A client that never pauses reaches the pod that has the port by now."""
    host_port(datapath, family, udp)
    request = arriving(udp(family, (family.outside, 5000), (family.node, PORT)))
    assert datapath.run("from_netdev", request).packet[family.ip].dst == family.server
    number = HostPort.IDS // 10
    assert datapath.delete("backends", (10 * number).to_bytes(4, "little"))
    datapath.service(ANY[family], PORT, dp.UDP_PROTOCOL, [(family.client, 53)], number + 1, local=1, flags=FLAGS)
    assert datapath.run("from_netdev", request).packet[family.ip].dst == family.client
