# SPDX-License-Identifier: Apache-2.0
"""Asks a server of the lab by datagrams of several sizes, or with few hops, and prints what the path says of them.

    python -I -S path.py sizes 10.96.0.10 80 29 1600 5 --whole
    {"answered": [29, 34, …], "refused": [1454, …], "lost": [], "mtu": 1450, "said_by": ["10.96.0.10"]}

    python -I -S path.py hops 10.96.0.10 80
    ["192.0.2.1", "192.0.2.2", "answer"]

A size is that of the IP packet, and of the answer, which is the same datagram. What is not answered is sent anew, TRIES
times: who may cut it up learns where. `said_by` are those on the path who have refused one.
Imports the standard library alone.
"""

import argparse
import errno
import json
import socket
import struct

TIMEOUT_S, TRIES, HOPS = 1.0, 4, 8
ANSWER = "answer"
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}

# <linux/in.h>, <linux/in6.h>: the values of socket options, by family
_MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
_RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_TTL = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}
_DISCOVER_NEVER, _DISCOVER_ALWAYS = 0, 2


def sizes(address: str, port: int, wanted: range, whole: bool) -> dict[str, object]:
    """Asks once with each size; `whole`: nobody may cut the question up."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found: dict[str, list[int]] = {"answered": [], "refused": [], "lost": []}
    said_by: set[str] = set()
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT_S)
        client.setsockopt(*_MTU_DISCOVER[family], _DISCOVER_ALWAYS if whole else _DISCOVER_NEVER)
        client.setsockopt(*_RECEIVE_ERRORS[family], 1)
        client.connect((address, port))
        for size in wanted:
            found[_fate(client, bytes(size - _HEADERS[family]), said_by)].append(size)
        return found | {"mtu": client.getsockopt(*_MTU[family]), "said_by": sorted(said_by)}


def _fate(client: socket.socket, question: bytes, said_by: set[str]) -> str:
    fate = "lost"
    for _ in range(TRIES):
        try:
            client.send(question)
            while client.recv(65536) != question:
                pass  # of another one, which was asked twice
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            said_by |= {_offender(client)} - {""}
            fate = "refused"
        else:
            return "answered"
    return fate


def hops(address: str, port: int) -> list[str]:
    """Who says that a TTL has run out, from 1 on, until there is an answer; "" for who says nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found: list[str] = []
    for ttl in range(1, HOPS + 1):
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT_S)
            client.setsockopt(*_RECEIVE_ERRORS[family], 1)
            client.setsockopt(*_TTL[family], ttl)
            client.connect((address, port))
            found.append(next(filter(None, (_said(client) for _ in range(TRIES))), ""))
        if found[-1] == ANSWER:
            break
    return found


def _said(client: socket.socket) -> str:
    client.send(b"?\n")
    try:
        client.recv(2048)
    except TimeoutError:
        return ""
    except OSError:
        return _offender(client)
    return ANSWER


def _offender(client: socket.socket) -> str:
    """Who has sent the error that a socket has heard: behind struct sock_extended_err, 16 bytes, a socket address."""
    _, ancillary, _, _ = client.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
    for _, _, data in ancillary:
        (family,) = struct.unpack_from("=H", data, 16)
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, data[20:24])
        if family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, data[24:40])
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("sizes", "hops"):
        command = commands.add_parser(name)
        command.add_argument("address")
        command.add_argument("port", type=int)
    command = commands.choices["sizes"]
    for name in ("first", "end", "step"):
        command.add_argument(name, type=int)
    command.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "hops":
        print(json.dumps(hops(arguments.address, arguments.port)))
        return
    wanted = range(arguments.first, arguments.end, arguments.step)
    print(json.dumps(sizes(arguments.address, arguments.port, wanted, arguments.whole)))


if __name__ == "__main__":
    main()
