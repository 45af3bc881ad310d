# SPDX-License-Identifier: Apache-2.0
"""The HTTP servers, on loopback."""

import socket
import urllib.error
import urllib.request

import pytest

from controller import web
from controller.web import NOT_FOUND, Answer


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
