# SPDX-License-Identifier: Apache-2.0
"""Asks a server of the lab and prints each answer as a line of JSON, with `took_ms`; a failure is {"error": "ECONN…"}.

    python -I -S ask.py tcp 10.96.0.10 80 --count 30
    python -I -S ask.py -

The second reads lines of such arguments, for who has many questions: a start takes a hundred times as long as one. Each
question has a socket of its own; that of `udp-unconnected` takes an answer from anywhere, and tells where from.
Imports the standard library alone.
"""

import argparse
import errno
import json
import socket
import sys
import time
from collections.abc import Sequence

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "udp-unconnected": socket.SOCK_DGRAM}


def ask(protocol: str, address: str, port: int, timeout_s: float = 2.0, source_port: int = 0) -> dict[str, object]:
    """One question on a socket of its own; the answer, or the name of the error."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    began = time.monotonic()
    answer: dict[str, object]
    try:
        with socket.socket(family, KINDS[protocol]) as client:
            client.settimeout(timeout_s)
            if source_port:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("", source_port))
            said, peer = (_unconnected if protocol == "udp-unconnected" else _connected)(client, (address, port))
            answer = json.loads(said) | {"believed_peer": peer[0], "believed_port": peer[1]}
    except TimeoutError:
        answer = {"error": "ETIMEDOUT"}
    except OSError as error:
        answer = {"error": errno.errorcode.get(error.errno or 0, str(error))}
    except ValueError:
        answer = {"error": "closed without an answer"}
    return answer | {"took_ms": round((time.monotonic() - began) * 1000, 3)}


def _connected(client: socket.socket, server: tuple[str, int]) -> tuple[bytes, tuple[str, int]]:
    client.connect(server)
    client.sendall(b"?\n")
    return client.recv(2048), client.getpeername()[:2]


def _unconnected(client: socket.socket, server: tuple[str, int]) -> tuple[bytes, tuple[str, int]]:
    client.sendto(b"?\n", server)
    said, peer = client.recvfrom(2048)
    return said, peer[:2]


def main() -> None:
    if sys.argv[1:] != ["-"]:
        run(sys.argv[1:])
        return
    for line in sys.stdin:
        run(line.split())


def run(words: Sequence[str]) -> None:
    """Prints the answers to what a command line asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for each step of a question")
    arguments = parser.parse_args(words)
    for _ in range(arguments.count):
        print(json.dumps(ask(arguments.protocol, arguments.address, arguments.port, arguments.timeout)), flush=True)


if __name__ == "__main__":
    main()
