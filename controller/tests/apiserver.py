# SPDX-License-Identifier: Apache-2.0
"""A fake API server on loopback for the watch: lists, watches, and every way in which they go wrong, to order."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from controller.tests.objects import JSON

Query = dict[str, str]
SERVICES, NODES, PODS = "/api/v1/services", "/api/v1/nodes", "/api/v1/pods"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"


class FakeApi:
    """Objects by path, with one resource version for all. `behave` may answer a request in place of the usual code.

    Attributes:
        requests: (path, query) of each request, in order.
        behave: called with the handler, path and query first; True: it has answered.
    """

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[str, JSON]] = {}
        self.requests: list[tuple[str, Query]] = []
        self.behave: Callable[[Any, str, Query], bool] = lambda *_: False
        self._events: list[tuple[int, str, JSON]] = []
        self._changed = threading.Condition()
        self._closing = False
        self.cut = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, directory: Path) -> Path:
        path = directory / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": self.url}}],
            "users": [{"name": "x", "user": {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def put(self, path: str, manifest: JSON) -> None:
        """Creates or changes an object, and tells the watches."""
        with self._changed:
            held = self.objects.setdefault(path, {})
            name = manifest["metadata"]["name"]
            self._record(path, "MODIFIED" if name in held else "ADDED", manifest)
            held[name] = self._events[-1][2]["object"]

    def delete(self, path: str, name: str, tell: bool = True) -> None:
        """Deletes an object; `tell` False: no watch hears of it."""
        with self._changed:
            manifest = self.objects[path].pop(name)
            if tell:
                self._record(path, "DELETED", manifest)
            else:
                self.version += 1

    def send(self, path: str, kind: str, content: JSON) -> None:
        """Sends any event to the watches of a path."""
        with self._changed:
            self.version += 1
            self._events.append((self.version, path, {"type": kind, "object": content}))
            self._changed.notify_all()

    def cut_watches(self) -> None:
        """Breaks every connection of a watch, in the middle of a chunk."""
        with self._changed:
            self.cut += 1
            self._changed.notify_all()

    def watching(self, path: str) -> int:
        """How many watches of a path have been asked for."""
        return sum(1 for asked, query in self.requests if asked == path and "watch" in query)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _record(self, path: str, kind: str, manifest: JSON) -> None:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        self._events.append((self.version, path, {"type": kind, "object": {**manifest, "metadata": metadata}}))
        self._changed.notify_all()

    def answer(self, handler: Any, path: str, query: Query) -> None:
        cut = self.cut  # before the request can be seen: who then cuts means this one, too
        self.requests.append((path, query))
        if self.behave(handler, path, query):
            return
        if "watch" in query:
            self._watch(handler, path, int(query["resourceVersion"]), cut)
        else:
            self._list(handler, path, query)

    def _list(self, handler: Any, path: str, query: Query) -> None:
        with self._changed:
            items = [self.objects.get(path, {})[name] for name in sorted(self.objects.get(path, {}))]
            version = self.version
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 1 << 30))
        end = start + limit
        more = {"continue": str(end)} if end < len(items) else {}
        handler.reply(200, {"metadata": {"resourceVersion": str(version), **more}, "items": items[start:end]})

    def _watch(self, handler: Any, path: str, version: int, cut: int) -> None:
        handler.begin()
        while True:
            with self._changed:
                pending = [event for event in self._events if event[0] > version and event[1] == path]
                if not pending and self.cut == cut:
                    self._changed.wait(10)
                if self.cut != cut or self._closing:
                    handler.wfile.write(b"ff\r\n{")  # a chunk that never ends
                    handler.close_connection = True
                    return
            for number, _, event in pending:
                handler.chunk(json.dumps(event).encode() + b"\n")
                version = number


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            try:
                api.answer(self, url.path, {name: values[0] for name, values in parse_qs(url.query).items()})
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def reply(self, status: int, content: JSON) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, message: str) -> bool:
            self.reply(status, {"kind": "Status", "code": status, "message": message})
            return True

        def begin(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def chunk(self, data: bytes) -> None:
            """In two parts, so that lines do not end where chunks do."""
            half = len(data) // 2
            for part in (data[:half], data[half:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
                time.sleep(0.002)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    return Handler
