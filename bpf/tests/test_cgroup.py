# SPDX-License-Identifier: Apache-2.0
"""The cgroup programs, which the kernel cannot test-run, with real sockets in a network namespace and a cgroup of a
test's own: Services of both families whose backends listen on its loopback device."""

import ctypes
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf import attach, loader, syscall
from bpf.abi import MAPS, Backend, BackendKey, ConnectTime, Counter, Frontend, FrontendKey, Slot, SlotKey, StateIndex
from bpf.address import packed
from bpf.node import mounts
from bpf.pins import Pins
from bpf.tests.datapath import CONFIG, TCP_PROTOCOL, UDP_PROTOCOL
from bpf.tests.kernel import OBJECTS

pytestmark = pytest.mark.root

CLONE_NEWNET = 0x40000000
SERVICE = {socket.AF_INET: "10.96.0.10", socket.AF_INET6: "fd00:10:96::a"}
BACKEND = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
BOTH = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])


class Host:
    """A network namespace that counts as the host's, and a cgroup at which the programs are attached."""

    def __init__(self, pins: Pins, cgroup: Path, namespace: int) -> None:
        self.pins = pins
        self._cgroup = cgroup
        self._namespace = namespace

    def run(self, work: Callable[[], Any], elsewhere: bool = False) -> Any:
        """What `work` returns or raises as a process of this host, or of another namespace in the same cgroup."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _in_child(work, writer, self._cgroup, None if elsewhere else self._namespace)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        outcome = pickle.loads(data)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def service(self, protocol: int, backends: dict[int, list[int]], number: int = 1) -> None:
        """Port 80 of SERVICE goes to those ports of BACKEND, by family."""
        for family, ports in backends.items():
            identity = number * 100 + (50 if family == socket.AF_INET6 else 0)
            for slot, port in enumerate(ports):
                value = Backend(packed(BACKEND[family]), port, protocol)
                self._write("backends", BackendKey(identity + slot).pack(), value.pack())
                self._write("slots", SlotKey(identity, slot).pack(), Slot(identity + slot).pack())
            key = FrontendKey(packed(SERVICE[family]), 80, protocol)
            self._write("frontends", key.pack(), Frontend(identity, len(ports), 0, 0).pack())

    def remove_backend(self, identity: int) -> None:
        descriptor = self.pins.open_map("backends")
        assert syscall.map_delete(descriptor, BackendKey(identity).pack())
        os.close(descriptor)

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
    mount = tmp_path / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    namespace = _new_namespace()
    try:
        with cgroup() as group:
            pins = Pins(mount)
            host = Host(pins, group, namespace)
            cookie = host.run(loader.netns_cookie)
            config = CONFIG._replace(host_netns_cookie=cookie, connect_time=ConnectTime.HOST)
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
    own = client.getsockname()[1]
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == own and fields[3] != "0A":
                return int(fields[2].rsplit(":", 1)[1], 16)
    raise AssertionError(f"no connection from port {own}")


@BOTH
def test_service_without_backend_is_left_to_the_packet_path(host: Host, family: int) -> None:
    """Nothing is translated, so that to_netdev sees the Service's address and refuses."""

    def work() -> int:
        host.service(TCP_PROTOCOL, {family: []})
        return _port_after_connect(family)

    assert host.run(work) == 80


@BOTH
def test_socket_of_another_namespace_is_not_translated(host: Host, family: int) -> None:
    """A pod's process sits in the same cgroup, and is left to from_pod."""

    def work() -> int:
        _routes_to_loopback()
        host.service(TCP_PROTOCOL, {family: [8080]})
        return _port_after_connect(family)

    assert host.run(work, elsewhere=True) == 80


def _port_after_connect(family: int) -> int:
    """Starts to connect to the Service; the port that the kernel then really connects to."""
    client = socket.socket(family)
    client.setblocking(False)
    client.connect_ex((SERVICE[family], 80))
    return _real_port(client)
