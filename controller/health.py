# SPDX-License-Identifier: Apache-2.0
"""/healthz and /livez, as load balancers and kubelet ask kube-proxy for them.

/livez      503 when the oldest change that is not in the kernel has waited for too long
/healthz    the same, and 503 when this node's Node is gone, going, or about to be scaled away
"""

import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

# kube-proxy allows twice its sync period of 30 s.
TIMEOUT_S = 60.0


class Health:
    """What the controller says of itself; written by its thread, read by the server's."""

    def __init__(self) -> None:
        self._pending_since: float | None = None
        self._updated = time.time()
        self.eligible = True

    def waiting(self) -> None:
        """There is a change that is not in the kernel."""
        if self._pending_since is None:
            self._pending_since = time.monotonic()

    def synced(self) -> None:
        """Everything is in the kernel."""
        self._pending_since = None
        self._updated = time.time()

    @property
    def alive(self) -> bool:
        since = self._pending_since
        return since is None or time.monotonic() - since < TIMEOUT_S

    def answer(self, path: str) -> tuple[int, bytes]:
        """The status and body of a GET."""
        if path not in ("/healthz", "/livez"):
            return 404, b""
        eligible = self.eligible if path == "/healthz" else True
        body = {"lastUpdated": _text(self._updated), "currentTime": _text(time.time())}
        told = body | ({"nodeEligible": self.eligible} if path == "/healthz" else {})
        return (200 if self.alive and eligible else 503), json.dumps(told).encode()


def serve(health: Health, address: str) -> ThreadingHTTPServer:
    """Serves until `shutdown` is called on what it returns. Raises OSError."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = health.answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: not logged."""

    host, port = split_address(address)
    server = (_V6Server if ":" in host else _Server)((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


def split_address(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port of ADDRESS:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _V6Server(_Server):
    address_family = AF_INET6


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
