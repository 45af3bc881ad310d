# SPDX-License-Identifier: Apache-2.0
"""The deny list, on the real programs: from its ranges nothing comes in from outside."""

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from bpf.abi import DropReason, FrontendFlag
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
    key,
    same,
    tcp,
    udp,
)

pytestmark = pytest.mark.root

DENIED = {V4: ("203.0.113.8", 30), V6: ("2001:db8:ffff::8", 126)}
NEIGHBOUR = {V4: "203.0.113.12", V6: "2001:db8:ffff::c"}


def assert_denied(datapath: Datapath, program: str, packet: Packet) -> None:
    """The packet is dropped as it came, and counted once."""
    before = datapath.dropped(DropReason.DENIED)
    result = datapath.run(program, packet)
    assert (result.verdict, datapath.dropped(DropReason.DENIED) - before) == (SHOT, 1)
    same(result.packet, packet)


@BOTH
def test_what_a_denied_client_sends_is_dropped_whatever_it_is_for(datapath: Datapath, family: Family) -> None:
    """To a Service, a pod here, and the host itself; no flow begins, and its neighbour in the addresses is served."""
    datapath.service(family.balancer, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], flags=FrontendFlag.EXTERNAL)
    datapath.deny(DENIED[family])
    for to in ((family.balancer, 80), (family.server, 8080), (family.node, 22)):
        assert_denied(datapath, "from_netdev", arriving(tcp(family, (family.outside, 5000), to)))
    assert datapath.flow(key((family.outside, 5000), (family.balancer, 80))) is None
    other = arriving(tcp(family, (NEIGHBOUR[family], 5000), (family.balancer, 80)))
    assert datapath.run("from_netdev", other).verdict == REDIRECT
    assert datapath.dropped(DropReason.DENIED) == 3


@BOTH
def test_connection_ends_when_its_client_is_denied_and_goes_on_when_it_no_longer_is(
    datapath: Datapath, family: Family
) -> None:
    """Every packet is judged, not the first one alone."""
    datapath.service(family.balancer, 80, dp.TCP_PROTOCOL, [(family.server, 8080)], flags=FrontendFlag.EXTERNAL)
    begun = (family.outside, 5000), (family.balancer, 80)
    assert datapath.run("from_netdev", arriving(tcp(family, *begun))).verdict == REDIRECT
    datapath.deny(DENIED[family])
    assert_denied(datapath, "from_netdev", arriving(tcp(family, *begun, flags="A")))
    datapath.no_longer_denied(DENIED[family])
    assert datapath.run("from_netdev", arriving(tcp(family, *begun, flags="A"))).verdict == REDIRECT


@BOTH
def test_later_fragments_and_cut_packets_of_a_denied_client_are_dropped(datapath: Datapath, family: Family) -> None:
    """Its address is all that is asked for."""
    datapath.deny(DENIED[family])
    header = family.ip(src=family.outside, dst=family.node)
    if family is V4:
        later, cut = IP(bytes(header / Raw(bytes(64)))), IP(bytes(header / Raw(bytes(4))))
        later.frag, later.proto, cut.proto = 100, 17, 6
        del later.chksum, cut.chksum
    else:
        later, cut = header / IPv6ExtHdrFragment(offset=100, nh=17) / Raw(bytes(64)), header / Raw(bytes(4))
        cut.nh = 6
    for packet in (later, cut):
        assert_denied(datapath, "from_netdev", Ether(bytes(Ether(src=dp.ROUTER_MAC, dst=LO_MAC) / packet)))


def test_neighbours_of_a_denied_range_are_still_resolved(datapath: Datapath) -> None:
    """ARP carries addresses, but is no packet of theirs."""
    datapath.deny(DENIED[V4])
    question = Ether(src=dp.ROUTER_MAC, dst=LO_MAC) / ARP(psrc=V4.outside, pdst=V4.node)
    assert datapath.run("from_netdev", question).verdict == PASS


@BOTH
def test_pods_may_send_to_what_is_denied(datapath: Datapath, family: Family) -> None:
    """The list is of what comes in from outside; the answer does not."""
    datapath.deny(DENIED[family])
    question = udp(family, (family.client, 5000), (family.outside, 53))
    result = datapath.run("from_pod", question)
    assert result.verdict == REDIRECT
    port = result.packet[UDP].sport
    assert_denied(datapath, "from_netdev", arriving(udp(family, (family.outside, 53), (family.node, port))))
