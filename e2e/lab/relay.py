# SPDX-License-Identifier: Apache-2.0
"""Relays connections that are made to an address of this network namespace to a server that is reached from another.

    python -I -S relay.py 192.168.206.1 6443 203.0.113.5 443 --from /proc/4711/ns/net

So the nodes of the lab reach an API server that their namespaces have no way to. Imports the standard library alone.
"""

import argparse
import ctypes
import os
import socket
import threading

CLONE_NEWNET = 0x40000000


def enter(netns: str) -> None:
    """Moves this process to a network namespace; sockets that are open stay where they were made."""
    fd = os.open(netns, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns {netns}")
    os.close(fd)


def relay(near: socket.socket, server: tuple[str, int]) -> None:
    """Carries one connection, both ways, to its end."""
    try:
        far = socket.create_connection(server, timeout=10)
    except OSError:
        near.close()
        return
    far.settimeout(None)
    threading.Thread(target=_copy, args=(near, far), daemon=True).start()
    _copy(far, near)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # the other direction ended first
        sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("server")
    parser.add_argument("server_port", type=int)
    parser.add_argument("--from", dest="netns", required=True, help="network namespace to reach the server from")
    arguments = parser.parse_args()
    listener = socket.create_server((arguments.address, arguments.port))
    enter(arguments.netns)
    print("ready", flush=True)
    while True:
        near, _ = listener.accept()
        server = (arguments.server, arguments.server_port)
        threading.Thread(target=relay, args=(near, server), daemon=True).start()


if __name__ == "__main__":
    main()
