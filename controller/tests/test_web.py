# SPDX-License-Identifier: Apache-2.0
"""The HTTP servers, on loopback."""

import socket
import time
import urllib.error
import urllib.request

import pytest

from controller import web
from controller.web import NOT_FOUND, Answer

# A family of which this kernel, as any, knows nothing.
UNKNOWN = 255


def _answer(path: str) -> Answer:
    return Answer(200, "text/plain", b"here") if path == "/here" else NOT_FOUND


@pytest.fixture
def no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> str:
        raise AssertionError("a host's name was looked up")

    monkeypatch.setattr(socket, "getfqdn", look_up)


@pytest.mark.usefixtures("no_name")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_server_answers_paths_and_looks_up_no_name(host: str) -> None:
    """Starting does not wait for DNS; a path has its answer, its query aside, and others have none."""
    server = web.serve("test", f"{host}:0", _answer)
    try:
        url = f"http://{host}:{server.server_port}"
        with urllib.request.urlopen(f"{url}/here?x=1", timeout=5) as response:
            assert (response.status, response.read()) == (200, b"here")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/else", timeout=5)
    finally:
        server.shutdown()
        server.server_close()


def test_server_of_all_addresses_answers_either_family() -> None:
    """A load balancer asks by the family of its cluster."""
    server = web.serve("test", "[::]:0", _answer)
    try:
        for host in ("127.0.0.1", "[::1]", "[::]"):
            assert web.get(f"{host}:{server.server_port}", "/here") == (200, "here")
    finally:
        server.shutdown()
        server.server_close()


def test_server_of_all_addresses_does_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was booted with ipv6.disable=1 knows no such sockets."""
    monkeypatch.setattr(web._V6Server, "address_family", UNKNOWN)
    server = web.serve("test", "[::]:0", _answer)
    try:
        assert web.get(f"[::]:{server.server_port}", "/here") == (200, "here")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(OSError, match="not supported"):
        web.serve("test", "[::1]:0", _answer)


def test_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a thread: they must not gather."""
    monkeypatch.setattr(web, "IDLE_S", 0.05)
    server = web.serve("test", "127.0.0.1:0", _answer)
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as idle:
            assert idle.recv(1) == b""
    finally:
        server.shutdown()
        server.server_close()


def test_connections_beyond_so_many_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may open them, and each has a thread; those that end make room."""
    monkeypatch.setattr(web, "CONNECTIONS_MAX", 2)
    server = web.serve("test", "127.0.0.1:0", _answer)
    at = ("127.0.0.1", server.server_port)
    try:
        with socket.create_connection(at, timeout=2) as one, socket.create_connection(at, timeout=2) as two:
            with socket.create_connection(at, timeout=2) as beyond:
                assert beyond.recv(1) == b""
            for open_one in (one, two):
                open_one.sendall(b"GET /here HTTP/1.0\r\n\r\n")
                assert open_one.recv(12) == b"HTTP/1.0 200"
        deadline = time.monotonic() + 10
        while web.get("{}:{}".format(*at), "/here") != (200, "here"):
            assert time.monotonic() < deadline, "no room came free"
    finally:
        server.shutdown()
        server.server_close()
