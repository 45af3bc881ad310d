# SPDX-License-Identifier: Apache-2.0
"""Ping at load-balancer addresses, on the real programs: whoever asks is answered by the first node."""

import pytest
from scapy.layers.inet import ICMP, IP, fragment
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.abi import Counter, DropReason, FrontendFlag
from bpf.tests import datapath as dp
from bpf.tests.datapath import BOTH, LO_MAC, PASS, REDIRECT, SHOT, V4, V6, Datapath, Family, key, same

pytestmark = pytest.mark.root

WAYS_IN = pytest.mark.parametrize("program", ["from_pod", "from_netdev", "from_overlay", "to_netdev"])
ICMP_OF = {V4: 1, V6: 58}
TTL = 64


@pytest.fixture
def datapath(programs: Datapath) -> Datapath:
    """Each family has a load balancer's address that answers."""
    programs.reset()
    for family in (V4, V6):
        programs.service(family.balancer, 0, ICMP_OF[family], [], flags=FrontendFlag.EXTERNAL)
    return programs


def asker(program: str, family: Family) -> str:
    """Who sends what the program sees."""
    return {"from_pod": family.client, "to_netdev": family.node}.get(program, family.outside)


def echo(family: Family, program: str, address: str = "", ttl: int = 9, identifier: int = 7) -> Packet:
    """A request as the program sees it."""
    source, target = (dp.POD_MAC, dp.HOST_MAC) if program in ("from_pod", "to_netdev") else (dp.ROUTER_MAC, LO_MAC)
    addresses = {"src": asker(program, family), "dst": address or family.balancer}
    network, message = (
        (IP(ttl=ttl, id=99, **addresses), ICMP(id=identifier, seq=3) / b"ping")
        if family is V4
        else (IPv6(hlim=ttl, tc=4, **addresses), ICMPv6EchoRequest(id=identifier, seq=3, data=b"ping"))
    )
    return Ether(bytes(Ether(src=source, dst=target) / network / message))


def answer(family: Family, request: Packet) -> Packet:
    """What goes back to who has sent a request."""
    addresses = {"src": request.payload.dst, "dst": request.payload.src}
    network, message = (
        (IP(ttl=TTL, id=99, **addresses), ICMP(type=0, id=request[ICMP].id, seq=3) / b"ping")
        if family is V4
        else (IPv6(hlim=TTL, tc=4, **addresses), ICMPv6EchoReply(id=7, seq=3, data=b"ping"))
    )
    return Ether(bytes(Ether(src=request.dst, dst=request.src) / network / message))


@BOTH
@WAYS_IN
def test_request_is_answered(datapath: Datapath, family: Family, program: str) -> None:
    """To pods, the host and clients outside; nothing is dropped, refused, or remembered."""
    request = echo(family, program)
    result = datapath.run(program, request)
    assert result.verdict == REDIRECT
    same(result.packet, answer(family, request))
    assert datapath.counter(Counter.REFUSALS) == 0
    assert not any(datapath.dropped(reason) for reason in DropReason)
    assert datapath.flow(key((asker(program, family), 7), (family.balancer, 0), ICMP_OF[family])) is None


@BOTH
def test_ping_that_began_before_the_address_was_there_is_answered(datapath: Datapath, family: Family) -> None:
    """It went out of the cluster, and had a flow, which lasts as long as it goes on."""
    datapath.no_frontend(family.balancer, 0, ICMP_OF[family])
    request = echo(family, "from_pod")
    datapath.run("from_pod", request)
    assert datapath.flow(key((family.client, 7), (family.balancer, 0), ICMP_OF[family]))
    datapath.service(family.balancer, 0, ICMP_OF[family], [], flags=FrontendFlag.EXTERNAL)
    same(datapath.run("from_pod", request).packet, answer(family, request))


@BOTH
def test_hosts_other_icmp_to_the_address_is_left_alone(datapath: Datapath, family: Family) -> None:
    """Where the address is in the nodes' own subnet the host asks for its MAC by ICMPv6."""
    message = ICMP(type=13) if family is V4 else ICMPv6ND_NS(tgt=family.balancer)
    network = family.ip(src=family.node, dst=family.balancer)
    packet = Ether(bytes(Ether(src=dp.POD_MAC, dst=dp.HOST_MAC) / network / message))
    result = datapath.run("to_netdev", packet)
    assert result.verdict == PASS
    same(result.packet, packet)


@BOTH
def test_address_of_a_node_is_left_to_it(datapath: Datapath, family: Family) -> None:
    """Some load balancers hand out nodes' addresses: who pings a node wants to know of the node."""
    for address in (family.node, family.other_node):
        datapath.service(address, 0, ICMP_OF[family], [], flags=FrontendFlag.EXTERNAL)
    request = echo(family, "from_netdev", family.node)
    result = datapath.run("from_netdev", request)
    assert result.verdict == PASS
    same(result.packet, request)
    result = datapath.run("from_pod", echo(family, "from_pod", family.other_node))
    assert (result.verdict, result.packet.payload.dst) == (REDIRECT, family.other_node)


def test_request_in_fragments_is_dropped(datapath: Datapath) -> None:
    """Each would have to be answered by itself."""
    whole = IP(src=V4.outside, dst=V4.balancer, id=5) / ICMP(id=7) / bytes(2000)
    for part in fragment(whole, 1400):
        packet = Ether(bytes(Ether(src=dp.ROUTER_MAC, dst=LO_MAC) / part))
        assert datapath.run("from_netdev", packet, summed=False).verdict == SHOT
    assert datapath.dropped(DropReason.FRAGMENT) == 2


@BOTH
def test_answer_that_nobody_asked_for_is_dropped(datapath: Datapath, family: Family) -> None:
    """It has the identifier 0, and so the key of a request: two such addresses would answer each other for ever."""
    request = echo(family, "from_netdev", identifier=0)
    reply = request.copy()
    if family is V4:
        reply[ICMP].type = 0
        del reply[ICMP].chksum
    else:
        reply[ICMPv6EchoRequest].type = 129
        del reply[ICMPv6EchoRequest].cksum
    assert datapath.run("from_netdev", Ether(bytes(reply)), summed=False).verdict == SHOT
    assert datapath.dropped(DropReason.NO_SUCH_PORT) == 1
    assert datapath.run("from_netdev", request, summed=False).verdict == REDIRECT
