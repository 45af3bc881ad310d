# SPDX-License-Identifier: Apache-2.0
"""Many flows at once from one place to one address and port, and what answers them.

    python -I -S many.py serve 9000
    python -I -S many.py ask tcp 192.168.206.200 9000 --count 9500

Asking prints a line of JSON once every flow was answered or given up, and holds those that were answered. At SIGUSR1 it
asks on each of them once more, and prints another line; it ends after so many times.

    {"answered": 9500, "silent": 0, "failed": {}, "slowest_ms": 12.1}

Imports the standard library alone.
"""

import argparse
import errno
import json
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
# Questions that wait for an answer at any time: fewer than a server's backlog, or a socket's buffer.
AT_ONCE = 64
# Servers share the connections: each process has a limit of its own on open files.
SERVERS = 4
BUFFER_BYTES = 1 << 22


def serve(port: int) -> None:
    """Answers for ever; says `ready` once it can."""
    stream = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    stream.setblocking(False)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    datagrams.bind(("::", port))
    for _ in range(SERVERS):
        if not os.fork():
            _answer_streams(stream)
    print("ready", flush=True)
    while True:
        said, peer = datagrams.recvfrom(2048)
        datagrams.sendto(said, peer)


def _answer_streams(listener: socket.socket) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                _accept(listener, selector)
            else:
                _answer(key.fileobj, selector)  # type: ignore[arg-type]


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:  # another process was faster
        return
    selector.register(connection, selectors.EVENT_READ)


def _answer(connection: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        said = connection.recv(2048)
    except OSError:
        said = b""
    if said:
        connection.send(said)
        return
    selector.unregister(connection)
    connection.close()


class Asker:
    """Flows, each on a socket of its own that stays open.

    Attributes:
        sockets: those that were answered.
        silent: how many got nothing in time.
    """

    def __init__(self, protocol: str, server: tuple[str, int], timeout_s: float, first_port: int) -> None:
        self._kind, self._server, self._timeout_s = KINDS[protocol], server, timeout_s
        self._next_port = first_port
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, float] = {}
        self._slowest_s = 0.0
        self._failed: Counter[str] = Counter()
        self.sockets: list[socket.socket] = []
        self.silent = 0

    def ask(self, count: int) -> None:
        """Opens and asks `count` flows, and waits until each was answered or given up."""
        fresh = (self._open() for _ in range(count))
        self._run(fresh)

    def ask_again(self) -> None:
        """Asks once more on every flow that was answered."""
        standing, self.sockets = self.sockets, []
        self._run(iter(standing))

    def report(self) -> str:
        told = {"answered": len(self.sockets), "silent": self.silent, "failed": self._failed}
        return json.dumps(told | {"slowest_ms": round(self._slowest_s * 1000, 1)})

    def _run(self, flows: Iterator[socket.socket]) -> None:
        more = True
        while more or self._asked:
            while more and len(self._asked) < AT_ONCE:
                flow = next(flows, None)
                more = flow is not None
                if flow:
                    self._asked[flow] = time.monotonic()
                    self._selector.register(flow, selectors.EVENT_WRITE)
            for key, events in self._selector.select(0.05):
                self._step(key.fileobj, events)  # type: ignore[arg-type]
            self._give_up()

    def _open(self) -> socket.socket:
        flow = socket.socket(socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET, self._kind)
        flow.setblocking(False)
        if self._next_port:
            flow.bind(("", self._next_port))
            self._next_port += 1
        flow.connect_ex(self._server)
        return flow

    def _step(self, flow: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                flow.send(b"?\n")
                self._selector.modify(flow, selectors.EVENT_READ)
            elif flow.recv(2048):
                self._slowest_s = max(self._slowest_s, time.monotonic() - self._asked[flow])
                self.sockets.append(flow)
                self._forget(flow)
            else:
                self._fail(flow, "closed")
        except OSError as error:
            self._fail(flow, errno.errorcode.get(error.errno or 0, str(error)))

    def _give_up(self) -> None:
        oldest = time.monotonic() - self._timeout_s
        for flow in [flow for flow, asked in self._asked.items() if asked < oldest]:
            self.silent += 1
            self._forget(flow)
            flow.close()

    def _fail(self, flow: socket.socket, what: str) -> None:
        self._failed[what] += 1
        self._forget(flow)
        flow.close()

    def _forget(self, flow: socket.socket) -> None:
        del self._asked[flow]
        self._selector.unregister(flow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("port", type=int)
    asking = commands.add_parser("ask")
    asking.add_argument("protocol", choices=KINDS)
    asking.add_argument("address")
    asking.add_argument("port", type=int)
    asking.add_argument("--count", type=int, required=True)
    asking.add_argument(
        "--first-port", type=int, default=0, help="source ports from this one on; 0: the kernel's choice"
    )
    asking.add_argument("--timeout", type=float, default=5.0, help="seconds until a flow is given up")
    asking.add_argument("--again", type=int, default=1, help="how often it asks once more")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port)
        return
    server = (arguments.address, arguments.port)
    asker = Asker(arguments.protocol, server, arguments.timeout, arguments.first_port)
    asker.ask(arguments.count)
    print(asker.report(), flush=True)
    for _ in range(arguments.again):
        signal.sigwait({signal.SIGUSR1})
        asker.ask_again()
        print(asker.report(), flush=True)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    main()
