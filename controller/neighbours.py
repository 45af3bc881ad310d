# SPDX-License-Identifier: Apache-2.0
"""The kernel's neighbour table, as messages of rtnetlink: which MAC an address on a device has.

Plain bytes instead of pyroute2's objects: neighbours of a large cluster come and go all the time. Pure but for
`opened`. Source: rtnetlink(7), include/uapi/linux/neighbour.h.
"""

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from bpf.address import V4_PREFIX, is_v4

_NETLINK_ROUTE = 0
_GROUP_NEIGHBOURS = 0x4
_NEWNEIGH, _GETNEIGH = 28, 30
_REQUEST, _DUMP, _CREATE = 0x1, 0x300, 0x400
_USE = 0x1  # NTF_USE: as if a packet were to be sent there
_DESTINATION, _MAC = 1, 2

_HEADER = struct.Struct("=IHHII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")


class Neighbour(NamedTuple):
    """mac: 6 bytes."""

    address: bytes
    ifindex: int
    mac: bytes


def opened() -> socket.socket:
    """A socket that tells of every change of this network namespace's neighbours. Raises OSError."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    netlink.bind((0, _GROUP_NEIGHBOURS))
    return netlink


def list_request() -> bytes:
    """Asks for all that the kernel knows."""
    return _message(_GETNEIGH, _REQUEST | _DUMP, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def resolve_request(address: bytes, ifindex: int) -> bytes:
    """Has the kernel find out, or confirm, the MAC of an address. What it knows goes on holding meanwhile."""
    family, short = (socket.AF_INET, address[12:]) if is_v4(address) else (socket.AF_INET6, address)
    body = _NEIGHBOUR.pack(family, ifindex, 0, _USE, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(short), _DESTINATION) + short
    return _message(_NEWNEIGH, _REQUEST | _CREATE, body)


def known(data: bytes) -> Iterator[Neighbour]:
    """The neighbours with a MAC that messages tell of; that one is gone or unreachable says nothing of its MAC."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        body = data[offset + _HEADER.size : offset + length]
        if kind == _NEWNEIGH and len(body) >= _NEIGHBOUR.size:
            found = _neighbour(body)
            if found:
                yield found
        offset += max(_HEADER.size, (length + 3) & ~3)


def _neighbour(body: bytes) -> Neighbour | None:
    _, ifindex, _, _, _ = _NEIGHBOUR.unpack_from(body)
    values = dict(_attributes(body))
    address, mac = values.get(_DESTINATION, b""), values.get(_MAC, b"")
    if len(address) not in (4, 16) or len(mac) != 6 or not any(mac):
        return None
    return Neighbour(V4_PREFIX + address if len(address) == 4 else address, ifindex, mac)


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _NEIGHBOUR.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body
