# SPDX-License-Identifier: Apache-2.0
"""Connections from one source port, again and again, to two names of the same server in turn, right after each close.

    python -I -S reuse.py serve 8080 8081
    python -I -S reuse.py ask 10.96.0.10:80 10.244.2.3:8080 --manner server --rounds 3000

Who closes is the manner: `server` or `client` first, both at once by `reset`, or the client `hasty`, which does not
wait for the server to close as well. Prints a line of JSON; `syns_repeated` are of connections that needed several:

    {"connections": 6000, "wrong": [], "slowest_ms": 2.1, "median_ms": 0.2, "over_200_ms": 0, "syns_repeated": 0}

Imports the standard library alone.
"""

import argparse
import json
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator

MANNERS = ("server", "client", "reset", "hasty")
TIMEOUT_S = 10
BUSY_S = 2


def serve(ports: list[int]) -> None:
    """Serves for ever; says `ready` once it can."""
    listeners = [_listen(port) for port in ports]
    for listener in listeners[1:]:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    _accept(listeners[0])


def _listen(port: int) -> socket.socket:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        _answer(connection)


def _answer(connection: socket.socket) -> None:
    """Repeats the client's line and closes as it says; a client that is gone needs no answer."""
    with connection:
        try:
            connection.settimeout(TIMEOUT_S)
            line = _line(connection)
            if line.startswith(b"reset"):
                _linger_none(connection)
            connection.sendall(line)
            if line.startswith((b"client", b"hasty")):
                connection.recv(1)
        except OSError:
            return


def ask(targets: list[tuple[str, int]], source_port: int, manner: str, rounds: int) -> str:
    """Asks each target in turn, `rounds` times; the report."""
    took_ms: list[float] = []
    wrong: list[str] = []
    syns_repeated = 0
    for number in range(rounds):
        for address, port in targets:
            began = time.monotonic()
            question = f"{manner} {number} {address} {port}\n".encode()
            try:
                said, repeated = _ask_once((address, port), source_port, manner, question)
                syns_repeated += repeated
                if said != question:
                    wrong.append(f"{question!r} was answered {said!r}")
            except OSError as error:
                wrong.append(f"{question!r}: {error}")
            took_ms.append((time.monotonic() - began) * 1000)
    return json.dumps(
        {
            "connections": len(took_ms),
            "wrong": wrong[:20],
            "wrong_count": len(wrong),
            "slowest_ms": round(max(took_ms), 2),
            "median_ms": round(statistics.median(took_ms), 3),
            "over_200_ms": sum(took > 200 for took in took_ms),
            "syns_repeated": syns_repeated,
        }
    )


def _ask_once(target: tuple[str, int], source_port: int, manner: str, question: bytes) -> tuple[bytes, bool]:
    """The answer, and whether the connection took more than one SYN."""
    with _connected(target, source_port) as client:
        (repeated,) = struct.unpack_from("=I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
        client.sendall(question)
        said = _line(client)
        if manner == "client":
            client.shutdown(socket.SHUT_WR)
        if manner in ("server", "client"):
            said += client.recv(1)
        if manner == "reset":
            _linger_none(client)
        return said, repeated > 0


def _connected(target: tuple[str, int], source_port: int) -> socket.socket:
    """A connection from the source port. While the last of the same name still holds it here, it is tried again."""
    deadline = time.monotonic() + BUSY_S
    while True:
        client = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.settimeout(TIMEOUT_S)
        try:
            client.bind(("", source_port))
            client.connect(target)
            return client
        except OSError as error:
            client.close()
            if error.errno not in BUSY or time.monotonic() > deadline:
                raise


BUSY = (98, 99)  # EADDRINUSE, EADDRNOTAVAIL


def _line(connection: socket.socket) -> bytes:
    return b"".join(_until_newline(connection))


def _until_newline(connection: socket.socket) -> Iterator[bytes]:
    data = b""
    while not data.endswith(b"\n"):
        data = connection.recv(4096)
        if not data:
            return
        yield data


def _linger_none(connection: socket.socket) -> None:
    """Makes close() send a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _target(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("port", type=int, nargs="+")
    asking = commands.add_parser("ask")
    asking.add_argument("target", type=_target, nargs="+")
    asking.add_argument("--manner", choices=MANNERS, required=True)
    asking.add_argument("--rounds", type=int, default=3000)
    asking.add_argument("--source-port", type=int, default=40000)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port)
    else:
        print(ask(arguments.target, arguments.source_port, arguments.manner, arguments.rounds))


if __name__ == "__main__":
    main()
