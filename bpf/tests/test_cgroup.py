# SPDX-License-Identifier: Apache-2.0
"""The cgroup programs, which the kernel cannot test-run, with real sockets in a network namespace and a cgroup of a
test's own: Services of both families whose backends listen on its loopback device."""

import ctypes
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf import attach, loader, syscall
from bpf.abi import (
    MAPS,
    Affinity,
    AffinityKey,
    Backend,
    BackendKey,
    ConnectTime,
    Counter,
    Frontend,
    FrontendFlag,
    FrontendKey,
    Node,
    NodeFlag,
    NodeKey,
    Slot,
    SlotKey,
    SocketPeer,
    StateIndex,
)
from bpf.address import packed
from bpf.node import mounts
from bpf.pins import Pins
from bpf.tests.datapath import CONFIG, TCP_PROTOCOL, UDP_PROTOCOL
from bpf.tests.kernel import OBJECTS

pytestmark = pytest.mark.root

CLONE_NEWNET = 0x40000000
SERVICE = {socket.AF_INET: "10.96.0.10", socket.AF_INET6: "fd00:10:96::a"}
BACKEND = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
SOURCES = {socket.AF_INET: ("127.0.0.2", "127.0.0.3"), socket.AF_INET6: ("fd00:10:1::2", "fd00:10:1::3")}
AFFINITY_S = 10
SECOND = 10**9
ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
BOTH = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
PROTOCOL = pytest.mark.parametrize("protocol", [TCP_PROTOCOL, UDP_PROTOCOL], ids=["tcp", "udp"])
UDP_S = CONFIG.udp_established_ns // SECOND


class Host:
    """A network namespace that counts as the host's, and a cgroup at which the programs are attached."""

    def __init__(self, pins: Pins, cgroup: Path, namespace: int) -> None:
        self.pins = pins
        self.cgroup = cgroup
        self._namespace = namespace

    def run(self, work: Callable[[], Any], elsewhere: bool = False) -> Any:
        """What `work` returns or raises as a process of this host, or of another namespace in the same cgroup."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _in_child(work, writer, self.cgroup, None if elsewhere else self._namespace)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        outcome = pickle.loads(data)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def service(
        self,
        protocol: int,
        backends: dict[int, list[int]],
        number: int = 1,
        flags: int = 0,
        local: int = 0,
        affinity_s: int = 0,
    ) -> None:
        """Port 80 of SERVICE goes to those ports of BACKEND, by family; of an external Service, port 80 of any node."""
        for family, ports in backends.items():
            identity = number * 100 + (50 if family == socket.AF_INET6 else 0)
            for slot, port in enumerate(ports):
                value = Backend(packed(BACKEND[family]), port, protocol, 0)
                self._write("backends", BackendKey(identity + slot).pack(), value.pack())
                self._write("slots", SlotKey(identity, slot).pack(), Slot(identity + slot).pack())
            key = FrontendKey(packed((ANY if flags & FrontendFlag.EXTERNAL else SERVICE)[family]), 80, protocol)
            self._write("frontends", key.pack(), Frontend(identity, len(ports), local, 0, flags, affinity_s).pack())

    def node(self, family: int, own: bool) -> None:
        """SERVICE is the address of a node, of this one or another."""
        self._write("nodes", NodeKey(packed(SERVICE[family])).pack(), Node(NodeFlag.OWN if own else 0).pack())

    def own_loopback(self, family: int) -> None:
        """The loopback address is one of this node's."""
        self._write("nodes", NodeKey(packed(BACKEND[family])).pack(), Node(NodeFlag.OWN).pack())

    def remove_backend(self, identity: int) -> None:
        descriptor = self.pins.open_map("backends")
        assert syscall.map_delete(descriptor, BackendKey(identity).pack())
        os.close(descriptor)

    def affinities(self) -> dict[bytes, Affinity]:
        """What clients are remembered, by address."""
        with self.pins.opened_map("affinities") as descriptor:
            found = syscall.map_entries(descriptor, MAPS["affinities"].key_size, MAPS["affinities"].value_size)
            return {AffinityKey.unpack(key).client: Affinity.unpack(value) for key, value in found}

    def give(self, client: bytes, family: int, slot: int, seconds_ago: int = 0) -> None:
        """Has a client have that backend of service 1, since then."""
        identity = 100 + (50 if family == socket.AF_INET6 else 0)
        value = Affinity(identity + slot, time.monotonic_ns() - seconds_ago * SECOND)
        self._write("affinities", AffinityKey(client, identity).pack(), value.pack())

    def forget_affinities(self) -> None:
        with self.pins.opened_map("affinities") as descriptor:
            keys = dict(syscall.map_entries(descriptor, MAPS["affinities"].key_size, MAPS["affinities"].value_size))
            for key in keys:
                syscall.map_delete(descriptor, key)

    def age_sockets(self, seconds: int) -> None:
        """Has the last datagram of every socket be that long ago."""
        spec = MAPS["sockets"]
        with self.pins.opened_map("sockets") as descriptor:
            for key, value in list(syscall.map_entries(descriptor, spec.key_size, spec.value_size)):
                peer = SocketPeer.unpack(value)
                if peer.seen_ns:
                    aged = peer._replace(seen_ns=peer.seen_ns - seconds * SECOND)
                    syscall.map_update(descriptor, key, aged.pack())

    def _write(self, name: str, key: bytes, value: bytes) -> None:
        descriptor = self.pins.open_map(name)
        syscall.map_update(descriptor, key, value)
        os.close(descriptor)


def _in_child(work: Callable[[], Any], writer: int, cgroup: Path, namespace: int | None) -> None:
    try:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        if namespace is None:
            _unshare_network()
        elif ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        outcome = work()
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        outcome = error
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


def _unshare_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _routes_to_loopback() -> None:
    """Every address is reached by lo, so that a connection to a Service waits for an answer in place of failing."""
    for command in ("link set lo up", "route add default dev lo", "-6 route add default dev lo"):
        subprocess.run(["ip", *command.split()], check=True)


def _new_namespace() -> int:
    """A descriptor of a new network namespace whose loopback device is up; it is gone with the descriptor."""
    ready, told = os.pipe()
    done, end = os.pipe()
    child = os.fork()
    if not child:
        _unshare_network()
        _routes_to_loopback()
        os.write(told, b"!")
        os.close(end)
        os.read(done, 1)
        os._exit(0)
    os.read(ready, 1)
    namespace = os.open(f"/proc/{child}/ns/net", os.O_RDONLY)
    os.write(end, b"!")
    os.waitpid(child, 0)
    for descriptor in (ready, told, done, end):
        os.close(descriptor)
    return namespace


@contextmanager
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own."""
    root = next(point for point, kind in mounts() if kind == "cgroup2")
    path = root / f"calico-ebpf-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with made(tmp_path, ConnectTime.HOST) as host:
        yield host


@contextmanager
def made(tmp_path: Path, connect_time: ConnectTime, closes_udp: bool = True) -> Iterator[Host]:
    mount = tmp_path / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    namespace = _new_namespace()
    try:
        with cgroup() as group:
            pins = Pins(mount)
            host = Host(pins, group, namespace)
            cookie = host.run(loader.netns_cookie)
            config = CONFIG._replace(host_netns_cookie=cookie, connect_time=connect_time, closes_udp=int(closes_udp))
            sizes = dict.fromkeys(MAPS, 1024) | {"counters": len(Counter), "state": len(StateIndex)}
            loader.load(pins, OBJECTS, config, sizes, tmp_path / "lock")
            attach.attach_cgroup(pins, group)
            yield host
    finally:
        os.close(namespace)
        subprocess.run(["umount", str(mount)], check=True)


def _listen(family: int) -> socket.socket:
    server = socket.create_server((BACKEND[family], 0), family=socket.AddressFamily(family))
    server.settimeout(5)
    return server


def _bind_udp(family: int) -> socket.socket:
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((BACKEND[family], 0))
    server.settimeout(5)
    return server


def test_programs_move_to_another_cgroup_and_stay_at_the_same(host: Host) -> None:
    """With a setting that is another now, or once somebody has removed the cgroup; there is one link all the while."""

    def linked() -> set[tuple[int, int]]:
        found = set()
        for pin in host.pins.links.iterdir():
            fd = syscall.obj_get(pin)
            link_id, cgroup_id = struct.unpack_from("=4xI8xQ", syscall._info(fd, 24))
            found.add((link_id, cgroup_id))
            os.close(fd)
        return found

    def attached(group: Path) -> set[tuple[int, int]]:
        attach.attach_cgroup(host.pins, group)
        found = linked()
        assert len(found) == len(attach.CGROUP_HOOKS)
        assert {cgroup_id for _, cgroup_id in found} == {group.stat().st_ino}
        return found

    first = linked()
    inner = host.cgroup / "inner"
    inner.mkdir()
    assert attached(host.cgroup) == first
    moved = attached(inner)
    assert not {link_id for link_id, _ in moved} & {link_id for link_id, _ in first}
    assert attached(inner) == moved
    inner.rmdir()
    attached(host.cgroup)


@BOTH
def test_tcp_connect_reaches_a_backend_and_believes_in_the_service(host: Host, family: int) -> None:
    """connect() goes to the backend; getpeername() says the Service's address, the server sees the client's."""

    def work() -> tuple[Any, Any, Any]:
        server = _listen(family)
        host.service(TCP_PROTOCOL, {family: [server.getsockname()[1]]})
        client = socket.create_connection((SERVICE[family], 80), timeout=5)
        accepted, peer = server.accept()
        accepted.sendall(b"served")
        assert client.recv(16) == b"served"
        return client.getpeername()[:2], peer[:2], client.getsockname()[:2]

    believed, seen, own = host.run(work)
    assert believed == (SERVICE[family], 80)
    assert seen == own


@BOTH
def test_udp_answers_seem_to_come_from_the_service(host: Host, family: int) -> None:
    """An unconnected socket sends to the Service, and the answer's source is the Service."""

    def work() -> tuple[bytes, Any]:
        server = _bind_udp(family)
        host.service(UDP_PROTOCOL, {family: [server.getsockname()[1]]})
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.settimeout(5)
        client.sendto(b"question", (SERVICE[family], 80))
        _, peer = server.recvfrom(16)
        server.sendto(b"answer", peer)
        data, source = client.recvfrom(16)
        return data, source[:2]

    assert host.run(work) == (b"answer", (SERVICE[family], 80))


@BOTH
def test_udp_sender_keeps_its_backend_until_that_is_gone(host: Host, family: int) -> None:
    """Datagrams of one socket to one Service go to one backend; when that is removed, to another."""

    def work() -> tuple[set[int], set[int]]:
        servers = {server.getsockname()[1]: server for server in (_bind_udp(family) for _ in range(3))}
        ports = list(servers)
        host.service(UDP_PROTOCOL, {family: ports})
        client = socket.socket(family, socket.SOCK_DGRAM)
        first = _ports_that_receive(client, family, servers)
        (chosen,) = first
        identity = 100 + (50 if family == socket.AF_INET6 else 0)
        host.remove_backend(identity + ports.index(chosen))
        others = [port for port in ports if port != chosen]
        host.service(UDP_PROTOCOL, {family: others}, number=2)
        return first, _ports_that_receive(client, family, servers)

    first, second = host.run(work)
    assert len(first) == 1
    assert len(second) == 1
    assert first != second


@BOTH
@pytest.mark.parametrize("elsewhere", [False, True], ids=["the host's", "a pod's"])
def test_connected_udp_that_nobody_closes_is_left_to_its_packets(tmp_path: Path, family: int, elsewhere: bool) -> None:
    """It would keep its backend for ever: so it gets none, the host's where the kernel closes no sockets, a pod's
    always. One that names the Service with each datagram gets one, and so does a connection."""
    with made(tmp_path, ConnectTime.ALL, closes_udp=elsewhere) as host:

        def work() -> list[bool]:
            if elsewhere:
                _routes_to_loopback()
            server, listener = _bind_udp(family), _listen(family)
            connected, unconnected = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
            for protocol, one in ((UDP_PROTOCOL, server), (TCP_PROTOCOL, listener)):
                host.service(protocol, {family: [one.getsockname()[1]]}, number=protocol)
            connected.connect((SERVICE[family], 80))
            connected.send(b"connected")
            unconnected.sendto(b"unconnected", (SERVICE[family], 80))
            socket.create_connection((SERVICE[family], 80), timeout=5)
            return [server.recv(16) == b"unconnected", connected.getpeername()[:2] == (SERVICE[family], 80)]

        assert host.run(work, elsewhere) == [True, True]


@BOTH
@pytest.mark.parametrize("loopback", [True, False])
def test_connected_udp_to_the_host_itself_is_translated_in_any_case(
    tmp_path: Path, family: int, loopback: bool
) -> None:
    """No packet to a NodePort of its own addresses comes by where it could be translated later."""
    with made(tmp_path, ConnectTime.HOST, closes_udp=False) as host:

        def work() -> bytes:
            server, client = _bind_udp(family), socket.socket(family, socket.SOCK_DGRAM)
            host.service(UDP_PROTOCOL, {family: [server.getsockname()[1]]}, flags=FrontendFlag.EXTERNAL)
            host.own_loopback(family)
            host.node(family, own=True)
            client.connect(((BACKEND if loopback else SERVICE)[family], 80))
            client.send(b"question")
            return server.recv(16)

        assert host.run(work) == b"question"


def _ports_that_receive(client: socket.socket, family: int, servers: dict[int, socket.socket]) -> set[int]:
    """Sends 30 datagrams to the Service; the ports at which they arrived."""
    for _ in range(30):
        client.sendto(b"?", (SERVICE[family], 80))
    reached = set()
    for port, server in servers.items():
        server.setblocking(False)
        try:
            while server.recv(16):
                reached.add(port)
        except BlockingIOError:
            continue
    return reached


def test_ipv6_socket_reaches_an_ipv4_service(host: Host) -> None:
    """A dual-stack socket that connects to a v4-mapped address is translated within IPv4."""

    def work() -> Any:
        server = _listen(socket.AF_INET)
        host.service(TCP_PROTOCOL, {socket.AF_INET: [server.getsockname()[1]]})
        client = socket.socket(socket.AF_INET6)
        client.settimeout(5)
        client.connect(("::ffff:10.96.0.10", 80))
        server.accept()
        return client.getpeername()[:2]

    assert host.run(work) == ("::ffff:10.96.0.10", 80)


@BOTH
def test_connections_spread_over_all_backends(host: Host, family: int) -> None:
    """Of three backends each gets its share of 300 connections: at least 60."""

    def work() -> list[int]:
        servers = [_listen(family) for _ in range(3)]
        host.service(TCP_PROTOCOL, {family: [server.getsockname()[1] for server in servers]})
        counts = dict.fromkeys((server.getsockname()[1] for server in servers), 0)
        for _ in range(300):
            client = socket.create_connection((SERVICE[family], 80), timeout=5)
            descriptor = socket.socket(fileno=os.dup(client.fileno()))
            counts[_real_port(descriptor)] += 1
            descriptor.close()
            client.close()
            for server in servers:
                server.setblocking(False)
                try:
                    server.accept()[0].close()
                except BlockingIOError:
                    continue
        return list(counts.values())

    assert min(host.run(work)) >= 60


def _real_port(client: socket.socket) -> int:
    """The port that a socket is connected to, by the kernel's table and not by getpeername()."""
    inode = str(os.fstat(client.fileno()).st_ino)
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] == inode:
                return int(fields[2].rsplit(":", 1)[1], 16)
    raise AssertionError(f"the kernel knows no connection of socket {inode}")


@BOTH
def test_service_without_backend_is_left_to_the_packet_path(host: Host, family: int) -> None:
    """Nothing is translated, so that to_netdev sees the Service's address and refuses."""

    def work() -> int:
        host.service(TCP_PROTOCOL, {family: []})
        return _port_after_connect(family)

    assert host.run(work) == 80


@BOTH
@pytest.mark.parametrize("local", [1, 0])
def test_internal_policy_local_leads_to_local_backends_or_nowhere(host: Host, family: int, local: int) -> None:
    """Of two backends only the one here is used; without one, to_netdev sees the Service's address, and drops."""

    def work() -> bool:
        servers = [_listen(family), _listen(family)]
        ports = [server.getsockname()[1] for server in servers]
        flags = FrontendFlag.CLUSTER_IP | FrontendFlag.LOCAL
        host.service(TCP_PROTOCOL, {family: ports}, flags=flags, local=local)
        return {_port_after_connect(family) for _ in range(20)} == {ports[0] if local else 80}

    assert host.run(work)


@BOTH
@pytest.mark.parametrize(
    ("flags", "own", "left"),
    [
        pytest.param(FrontendFlag.LOCAL, False, True, id="another node's, Local"),
        pytest.param(FrontendFlag.LOCAL, True, False, id="this node's, Local"),
        pytest.param(0, False, False, id="another node's, Cluster"),
    ],
)
def test_node_port_of_another_node_is_left_to_it_under_policy_local(
    host: Host, family: int, flags: int, own: bool, left: bool
) -> None:
    """The host's own processes are clients from outside there; at their own node any backend serves them."""

    def work() -> bool:
        server = _listen(family)
        port = server.getsockname()[1]
        host.node(family, own)
        host.service(TCP_PROTOCOL, {family: [port]}, flags=FrontendFlag.EXTERNAL | flags)
        return _port_after_connect(family) == (80 if left else port)

    assert host.run(work)


@BOTH
def test_socket_of_another_namespace_is_not_translated(host: Host, family: int) -> None:
    """A pod's process sits in the same cgroup, and is left to from_pod."""

    def work() -> int:
        _routes_to_loopback()
        host.service(TCP_PROTOCOL, {family: [8080]})
        return _port_after_connect(family)

    assert host.run(work, elsewhere=True) == 80


RESTRICTED, ALLOWED = FrontendFlag.SOURCES, FrontendFlag.SOURCES | FrontendFlag.HOST_ALLOWED


@BOTH
@pytest.mark.parametrize(("flags", "translated"), [(RESTRICTED, False), (ALLOWED, True)], ids=["others'", "the host's"])
def test_address_of_some_clients_is_the_hosts_where_it_says_so(
    host: Host, family: int, flags: int, translated: bool
) -> None:
    """Else nothing is translated, and to_netdev drops what is sent."""

    def work() -> bool:
        with _listen(family) as server:
            host.service(TCP_PROTOCOL, {family: [server.getsockname()[1]]}, flags=flags)
            return _port_after_connect(family) != 80

    assert host.run(work) == translated


@pytest.mark.parametrize(("flags", "translated"), [(0, True), (ALLOWED, False)], ids=["everybody's", "the host's"])
def test_pods_socket_is_judged_by_its_packets(tmp_path: Path, flags: int, translated: bool) -> None:
    """With connect_time all, too: what is for the host is not for its pods."""

    def work() -> bool:
        _routes_to_loopback()
        with _listen(socket.AF_INET) as server:
            host.service(TCP_PROTOCOL, {socket.AF_INET: [server.getsockname()[1]]}, flags=flags)
            return _port_after_connect(socket.AF_INET) != 80

    with made(tmp_path, ConnectTime.ALL) as host:
        assert host.run(work, elsewhere=True) == translated


def _port_after_connect(family: int) -> int:
    """Starts to connect to the Service; the port that the kernel then really connects to."""
    client = socket.socket(family)
    client.setblocking(False)
    client.connect_ex((SERVICE[family], 80))
    return _real_port(client)


class Choice:
    """Eight backends of a Service with session affinity in this namespace, and the choices that its clients meet."""

    def __init__(self, host: Host, family: int, protocol: int, affinity_s: int = AFFINITY_S) -> None:
        for source in SOURCES[socket.AF_INET6]:
            subprocess.run(["ip", "address", "replace", f"{source}/128", "dev", "lo", "nodad"], check=True)
        self._family, self._protocol = socket.AddressFamily(family), protocol
        make = _listen if protocol == TCP_PROTOCOL else _bind_udp
        self._servers = {server.getsockname()[1]: server for server in (make(family) for _ in range(8))}
        self._ports = list(self._servers)
        host.service(protocol, {family: self._ports}, affinity_s=affinity_s)

    def connected(self, source: str = "") -> int:
        """The slot of the backend to which a new socket is connected."""
        kind = socket.SOCK_STREAM if self._protocol == TCP_PROTOCOL else socket.SOCK_DGRAM
        with socket.socket(self._family, kind) as client:
            if source:
                client.bind((source, 0))
            client.connect((SERVICE[self._family], 80))
            return self.forwarded(client) if self._protocol == UDP_PROTOCOL else self._ports.index(_real_port(client))

    def forwarded(self, client: socket.socket) -> int:
        """The slot of the backend to which a UDP socket is connected."""
        client.send(b"?")
        return self._reached()

    def sent(self, client: socket.socket, source: str = "") -> int:
        """The slot of the backend that gets a datagram of an unconnected socket."""
        client.sendmsg([b"?"], [_packet_info(source)] if source else [], 0, (SERVICE[self._family], 80))
        return self._reached()

    def _reached(self) -> int:
        """The slot of the one backend at which a datagram waits."""
        ready, _, _ = select.select(list(self._servers.values()), [], [], 5)
        (server,) = ready
        server.recv(16)
        return self._ports.index(server.getsockname()[1])


def _packet_info(source: str) -> tuple[int, int, bytes]:
    """The control message that names the address from which a datagram is sent."""
    if ":" in source:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", packed(source), 0)
    ip_pktinfo = 8
    return socket.IPPROTO_IP, ip_pktinfo, struct.pack("=I4s4s", 0, packed(source)[12:], bytes(4))


@BOTH
@PROTOCOL
def test_processes_of_the_host_are_one_client_of_session_affinity(host: Host, family: int, protocol: int) -> None:
    """As long as they leave their address to the kernel; the next connection after the time-out is free."""

    def work() -> tuple[set[int], bytes, set[int]]:
        choice = Choice(host, family, protocol)
        met = {choice.connected() for _ in range(9)}
        (client,) = host.affinities()
        moved = set()
        for _ in range(9):
            host.give(client, family, 0, AFFINITY_S)
            moved.add(choice.connected())
        return met, client, moved

    met, client, moved = host.run(work)
    assert len(met) == 1
    assert client[:4] == bytes(4)
    assert client[4:] != bytes(12)
    assert len(moved) > 1


@BOTH
@PROTOCOL
def test_bound_sockets_are_clients_by_their_address(host: Host, family: int, protocol: int) -> None:
    """Two addresses of the host have backends of their own."""

    def work() -> list[int]:
        choice = Choice(host, family, protocol)
        for slot, source in enumerate(SOURCES[family]):
            host.give(packed(source), family, slot)
        return [choice.connected(source) for _ in range(5) for source in SOURCES[family]]

    assert host.run(work) == [0, 1] * 5


@BOTH
def test_datagrams_are_of_the_address_from_which_they_are_sent(host: Host, family: int) -> None:
    """One socket that names its source with each of them is as many clients, and so are two that are bound."""

    def work() -> tuple[list[int], list[int]]:
        choice = Choice(host, family, UDP_PROTOCOL)
        for slot, source in enumerate(SOURCES[family]):
            host.give(packed(source), family, slot)
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            named = [choice.sent(client, source) for _ in range(5) for source in SOURCES[family]]
        clients = [socket.socket(family, socket.SOCK_DGRAM) for _ in SOURCES[family]]
        for client, source in zip(clients, SOURCES[family], strict=True):
            client.bind((source, 0))
        return named, [choice.sent(client) for _ in range(5) for client in clients]

    assert host.run(work) == ([0, 1] * 5, [0, 1] * 5)


@BOTH
def test_datagrams_that_follow_each_other_stay_at_their_backend(host: Host, family: int) -> None:
    """As a flow of UDP, whatever the client's affinity is by then; after a pause they ask for it anew."""

    def work() -> tuple[list[int], int, int]:
        choice = Choice(host, family, UDP_PROTOCOL)
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            first = choice.sent(client)
            ((known, before),) = host.affinities().items()
            host.give(known, family, (first + 1) % 8)
            later = host.affinities()[known]
            going_on = [choice.sent(client) for _ in range(3)]
            assert host.affinities() == {known: later}
            host.age_sockets(UDP_S - 5)
            going_on.append(choice.sent(client))
            host.age_sockets(UDP_S)
            after = choice.sent(client)
            assert host.affinities()[known].seen_ns > later.seen_ns > before.seen_ns
            return [one - first for one in going_on], (after - first) % 8, choice.sent(client) - after

    assert host.run(work) == ([0, 0, 0, 0], 1, 0)


@BOTH
def test_datagrams_without_affinity_are_as_before(host: Host, family: int) -> None:
    """They keep their backend for as long as that is there, and no client is remembered."""

    def work() -> tuple[set[int], int, dict[bytes, Affinity]]:
        choice = Choice(host, family, UDP_PROTOCOL, affinity_s=0)
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            met = {choice.sent(client) for _ in range(9)}
        return met, len({choice.connected() for _ in range(20)}), host.affinities()

    met, spread, remembered = host.run(work)
    assert len(met) == 1
    assert spread > 1
    assert remembered == {}


@BOTH
def test_first_connections_at_once_get_one_backend(host: Host, family: int) -> None:
    """Two processes that connect at the same moment, to a Service that does not know their client."""

    def work() -> set[int]:
        choice = Choice(host, family, UDP_PROTOCOL)
        pairs = [[socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)] for _ in range(100)]
        begun, ended = mmap.mmap(-1, len(pairs)), mmap.mmap(-1, len(pairs))
        if not os.fork():
            signal.alarm(60)  # where the other one fails
            for number, (_, client) in enumerate(pairs):
                while not begun[number]:
                    pass
                client.connect((SERVICE[family], 80))
                ended[number] = 1
            os._exit(0)
        for number, (client, _) in enumerate(pairs):
            host.forget_affinities()
            begun[number] = 1
            client.connect((SERVICE[family], 80))
            while not ended[number]:
                pass
        os.wait()
        return {len({choice.forwarded(client) for client in pair}) for pair in pairs}

    assert host.run(work) == {1}
