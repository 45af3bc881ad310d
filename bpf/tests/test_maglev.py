# SPDX-License-Identifier: Apache-2.0
"""Maglev tables on the real programs: which backend a client outside has, and connections that come by another node."""

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from bpf.abi import BackendKey, DropReason, Flow, FlowFlag, FlowState, FrontendFlag, Maglev, MaglevKey, WayKind
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests.datapath import (
    BOTH,
    BUILD,
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
)

pytestmark = pytest.mark.root

EXTERNAL, DIRECT, MAGLEV = FrontendFlag.EXTERNAL, FrontendFlag.DIRECT, FrontendFlag.MAGLEV
# Of one pod, so that it is the port that tells a backend; the first has the id 10.
PORTS = range(8000, 8005)
THIRD_MAC = "02:00:00:00:00:15"


def place(client: tuple[str, int], affinity: bool = False) -> int:
    """The place of a client in the table of its family's balancer: MurmurHash3's finaliser over its address, the
    address that it asks, and its port; with affinity over its address alone."""
    asked = packed(V6.balancer if ":" in client[0] else V4.balancer)
    halves = [address[at : at + 8] for address in (packed(client[0]), asked) for at in (0, 8)]
    words = [*(int.from_bytes(half, "big") for half in halves), client[1]]
    value = 0
    for word in words[: 2 if affinity else 5]:
        value ^= word
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = (value ^ value >> 33) * factor % 2**64
        value ^= value >> 33
    return value % dp.MAGLEV_SIZE


def backend_of(client: tuple[str, int], affinity: bool = False) -> int:
    """The port of the backend that a client has by the table of `offer`."""
    return PORTS[place(client, affinity) % len(PORTS)]


def offer(
    datapath: Datapath, family: Family, build: object = tcp, flags: int = 0, pod: str = "", affinity_s: int = 0
) -> None:
    """A load balancer's address with a table, whose backends are one of this node's pods."""
    backends = [(pod or family.server, port) for port in PORTS]
    local = 0 if pod else len(PORTS)
    flags = EXTERNAL | MAGLEV | FrontendFlag(flags)
    datapath.service(family.balancer, 80, protocol_of(build), backends, 1, local, flags, affinity_s)
    datapath.maglev([10 + one % len(PORTS) for one in range(dp.MAGLEV_SIZE)])


def entering(family: Family, client: tuple[str, int], flags: str = "A", source: str = dp.ROUTER_MAC) -> Packet:
    """A client's segment to the load balancer's address."""
    return arriving(tcp(family, client, (family.balancer, 80), flags=flags), source)


def handed_over(family: Family, client: tuple[str, int], port: int, flags: str = "A") -> Packet:
    """The same from the node by which it came in, for a backend here."""
    return arriving(tcp(family, client, (family.server, port), flags=flags), dp.PEER_MAC)


def delivered(packet: Packet, family: Family, port: int) -> Packet:
    """What the backend gets of a packet."""
    return expected(packet, hops=1, dst=family.server, dport=port, eth_src=dp.SERVER_HOST_MAC, eth_dst=dp.SERVER_MAC)


def answered_by(datapath: Datapath, family: Family, client: tuple[str, int], port: int, flags: str = "A") -> Packet:
    """A backend's answer, as it leaves."""
    result = datapath.run("from_pod", tcp(family, (family.server, port), client, flags=flags))
    assert result.verdict == REDIRECT
    return result.packet


def flow(datapath: Datapath, source: tuple[str, int], destination: tuple[str, int]) -> Flow:
    found = datapath.flow(key(source, destination))
    assert found
    return found


class TestChoice:
    """Which backend a client has."""

    @BOTH
    @BUILD
    def test_client_has_the_backend_of_its_place(self, datapath: Datapath, family: Family, build: object) -> None:
        """Each of its ports has a place of its own, which is the same on every node."""
        offer(datapath, family, build)
        for port in range(5000, 5060):
            client = (family.outside, port)
            request = arriving(build(family, client, (family.balancer, 80)))
            result = datapath.run("from_netdev", request)
            assert result.verdict == REDIRECT
            same(result.packet, delivered(request, family, backend_of(client)))
        assert {backend_of((family.outside, port)) for port in range(5000, 5060)} == set(PORTS)

    @BOTH
    def test_affinity_makes_a_place_of_all_ports(self, datapath: Datapath, family: Family) -> None:
        """What the client had before comes first, and counts as before."""
        offer(datapath, family, affinity_s=100)
        for port in range(5000, 5010):
            result = datapath.run("from_netdev", entering(family, (family.outside, port), "S"))
            assert result.packet[TCP].dport == backend_of((family.outside, 0), affinity=True)
        remembered = datapath.affinity(family.outside)
        assert remembered
        other = 10 + (remembered.backend_id - 10 + 1) % len(PORTS)
        datapath.write_affinity(family.outside, remembered._replace(backend_id=other))
        for port, flags in ((5010, "S"), (5011, "A")):
            result = datapath.run("from_netdev", entering(family, (family.outside, port), flags))
            assert result.packet[TCP].dport == PORTS[other - 10]

    @BOTH
    def test_pods_choose_at_random(self, datapath: Datapath, family: Family) -> None:
        """Nobody takes their connections over, so nobody has to choose alike."""
        offer(datapath, family)
        for port in range(5000, 5060):
            result = datapath.run("from_pod", tcp(family, (family.client, port), (family.balancer, 80)))
            if result.packet[TCP].dport != backend_of((family.client, port)):
                return
        raise AssertionError("sixty times the same by chance")

    @BOTH
    @pytest.mark.parametrize("damage", ["row", "backend"])
    def test_connection_begins_where_a_table_is_damaged(self, datapath: Datapath, family: Family, damage: str) -> None:
        """A row or a backend that is missing leaves the choice to chance; what is in mid-stream is refused."""
        offer(datapath, family)
        clients = [(family.outside, port) for port in range(5000, 9000)]
        if damage == "row":
            concerned = [client for client in clients if place(client) // Maglev.ROW == 1]
            assert datapath.delete("maglev", MaglevKey(1, 1).pack())
        else:
            concerned = [client for client in clients if backend_of(client) == PORTS[1]]
            assert datapath.delete("backends", BackendKey(11).pack())
        late, *new = concerned[:31]
        opened = [datapath.run("from_netdev", entering(family, client, "S")) for client in new]
        met = {result.packet[TCP].dport for result in opened if result.verdict == REDIRECT}
        # chance may draw the backend that is missing, which the program drops
        assert met <= set(PORTS)
        assert len(met) > 1
        result = datapath.run("from_netdev", entering(family, late))
        assert result.verdict == SHOT or result.packet[TCP].flags == "R"
        assert datapath.flow(key(late, (family.balancer, 80))) is None


class TestMidStream:
    """A connection that began by another node, of which this one knows nothing."""

    @BOTH
    @pytest.mark.parametrize("flags", ["A", "PA", "SA"])
    def test_it_goes_on_with_its_backend(self, datapath: Datapath, family: Family, flags: str) -> None:
        """Both ways, by a flow; its answers leave as the load balancer's."""
        offer(datapath, family)
        client = (family.outside, 5000)
        request, port = entering(family, client, flags), backend_of(client)
        for _ in range(2):
            result = datapath.run("from_netdev", request)
            assert result.verdict == REDIRECT
            same(result.packet, delivered(request, family, port))
        answer = tcp(family, (family.server, port), client, flags="A")
        result = datapath.run("from_pod", answer)
        same(result.packet, expected(answer, hops=1, src=family.balancer, sport=80))

    @BOTH
    def test_it_is_handed_over_to_its_backends_node(self, datapath: Datapath, family: Family) -> None:
        """Where the table has another node's pod."""
        offer(datapath, family, pod=family.remote)
        client = (family.outside, 5000)
        request = entering(family, client)
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(request, hops=1, dst=family.remote, dport=backend_of(client)))

    @BOTH
    def test_direct_return_hands_it_over_as_it_is(self, datapath: Datapath, family: Family) -> None:
        """The backend's node knows it, or has the same table."""
        offer(datapath, family, flags=DIRECT, pod=family.remote)
        request = entering(family, (family.outside, 5001))
        result = datapath.run("from_netdev", request)
        assert (result.verdict, result.mark) == (REDIRECT, dp.MARK)
        same(result.packet, expected(request, hops=1))

    @BOTH
    @pytest.mark.parametrize("flags", ["S", "A"])
    def test_direct_return_finds_the_backend_by_the_table_where_it_is(
        self, datapath: Datapath, family: Family, flags: str
    ) -> None:
        """Of all that are here it is the one that the entry node meant, also once the flow was lost."""
        offer(datapath, family, flags=DIRECT)
        for port in range(5000, 5030):
            client = (family.outside, port)
            request = entering(family, client, flags, dp.PEER_MAC)
            same(datapath.run("from_netdev", request).packet, delivered(request, family, backend_of(client)))

    @BOTH
    def test_first_packet_alone_is_not_believed(self, datapath: Datapath, family: Family) -> None:
        """Anybody can send one: its flow is as one that only begins, until a second one comes."""
        offer(datapath, family)
        client = (family.outside, 5000)
        for state in (FlowState.NEW, FlowState.ESTABLISHED):
            datapath.run("from_netdev", entering(family, client))
            assert flow(datapath, client, (family.balancer, 80)).state == state

    @BOTH
    def test_affinity_is_not_remembered_for_what_is_refused(self, datapath: Datapath, family: Family) -> None:
        """Its next connection is free to choose."""
        offer(datapath, family, affinity_s=100)
        client = (family.outside, 5000)
        assert datapath.delete("maglev", MaglevKey(1, place(client, affinity=True) // Maglev.ROW).pack())
        assert datapath.run("from_netdev", entering(family, client)).packet[TCP].flags == "R"
        assert datapath.affinity(family.outside) is None

    @BOTH
    def test_fin_that_comes_first_closes_it(self, datapath: Datapath, family: Family) -> None:
        """The backend's own FIN and its last ACK find their way."""
        offer(datapath, family)
        client = (family.outside, 5000)
        port = backend_of(client)
        request = entering(family, client, "FA")
        same(datapath.run("from_netdev", request).packet, delivered(request, family, port))
        begun = flow(datapath, client, (family.balancer, 80))
        assert (begun.state, begun.flags & FlowFlag.FIN) == (FlowState.CLOSING, FlowFlag.FIN)
        answer = tcp(family, (family.server, port), client, flags="FA")
        result = datapath.run("from_pod", answer)
        same(result.packet, expected(answer, hops=1, src=family.balancer, sport=80))
        assert flow(datapath, client, (family.balancer, 80)).state == FlowState.CLOSED

    @BOTH
    def test_rst_that_comes_first_is_passed_on(self, datapath: Datapath, family: Family) -> None:
        """The backend is to hear of it; what comes after is another connection."""
        offer(datapath, family)
        client = (family.outside, 5000)
        request = entering(family, client, "R")
        same(datapath.run("from_netdev", request).packet, delivered(request, family, backend_of(client)))
        assert flow(datapath, client, (family.balancer, 80)).state == FlowState.RESET

    @BOTH
    @pytest.mark.parametrize(("program", "side"), [("from_netdev", "outside"), ("from_pod", "client")])
    def test_it_is_refused_where_nodes_do_not_agree(
        self, datapath: Datapath, family: Family, program: str, side: str
    ) -> None:
        """A Service without table; and a pod, which comes by one node alone."""
        offer(datapath, family)
        if program == "from_netdev":
            datapath.service(family.balancer, 80, dp.TCP_PROTOCOL, [(family.server, 8000)], local=1, flags=EXTERNAL)
        request = tcp(family, (getattr(family, side), 5000), (family.balancer, 80), flags="A")
        result = datapath.run(program, arriving(request) if program == "from_netdev" else request)
        assert result.packet[TCP].flags == "R"
        assert datapath.dropped(DropReason.NO_FLOW) == 1

    @BOTH
    def test_it_waits_while_flows_are_taken_over(self, datapath: Datapath, family: Family) -> None:
        """Its flow may be in the other layout."""
        offer(datapath, family)
        datapath.taking_over()
        assert datapath.run("from_netdev", entering(family, (family.outside, 5000))).verdict == SHOT
        assert datapath.dropped(DropReason.TAKING_OVER) == 1


class TestMoves:
    """A connection whose backend is here comes in by another node, and comes here itself again."""

    CLIENT_PORT = 5000

    def _assert_answers_leave_here(
        self, datapath: Datapath, family: Family, client: tuple[str, int], port: int
    ) -> None:
        packet = answered_by(datapath, family, client, port)
        assert (packet[family.ip].src, packet[TCP].sport) == (family.balancer, 80)
        assert (packet[family.ip].dst, packet[TCP].dport) == client
        assert flow(datapath, (family.server, port), client).way.kind == WayKind.ROUTE

    def _assert_answers_go_to_entry(
        self, datapath: Datapath, family: Family, client: tuple[str, int], port: int
    ) -> None:
        packet = answered_by(datapath, family, client, port)
        assert (packet[family.ip].src, packet[TCP].sport) == (family.server, port)
        assert (packet.dst, flow(datapath, (family.server, port), client).way.kind) == (dp.PEER_MAC, WayKind.MAC)

    @BOTH
    @pytest.mark.parametrize("began", ["elsewhere", "here"])
    def test_it_keeps_its_port_and_its_answers_follow(self, datapath: Datapath, family: Family, began: str) -> None:
        """Twice to and fro; the backend sees one connection, from one port of the client's."""
        offer(datapath, family)
        client = (family.outside, self.CLIENT_PORT)
        port = backend_of(client)
        ways = [
            (handed_over(family, client, port), self._assert_answers_go_to_entry),
            (entering(family, client), self._assert_answers_leave_here),
        ]
        if began == "here":
            ways.reverse()
        opening = expected(ways[0][0], flags="S")
        same(datapath.run("from_netdev", opening).packet, delivered(opening, family, port))
        for request, assert_answers in [*ways, *ways]:
            same(datapath.run("from_netdev", request).packet, delivered(request, family, port))
            assert_answers(datapath, family, client, port)

    @BOTH
    @pytest.mark.parametrize("last", ["FA", "R"])
    @pytest.mark.parametrize("began", ["elsewhere", "here"])
    @pytest.mark.parametrize("next_way", ["elsewhere", "by a third node", "here"])
    def test_port_can_be_used_again_by_any_way_once_it_is_over(
        self, datapath: Datapath, family: Family, next_way: str, began: str, last: str
    ) -> None:
        """It began by one node, came by another, and ended there: nothing of it stands in the next one's way."""
        offer(datapath, family)
        datapath.peer(THIRD_MAC)
        client = (family.outside, self.CLIENT_PORT)
        port = backend_of(client)
        ways = {
            "elsewhere": handed_over(family, client, port),
            "by a third node": expected(handed_over(family, client, port), eth_src=THIRD_MAC),
            "here": entering(family, client),
        }
        first, second = ways[began], ways["here" if began == "elsewhere" else "elsewhere"]
        datapath.run("from_netdev", expected(first, flags="S"))
        answered_by(datapath, family, client, port, "SA")
        datapath.run("from_netdev", first)
        datapath.run("from_netdev", expected(second, flags=last))
        if last == "FA":
            answered_by(datapath, family, client, port, "FA")
            datapath.run("from_netdev", second)
        syn = expected(ways[next_way], flags="S")
        result = datapath.run("from_netdev", syn)
        used = int(result.packet[TCP].sport)  # another one where the backend may still be in TIME_WAIT
        same(result.packet, delivered(expected(syn, sport=used), family, port))
        answer = answered_by(datapath, family, (family.outside, used), port, "SA")
        assert answer[TCP].dport == self.CLIENT_PORT
        if next_way == "here":
            assert (answer[family.ip].src, answer[TCP].sport) == (family.balancer, 80)
        else:
            assert (answer[family.ip].src, answer[TCP].sport, answer.dst) == (family.server, port, syn.src)

    @BOTH
    def test_another_entry_node_takes_no_answers_of_what_comes_here(self, datapath: Datapath, family: Family) -> None:
        """From E to this node and to a third one, each within a second: the answers go to the third, untranslated."""
        offer(datapath, family)
        datapath.peer(THIRD_MAC)
        client = (family.outside, self.CLIENT_PORT)
        port = backend_of(client)
        third = expected(handed_over(family, client, port), eth_src=THIRD_MAC)
        for packet in (handed_over(family, client, port), entering(family, client), third):
            datapath.run("from_netdev", packet)
        answer = answered_by(datapath, family, client, port)
        assert (answer[family.ip].src, answer[TCP].sport, answer.dst) == (family.server, port, THIRD_MAC)

    @BOTH
    @pytest.mark.parametrize("standing", ["another address", "straight to the pod"])
    def test_answers_of_another_connection_are_left_to_it(
        self, datapath: Datapath, family: Family, standing: str
    ) -> None:
        """The same client's port at the same backend, by another name: a segment to the balancer's address takes none
        of its answers, whoever has sent it."""
        offer(datapath, family)
        client = (family.outside, self.CLIENT_PORT)
        port = backend_of(client)
        asked = (family.server, port)
        if standing == "another address":
            asked = ("198.51.100.8" if family is V4 else "2001:db8:1b::8", 80)
            datapath.service(*asked, dp.TCP_PROTOCOL, [(family.server, port)], 2, 1, EXTERNAL)
        for flags in ("S", "A"):
            datapath.run("from_netdev", arriving(tcp(family, client, asked, flags=flags)))
        before = datapath.flow(key((family.server, port), client))
        result = datapath.run("from_netdev", entering(family, client))
        assert result.packet[TCP].sport != self.CLIENT_PORT
        after = datapath.flow(key((family.server, port), client))
        assert before
        assert after
        assert before.twin == after.twin

    @BOTH
    def test_connection_that_begins_is_another_one(self, datapath: Datapath, family: Family) -> None:
        """One port of a client's by two nodes to one backend: the second gets another port, as ever."""
        offer(datapath, family)
        client = (family.outside, self.CLIENT_PORT)
        port = backend_of(client)
        datapath.run("from_netdev", handed_over(family, client, port, "S"))
        result = datapath.run("from_netdev", entering(family, client, "S"))
        assert result.packet[TCP].dport == port
        assert result.packet[TCP].sport != self.CLIENT_PORT
