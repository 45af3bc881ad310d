# SPDX-License-Identifier: Apache-2.0
"""Packets whose headers are cut short, contradict each other, or cannot be: no program forwards or translates them.

A way is a hook and who sends to whom there. What cannot be read is dropped with a reason; to the node's own addresses,
and from them, it is the host's stack's, which may know better and has counters of its own: it passes as it came.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Jumbo,
)
from scapy.layers.l2 import GRE, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from bpf.abi import Counter, DropReason, FrontendFlag
from bpf.tests import datapath as dp
from bpf.tests.datapath import BOTH, LO_MAC, PASS, REDIRECT, SHOT, V4, V6, Datapath, Family, same
from bpf.tests.wellformed import read

pytestmark = pytest.mark.root

PORT, NODE_PORT, CLIENT_PORT, BACKEND_PORT = 80, 30080, 40000, 8080
PAYLOAD = b"question"
ELSEWHERE = {V4.name: "203.0.113.77", V6.name: "2001:db8:ffff::77"}
TRUNCATED, BAD_HEADER, FRAGMENT = DropReason.TRUNCATED, DropReason.BAD_HEADER, DropReason.FRAGMENT


Transport = Callable[[int], Packet]


class Way(NamedTuple):
    """Where packets come by.

    Attributes:
        source, destination: of a family's addresses, by their names.
        left: what is unreadable passes, as it is the host's own.
    """

    name: str
    program: str
    source: str
    destination: str
    port: int = BACKEND_PORT
    left: bool = False


WAYS = [
    Way("pod to a pod here", "from_pod", "client", "server"),
    Way("pod to a pod there", "from_pod", "client", "remote"),
    Way("pod to a Service", "from_pod", "client", "service", PORT),
    Way("pod to its node", "from_pod", "client", "node"),
    Way("pod to the outside", "from_pod", "client", "outside"),
    Way("host to a pod", "to_pod", "node", "client"),
    Way("outside to a pod", "from_netdev", "outside", "server"),
    Way("outside to a Service", "from_netdev", "outside", "balancer", PORT),
    Way("outside through the node", "from_netdev", "outside", "elsewhere"),
    Way("outside to a NodePort", "from_netdev", "outside", "node", NODE_PORT, left=True),
    Way("outside to the node", "from_netdev", "outside", "node", left=True),
    Way("host to a Service", "to_netdev", "node", "service", PORT, left=True),
    Way("host to the outside", "to_netdev", "node", "outside", left=True),
    Way("other node's pod to a pod", "from_overlay", "remote", "client"),
    Way("other node's pod to the node", "from_overlay", "remote", "node", left=True),
    Way("host to another node's pod", "to_overlay", "node", "remote"),
]


def tcp(port: int) -> Packet:
    return TCP(sport=CLIENT_PORT, dport=port, flags="S", options=[("MSS", 1400)]) / PAYLOAD


def udp(port: int) -> Packet:
    return UDP(sport=CLIENT_PORT, dport=port) / PAYLOAD


def sctp(port: int) -> Packet:
    return SCTP(sport=CLIENT_PORT, dport=port, tag=7) / SCTPChunkInit()


TRANSPORTS: dict[int, Transport] = {dp.TCP_PROTOCOL: tcp, dp.UDP_PROTOCOL: udp, dp.SCTP_PROTOCOL: sctp}
EVERY_TRANSPORT = pytest.mark.parametrize("transport", [tcp, udp, sctp], ids=["tcp", "udp", "sctp"])


def echo(family: Family) -> Packet:
    return ICMP(id=9) / PAYLOAD if family is V4 else ICMPv6EchoRequest(id=9, data=PAYLOAD)


def error(family: Family, quoted: Packet | bytes) -> Packet:
    return (ICMP(type=3, code=1) if family is V4 else ICMPv6DestUnreach(code=3)) / Raw(bytes(quoted))


def address(family: Family, name: str) -> str:
    return ELSEWHERE[family.name] if name == "elsewhere" else str(getattr(family, name))


def network(family: Family, way: Way) -> Packet:
    """The IP header of a way's packets."""
    packet: Packet = family.ip(src=address(family, way.source), dst=address(family, way.destination))
    return packet


def framed(family: Family, way: Way, packet: Packet | bytes, macs: tuple[str, str] | None = None) -> bytes:
    """As a way's hook sees it; with MACs of sender and receiver, as it leaves. Those of what comes in by lo are lo's,
    or it would be for others."""
    outside = way.program in ("from_netdev", "from_overlay")
    source, destination = macs or ((dp.ROUTER_MAC, LO_MAC) if outside else (dp.POD_MAC, dp.HOST_MAC))
    return bytes(Ether(src=source, dst=destination, type=0x800 if family is V4 else 0x86DD)) + bytes(packet)


@pytest.fixture
def served(datapath: Datapath) -> Datapath:
    """Services of all protocols, with backends here: a cluster IP, a load balancer's address and a NodePort. What the
    host sends to a Service is for a pod, too: nothing leads from there into its own network."""
    serve(datapath)
    return datapath


def serve(datapath: Datapath) -> None:
    number = 1
    for family in (V4, V6):
        datapath.cluster_ip(family.service)
        for protocol in TRANSPORTS:
            places = [(family.service, PORT, FrontendFlag.CLUSTER_IP), (family.balancer, PORT, FrontendFlag.EXTERNAL)]
            for place, port, flags in [*places, (family.any_node, NODE_PORT, FrontendFlag.EXTERNAL)]:
                backends = [(family.server, BACKEND_PORT)]
                datapath.service(place, port, protocol, backends, number, local=1, flags=flags)
                number += 1


def drops(datapath: Datapath) -> dict[DropReason, int]:
    counts = {reason: datapath.dropped(reason) for reason in DropReason}
    return {reason: count for reason, count in counts.items() if count}


def rejected(
    datapath: Datapath,
    family: Family,
    make: Callable[[Way], Iterable[Packet | bytes]],
    reason: DropReason,
    addressed: bool = True,
) -> None:
    """Asserts that what is made for each way is dropped there for a reason, or, where it is the host's stack's, passes
    as it came; and that no flow begins by it.

    Args:
        addressed: it can be told whose it is. What cannot is for nobody, but where the host sends it.
    """
    wanted = 0
    for way in WAYS:
        left = way.left and (addressed or way.program == "to_netdev")
        frames = [framed(family, way, packet) for packet in make(way)]
        for frame in frames:
            result = datapath.run(way.program, frame, summed=False)
            assert result.verdict == (PASS if left else SHOT), (way.name, frame.hex())
            if bytes(result.packet) != frame:
                same(result.packet, Ether(frame))
        wanted += 0 if left else len(frames)
    assert drops(datapath) == {reason: wanted}
    assert datapath.counter(Counter.FLOWS_CREATED) == datapath.counter(Counter.REFUSALS) == 0


def of_protocol(ip: Packet, protocol: int) -> Packet:
    """The IP header of what Scapy does not know."""
    return with_fields(ip, **{"proto" if ip.version == 4 else "nh": protocol})


def with_fields(header: Packet, **fields: object) -> Packet:
    copy: Packet = header.copy()
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


@BOTH
@EVERY_TRANSPORT
def test_whole_packet_goes_on(served: Datapath, family: Family, transport: Transport) -> None:
    """By every way, with what a link layer has put behind it: else the others here would prove nothing."""
    for way in WAYS:
        frame = framed(family, way, network(family, way) / transport(way.port)) + bytes(6)
        result = served.run(way.program, frame, summed=False)
        assert result.verdict in (PASS, REDIRECT), way.name
        before, after = read(frame), read(bytes(result.packet))
        assert before is not None
        assert after is not None
        assert (after.untranslated, after.holds) == (before.untranslated, True), way.name
    assert not drops(served)


class TestCut:
    """Frames that end before their packets do, at every byte from the end of the IP header on: on less the kernel runs
    no program by BPF_PROG_TEST_RUN."""

    @BOTH
    @EVERY_TRANSPORT
    def test_frame_shorter_than_its_packet(self, served: Datapath, family: Family, transport: Transport) -> None:
        """The IP header promises more than there is, be it a byte of payload."""

        def make(way: Way) -> Iterable[bytes]:
            packet = bytes(network(family, way) / transport(way.port))
            return [packet[:length] for length in range(len(family.ip()), len(packet))]

        rejected(served, family, make, TRUNCATED)

    @BOTH
    @pytest.mark.parametrize("padding", [0, 40], ids=["", "padded"])
    @pytest.mark.parametrize(("transport", "size"), [(tcp, 20), (udp, 8), (sctp, 13)], ids=["tcp", "udp", "sctp"])
    def test_packet_shorter_than_its_transport_header(
        self, served: Datapath, family: Family, transport: Transport, size: int, padding: int
    ) -> None:
        """Its IP header is honest. What the link layer has put behind it is not read as if it were the packet's."""
        protocol = next(number for number, one in TRANSPORTS.items() if one is transport)

        def make(way: Way) -> Iterable[bytes]:
            ip, whole = of_protocol(network(family, way), protocol), bytes(transport(way.port))
            return [bytes(ip / whole[:length]) + bytes(padding) for length in range(size)]

        rejected(served, family, make, TRUNCATED)

    @BOTH
    def test_icmp_message_shorter_than_its_packet(self, served: Datapath, family: Family) -> None:
        """Echo and error alike."""

        def make(way: Way) -> Iterator[bytes]:
            for message in (echo(family), error(family, bytes(60))):
                packet = bytes(network(family, way) / message)
                yield from (packet[:length] for length in range(len(family.ip()), len(packet)))

        rejected(served, family, make, TRUNCATED)

    @BOTH
    def test_icmp_shorter_than_every_message(self, served: Datapath, family: Family) -> None:
        """Eight bytes."""

        def make(way: Way) -> Iterator[bytes]:
            ip = of_protocol(network(family, way), 1 if family is V4 else 58)
            for message in (echo(family), error(family, bytes(60))):
                yield from (bytes(ip / bytes(message)[:length]) for length in range(8))

        rejected(served, family, make, TRUNCATED)


class Lie(NamedTuple):
    """A field that cannot be.

    Attributes:
        spoil: makes the packet, of a way's IP header and transport protocol.
        addressed: it can still be told whose it is.
    """

    name: str
    spoil: Callable[[Packet, Packet], Packet | bytes]
    reason: DropReason = BAD_HEADER
    addressed: bool = True


def first_byte(value: int) -> Callable[[Packet, Packet], bytes]:
    return lambda ip, transport: bytes([value]) + bytes(ip / transport)[1:]


LIES_V4 = [
    Lie("version 0", first_byte(0x05), addressed=False),
    Lie("version 6", first_byte(0x65), addressed=False),
    Lie("no header", first_byte(0x40), addressed=False),
    Lie("header of 16 bytes", first_byte(0x44), addressed=False),
    Lie("header of 60 bytes in fewer", lambda ip, transport: with_fields(ip, ihl=15) / UDP(bytes(transport)[:8])),
    Lie("length 0", lambda ip, transport: with_fields(ip, len=0) / transport),
    Lie("length 19", lambda ip, transport: with_fields(ip, len=19) / transport),
    Lie("length 65,535", lambda ip, transport: with_fields(ip, len=0xFFFF) / transport, TRUNCATED),
    Lie("header alone", lambda ip, transport: with_fields(ip, len=20) / transport, TRUNCATED),
    Lie("ports alone", lambda ip, transport: with_fields(ip, len=24) / transport, TRUNCATED),
]


def extended(ip: Packet, transport: Packet, *headers: Packet) -> Packet:
    for header in headers:
        ip = ip / header
    return ip / transport


LIES_V6 = [
    Lie("version 4", first_byte(0x40), addressed=False),
    Lie("length 0", lambda ip, transport: with_fields(ip, plen=0) / transport, TRUNCATED),
    Lie("length 65,535", lambda ip, transport: with_fields(ip, plen=0xFFFF) / transport, TRUNCATED),
    Lie("ports alone", lambda ip, transport: with_fields(ip, plen=4) / transport, TRUNCATED),
    Lie("seven extensions", lambda ip, transport: extended(ip, transport, *[IPv6ExtHdrDestOpt()] * 7)),
    Lie("twelve extensions", lambda ip, transport: extended(ip, transport, *[IPv6ExtHdrDestOpt()] * 12)),
    Lie("hop-by-hop of 2,048 bytes", lambda ip, transport: ip / IPv6ExtHdrHopByHop(len=255) / transport),
    Lie(
        "hop-by-hop of 2,048 bytes before another",
        lambda ip, transport: ip / IPv6ExtHdrHopByHop(len=255) / IPv6ExtHdrDestOpt() / transport,
        TRUNCATED,
    ),
    Lie(
        "extension behind the end",
        lambda ip, transport: with_fields(ip, plen=8) / IPv6ExtHdrDestOpt(len=1) / transport,
    ),
    Lie(
        "jumbogram",
        lambda ip, transport: (
            with_fields(ip, plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)]) / transport
        ),
    ),
    Lie(
        "fragment of a fragment",
        lambda ip, transport: extended(ip, transport, IPv6ExtHdrFragment(m=1, id=3), IPv6ExtHdrFragment(id=4)),
    ),
    Lie(
        "fragment of a fragment that says no more",
        lambda ip, transport: extended(ip, transport, IPv6ExtHdrFragment(m=1, id=3), IPv6ExtHdrFragment(m=1, id=4)),
    ),
]

LIES_TCP = [
    Lie("no header", lambda ip, transport: ip / with_fields(transport, dataofs=0)),
    Lie("header of 16 bytes", lambda ip, transport: ip / with_fields(transport, dataofs=4)),
    Lie("header of 60 bytes in fewer", lambda ip, transport: ip / with_fields(transport, dataofs=15)),
]
LIES_UDP = [
    Lie(f"length {length}", lambda ip, transport, length=length: ip / with_fields(transport, len=length))  # type: ignore[misc]
    for length in (0, 1, 7, 8 + len(PAYLOAD) + 1, 0xFFFF)
]


class TestLies:
    """Lengths, versions and chains that cannot be."""

    @pytest.mark.parametrize("lie", LIES_V4, ids=lambda lie: lie.name)
    def test_ipv4(self, served: Datapath, lie: Lie) -> None:
        """What names no address is for nobody: it does not pass into the host's stack either."""
        self._rejected(served, V4, lie, [tcp, udp, sctp])

    @pytest.mark.parametrize("lie", LIES_V6, ids=lambda lie: lie.name)
    def test_ipv6(self, served: Datapath, lie: Lie) -> None:
        """Chains of headers that no receiver has to follow, among them."""
        self._rejected(served, V6, lie, [tcp, udp, sctp])

    @BOTH
    @pytest.mark.parametrize("lie", LIES_TCP, ids=lambda lie: lie.name)
    def test_tcp(self, served: Datapath, family: Family, lie: Lie) -> None:
        """A data offset within the header, or behind the segment's end."""
        self._rejected(served, family, lie, [tcp])

    @BOTH
    @pytest.mark.parametrize("lie", LIES_UDP, ids=lambda lie: lie.name)
    def test_udp(self, served: Datapath, family: Family, lie: Lie) -> None:
        """Less than its own header, or more than the packet has."""
        self._rejected(served, family, lie, [udp])

    def _rejected(self, served: Datapath, family: Family, lie: Lie, transports: list[Transport]) -> None:
        def make(way: Way) -> Iterable[Packet | bytes]:
            return [lie.spoil(network(family, way), transport(way.port)) for transport in transports]

        rejected(served, family, make, lie.reason, lie.addressed)

    @pytest.mark.parametrize("ends", [("src",), ("dst",), ("src", "dst")], ids="-".join)
    def test_ipv6_with_addresses_of_ipv4(self, served: Datapath, ends: tuple[str, ...]) -> None:
        """As they stand in the programs' own tables (::ffff:a.b.c.d): no pod, Service or flow of IPv4 is reached by
        them; nor the host, which would send them on."""

        def make(way: Way) -> Iterator[Packet]:
            ip = network(V6, way)
            for end in ends:
                setattr(ip, end, "::ffff:" + address(V4, way.source if end == "src" else way.destination))
            yield from (ip / transport(way.port) for transport in TRANSPORTS.values())

        rejected(served, V6, make, BAD_HEADER, addressed=False)


class TestTaken:
    """What looks odd, and is not."""

    @EVERY_TRANSPORT
    @pytest.mark.parametrize("size", [4, 20, 40])
    def test_ipv4_options(self, served: Datapath, transport: Transport, size: int) -> None:
        """Up to the 40 bytes that a header has room for."""
        self._translated(served, IP(options=[IPOption_NOP()] * size), transport)

    @EVERY_TRANSPORT
    def test_six_extensions(self, served: Datapath, transport: Transport) -> None:
        """As many as are followed; an atomic fragment's is one."""
        headers = IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=1)
        for _ in range(4):
            headers = headers / IPv6ExtHdrDestOpt()
        self._translated(served, headers, transport)

    @BOTH
    def test_udp_that_is_shorter_than_its_packet(self, served: Datapath, family: Family) -> None:
        """What is behind the datagram is nobody's; its checksum does not cover it."""
        length = 8 + len(PAYLOAD) + 5
        header = IP(len=20 + length) if family is V4 else IPv6(plen=length)
        self._translated(served, header, udp, behind=bytes(5))

    @BOTH
    def test_large_tcp_that_a_device_is_to_cut(self, served: Datapath, family: Family) -> None:
        """Of more than 64 KB (BIG TCP), which its header cannot say: it says 0. By BPF_PROG_TEST_RUN it is small."""
        self._translated(served, IP(len=0) if family is V4 else IPv6(plen=0), tcp, gso_size=4)

    @BOTH
    def test_smallest_first_fragment(self, served: Datapath, family: Family) -> None:
        """The transport header and nothing more; of UDP eight bytes."""
        for protocol, (size, transport) in SIZES.items():
            whole = bytes(transport(PORT))[: -(-size // 8) * 8]
            frame = framed(family, WAYS[0], piece(network(family, WAYS[2]), protocol, whole, 0, more=True))
            assert served.run("from_pod", frame, summed=False).verdict == (REDIRECT if transport is not sctp else SHOT)
        # SCTP's checksum is over all of a datagram: the ports of one in fragments cannot be changed
        assert drops(served) == {DropReason.REWRITE_FAILED: 1}

    def _translated(
        self, served: Datapath, header: Packet, transport: Transport, behind: bytes = b"", gso_size: int = 0
    ) -> None:
        family = V4 if IP in header else V6
        ip = with_fields(header, src=family.client, dst=family.service)
        frame = framed(family, WAYS[0], ip / transport(PORT)) + behind
        result = served.run("from_pod", frame, summed=False, gso_size=gso_size)
        assert result.verdict == REDIRECT
        ip = with_fields(header, src=family.client, dst=family.server, **{"ttl" if family is V4 else "hlim": 63})
        leaving = framed(family, WAYS[0], ip / transport(BACKEND_PORT), (dp.SERVER_HOST_MAC, dp.SERVER_MAC)) + behind
        same(result.packet, Ether(leaving))


SIZES: dict[int, tuple[int, Transport]] = {
    dp.TCP_PROTOCOL: (20, tcp),
    dp.UDP_PROTOCOL: (8, udp),
    dp.SCTP_PROTOCOL: (13, sctp),
}


def piece(ip: Packet, protocol: int, payload: bytes, offset: int, more: bool) -> Packet:
    """A fragment, `offset` bytes into its datagram."""
    if ip.version == 4:
        return with_fields(of_protocol(ip, protocol), id=7, flags="MF" if more else 0, frag=offset // 8) / Raw(payload)
    return ip / IPv6ExtHdrFragment(nh=protocol, id=7, offset=offset // 8, m=int(more)) / Raw(payload)


class TestFragments:
    """Those by which others have been fooled (RFC 1858, RFC 3128, RFC 5722). No datagram is put together here: where
    its fragments overlap, it is nobody's, since receivers take none such."""

    @BOTH
    @pytest.mark.parametrize("protocol", SIZES)
    def test_first_without_its_transport_header(self, served: Datapath, family: Family, protocol: int) -> None:
        """What is missing might come in another one, after this one was judged."""
        size, transport = SIZES[protocol]

        def make(way: Way) -> Iterable[Packet]:
            whole = bytes(transport(way.port))
            return [piece(network(family, way), protocol, whole[:length], 0, more=True) for length in range(size)]

        rejected(served, family, make, TRUNCATED)

    @BOTH
    @pytest.mark.parametrize("protocol", [dp.TCP_PROTOCOL, dp.SCTP_PROTOCOL], ids=["tcp", "sctp"])
    def test_later_one_within_the_transport_header(self, served: Datapath, family: Family, protocol: int) -> None:
        """It would say something else of TCP's flags, or of a chunk, than the first one did."""

        def make(way: Way) -> Iterable[Packet]:
            ip = network(family, way)
            return [piece(ip, protocol, bytes(32), offset, more) for offset in (8, 16) for more in (False, True)]

        rejected(served, family, make, BAD_HEADER)

    @BOTH
    def test_later_one_behind_the_largest_datagram(self, served: Datapath, family: Family) -> None:
        """The ping of death."""

        def make(way: Way) -> Iterable[Packet]:
            ip, icmp = network(family, way), 1 if family is V4 else 58
            return [piece(ip, protocol, bytes(8), 65528, more=False) for protocol in (icmp, *SIZES)]

        rejected(served, family, make, BAD_HEADER)

    @BOTH
    @pytest.mark.parametrize("protocol", SIZES)
    def test_later_ones_that_follow_or_overtake(self, served: Datapath, family: Family, protocol: int) -> None:
        """Nothing is wrong with them, be they the last that a datagram has room for: none is called unreadable, and
        none that overtakes its first one is translated."""
        for way in WAYS:
            for offset in (24, 1400, 65528):
                frame = framed(family, way, piece(network(family, way), protocol, bytes(7), offset, more=False))
                result = served.run(way.program, frame, summed=False)
                before, after = read(frame), read(bytes(result.packet))
                assert before is not None
                assert after is not None
                assert after == before, way.name
        assert not drops(served).keys() & {TRUNCATED, BAD_HEADER}

    @BOTH
    def test_second_first_one_is_judged_by_itself(self, served: Datapath, family: Family) -> None:
        """It would put other ports over those of the first: a port that the Service does not have is refused, and
        what follows goes where the last one went, to nobody."""
        way = WAYS[2]
        assert way.destination == "service"

        def sent(port: int | None) -> int:
            datagram = bytes(1400) if port is None else bytes(udp(port)) + bytes(1400 - 8 - len(PAYLOAD))
            fragment = piece(network(family, way), dp.UDP_PROTOCOL, datagram, 0 if port else 1400, more=True)
            return served.run(way.program, framed(family, way, fragment), summed=False).verdict

        assert [sent(PORT), sent(None)] == [REDIRECT, REDIRECT]
        assert served.counter(Counter.REFUSALS) == 0
        assert [sent(PORT + 1), sent(None)] == [REDIRECT, SHOT]
        assert served.counter(Counter.REFUSALS) == 1
        assert drops(served) == {DropReason.NO_SUCH_PORT: 1, FRAGMENT: 1}


class TestQuotes:
    """ICMP errors about a packet of a flow, whose quotes are cut short or lie."""

    @BOTH
    @EVERY_TRANSPORT
    def test_cut_at_every_byte(self, served: Datapath, family: Family, transport: Transport) -> None:
        """Translated as soon as the ports are there; before, nobody can tell whose it is, and it is the host's."""
        frame, quoted = self._error_about(served, family, transport)
        whole = len(family.ip()) + 8
        client = family.client
        for length in range(len(quoted) + 1):
            result = served.run("from_netdev", frame(quoted[:length]), summed=False)
            headers = read(bytes(result.packet))
            assert headers is not None
            assert headers.holds
            if length < whole:
                assert result.verdict == PASS, length
                same(result.packet, Ether(frame(quoted[:length])))
            else:
                assert (result.verdict, result.packet[family.ip].dst) == (REDIRECT, client), length
        assert not drops(served)

    @BOTH
    @EVERY_TRANSPORT
    def test_padding_is_not_quoted(self, served: Datapath, family: Family, transport: Transport) -> None:
        """Nor what a frame has behind its packet."""
        frame, quoted = self._error_about(served, family, transport)
        cut = len(family.ip()) + 7
        whole = frame(quoted[:cut]) + quoted[cut:]
        result = served.run("from_netdev", whole, summed=False)
        assert result.verdict == PASS
        same(result.packet, Ether(whole))

    @BOTH
    @EVERY_TRANSPORT
    @pytest.mark.parametrize("first", [0x00, 0x40, 0x44, 0x4F, 0x55, 0x65, 0xFF])
    def test_lies_are_not_followed(self, served: Datapath, family: Family, transport: Transport, first: int) -> None:
        """Another version, or a header of another length than was sent."""
        frame, quoted = self._error_about(served, family, transport)
        lie = frame(bytes([first]) + quoted[1 : len(family.ip()) + 8])
        result = served.run("from_netdev", lie, summed=False)
        if family is V6 and first >> 4 == 6:
            assert result.verdict == REDIRECT  # those bits are the traffic class
        else:
            assert result.verdict == PASS
            same(result.packet, Ether(lie))

    def _error_about(
        self, served: Datapath, family: Family, transport: Transport
    ) -> tuple[Callable[[bytes], bytes], bytes]:
        """What makes the frame of an error with a quote, and all of a packet that has left masqueraded."""
        pod, outside = WAYS[4], WAYS[10]
        assert (pod.destination, outside.source, outside.destination) == ("outside", "outside", "node")
        request = framed(family, pod, network(family, pod) / transport(pod.port))
        sent = served.run(pod.program, request, summed=False)
        assert sent.packet[family.ip].src == family.node
        ip = network(family, outside)
        return lambda quote: framed(family, outside, ip / error(family, quote)), bytes(sent.packet)[14:]


class TestNested:
    """Packets within packets: what is inside is payload, whatever it says of itself."""

    @BOTH
    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("tunnel", ["GRE", "IP in IP", "VXLAN"])
    def test_inner_packet_is_not_read(self, served: Datapath, family: Family, tunnel: str, depth: int) -> None:
        """Forged or cut short, it leaves as it came, and by the outer destination alone; the node's overlay port is
        the host's stack's, and no pod speaks under the node's address to another one's."""
        forged = network(family, WAYS[5]) / tcp(BACKEND_PORT)
        for inner in (bytes(forged), bytes(forged)[:30], b""):
            for name in ("from_pod", "from_netdev"):
                for way in (way for way in WAYS if way.program == name and way.destination != "service"):
                    packet = nested(tunnel, depth, family, network(family, way), inner)
                    frame = framed(family, way, packet)
                    result = served.run(name, frame, summed=False)
                    before, after = read(frame), read(bytes(result.packet))
                    assert result.verdict in (PASS, REDIRECT), way.name
                    assert after == before, way.name
        assert not drops(served)


def nested(tunnel: str, depth: int, family: Family, ip: Packet, inner: bytes) -> Packet:
    """A packet within so many tunnels, all of them between the same two ends."""
    for _ in range(depth):
        if tunnel == "GRE":
            packet = ip / GRE(proto=0x800 if family is V4 else 0x86DD) / Raw(inner)
        elif tunnel == "IP in IP":
            packet = of_protocol(ip, 4 if family is V4 else 41) / Raw(inner)
        else:
            # a checksum of 0, as tunnels have: it says nothing of what is inside
            packet = ip / UDP(sport=50000, dport=4789, chksum=0) / VXLAN(vni=207) / framed(family, WAYS[0], inner)
        inner = bytes(packet)
    return packet


# Where a packet may be spoiled: behind its addresses, or before them in its IP header.
ADDRESSES = {V4.name: range(14 + 12, 14 + 20), V6.name: range(14 + 8, 14 + 40)}


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[Way, bytes]:
    """A packet by one of the ways, in which some bytes are others, which is cut, or has something behind it."""
    way, family = draw(st.sampled_from(WAYS)), draw(st.sampled_from([V4, V6]))
    ip = network(family, way)
    if family is V4:
        ip.options = [IPOption_NOP()] * draw(st.sampled_from([0, 0, 4, 40]))
    else:
        for header in draw(st.lists(st.sampled_from([IPv6ExtHdrDestOpt, IPv6ExtHdrFragment]), max_size=8)):
            ip = ip / header()
    transport = draw(st.sampled_from([*(make(way.port) for make in TRANSPORTS.values()), echo(family)]))
    whole = bytearray(framed(family, way, ip / transport))
    places = [at for at in range(14, len(whole)) if at not in ADDRESSES[family.name]]
    for at in draw(st.lists(st.sampled_from(places), max_size=4)):
        whole[at] = draw(st.one_of(st.sampled_from([0, 1, 0x20, 0x45, 0x60, 0xFF]), st.integers(0, 255)))
    kept = draw(st.one_of(st.just(len(whole)), st.integers(14 + len(family.ip()), len(whole))))
    return way, bytes(whole[:kept]) + bytes(draw(st.sampled_from([0, 0, 1, 46])))


@given(spoiled())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_forwarded_can_be_received(served: Datapath, example: tuple[Way, bytes]) -> None:
    """A packet is dropped for a counted reason, refused, or goes on with the payload that it had: translated rightly,
    and only where a receiver could read it. What could be read is never dropped as if it could not."""
    way, frame = example
    served.reset()
    serve(served)
    result = served.run(way.program, frame, summed=False)
    before, counted = read(frame), drops(served)
    if before is None:
        assert counted in ([{}] if result.verdict == PASS else [{TRUNCATED: 1}, {BAD_HEADER: 1}])
        assert result.verdict == SHOT or way.left
        same(result.packet, Ether(frame))
        return
    assert not counted.keys() & {TRUNCATED, BAD_HEADER}
    assert sum(counted.values()) == (result.verdict == SHOT) + served.counter(Counter.REFUSALS)
    after = read(bytes(result.packet))
    assert after is not None
    if served.counter(Counter.REFUSALS):
        assert after.holds
        assert after.header_holds
    elif result.verdict != SHOT:
        assert after.holds == before.holds
        assert after.header_holds == before.header_holds
        assert before.is_error or after.untranslated == before.untranslated
