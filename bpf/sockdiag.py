# SPDX-License-Identifier: Apache-2.0
"""The sockets of the caller's network namespace, told by the kernel, and closed by it. Their owners get an error.

Our own messages, for a node may have ten thousand sockets, and a library's objects of all would take a second.

Source: include/uapi/linux/inet_diag.h, sock_diag(7), netlink(7).
"""

import os
import socket
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300

# enum of include/net/tcp_states.h, as bits; UDP has the first alone, once it is connected.
ESTABLISHED, SYN_SENT, FIN_WAIT_1, CLOSE_WAIT, LAST_ACK = (1 << number for number in (1, 2, 4, 8, 9))
EVERY_STATE = 0xFFFFFFFF

SO_COOKIE = 57
BUFFER_BYTES = 1 << 16

# struct nlmsghdr; inet_diag_req_v2 before its inet_diag_sockid; inet_diag_msg before and up to the end of its own.
_HEADER = Struct("=IHHII")
_REQUEST = Struct("=BBxxI")
_FOUND = Struct("=Bxxx48s")
# struct inet_diag_sockid: ports, addresses, device, cookie.
_IDENTITY = Struct("!HH16s16s4s8s")


class Socket(NamedTuple):
    """One that is connected. `identity`: struct inet_diag_sockid, 48 bytes, by which the kernel finds it again."""

    family: int
    protocol: int
    identity: bytes

    @property
    def destination(self) -> tuple[bytes, int]:
        """Address, 16 bytes as in the maps, and port."""
        _, port, _, address, _, _ = _IDENTITY.unpack(self.identity)
        return (bytes(10) + b"\xff\xff" + address[:4] if self.family == socket.AF_INET else address), port

    @property
    def cookie(self) -> int:
        return int.from_bytes(_IDENTITY.unpack(self.identity)[5], "little")


def connected(protocol: int, states: int = ESTABLISHED) -> Iterator[Socket]:
    """Those of both families in some states. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with _opened() as diag:
            asked = _REQUEST.pack(family, protocol, states) + bytes(_IDENTITY.size)
            diag.send(_message(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, asked))
            try:
                for body in _answers(diag):
                    found, identity = _FOUND.unpack_from(body)
                    yield Socket(found, protocol, identity)
            except FileNotFoundError:
                return  # a kernel that cannot tell of this protocol's


def close(one: Socket) -> bool:
    """False: it has gone meanwhile. Raises OSError: EPERM without CAP_NET_ADMIN, another where the kernel closes none
    (CONFIG_INET_DIAG_DESTROY)."""
    with _opened() as diag:
        asked = _REQUEST.pack(one.family, one.protocol, EVERY_STATE) + one.identity
        diag.send(_message(SOCK_DESTROY, REQUEST | ACK, asked))
        try:
            tuple(_answers(diag))
        except FileNotFoundError:
            return False
    return True


def closes() -> bool:
    """Whether this kernel closes UDP sockets, found with one of our own. Raises PermissionError: not without
    CAP_NET_ADMIN."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("", 0))
        cookie = own.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        identity = _IDENTITY.pack(own.getsockname()[1], 0, bytes(16), bytes(16), bytes(4), cookie)
        try:
            # That it is not there says a kernel which cannot tell of UDP's sockets.
            return close(Socket(socket.AF_INET, socket.IPPROTO_UDP, identity))
        except PermissionError:
            raise
        except OSError:
            return False


def _opened() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _answers(diag: socket.socket) -> Iterator[bytes]:
    """The bodies of what is told, up to its end or the acknowledgement. Raises OSError."""
    while True:
        data = memoryview(diag.recv(BUFFER_BYTES))
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                error = -int.from_bytes(body[:4], "little", signed=True) if body else 0
                if error:
                    raise OSError(error, f"sock_diag: {os.strerror(error)}")
                return
            yield bytes(body)
            data = data[(length + 3) & ~3 :]
