# SPDX-License-Identifier: Apache-2.0
"""The other nodes of this node's subnets: the MACs from which they send, and whether they answer the probe of layer 2.

The kernel's neighbour table says where a probe is to go, and no more: where a router answers ARP for a node, what comes
from that MAC is the router's, and may be a client's. A peer's MAC is the one from which its own probe or answer came,
and a probe is answered only once the programs know its sender by it: from the answer on, the sender hands over.

A thread of its own does all of it, and says when something has changed; the loop that syncs never waits for it. A MAC
that was once heard holds until another one is: a node that is silent for a while is still that node.
"""

import ctypes
import errno
import heapq
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

import structlog

from bpf.abi import Peer, PeerKey, Remote, RemoteFlag, RemoteKey
from controller import neighbours, probe

log = structlog.get_logger()

# A probe that is lost is repeated soon, so many times, and then only as often as any.
TRIES = 3
RETRY_S = 0.5
PROBE_S = 10.0
# After such a silence a peer that did answer counts as one that does not: longer than its controller's restart.
SILENCE_S = 30.0
# How often the kernel is asked for a MAC that it does not know, and to confirm one.
RESOLVE_S = 2.0
CONFIRM_S = 60.0
# How often it is looked whether the programs know by now who has asked, and for how long.
RECOGNISE_S = 0.05
PATIENCE_S = 5.0
# The least time between two calls of `changed`: the loop then looks at the whole network.
TELL_S = 1.0

HOST_BITS = 128  # of a longest-prefix key: a single address

_SO_ATTACH_FILTER = 26
_PACKET_HOST = 0


class Target(NamedTuple):
    """How an address of another node is reached at layer 2.

    Attributes:
        device: name of this node's device.
        mac: that device's.
        source: this node's address there, of the same family; b"": none, and no probe.
    """

    ifindex: int
    device: str
    mac: bytes
    source: bytes


class State(NamedTuple):
    """What is known: MACs from which a node has sent, by its address, and the addresses that have answered."""

    macs: Mapping[bytes, bytes]
    answered: frozenset[bytes]


NOTHING = State({}, frozenset())

# By these an entry is of no address that has answered.
NO_ANSWER = RemoteFlag.TUNNEL_HANDOVER | RemoteFlag.NO_HANDOVER | RemoteFlag.SERVICES


def remembered(peers: Mapping[bytes, bytes], remotes: Mapping[bytes, bytes]) -> State:
    """What an earlier controller knew, from the maps that it left: a restart must not take layer 2 for closed."""
    hosts = ((RemoteKey.unpack(key), Remote.unpack(value)) for key, value in remotes.items())
    return State(
        {Peer.unpack(value).address: PeerKey.unpack(key).mac for key, value in peers.items()},
        frozenset(
            key.address for key, remote in hosts if key.prefix_bits == HOST_BITS and not remote.flags & NO_ANSWER
        ),
    )


class Watch(Protocol):
    def watch(self, targets: Mapping[bytes, Target]) -> None:
        """Makes `targets`, by address, all that is watched; returns at once."""

    def state(self) -> State:
        """What is known of what is watched."""


class _Peer:
    """One address that is watched; times are monotonic, and math.inf is never.

    Attributes:
        next_hop: the MAC to which the kernel would send; b"": it is not known.
        mac: the one from which it has sent a probe or an answer; b"": none has come.
        asked: its request, until the programs know its sender.
        attended: when the thread comes to it next.
    """

    def __init__(self, target: Target, mac: bytes, answered: bool) -> None:
        self.target = target
        self.next_hop = b""
        self.mac = mac
        self.answered = answered
        self.answered_at = time.monotonic()
        self.unanswered = 0
        self.probe_due = math.inf
        self.resolve_due = 0.0
        self.asked: probe.Probe | None = None
        self.asked_at = 0.0
        self.recognise_due = math.inf
        self.attended = math.inf

    @property
    def due(self) -> float:
        return min(self.probe_due, self.resolve_due, self.recognise_due)


class Peers:
    """Implements Watch. Its sockets belong to the network namespace of the thread that makes it.

    Args:
        recognised: whether the programs know what comes from a MAC as a node's.
        changed: called, from the thread, when `state` has changed.

    Raises:
        OSError: a socket could not be opened.
    """

    def __init__(self, recognised: Callable[[bytes], bool], changed: Callable[[], None]) -> None:
        self._recognised = recognised
        self._before: State | None = NOTHING
        self._changed = changed
        self._nonce = os.urandom(8)
        self._lock = threading.Lock()
        self._peers: dict[bytes, _Peer] = {}
        self._due: list[tuple[float, bytes]] = []
        self._list_wanted = False
        self._tell, self._tell_due = False, 0.0
        self._stopped = False
        self._netlink = neighbours.opened()
        self._packets = {4: _packet_socket(probe.ETH_P_IP), 6: _packet_socket(probe.ETH_P_IPV6)}
        self._sinks = _sinks()
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def remember(self, before: State) -> None:
        """Takes this for known until something else is found out; to be called before the first `watch`."""
        self._before = before

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and closes the sockets."""
        self._stopped = True
        self._wake_up()
        self._thread.join()
        for one in (self._netlink, *self._packets.values(), *self._sinks, self._waker, self._wake):
            one.close()

    def watch(self, targets: Mapping[bytes, Target]) -> None:
        with self._lock:
            new = {
                address: target
                for address, target in targets.items()
                if address not in self._peers or self._peers[address].target != target
            }
            for address in self._peers.keys() - targets.keys():
                del self._peers[address]
            before, self._before = self._before or NOTHING, None
            for address, target in new.items():
                peer = _Peer(target, before.macs.get(address, b""), address in before.answered)
                known = self._peers.get(address)
                if known and known.target.ifindex == target.ifindex:  # this node's own address or MAC is another
                    peer.mac, peer.answered = known.mac, known.answered
                self._peers[address] = peer
                self._schedule(address, peer)
        if new:
            self._list_wanted = True
            self._wake_up()

    def state(self) -> State:
        with self._lock:
            if self._before is not None:
                return self._before  # nothing is watched yet
            macs = {address: peer.mac for address, peer in self._peers.items() if peer.mac}
            return State(macs, frozenset(address for address, peer in self._peers.items() if peer.answered))

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):
            self._waker.send(b"!")

    def _run(self) -> None:
        sockets = [self._netlink, *self._packets.values(), self._wake]
        while not self._stopped:
            ready, _, _ = select.select(sockets, [], [], self._step(time.monotonic()))
            for one in ready:
                if one is self._wake:
                    self._wake.recv(4096)
                    self._list_neighbours()
                elif one is self._netlink:
                    self._hear_neighbours()
                else:
                    self._hear_probe(one)

    def _step(self, now: float) -> float | None:
        """Does what is due, and returns the seconds until more is; None: nothing is awaited."""
        with self._lock:
            while self._due and self._due[0][0] <= now:
                at, address = heapq.heappop(self._due)
                peer = self._peers.get(address)
                if peer and peer.attended == at:  # else it is gone, or was due earlier
                    peer.attended = math.inf
                    self._attend(address, peer, now)
                    self._schedule(address, peer)
            due = [self._due[0][0]] if self._due else []
        if self._tell and now >= self._tell_due:
            self._tell, self._tell_due = False, now + TELL_S
            self._changed()
        if self._tell:
            due.append(self._tell_due)
        return max(0.01, min(due) - now) if due else None

    def _schedule(self, address: bytes, peer: _Peer) -> None:
        """Has the thread come to a peer when something of its is due; one that is due later is come to in vain."""
        if peer.due < peer.attended:
            peer.attended = peer.due
            heapq.heappush(self._due, (peer.due, address))

    def _attend(self, address: bytes, peer: _Peer, now: float) -> None:
        if now >= peer.resolve_due:
            self._resolve(address, peer, now)
        if now >= peer.probe_due:
            self._probe(address, peer, now)
        if now >= peer.recognise_due:
            self._answer(peer, now)

    def _resolve(self, address: bytes, peer: _Peer, now: float) -> None:
        peer.resolve_due = now + (CONFIRM_S if peer.next_hop else RESOLVE_S)
        with suppress(OSError):  # the device may be gone: the next sync takes the target away
            self._netlink.send(neighbours.resolve_request(address, peer.target.ifindex))

    def _probe(self, address: bytes, peer: _Peer, now: float) -> None:
        if peer.unanswered == TRIES:
            peer.resolve_due = now  # its MAC may have changed
        if peer.answered and now - peer.answered_at > SILENCE_S:
            peer.answered, self._tell = False, True
        target = peer.target
        frame = probe.request(peer.next_hop, target.mac, target.source, self._nonce, address)
        peer.unanswered += 1
        peer.probe_due = now + (RETRY_S if peer.unanswered <= TRIES else PROBE_S)
        self._send(probe.family_of(target.source), frame, target.device)

    def _answer(self, peer: _Peer, now: float) -> None:
        """Answers what a peer has asked, once the programs know it."""
        if not peer.asked:
            return
        if self._recognised(peer.asked.source_mac):
            answer = probe.answer(peer.asked, peer.target.mac)
            self._send(probe.family_of(peer.asked.source), answer, peer.target.device)
        elif now - peer.asked_at < PATIENCE_S:
            peer.recognise_due = now + RECOGNISE_S
            return
        peer.asked, peer.recognise_due = None, math.inf

    def _list_neighbours(self) -> None:
        """Asks the kernel for all. This thread alone may: who reads while another one asks is told EINVAL."""
        if self._list_wanted:
            self._list_wanted = False
            with suppress(OSError):  # it is asked for one by one, in any case
                self._netlink.send(neighbours.list_request())

    def _hear_neighbours(self) -> None:
        try:
            data = self._netlink.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._netlink.send(neighbours.list_request())  # messages were lost
            return
        for found in neighbours.known(data):
            with self._lock:
                peer = self._peers.get(found.address)
                if peer and peer.target.ifindex == found.ifindex and peer.next_hop != found.mac:
                    peer.next_hop, peer.unanswered = found.mac, 0
                    if peer.target.source:
                        peer.probe_due = 0.0
                    self._schedule(found.address, peer)

    def _hear_probe(self, packets: socket.socket) -> None:
        try:
            frame, (device, _, packet_type, _, _) = packets.recvfrom(256)
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            return
        found = probe.parse(frame)
        if not found or packet_type != _PACKET_HOST:
            return
        address = found.source if found.kind == probe.REQUEST else found.asked
        with self._lock:
            peer = self._peers.get(address)
            if not peer or peer.target.device != device:
                return
            if found.kind == probe.REQUEST:
                peer.asked = found
                peer.asked_at = peer.recognise_due = time.monotonic()
            elif found.nonce == self._nonce:
                self._take_answer(peer, time.monotonic())
            else:
                return
            if peer.mac != found.source_mac:
                peer.mac, self._tell = found.source_mac, True
            self._schedule(address, peer)

    def _take_answer(self, peer: _Peer, now: float) -> None:
        peer.unanswered, peer.answered_at, peer.probe_due = 0, now, now + PROBE_S
        if not peer.answered:
            peer.answered, self._tell = True, True

    def _send(self, family: int, frame: bytes, device: str) -> None:
        with suppress(OSError):  # the device is down or gone; the probe counts as lost
            self._packets[family].sendto(frame, (device, 0))


def _packet_socket(ethertype: int) -> socket.socket:
    """Receives probes alone, and only what the programs have passed. A socket for one protocol costs packets on their
    way out nothing; one for all of them would have each copied."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
    program = probe.socket_filter(ethertype)
    buffer = ctypes.create_string_buffer(program, len(program))
    packets.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    )
    return packets


def _sinks() -> list[socket.socket]:
    """Sockets on the probe's port that nobody reads: without them the stack would refuse answers by ICMP."""
    sinks = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            sink = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            sink.bind((address, probe.PORT))
            sinks.append(sink)
        except OSError as error:
            log.warning("probe-port-not-held", port=probe.PORT, error=str(error))
    return sinks
