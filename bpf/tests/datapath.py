# SPDX-License-Identifier: Apache-2.0
"""The real programs on maps of a test's own, run on single packets by BPF_PROG_TEST_RUN, which knows one device: lo.
On this machine's kernel, unless `run_on` has become another one's.

The address plan: a client pod and a server pod on this node, a pod on another node, a Service of each family.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet

from bpf import features, syscall
from bpf.abi import (
    MAPS,
    Affinity,
    AffinityKey,
    Backend,
    BackendFlag,
    BackendKey,
    Config,
    ConnectTime,
    Counter,
    Denied,
    Device,
    DeviceFlag,
    DeviceKey,
    DropKey,
    DropReason,
    Flow,
    Fragment,
    FragmentKey,
    Frontend,
    FrontendFlag,
    FrontendKey,
    Maglev,
    MaglevKey,
    MaglevRow,
    Node,
    NodeFlag,
    NodeKey,
    Peer,
    PeerKey,
    Pod,
    PodKey,
    Remote,
    RemoteFlag,
    RemoteKey,
    Slot,
    SlotKey,
    Source,
    SourceKey,
    StateIndex,
    Tuple,
    Unmasqueraded,
)
from bpf.address import packed, prefix_bits
from bpf.attach import XDP_PROGRAM
from bpf.prefixes import prefixes
from bpf.tests import kernel
from bpf.tests.kernel import Kernel, Programs

run_on: Kernel = kernel.here

TCP_PROTOCOL, UDP_PROTOCOL, SCTP_PROTOCOL = 6, 17, 132
LO, POD_LINKS = 1, 0
MARK = 0xCE1F0000

PASS, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7
XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3

LO_MAC = "00:00:00:00:00:00"
HOST_MAC, POD_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
SERVER_HOST_MAC, SERVER_MAC = "02:00:00:00:00:03", "02:00:00:00:00:04"
PEER_MAC, ROUTER_MAC = "02:00:00:00:00:05", "02:00:00:00:00:06"
OVERLAY_MAC, OVERLAY_SOURCE_MAC = "02:ce:00:00:00:01", "02:ce:00:00:00:02"


class Family(NamedTuple):
    """The addresses of one family.

    Attributes:
        service, balancer: of a Service, its cluster IP and a load balancer's.
        any_node: what stands for all nodes' addresses where a NodePort is met.
    """

    name: str
    ip: type[Packet]
    client: str
    server: str
    remote: str
    remote_range: tuple[str, int]
    node: str
    other_node: str
    service: str
    balancer: str
    any_node: str
    outside: str


V4 = Family(
    "ipv4",
    IP,
    "10.244.0.2",
    "10.244.0.3",
    "10.244.1.4",
    ("10.244.1.0", 24),
    "192.0.2.1",
    "192.0.2.2",
    "10.96.0.10",
    "198.51.100.7",
    "0.0.0.0",
    "203.0.113.9",
)
V6 = Family(
    "ipv6",
    IPv6,
    "fd00:10:244::2",
    "fd00:10:244::3",
    "fd00:10:244:1::4",
    ("fd00:10:244:1::", 64),
    "2001:db8::1",
    "2001:db8::2",
    "fd00:10:96::a",
    "2001:db8:1b::7",
    "::",
    "2001:db8:ffff::9",
)

MAGLEV_SIZE = 251

# A second of idleness is nothing to these; a test that wants expiry changes an entry's `seen_ns`.
CONFIG = Config(
    host_netns_cookie=0,
    tcp_new_ns=60 * 10**9,
    tcp_established_ns=3600 * 10**9,
    tcp_closing_ns=120 * 10**9,
    tcp_closed_ns=30 * 10**9,
    udp_new_ns=30 * 10**9,
    udp_established_ns=120 * 10**9,
    connect_time=ConnectTime.HOST,
    mark=MARK,
    masquerade_port_min=40000,
    masquerade_port_count=20000,
    coarse_clock=1,
    overlay_port=4789,
    closes_udp=1,
    maglev_size=MAGLEV_SIZE,
)


class Result(NamedTuple):
    """A program's verdict, the packet it left, and that packet's mark."""

    verdict: int
    packet: Packet
    mark: int


class Datapath:
    """Loaded programs; maps are written and read through the generated codecs."""

    def __init__(self, run_on: Kernel, loaded: Programs) -> None:
        self._kernel = run_on
        self._maps = loaded.maps
        self._programs = loaded.programs
        self._counters = dict.fromkeys(Counter, 0)
        tries = "denied", "remotes", "sources", "unmasqueraded"
        self._tries: dict[str, set[bytes]] = {name: set() for name in tries}  # they are not emptied at once
        summed = self._kernel(kernel.takes_run, loaded.programs["from_netdev"], syscall.CHECKSUM_COMPLETE)  # 6.18 does
        self._run_flags = syscall.CHECKSUM_COMPLETE if summed else 0

    def reset(self) -> None:
        """Empties the maps and sets every count to 0, as far as this object tells."""
        services = ("frontends", "slots", "backends", "maglev", "affinities", "fragments")
        emptied = (*services, "pods", "nodes", "peers", "devices", "flows")
        self._kernel(kernel.empty, [self._maps[name] for name in emptied])
        self.empty_tries()
        self._kernel(kernel.delete_all, self._maps["drops"], [DropKey(reason, LO).pack() for reason in DropReason])
        self.taking_over(0)
        self._counters = dict(zip(Counter, self._count(list(Counter)), strict=True))
        populate(self)

    def empty_tries(self) -> None:
        """Deletes what this object has written to them: where programs stay loaded, the next one does not know it."""
        for name, keys in self._tries.items():
            self._kernel(kernel.delete_all, self._maps[name], list(keys))

    def run(
        self,
        program: str,
        packet: Packet | bytes,
        mark: int = 0,
        ifindex: int = LO,
        summed: bool = True,
        gso_size: int = 0,
    ) -> Result:
        """Runs a program on a packet.

        Args:
            gso_size: it is to be cut into packets with so many bytes of payload; 0: it is not.
            summed: the packet comes as from a NIC that has summed it up, and its sum must be right afterwards (else
                OSError, EBADMSG). Of a packet that grows the kernel gives the sum up, but would compare it here.
        """
        # struct __sk_buff: mark at 8, ifindex at 40, gso_size at 176
        context = bytearray(192)
        struct.pack_into("=I", context, 8, mark)
        struct.pack_into("=I", context, 40, ifindex)
        struct.pack_into("=I", context, 176, gso_size)
        run = self._kernel(
            syscall.program_test_run,
            self._programs[program],
            bytes(packet),
            bytes(context),
            1,
            self._run_flags if summed else 0,
        )
        return Result(run.verdict, Ether(run.packet), struct.unpack_from("=I", run.context, 8)[0])

    def run_xdp(self, packet: Packet | bytes) -> Result:
        """Runs the XDP program on a frame that comes in by lo; before 5.15 the kernel takes no context with it."""
        run = self._kernel(syscall.program_test_run, self._programs[XDP_PROGRAM], bytes(packet))
        return Result(run.verdict, Ether(run.packet), 0)

    def write(self, name: str, key: "bytes", value: "bytes") -> None:
        if name in self._tries:
            self._tries[name].add(key)
        self._kernel(syscall.map_update, self._maps[name], key, value)

    def delete(self, name: str, key: bytes) -> bool:
        return self._kernel(syscall.map_delete, self._maps[name], key)

    def read(self, name: str, key: bytes) -> bytes | None:
        size = MAPS[name].value_size
        if name in ("drops", "counters"):
            return self._kernel(kernel.lookup_per_cpu, self._maps[name], [key], size)[0]
        return self._kernel(syscall.map_lookup, self._maps[name], key, size)

    def pod(self, address: str, ifindex: int, pod_mac: str, host_mac: str) -> None:
        value = Pod(ifindex, 0, mac(pod_mac), mac(host_mac), 0)
        self.write("pods", PodKey(packed(address)).pack(), value.pack())

    def remote(self, prefix: tuple[str, int], node: str, flags: int = 0, router: str = "", overlay: int = LO) -> None:
        """What is another node's; with `router`, that node is behind one. `overlay`: that device's index."""
        address, length = prefix
        key = RemoteKey(prefix_bits(packed(address), length), packed(address))
        self.write("remotes", key.pack(), Remote(packed(router or node), packed(node), LO, overlay, flags).pack())

    def service_range(self, prefix: tuple[str, int]) -> None:
        """A range of Services' addresses."""
        address, length = prefix
        key = RemoteKey(prefix_bits(packed(address), length), packed(address))
        self.write("remotes", key.pack(), Remote(bytes(16), bytes(16), 0, 0, RemoteFlag.SERVICES).pack())

    def cluster_ip(self, address: str) -> None:
        """A Service's cluster IP as such."""
        value = Frontend(99, 0, 0, 0, FrontendFlag.CLUSTER_IP, 0)
        self.write("frontends", FrontendKey(packed(address), 0, 0).pack(), value.pack())

    def unmasqueraded(self, cidr: str) -> None:
        """Has pods send to a range under their own addresses."""
        for prefix in prefixes([cidr]):
            self.write("unmasqueraded", RemoteKey(*prefix).pack(), Unmasqueraded(0).pack())

    def deny(self, prefix: tuple[str, int]) -> None:
        """Puts a range on the deny list."""
        address, length = prefix
        key = RemoteKey(prefix_bits(packed(address), length), packed(address))
        self.write("denied", key.pack(), Denied(0).pack())

    def no_longer_denied(self, prefix: tuple[str, int]) -> None:
        address, length = prefix
        assert self.delete("denied", RemoteKey(prefix_bits(packed(address), length), packed(address)).pack())

    def allow(self, address: str, port: int, protocol: int, clients: tuple[str, int]) -> None:
        """Has a frontend with FRONTEND_SOURCES serve a range of clients."""
        self.write("sources", source_key(address, port, protocol, clients), Source(0).pack())

    def shut_out(self, address: str, port: int, protocol: int, clients: tuple[str, int]) -> None:
        """Takes a range of clients back."""
        assert self.delete("sources", source_key(address, port, protocol, clients))

    def no_frontend(self, address: str, port: int, protocol: int) -> None:
        assert self.delete("frontends", FrontendKey(packed(address), port, protocol).pack())

    def service(
        self,
        address: str,
        port: int,
        protocol: int,
        backends: list[tuple[str, int]],
        number: int = 1,
        local: int = 0,
        flags: FrontendFlag = FrontendFlag.CLUSTER_IP,
        affinity_s: int = 0,
        start: int = 0,
    ) -> None:
        """A Service whose backends have the ids 10 * number, and on.

        Args:
            local: so many of the first are this node's.
            start: so many of the first are not in the Cluster set.
        """
        for slot, (backend, backend_port) in enumerate(backends):
            identity = 10 * number + slot
            apart = BackendFlag.APART if slot < start else 0
            value = Backend(packed(backend), backend_port, protocol, apart)
            self.write("backends", BackendKey(identity).pack(), value.pack())
            self.write("slots", SlotKey(number, slot).pack(), Slot(identity).pack())
        key = FrontendKey(packed(address), port, protocol)
        self.write("frontends", key.pack(), Frontend(number, len(backends), local, start, flags, affinity_s).pack())

    def maglev(self, places: Sequence[int], number: int = 1) -> None:
        """The Maglev table of a Service: the id of the backend at each place."""
        padded = [*places, *[0] * (-len(places) % Maglev.ROW)]
        for row in range(len(padded) // Maglev.ROW):
            value = struct.pack(f"={Maglev.ROW}I", *padded[row * Maglev.ROW : (row + 1) * Maglev.ROW])
            self.write("maglev", MaglevKey(number, row).pack(), MaglevRow(value).pack())

    def affinity(self, client: str, number: int = 1) -> Affinity | None:
        value = self.read("affinities", AffinityKey(packed(client), number).pack())
        return Affinity.unpack(value) if value else None

    def write_affinity(self, client: str, affinity: Affinity, number: int = 1) -> None:
        self.write("affinities", AffinityKey(packed(client), number).pack(), affinity.pack())

    def age_fragments(self, keys: Iterable[FragmentKey], age_ns: int) -> None:
        """Has the notes of first fragments be older than they are."""
        for key in keys:
            value = self.read("fragments", key.pack())
            assert value
            note = Fragment.unpack(value)
            self.write("fragments", key.pack(), note._replace(seen_ns=(note.seen_ns - age_ns) % 2**64).pack())

    def node(self, address: str, own: bool, node_ports: bool = True, mapped: bool = False) -> None:
        """An address of a node, at which NodePorts are met or are not; `mapped`: a router's translation to this one."""
        flags = (NodeFlag.OWN if own else 0) | (0 if node_ports else NodeFlag.NO_NODE_PORTS)
        flags |= NodeFlag.MAPPED if mapped else 0
        self.write("nodes", NodeKey(packed(address)).pack(), Node(flags).pack())

    def device(
        self, ifindex: int, mtu: int = 1500, addresses: tuple[str, str] = (V4.node, V6.node), other: bool = False
    ) -> None:
        """A device by which packets leave, or POD_LINKS; its addresses are those of masquerade as well, unless it is
        another than the underlay's."""
        flags = DeviceFlag.MASQUERADE_V4 | DeviceFlag.MASQUERADE_V6 if ifindex != POD_LINKS else 0
        flags = DeviceFlag.OTHER if other else flags
        value = Device(packed(addresses[0]), packed(addresses[1]), mtu, flags, bytes(6))
        self.write("devices", DeviceKey(ifindex).pack(), value.pack())

    def peer(self, address: str) -> None:
        """Another node's MAC."""
        self.write("peers", PeerKey(mac(address)).pack(), Peer(packed(V4.other_node)).pack())

    def taking_over(self, until_ns: int = 2**63) -> None:
        """As while another layout's flows are copied; until the next reset."""
        index = StateIndex.TAKING_OVER_UNTIL_NS
        self.write("state", struct.pack("=I", index), struct.pack("=Q", until_ns))

    def flow(self, key: Tuple) -> Flow | None:
        value = self.read("flows", key.pack())
        return Flow.unpack(value) if value else None

    def write_flow(self, key: Tuple, flow: Flow) -> None:
        self.write_flows([(key, flow)])

    def write_flows(self, flows: Iterable[tuple[Tuple, Flow]]) -> None:
        entries = [(key.pack(), flow.pack()) for key, flow in flows]
        keys, values = (b"".join(column) for column in zip(*entries, strict=True))
        self._kernel(kernel.write_all, self._maps["flows"], keys, values, len(entries))

    def delete_flow(self, key: Tuple) -> None:
        assert self.delete("flows", key.pack())

    def can_sweep(self) -> bool:
        return "sweep" in self._programs

    def sweep(self, size: int) -> list[bytes]:
        """Runs the sweep over the table, in slices of so many entries: a byte for each, 1 where it was removed."""
        return self._kernel(kernel.read_iterator, self._programs["sweep"], self._maps["flows"], size)

    def dropped(self, reason: DropReason, ifindex: int = LO) -> int:
        """Packets counted as dropped for a reason on a device."""
        value = self.read("drops", DropKey(reason, ifindex).pack())
        return sum(struct.unpack(f"={len(value) // 8}Q", value)[::2]) if value else 0

    def counter(self, counter: Counter) -> int:
        return self._count([counter])[0] - self._counters[counter]

    def _count(self, counters: list[Counter]) -> list[int]:
        keys = [struct.pack("=I", counter) for counter in counters]
        values = self._kernel(kernel.lookup_per_cpu, self._maps["counters"], keys, MAPS["counters"].value_size)
        return [sum(struct.unpack(f"={len(value) // 8}Q", value)) for value in values if value]


def load_arguments(version: tuple[int, int]) -> tuple[Config, dict[str, int]]:
    """What kernel.load takes: constants as a kernel of this version needs them, and sizes of maps."""
    coarse_clock = version >= features.LATER_HELPERS["bpf_ktime_get_coarse_ns"]
    sizes = dict.fromkeys(MAPS, 1024) | {"flows": 262_144, "counters": len(Counter), "state": len(StateIndex)}
    return CONFIG._replace(coarse_clock=int(coarse_clock)), sizes


@contextmanager
def loaded() -> Iterator[Datapath]:
    """The programs on fresh maps, gone afterwards."""
    version, _ = run_on(features.kernel)
    programs = run_on(kernel.load, *load_arguments(version))
    datapath = Datapath(run_on, programs)
    try:
        yield datapath
    finally:
        datapath.empty_tries()
        run_on(kernel.unload, programs)


@contextmanager
def routed_namespace() -> Iterator[None]:
    """A network namespace where everything is routed out of lo; this thread's, or the other kernel's."""
    home = run_on(kernel.enter_routed_namespace)
    try:
        yield
    finally:
        run_on(kernel.leave_namespace, home)


@contextmanager
def another_device(*addresses: str) -> Iterator[int]:
    """A second device, and the routes to addresses by it; its index."""
    index = run_on(kernel.route_out, "out0", list(addresses))
    try:
        yield index
    finally:
        run_on(kernel.remove_device, "out0")


@contextmanager
def local_route(address: str) -> Iterator[None]:
    """Has the host take what is for an address that none of its devices has."""
    run_on(kernel.local_route, "add", address)
    try:
        yield
    finally:
        run_on(kernel.local_route, "del", address)


@contextmanager
def host_socket(make: Callable[..., int], *arguments: object) -> Iterator[None]:
    """A socket of the host's own, that one of the kernel's functions makes."""
    descriptor = run_on(make, *arguments)
    try:
        yield
    finally:
        run_on(os.close, descriptor)


def populate(datapath: Datapath) -> None:
    for family in (V4, V6):
        datapath.pod(family.client, LO, POD_MAC, HOST_MAC)
        datapath.pod(family.server, LO, SERVER_MAC, SERVER_HOST_MAC)
        datapath.remote(family.remote_range, family.other_node)
        datapath.remote((family.other_node, 32 if family is V4 else 128), family.other_node)
        datapath.node(family.node, own=True)
        datapath.node(family.other_node, own=False)
    datapath.peer(PEER_MAC)
    datapath.device(LO)


def source_key(address: str, port: int, protocol: int, clients: tuple[str, int]) -> bytes:
    """Of a range of clients of a frontend."""
    client, length = clients
    bits = 8 * MAPS["frontends"].key_size + prefix_bits(packed(client), length)
    return SourceKey(bits, FrontendKey(packed(address), port, protocol), packed(client)).pack()


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str = POD_MAC, destination: str = HOST_MAC) -> Packet:
    return Ether(src=source, dst=destination)


def tcp(
    family: Family, source: tuple[str, int], destination: tuple[str, int], flags: str = "S", **fields: Any
) -> Packet:
    """A TCP segment as a pod sends it; checksums are those of its bytes."""
    segment = TCP(sport=source[1], dport=destination[1], flags=flags, **fields)
    return Ether(bytes(ethernet() / family.ip(src=source[0], dst=destination[0]) / segment))


def udp(family: Family, source: tuple[str, int], destination: tuple[str, int], payload: bytes = b"question") -> Packet:
    datagram = UDP(sport=source[1], dport=destination[1]) / payload
    return Ether(bytes(ethernet() / family.ip(src=source[0], dst=destination[0]) / datagram))


def sctp(family: Family, source: tuple[str, int], destination: tuple[str, int], chunk: Packet | None = None) -> Packet:
    """A packet of an association with one chunk; without any, with that which opens it."""
    header = SCTP(sport=source[1], dport=destination[1], tag=7)
    return Ether(bytes(ethernet() / family.ip(src=source[0], dst=destination[0]) / header / (chunk or SCTPChunkInit())))


# What most tests are run with: either family, and TCP and UDP.
BOTH = pytest.mark.parametrize("family", [V4, V6], ids=lambda family: family.name)
BUILD = pytest.mark.parametrize("build", [tcp, udp], ids=["tcp", "udp"])


def protocol_of(build: object) -> int:
    """Of what tcp(), udp() or sctp() builds."""
    return {tcp: TCP_PROTOCOL, udp: UDP_PROTOCOL, sctp: SCTP_PROTOCOL}[build]  # type: ignore[index]


def arriving(packet: Packet, source: str = ROUTER_MAC) -> Packet:
    """The packet as the underlay's device gets it, from a router or from another node."""
    return expected(packet, eth_src=source, eth_dst=LO_MAC)


def expected(packet: Packet, *, hops: int = 0, **changes: "str | int") -> Packet:
    """`packet` with fields changed (eth_src, eth_dst, src, dst, sport, dport), `hops` off its TTL, checksums anew."""
    copy = packet.copy()
    network = copy[IP] if IP in copy else copy[IPv6]
    transport = next((copy[layer] for layer in (TCP, UDP, SCTP) if layer in copy), None)
    for name, value in changes.items():
        target = copy if name.startswith("eth_") else network if name in ("src", "dst") else transport
        setattr(target, name.removeprefix("eth_"), value)
    if IP in copy:
        network.ttl -= hops
        del network.chksum
    else:
        network.hlim -= hops
    if transport is not None:
        del transport.chksum
    return Ether(bytes(copy))


def same(actual: Packet, wanted: Packet) -> None:
    """Asserts that two packets are equal to the byte; prints both where they are not."""
    if bytes(actual) != bytes(wanted):
        raise AssertionError(
            f"packet differs\n--- got\n{actual.show(dump=True)}\n--- expected\n{wanted.show(dump=True)}"
        )


def key(source: tuple[str, int], destination: tuple[str, int], protocol: int = TCP_PROTOCOL) -> Tuple:
    return Tuple(packed(source[0]), packed(destination[0]), source[1], destination[1], protocol)
