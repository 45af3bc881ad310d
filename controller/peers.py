# SPDX-License-Identifier: Apache-2.0
"""The other nodes of this node's subnets: their MACs, and whether they answer the probe of layer 2.

A thread of its own keeps both up to date, answers other nodes' probes, and says when something has changed; the loop
that syncs never waits for it. A MAC that was once known holds until another one is: a node that is silent for a while
is still that node.
"""

import ctypes
import errno
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
    """What is known: MACs by address, and the addresses that have answered."""

    macs: Mapping[bytes, bytes]
    answered: frozenset[bytes]


NOTHING = State({}, frozenset())


def remembered(peers: Mapping[bytes, bytes], remotes: Mapping[bytes, bytes]) -> State:
    """What an earlier controller knew, from the maps that it left: a restart must not take layer 2 for closed."""
    hosts = ((RemoteKey.unpack(key), Remote.unpack(value)) for key, value in remotes.items())
    return State(
        {Peer.unpack(value).address: PeerKey.unpack(key).mac for key, value in peers.items()},
        frozenset(
            key.address
            for key, remote in hosts
            if key.prefix_bits == HOST_BITS and not remote.flags & (RemoteFlag.TUNNEL_HANDOVER | RemoteFlag.NO_HANDOVER)
        ),
    )


class Watch(Protocol):
    def watch(self, targets: Mapping[bytes, Target]) -> None:
        """Makes `targets`, by address, all that is watched; returns at once."""

    def state(self) -> State:
        """What is known of what is watched."""


class _Peer:
    """One address that is watched; times are monotonic."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.mac = b""
        self.answered = False
        self.answered_at = 0.0
        self.unanswered = 0
        self.probe_due = 0.0
        self.resolve_due = 0.0


class Peers:
    """Implements Watch. Its sockets belong to the network namespace of the thread that makes it.

    Args:
        probing: whether to send probes; those of others are answered in any case.
        changed: called, from the thread, when `state` has changed.

    Raises:
        OSError: a socket could not be opened.
    """

    def __init__(self, probing: bool, changed: Callable[[], None]) -> None:
        self._probing = probing
        self._before: State | None = NOTHING
        self._changed = changed
        self._nonce = os.urandom(8)
        self._lock = threading.Lock()
        self._peers: dict[bytes, _Peer] = {}
        self._devices: dict[str, bytes] = {}
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
                peer = self._peers[address] = _Peer(target)
                peer.mac = before.macs.get(address, b"")
                peer.answered, peer.answered_at = address in before.answered, time.monotonic()
            self._devices = {target.device: target.mac for target in targets.values()}
        if new:
            with suppress(OSError):  # it is asked for one by one, in any case
                self._netlink.send(neighbours.list_request())
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
                elif one is self._netlink:
                    self._hear_neighbours()
                else:
                    self._hear_probe(one)

    def _step(self, now: float) -> float | None:
        """Sends what is due, and returns the seconds until more is; None: nothing is awaited."""
        with self._lock:
            for address, peer in self._peers.items():
                if now >= peer.resolve_due:
                    self._resolve(address, peer, now)
                if self._probing and peer.mac and peer.target.source and now >= peer.probe_due:
                    self._probe(address, peer, now)
            due = [peer.resolve_due for peer in self._peers.values()]
            due += [peer.probe_due for peer in self._peers.values() if self._probing and peer.mac]
        if self._tell and now >= self._tell_due:
            self._tell, self._tell_due = False, now + TELL_S
            self._changed()
        if self._tell:
            due.append(self._tell_due)
        return max(0.01, min(due) - now) if due else None

    def _resolve(self, address: bytes, peer: _Peer, now: float) -> None:
        peer.resolve_due = now + (CONFIRM_S if peer.mac else RESOLVE_S)
        with suppress(OSError):  # the device may be gone: the next sync takes the target away
            self._netlink.send(neighbours.resolve_request(address, peer.target.ifindex))

    def _probe(self, address: bytes, peer: _Peer, now: float) -> None:
        if peer.unanswered == TRIES:
            peer.resolve_due = now  # its MAC may have changed
        if peer.answered and now - peer.answered_at > SILENCE_S:
            peer.answered, self._tell = False, True
        peer.unanswered += 1
        peer.probe_due = now + (RETRY_S if peer.unanswered <= TRIES else PROBE_S)
        target = peer.target
        frame = probe.request(peer.mac, target.mac, target.source, self._nonce, address)
        self._send(probe.family_of(target.source), frame, target.device)

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
                if peer and peer.target.ifindex == found.ifindex and peer.mac != found.mac:
                    peer.mac, peer.unanswered, peer.probe_due, self._tell = found.mac, 0, 0.0, True

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
        if found.kind == probe.REQUEST:
            with self._lock:
                mac = self._devices.get(device)
            if mac:
                self._send(probe.family_of(found.source), probe.answer(found, mac), device)
        elif found.nonce == self._nonce:
            self._take_answer(found.asked, time.monotonic())

    def _take_answer(self, address: bytes, now: float) -> None:
        with self._lock:
            peer = self._peers.get(address)
            if peer:
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
