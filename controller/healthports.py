# SPDX-License-Identifier: Apache-2.0
"""The healthCheckNodePorts: what load balancers ask to learn which nodes have endpoints of a Service.

One thread listens at all of them, by IPv4 and IPv6 apart, since a Service has endpoints of each: 200 where this node
has ready ones and the controller is well, else 503. A port that cannot be had is tried again, and is no trouble to
others. Source: pkg/proxy/healthcheck of Kubernetes, whose headers and body these are.
"""

import asyncio
import json
import resource
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus

import structlog

from controller.model import Key
from controller.services import HealthPort
from controller.source import Post, Problem, Problems

log = structlog.get_logger()

ORIGIN = "healthCheckNodePorts"
RETRY_S = 5.0
# Anybody may open connections: one that does not ask in time is closed, and those beyond so many at once.
IDLE_S = 5.0
CONNECTIONS = 1024
REQUEST_MAX_BYTES = 16384
END = b"\r\n\r\n"
ADDRESSES = {4: (socket.AF_INET, "0.0.0.0"), 6: (socket.AF_INET6, "::")}

# A Service, and the family by which it is asked for.
_Place = tuple[Key, int]


class HealthPorts:
    """Serves what it was last told; its thread starts with the first port.

    Args:
        healthy: whether the controller is; called from the thread.
        post: takes the problems of ports that cannot be had; called from the thread.
    """

    def __init__(self, healthy: Callable[[], bool], post: Post) -> None:
        self._healthy = healthy
        self._post = post
        self._noted: dict[Key, HealthPort] = {}
        self._changes: dict[Key, HealthPort | None] = {}
        self._server: _Server | None = None

    def note(self, service: Key, port: HealthPort | None) -> None:
        """Takes note of what a Service has now; None: no health port."""
        if port == self._noted.get(service):
            return
        self._changes[service] = port
        if port:
            self._noted[service] = port
        else:
            del self._noted[service]

    def apply(self) -> None:
        """Has what was noted be served."""
        if not self._changes:
            return
        self._server = self._server or _Server(self._healthy, self._post)
        self._server.change(self._changes)
        self._changes = {}

    def close(self) -> None:
        if self._server:
            self._server.close()


class _Server:
    """The thread. All but `change` and `close` runs in it."""

    def __init__(self, healthy: Callable[[], bool], post: Post) -> None:
        self._healthy = healthy
        self._post = post
        self._wanted: dict[Key, HealthPort] = {}
        self._listeners: dict[_Place, socket.socket] = {}
        self._refused: dict[_Place, str] = {}
        self._open: set[asyncio.Task[None]] = set()
        # A port takes a descriptor for each family; systemd's limit of 1024 is a soft one.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="health-ports", daemon=True)
        self._thread.start()

    def change(self, changes: Mapping[Key, HealthPort | None]) -> None:
        self._loop.call_soon_threadsafe(self._change, changes)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for listener in self._listeners.values():
            listener.close()

    def _change(self, changes: Mapping[Key, HealthPort | None]) -> None:
        """Closes before it opens: a port may go from one Service to another."""
        before = dict(self._refused)
        for service, port in changes.items():
            held = self._wanted.pop(service, None)
            if port:
                self._wanted[service] = port
            if held:
                kept = port.local if port and port.port == held.port else {}
                for family in held.local.keys() - kept.keys():
                    self._close((service, family))
        self._listen((service, family) for service, port in changes.items() if port for family in port.local)
        self._tell(before)

    def _close(self, place: _Place) -> None:
        self._refused.pop(place, None)
        listener = self._listeners.pop(place, None)
        if listener:
            self._loop.remove_reader(listener)
            listener.close()

    def _listen(self, places: Iterable[_Place]) -> None:
        """Opens those that are not open; with one that cannot be, all are tried again later."""
        waiting = bool(self._refused)
        for place in places:
            if place in self._listeners:
                continue
            try:
                self._listeners[place] = _bound(place[1], self._wanted[place[0]].port)
            except OSError as error:
                self._refused[place] = error.strerror or str(error)
            else:
                self._refused.pop(place, None)
                self._watch(place, self._listeners[place])
        if self._refused and not waiting:
            self._loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        before, places = dict(self._refused), sorted(self._refused)
        self._refused = {}
        self._listen(places)
        self._tell(before)

    def _tell(self, before: Mapping[_Place, str]) -> None:
        if self._refused == before:
            return
        problems = [
            Problem(
                "Service " + "/".join(service), f"healthCheckNodePort {self._wanted[service].port}/IPv{family}: {why}"
            )
            for (service, family), why in sorted(self._refused.items())
        ]
        self._post([Problems(ORIGIN, tuple(problems))])

    def _watch(self, place: _Place, listener: socket.socket) -> None:
        if self._listeners.get(place) is listener:
            self._loop.add_reader(listener, self._accept, place, listener)

    def _accept(self, place: _Place, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Without a free descriptor it would be told of the same connection over and over.
            log.error("health-port-not-answered", port=listener.getsockname()[1], error=str(error))
            self._loop.remove_reader(listener)
            self._loop.call_later(RETRY_S, self._watch, place, listener)
            return
        if len(self._open) >= CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._converse(connection, place))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _converse(self, connection: socket.socket, place: _Place) -> None:
        """One question, whatever it asks for, and one answer."""
        asked = b""
        with connection, suppress(OSError, TimeoutError):
            async with asyncio.timeout(IDLE_S):
                while END not in asked and len(asked) < REQUEST_MAX_BYTES:
                    piece = await self._loop.sock_recv(connection, REQUEST_MAX_BYTES)
                    if not piece:
                        return
                    asked += piece
                service, family = place
                port = self._wanted.get(service)
                local = port.local.get(family, 0) if port else 0
                head, body = answer(service, local, self._healthy())
                await self._loop.sock_sendall(connection, head if asked.startswith(b"HEAD ") else head + body)


def answer(service: Key, local: int, healthy: bool) -> tuple[bytes, bytes]:
    """Status line with headers, and body.

    Args:
        local: ready endpoints of the Service on this node.
    """
    namespace, name = service
    told = {
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    }
    body = json.dumps(told, indent="\t").encode()
    status = HTTPStatus.OK if local and healthy else HTTPStatus.SERVICE_UNAVAILABLE
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        f"X-Load-Balancing-Endpoint-Weight: {local}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + END, body


def _bound(family: int, port: int) -> socket.socket:
    """Raises OSError."""
    kind, address = ADDRESSES[family]
    listener = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
