# SPDX-License-Identifier: Apache-2.0
"""Session affinity on the real programs: which of eight backends a client's new flows are given."""

from itertools import product
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from bpf.abi import Affinity, BackendKey, DropReason, FrontendFlag, Slot, SlotKey
from bpf.tests import datapath as dp
from bpf.tests.datapath import BOTH, BUILD, REDIRECT, Datapath, Family, expected, protocol_of, same, tcp, udp

pytestmark = pytest.mark.root

NODE_PORT = 30080
SECOND = 10**9
# Every machine has been up for longer, and none takes half of it from one packet to the next.
AFFINITY_S = 10
# Of one pod, so that it is the port that tells a backend.
PORTS = range(8000, 8008)
REMOTE_PORT, REMOTE_ID = 9000, 18
# By chance one of eight is met so often in a row once in 30 million times.
OFTEN = 9


def offer(
    datapath: Datapath, family: Family, build: object = tcp, number: int = 1, affinity_s: int = AFFINITY_S
) -> None:
    """A Service of eight backends, at its cluster IP and as a NodePort."""
    for address, port, flags in (
        (family.service, 80, FrontendFlag.CLUSTER_IP),
        (family.any_node, NODE_PORT, FrontendFlag.EXTERNAL),
    ):
        backends = [(family.server, one) for one in PORTS]
        datapath.service(address, port, protocol_of(build), backends, number, flags=flags, affinity_s=affinity_s)


def offer_outside(datapath: Datapath, family: Family, build: object, flags: int) -> None:
    """A NodePort of eight backends here, and one on the other node."""
    backends = [*((family.server, port) for port in PORTS), (family.remote, REMOTE_PORT)]
    flags = FrontendFlag.EXTERNAL | FrontendFlag(flags)
    datapath.service(
        family.any_node, NODE_PORT, protocol_of(build), backends, local=8, flags=flags, affinity_s=AFFINITY_S
    )


def asked(datapath: Datapath, request: Packet, program: str = "from_pod") -> int:
    """The port of the backend that a request gets."""
    result = datapath.run(program, request)
    assert result.verdict == REDIRECT
    return int(result.packet.dport)


def backends_met(
    datapath: Datapath, family: Family, build: object = tcp, first_port: int = 40000, count: int = OFTEN
) -> set[int]:
    """The backends of so many new flows of the client's pod to the cluster IP."""
    ports = range(first_port, first_port + count)
    return {asked(datapath, build(family, (family.client, port), (family.service, 80))) for port in ports}


def arriving(family: Family, build: Any, source_port: int, node: str, sender: str = dp.ROUTER_MAC) -> Packet:
    """A packet of the client outside to a node's NodePort, as it comes from the router or from another node."""
    packet = build(family, (family.outside, source_port), (node, NODE_PORT))
    return dp.arriving(packet, sender)


def remembered(datapath: Datapath, client: str, number: int = 1) -> Affinity:
    found = datapath.affinity(client, number)
    assert found is not None
    return found


def age(datapath: Datapath, client: str, seconds: int) -> Affinity:
    """Has a client's last connection be that long ago; what is remembered then."""
    found = remembered(datapath, client)
    aged = found._replace(seen_ns=found.seen_ns - seconds * SECOND)
    datapath.write_affinity(client, aged)
    return aged


@BOTH
@BUILD
def test_client_keeps_its_backend(datapath: Datapath, family: Family, build: object) -> None:
    """Each new flow of one address goes where its first one went."""
    offer(datapath, family, build)
    (port,) = backends_met(datapath, family, build)
    request = build(family, (family.client, 50000), (family.service, 80))
    wanted = expected(request, hops=1, dst=family.server, dport=port, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)
    same(datapath.run("from_pod", request).packet, wanted)
    assert remembered(datapath, family.client).backend_id == 10 + port - PORTS[0]


@BOTH
def test_without_affinity_nothing_is_remembered(datapath: Datapath, family: Family) -> None:
    """Flows are spread, and the map stays empty."""
    offer(datapath, family, affinity_s=0)
    assert len(backends_met(datapath, family)) > 1
    assert datapath.affinity(family.client) is None


@BOTH
def test_clients_have_backends_of_their_own(datapath: Datapath, family: Family) -> None:
    """Many addresses outside spread over the backends, and each is remembered by itself."""
    offer(datapath, family)
    met: dict[str, set[int]] = {f"{family.outside[:-1]}{number}": set() for number in range(1, 10)}
    for client, source_port in product(met, (5000, 5001, 5002)):
        request = expected(arriving(family, tcp, source_port, family.node), src=client)
        met[client].add(asked(datapath, request, "from_netdev"))
    assert {len(ports) for ports in met.values()} == {1}
    assert len(set.union(*met.values())) > 1


@BOTH
def test_addresses_of_a_service_port_share(datapath: Datapath, family: Family) -> None:
    """Its cluster IP and its NodePort at any node are one to the client."""
    offer(datapath, family)
    (port,) = backends_met(datapath, family)
    for number, node in enumerate((family.node, family.other_node) * OFTEN):
        request = tcp(family, (family.client, 41000 + number), (node, NODE_PORT))
        assert asked(datapath, request) == port


@BOTH
def test_ports_of_a_service_are_apart(datapath: Datapath, family: Family) -> None:
    """Each Service port remembers its own clients."""
    offer(datapath, family)
    offer(datapath, family, udp, number=2)
    backends_met(datapath, family)
    assert datapath.affinity(family.client, 2) is None
    datapath.write_affinity(family.client, remembered(datapath, family.client)._replace(backend_id=20), 2)
    datapath.write_affinity(family.client, remembered(datapath, family.client)._replace(backend_id=11))
    assert backends_met(datapath, family, udp) == {PORTS[0]}
    assert backends_met(datapath, family, first_port=41000) == {PORTS[1]}


@BOTH
def test_new_connection_begins_the_time_anew(datapath: Datapath, family: Family) -> None:
    """Just before the time-out the client still has its backend, and then for as long again."""
    offer(datapath, family)
    met = backends_met(datapath, family, count=1)
    aged = age(datapath, family.client, AFFINITY_S - 5)
    assert backends_met(datapath, family, first_port=41000) == met
    assert remembered(datapath, family.client).seen_ns >= aged.seen_ns + (AFFINITY_S - 5) * SECOND


@BOTH
@pytest.mark.parametrize(("seconds", "timeout_s"), [(AFFINITY_S, AFFINITY_S), (2, 1)], ids=["as it was", "shortened"])
def test_time_out_ends_it(datapath: Datapath, family: Family, seconds: int, timeout_s: int) -> None:
    """As long as it is now: then any backend may come, and that one is remembered."""
    offer(datapath, family)
    backends_met(datapath, family, count=1)
    offer(datapath, family, affinity_s=timeout_s)
    met = set()
    for first_port in range(41000, 41000 + OFTEN):
        before = age(datapath, family.client, seconds)
        (port,) = backends_met(datapath, family, first_port=first_port, count=1)
        assert remembered(datapath, family.client).backend_id == 10 + port - PORTS[0]
        assert remembered(datapath, family.client).seen_ns >= before.seen_ns + seconds * SECOND
        met.add(port)
    assert len(met) > 1


@BOTH
def test_packets_of_a_connection_do_not_count(datapath: Datapath, family: Family) -> None:
    """Only what begins a flow does: neither a TCP segment nor a UDP datagram of one that is there."""
    for build, later in ((tcp, {"flags": "A"}), (udp, {})):
        offer(datapath, family, build)
        client, service = (family.client, 40000), (family.service, 80)
        port = asked(datapath, build(family, client, service))
        answer = {"flags": "SA"} if build is tcp else {}
        datapath.run("from_pod", build(family, (family.server, port), client, **answer))
        aged = age(datapath, family.client, AFFINITY_S // 2)
        assert asked(datapath, build(family, client, service, **later)) == port
        assert remembered(datapath, family.client) == aged


@BOTH
def test_udp_flow_stays_with_its_backend_past_the_time_out(datapath: Datapath, family: Family) -> None:
    """As long as a flow lasts it is one connection, whatever its client's next one gets."""
    offer(datapath, family, udp)
    request = udp(family, (family.client, 40000), (family.service, 80))
    port = asked(datapath, request)
    other = next(one for one in PORTS if one != port)
    aged = age(datapath, family.client, AFFINITY_S)
    datapath.write_affinity(family.client, aged._replace(backend_id=10 + other - PORTS[0]))
    assert asked(datapath, request) == port


@BOTH
def test_backend_that_is_gone_gives_way(datapath: Datapath, family: Family) -> None:
    """Within the time-out: to one that is chosen then, and remembered."""
    offer(datapath, family)
    (port,) = backends_met(datapath, family)
    slot = port - PORTS[0]
    datapath.write("slots", SlotKey(1, slot).pack(), Slot(10 + (slot + 1) % 8).pack())
    assert datapath.delete("backends", BackendKey(10 + slot).pack())
    (other,) = backends_met(datapath, family, first_port=41000)
    assert remembered(datapath, family.client).backend_id == 10 + other - PORTS[0] != 10 + slot


@BOTH
def test_local_policy_takes_no_other_nodes_backend(datapath: Datapath, family: Family) -> None:
    """Under externalTrafficPolicy Local what an outside client was given elsewhere is void, and this node's stays."""
    offer_outside(datapath, family, tcp, FrontendFlag.LOCAL)
    asked(datapath, arriving(family, tcp, 5000, family.node), "from_netdev")
    datapath.write_affinity(family.outside, remembered(datapath, family.outside)._replace(backend_id=REMOTE_ID))
    requests = [arriving(family, tcp, port, family.node) for port in range(6000, 6000 + OFTEN)]
    met = {asked(datapath, request, "from_netdev") for request in requests}
    assert len(met) == 1
    assert met < set(PORTS)


@BOTH
def test_backend_that_ends_here_keeps_no_client_of_the_cluster_set(datapath: Datapath, family: Family) -> None:
    """What a client was given of the Local set is void where it may ask any node, if it is in that set alone."""
    ways = ((80, FrontendFlag.CLUSTER_IP | FrontendFlag.LOCAL), (81, FrontendFlag.CLUSTER_IP))
    for port, flags in ways:
        backends = [(family.server, one) for one in PORTS]
        datapath.service(family.service, port, dp.TCP_PROTOCOL, backends, 1, 1, flags, AFFINITY_S, 1)
    for source, (port, _) in zip((5000, 5001, 5002), (*ways, ways[1]), strict=True):
        met = asked(datapath, tcp(family, (family.client, source), (family.service, port)))
        assert (met == PORTS[0]) == (port == 80)
        assert remembered(datapath, family.client).backend_id == 10 + met - PORTS[0]


@BOTH
@BUILD
def test_backends_node_keeps_to_its_choice(datapath: Datapath, family: Family, build: object) -> None:
    """With direct return it chooses among its own, by what it remembers itself."""
    offer_outside(datapath, family, build, FrontendFlag.DIRECT)
    port = asked(datapath, arriving(family, build, 5000, family.other_node, dp.PEER_MAC), "from_netdev")
    to_server = {"dst": family.server, "dport": port, "eth_src": dp.SERVER_HOST_MAC, "eth_dst": dp.SERVER_MAC}
    for source_port in range(6000, 6000 + OFTEN):
        request = arriving(family, build, source_port, family.other_node, dp.PEER_MAC)
        result = datapath.run("from_netdev", request)
        assert result.verdict == REDIRECT
        same(result.packet, expected(request, hops=1, **to_server))


@BOTH
@pytest.mark.parametrize("direct", [0, FrontendFlag.DIRECT], ids=["entry", "direct"])
def test_entry_node_keeps_to_the_backends_node(datapath: Datapath, family: Family, direct: int) -> None:
    """A client whose backend is on another node is handed over each time."""
    offer_outside(datapath, family, tcp, direct)
    asked(datapath, arriving(family, tcp, 5000, family.node), "from_netdev")
    datapath.write_affinity(family.outside, remembered(datapath, family.outside)._replace(backend_id=REMOTE_ID))
    translated = {} if direct else {"dst": family.remote, "dport": REMOTE_PORT}
    for port in range(6000, 6000 + OFTEN):
        request = arriving(family, tcp, port, family.node)
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(request, hops=1, **translated))


@BOTH
def test_mid_stream_segment_is_no_connection(datapath: Datapath, family: Family) -> None:
    """It is refused, and its client is remembered no more than it was."""
    offer(datapath, family)
    request = tcp(family, (family.client, 40000), (family.service, 80), "A")
    result = datapath.run("from_pod", request, summed=False)
    assert (result.verdict, result.packet[TCP].flags) == (REDIRECT, "R")
    assert datapath.affinity(family.client) is None
    backends_met(datapath, family, first_port=41000, count=1)
    aged = age(datapath, family.client, AFFINITY_S // 2)
    datapath.run("from_pod", request, summed=False)
    assert remembered(datapath, family.client) == aged
    assert datapath.dropped(DropReason.NO_FLOW) == 2


@BOTH
def test_affinity_that_is_switched_off_and_on(datapath: Datapath, family: Family) -> None:
    """Off, the next connections are spread, and nothing is forgotten: within the time-out it is as before."""
    offer(datapath, family)
    met = backends_met(datapath, family)
    before = remembered(datapath, family.client)
    offer(datapath, family, affinity_s=0)
    assert len(backends_met(datapath, family, first_port=41000, count=20)) > 1
    assert remembered(datapath, family.client) == before
    offer(datapath, family)
    assert backends_met(datapath, family, first_port=42000) == met


@BOTH
def test_service_without_backend_is_refused_all_the_same(datapath: Datapath, family: Family) -> None:
    """What is remembered does not outlive the endpoints."""
    offer(datapath, family)
    backends_met(datapath, family)
    datapath.service(family.service, 80, dp.TCP_PROTOCOL, [], affinity_s=AFFINITY_S)
    result = datapath.run("from_pod", tcp(family, (family.client, 41000), (family.service, 80)), summed=False)
    assert (result.verdict, result.packet[TCP].flags) == (REDIRECT, "RA")
    assert datapath.dropped(DropReason.NO_BACKEND) == 1
