# SPDX-License-Identifier: Apache-2.0
"""Real sockets, in a namespace of the test's own, whose backends stand in the real maps or do not."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import unpack

import pytest

from bpf import node, sockdiag, syscall
from bpf.abi import Backend, BackendKey, SocketKey, SocketPeer, SocketSide
from bpf.address import packed
from bpf.pins import Pins
from bpf.settings import Settings
from controller import sockets
from controller.tests.space import Space

pytestmark = pytest.mark.root

PORT = 5353
LIVE, GONE = 7, 8
SO_COOKIE = 57
LOOPBACKS = pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])


@pytest.fixture
def pins(tmp_path: Path, bpffs: Path) -> Pins:
    """The maps, with one backend."""
    settings = Settings(run_dir=tmp_path, bpffs=bpffs, flows_max=16)
    node.load_datapath(settings)
    found = node.pins(settings)
    write(found, "backends", BackendKey(LIVE).pack(), Backend(packed("127.0.0.1"), PORT, socket.IPPROTO_UDP, 0).pack())
    return found


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    made.ip("link set lo up")
    yield made
    made.close()


def write(pins: Pins, name: str, key: bytes, value: bytes) -> None:
    with pins.opened_map(name) as fd:
        syscall.map_update(fd, key, value)


def translated(pins: Pins, client: socket.socket, address: str, backend_id: int) -> None:
    """Notes what the programs note of a socket that connects to a Service and is given this backend."""
    (cookie,) = unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
    key = SocketKey(cookie, packed(address), PORT, socket.IPPROTO_UDP, SocketSide.BACKEND)
    write(pins, "sockets", key.pack(), SocketPeer(packed("192.0.2.10"), 53, backend_id, bytes(16), 0).pack())


def udp(space: Space, address: str, connected: bool = True) -> socket.socket:
    def opened() -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        if connected:
            client.connect((address, PORT))
        return client

    return space.run(opened)


@LOOPBACKS
def test_socket_of_a_backend_that_is_gone_is_closed(pins: Pins, space: Space, address: str) -> None:
    """Who waits for an answer is told at once, and connects anew; whose backend is there goes on."""
    with udp(space, address) as stale, udp(space, address) as good, udp(space, address) as direct:
        translated(pins, stale, address, GONE)
        translated(pins, good, address, LIVE)
        assert space.run(lambda: sockets.close_stale(pins)) == 1
        with pytest.raises(ConnectionAbortedError):
            stale.recv(1)
        stale.connect((address, PORT))
        for client in (stale, good, direct):
            assert client.send(b"?") == 1


def test_thousand_sockets_are_told_of(pins: Pins, space: Space) -> None:
    """The kernel tells them in several messages."""
    with ExitStack() as clients:
        for _ in range(1000):
            translated(pins, clients.enter_context(udp(space, "127.0.0.1")), "127.0.0.1", GONE)
        assert space.run(lambda: sockets.close_stale(pins)) == 1000


def test_this_kernel_is_known_to_close_sockets(space: Space) -> None:
    """As is shown above; without CAP_NET_ADMIN nothing is said."""
    assert space.run(sockdiag.closes)
    powerless = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c"]
    script = "from bpf import sockdiag; sockdiag.closes()"
    process = subprocess.run([*powerless, script], capture_output=True, text=True, check=False)
    assert "PermissionError" in process.stderr


def test_socket_that_connects_nowhere_stays(pins: Pins, space: Space) -> None:
    """Each of its datagrams is given a backend anew."""
    with udp(space, "127.0.0.1", connected=False) as client:
        translated(pins, client, "127.0.0.1", GONE)
        assert space.run(lambda: sockets.close_stale(pins)) == 0
        assert client.sendto(b"?", ("127.0.0.1", PORT)) == 1


def test_socket_that_has_moved_on_stays(pins: Pins, space: Space) -> None:
    """What it was connected to before is still noted, and no matter."""
    with udp(space, "127.0.0.1") as client:
        translated(pins, client, "127.0.0.2", GONE)
        assert space.run(lambda: sockets.close_stale(pins)) == 0
        assert client.send(b"?") == 1


def test_sockets_of_other_namespaces_stay(pins: Pins, space: Space) -> None:
    """Those of pods are theirs."""
    with udp(space, "127.0.0.1") as client:
        translated(pins, client, "127.0.0.1", GONE)
        other = Space()
        try:
            assert other.run(lambda: sockets.close_stale(pins)) == 0
        finally:
            other.close()
        assert client.send(b"?") == 1


def test_thread_looks_again_for_who_was_just_connecting(
    pins: Pins, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that was given its backend just before that went."""
    monkeypatch.setattr(sockets, "AGAIN_S", 0.5)
    gone, first = threading.Event(), threading.Event()
    real = sockets.close_stale

    def close_stale(pins: Pins) -> int:
        closed = real(pins)
        first.set()
        return closed

    monkeypatch.setattr(sockets, "close_stale", close_stale)
    space.run(lambda: sockets.start(pins, gone))  # threads are born in their parent's namespace
    gone.set()
    assert first.wait(5)
    with udp(space, "127.0.0.1") as client:
        translated(pins, client, "127.0.0.1", GONE)
        client.settimeout(5)
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
