# SPDX-License-Identifier: Apache-2.0
"""The HTTP servers of the controller: health and metrics, each a function from a path to an answer. And a question to
one."""

import errno
import socketserver
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


# A connection that says nothing for so long is closed: anybody may open them, and each has a thread.
IDLE_S = 5
# Connections of a server at a time. Those beyond are closed at once: who asks for health or metrics needs one.
CONNECTIONS_MAX = 128
TIMEOUT_S = 2

NOT_FOUND = Answer(404, "text/plain", b"")


def serve(name: str, address: str, answer: Callable[[str], Answer]) -> ThreadingHTTPServer:
    """Serves GET in threads of its own, so many at a time, until `shutdown` is called on what it returns.

    Args:
        address: ADDRESS:PORT, an IPv6 address in brackets; [::] stands for all addresses of either family.
        answer: the answer to a path, without its query.

    Raises:
        OSError: the address cannot be listened at.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S

        def do_GET(self) -> None:
            status, content_type, body = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes and scrapes come every few seconds: not logged."""

    server = _bound(address, Handler)
    threading.Thread(target=server.serve_forever, name=name, daemon=True).start()
    return server


def _bound(address: str, handler: type[BaseHTTPRequestHandler]) -> "_Server":
    host, _, port = address.rpartition(":")
    if ":" not in host:
        return _Server((host, int(port)), handler)
    try:
        return _V6Server((host.strip("[]"), int(port)), handler)
    except OSError as error:
        if (host, error.errno) != ("[::]", errno.EAFNOSUPPORT):
            raise
        # The kernel was booted without IPv6.
        return _Server(("0.0.0.0", int(port)), handler)


def get(address: str, path: str) -> tuple[int, str]:
    """The status and body of GET `path` at a listening address, 0.0.0.0 and [::] standing for IPv4's loopback; (0, why)
    where nobody answers."""
    host, _, port = address.rpartition(":")
    local = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host
    try:
        with urllib.request.urlopen(f"http://{local}:{port}{path}", timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace").strip()
    except OSError as error:
        return 0, str(getattr(error, "reason", error))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Has a thread answer, where there is room; else the connection is closed."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        """Without looking up the host's name, as HTTPServer does: where DNS does not answer, that takes 10 s."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _V6Server(_Server):
    address_family = AF_INET6

    def server_bind(self) -> None:
        """IPv4 as well, whatever net.ipv6.bindv6only says."""
        self.socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0)
        super().server_bind()
