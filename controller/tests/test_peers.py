# SPDX-License-Identifier: Apache-2.0
"""The probe of layer 2: its frames, and two nodes that ask each other over a veth pair between two namespaces."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bpf.abi import Peer, PeerKey, Remote, RemoteFlag, RemoteKey
from bpf.address import packed
from controller import neighbours, peers, probe
from controller.peers import Peers, Target
from controller.tests.space import Space

MAC, PEER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
NEW_MAC = bytes.fromhex("020000000077")
NONCE = b"12345678"


@pytest.mark.parametrize(
    ("source", "asked", "layer", "foreign"),
    [("192.0.2.1", "192.0.2.2", IP, "192.0.2.206"), ("2001:db8::1", "2001:db8::2", IPv6, "2001:db8::ce")],
)
def test_frames_are_what_is_handed_over(source: str, asked: str, layer: Any, foreign: str) -> None:
    """A request's destination is foreign, an answer's source; checksums hold, and a second hop drops both."""
    frame = probe.request(PEER_MAC, MAC, packed(source), NONCE, packed(asked))
    found = probe.parse(frame)
    assert found == probe.Probe(probe.REQUEST, MAC, packed(source), packed(foreign), NONCE, packed(asked))
    back = probe.answer(found, PEER_MAC)
    for data, expected in ((frame, (source, foreign)), (back, (foreign, source))):
        packet = Ether(data)
        assert (packet[layer].src, packet[layer].dst) == expected
        assert (packet[UDP].sport, packet[UDP].dport) == (probe.PORT, probe.PORT)
        assert (packet.ttl if layer is IP else packet.hlim) == 1
        rebuilt = Ether(data)
        del rebuilt[UDP].chksum
        if layer is IP:
            del rebuilt[IP].chksum
        assert bytes(rebuilt) == data
    answered = probe.parse(back)
    assert answered
    assert (answered.kind, answered.nonce, answered.asked) == (probe.ANSWER, NONCE, packed(asked))
    assert back[:12] == MAC + PEER_MAC


@pytest.mark.parametrize("length", [0, 13, 14, 34, 60, 200])
def test_other_frames_are_no_probes(length: int) -> None:
    """Whatever their length."""
    assert probe.parse(bytes(length)) is None
    frame = probe.request(PEER_MAC, MAC, packed("192.0.2.1"), NONCE, packed("192.0.2.2"))
    assert probe.parse(frame[:-1]) is None


def test_neighbours_of_nonsense_are_none() -> None:
    """A message that is cut short ends the list, and no loop runs for ever."""
    assert list(neighbours.known(bytes(64))) == []
    assert list(neighbours.known(neighbours.list_request())) == []


def test_request_to_an_address_that_routers_know_is_no_probe() -> None:
    """It may have come by one, whose MAC is not its sender's."""
    frame = probe.request(PEER_MAC, MAC, packed("192.0.2.1"), NONCE, packed("192.0.2.2"))
    assert probe.parse(frame.replace(packed("192.0.2.206")[12:], packed("192.0.2.2")[12:])) is None


class Side(Space):
    """A node: a network namespace with one end of a veth pair, and its peers."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.changes = 0
        self.recognised = {MAC, PEER_MAC, NEW_MAC}
        self._peers: Peers | None = None

    @property
    def peers(self) -> Peers:
        assert self._peers
        return self._peers

    def make(self) -> Peers:
        self._peers = self.run(lambda: Peers(lambda mac: mac in self.recognised, self._changed))
        return self._peers

    def start(self) -> None:
        """Has it watch the other one."""
        self.make().start()
        self.peers.watch(self.targets())

    def targets(self) -> dict[bytes, Target]:
        """The other node's addresses, as this one reaches them."""
        link = self.ip("-o link show up0")[0].split()
        ifindex, mac = int(link[0].rstrip(":")), bytes.fromhex(link[link.index("link/ether") + 1].replace(":", ""))
        return {
            packed(f"{prefix}{3 - self.number}"): Target(ifindex, "up0", mac, packed(f"{prefix}{self.number}"))
            for prefix in ("192.0.2.", "2001:db8::")
        }

    def close(self) -> None:
        if self._peers:
            self._peers.stop()
        super().close()

    def _changed(self) -> None:
        self.changes += 1


def _eventually(reached: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    """Two nodes on one link, with short times."""
    for name, seconds in (("RETRY_S", 0.1), ("PROBE_S", 0.2), ("RESOLVE_S", 0.2), ("TELL_S", 0.05), ("SILENCE_S", 1)):
        monkeypatch.setattr(peers, name, seconds)
    one, other = Side(1), Side(2)
    try:
        one.ip(f"link add up0 type veth peer name up0 netns {other.path}")
        for side in (one, other):
            side.ip(f"link set up0 address 02:00:00:00:00:0{side.number}")
            side.ip(f"addr add 192.0.2.{side.number}/24 dev up0")
            side.ip(f"addr add 2001:db8::{side.number}/64 dev up0 nodad")
            side.ip("link set lo up")
            side.ip("link set up0 up")
        yield one, other
    finally:
        one.close()
        other.close()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The probes that are sent."""
    made: list[bytes] = []
    request = probe.request

    def noted(*arguments: bytes) -> bytes:
        made.append(request(*arguments))
        return made[-1]

    monkeypatch.setattr(probe, "request", noted)
    return made


def _sent_by(mac: bytes, frames: list[bytes]) -> int:
    return sum(frame[6:12] == mac for frame in frames)


BOTH = frozenset(map(packed, ("192.0.2.2", "2001:db8::2")))


@pytest.mark.root
def test_peers_find_each_others_macs_and_answer(sides: tuple[Side, Side]) -> None:
    """Nobody has sent anything before: the MACs are asked for, then probed, in both families."""
    one, other = sides
    one.start()
    other.start()
    state = one.peers.state
    _eventually(lambda: state().answered == BOTH)
    assert set(state().macs.values()) == {PEER_MAC}
    _eventually(lambda: set(other.peers.state().macs.values()) == {MAC})
    assert one.changes


@pytest.mark.root
def test_peer_that_falls_silent_is_noticed_and_found_again(sides: tuple[Side, Side]) -> None:
    """Nobody answers for it while the kernel goes on answering ARP: the MAC stays known."""
    one, other = sides
    one.start()
    other.start()
    state = one.peers.state
    _eventually(lambda: state().answered == BOTH)
    other.peers.stop()
    _eventually(lambda: not state().answered)
    assert set(state().macs) == BOTH
    other.start()
    _eventually(lambda: state().answered == BOTH)


@pytest.mark.root
def test_mac_that_changes_is_followed(sides: tuple[Side, Side]) -> None:
    """Another machine under the same address."""
    one, other = sides
    one.start()
    other.start()
    state = one.peers.state
    _eventually(lambda: state().answered == BOTH)
    other.ip("link set up0 address 02:00:00:00:00:77")
    other.peers.watch(other.targets())
    _eventually(lambda: set(state().macs.values()) == {NEW_MAC})


@pytest.mark.root
def test_mac_from_which_nothing_has_come_is_no_peers(sides: tuple[Side, Side], requests: list[bytes]) -> None:
    """Who answers ARP for a node may be a router: what comes from there may be any client's."""
    one, _ = sides
    one.start()
    _eventually(lambda: len(requests) > 4)
    assert {frame[:6] for frame in requests} == {PEER_MAC}
    assert one.peers.state() == peers.NOTHING
    assert not one.changes


@pytest.mark.root
def test_probe_is_answered_once_its_sender_is_recognised(
    sides: tuple[Side, Side], requests: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the answer on the sender hands over, so the programs must know it by then. It need not ask again."""
    one, other = sides
    other.recognised = set()
    one.start()
    other.start()
    theirs = other.peers.state
    _eventually(lambda: theirs().macs == dict.fromkeys(map(packed, ("192.0.2.1", "2001:db8::1")), MAC))
    assert not one.peers.state().answered
    monkeypatch.setattr(peers, "RETRY_S", 60)
    monkeypatch.setattr(peers, "PROBE_S", 60)
    asking = one.peers
    _eventually(lambda: all(peer.probe_due > time.monotonic() + 30 for peer in asking._peers.values()))
    sent = _sent_by(MAC, requests)
    other.recognised = {MAC}
    _eventually(lambda: asking.state().answered == BOTH)
    assert _sent_by(MAC, requests) == sent


def test_remembered_is_what_the_maps_say() -> None:
    """MACs from peers; who has answered from remotes of single addresses that need no tunnel,
    and are no router's and no Service's."""
    address, closed = packed("192.0.2.2"), packed("192.0.2.3")
    routed, router = packed("198.51.100.2"), packed("192.0.2.254")
    remotes = {
        RemoteKey(128, address).pack(): Remote(address, address, 2, 9, 0).pack(),
        RemoteKey(128, closed).pack(): Remote(closed, closed, 2, 9, RemoteFlag.TUNNEL_HANDOVER).pack(),
        RemoteKey(128, routed).pack(): Remote(router, routed, 2, 0, RemoteFlag.NO_HANDOVER).pack(),
        RemoteKey(120, packed("10.244.1.0")).pack(): Remote(address, address, 2, 9, 0).pack(),
        RemoteKey(128, packed("10.96.0.1")).pack(): Remote(bytes(16), bytes(16), 0, 0, RemoteFlag.SERVICES).pack(),
    }
    found = peers.remembered({PeerKey(PEER_MAC).pack(): Peer(address).pack()}, remotes)
    assert found == peers.State({address: PEER_MAC}, frozenset({address}))


@pytest.mark.root
def test_what_was_known_before_a_restart_holds_until_silence(sides: tuple[Side, Side]) -> None:
    """A peer that answers no more is let go after the silence, like any."""
    one, _ = sides
    one.make()
    before = peers.State({packed("192.0.2.2"): PEER_MAC}, frozenset({packed("192.0.2.2")}))
    one.peers.remember(before)
    assert one.peers.state() == before
    one.peers.start()
    one.peers.watch(one.targets())
    assert one.peers.state() == before
    _eventually(lambda: not one.peers.state().answered)


@pytest.mark.root
def test_nodes_own_new_mac_takes_nothing_from_what_is_known(sides: tuple[Side, Side]) -> None:
    """The peers are the same; on another device they would be asked anew."""
    one, _ = sides
    known, targets = one.make(), one.targets()
    before = peers.State(dict.fromkeys(BOTH, PEER_MAC), BOTH)
    known.remember(before)
    known.watch(targets)
    known.watch({address: target._replace(mac=NEW_MAC) for address, target in targets.items()})
    assert known.state() == before
    known.watch({address: target._replace(ifindex=target.ifindex + 1) for address, target in targets.items()})
    assert known.state() == peers.NOTHING
    known.start()


@pytest.mark.root
def test_what_is_no_longer_watched_is_forgotten(sides: tuple[Side, Side]) -> None:
    """And a node that was never there has no MAC."""
    one, other = sides
    one.start()
    other.start()
    _eventually(lambda: bool(one.peers.state().macs))
    one.peers.watch({})
    assert one.peers.state() == peers.State({}, frozenset())
