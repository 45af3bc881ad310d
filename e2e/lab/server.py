# SPDX-License-Identifier: Apache-2.0
"""What a pod of the lab runs: answers every line, over TCP or in a datagram, with who it is and whom it saw. Any other
datagram is sent back as it is.

    {"name": "web-1", "peer": "10.244.1.7", "peer_port": 40112, "local": "10.244.2.3"}

A line that starts with GET gets this as an HTTP response, so that curl works, and ends the connection; after any other
it stays open for more. Both families, one port, TCP and UDP. It imports the standard library alone.
"""

import argparse
import asyncio
import json
import signal
import socket
from typing import cast


class Stream(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._answer = identity(self._name, peer, local)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"GET "):
                head = (
                    f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(self._answer)}\r\n\r\n"
                )
                self._transport.write(head.encode() + self._answer)
                self._transport.close()
                return
            self._transport.write(self._answer)


class Datagrams(asyncio.DatagramProtocol):
    """The UDP port."""

    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(identity(self._name, addr, ("", 0)) if data.endswith(b"\n") else data, addr)


def identity(name: str, peer: tuple[str, int], local: tuple[str, int]) -> bytes:
    """The answer, a line of JSON. Addresses of v4-mapped form are told as IPv4."""
    told = {"name": name, "peer": _plain(peer[0]), "peer_port": peer[1], "local": _plain(local[0])}
    return json.dumps(told).encode() + b"\n"


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _listener(kind: socket.SocketKind, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    return listener


async def serve(name: str, port: int) -> None:
    """Serves until SIGTERM; says `ready` once it can."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await loop.create_datagram_endpoint(lambda: Datagrams(name), sock=_listener(socket.SOCK_DGRAM, port))
    await loop.create_server(lambda: Stream(name), sock=_listener(socket.SOCK_STREAM, port), backlog=4096)
    print("ready", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.name, arguments.port))
