# SPDX-License-Identifier: Apache-2.0
"""Says when devices, addresses or routes change, from the kernel's own notifications.

A plain netlink socket, of which only headers are looked at: pod links come and go by the hundred, and are none of the
controller's business. Source: rtnetlink(7).
"""

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from bpf import podlink

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; IPv4 addresses, routes; IPv6 addresses, routes
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_IFLA_IFNAME = 3
_MAIN_TABLE = 254
_OURS = 206

_HEADER = struct.Struct("=IHHII")
_LINK_BYTES = 16
_ATTRIBUTE = struct.Struct("=HH")


def watch(changed: Callable[[], None]) -> None:
    """Starts a thread that calls `changed` for each change that may matter. Raises OSError."""
    threading.Thread(target=_run, args=(opened(), changed), name="monitor", daemon=True).start()


def opened() -> socket.socket:
    """A socket to hear of changes in the caller's network namespace. Raises OSError."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    netlink.bind((0, _GROUPS))
    return netlink


def _run(netlink: socket.socket, changed: Callable[[], None]) -> None:
    while True:
        try:
            data = netlink.recv(65536)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise  # without this thread the controller would be blind: it ends, and is started again
            changed()  # messages were lost: anything may have changed
            continue
        if any(matters(kind, body) for kind, body in messages(data)):
            changed()


def matters(kind: int, body: bytes) -> bool:
    """Whether a message may concern the underlay, the overlay, or a route to another node."""
    if kind in (_NEWLINK, _DELLINK):
        # The CNI plugin names both ends of a pod link as it makes it: none ever has another name here.
        return not podlink.is_name(_name(body))
    if kind in (_NEWADDR, _DELADDR):
        return True
    if kind not in (_NEWROUTE, _DELROUTE):
        return False
    family, length, _, _, table, protocol = struct.unpack_from("=BBBBBB", body)
    if table != _MAIN_TABLE:
        return False
    # Routes of ours to single addresses are the CNI plugin's, to its pods; those to other nodes' the audit looks after.
    return protocol != _OURS or (kind == _DELROUTE and length != (32 if family == socket.AF_INET else 128))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and body of each message in what was received."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += max(_HEADER.size, (length + 3) & ~3)


def _name(body: bytes) -> str:
    offset = _LINK_BYTES
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if kind == _IFLA_IFNAME:
            return body[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return ""
