# SPDX-License-Identifier: Apache-2.0
"""Asks a server of the lab and prints each answer as a line of JSON, with `took_ms`; a failure is {"error": "ECONN…"}.

    python -I -S ask.py tcp 10.96.0.10 80 --count 30

Each question has a socket of its own. Imports the standard library alone.
"""

import argparse
import errno
import json
import socket
import time

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


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
            client.connect((address, port))
            client.sendall(b"?\n")
            answer = json.loads(client.recv(2048))
            answer["believed_peer"] = client.getpeername()[0]
    except TimeoutError:
        answer = {"error": "ETIMEDOUT"}
    except OSError as error:
        answer = {"error": errno.errorcode.get(error.errno or 0, str(error))}
    except ValueError:
        answer = {"error": "closed without an answer"}
    return answer | {"took_ms": round((time.monotonic() - began) * 1000, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for each step of a question")
    arguments = parser.parse_args()
    for _ in range(arguments.count):
        print(json.dumps(ask(arguments.protocol, arguments.address, arguments.port, arguments.timeout)))


if __name__ == "__main__":
    main()
