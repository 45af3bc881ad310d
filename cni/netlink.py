# SPDX-License-Identifier: Apache-2.0
"""Route netlink for pod links, on the standard library alone.

pyroute2 takes 190 ms to import, most of ten times what a whole ADD takes here, and the one-shot process pays that for
every pod; this knows the ten messages that a pod link needs. Several messages travel in one send, and the kernel
carries them out in their order. Out of scope: everything else that netlink can do.

Sources: include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,pkt_sched,pkt_cls}.h.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, GETNEIGH = 28, 30
NEWQDISC = 36
NEWTFILTER, GETTFILTER = 44, 46

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCL, _CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_ACK_TLVS, _CAPPED = 0x200, 0x100

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 18, 26, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, _IFA_FLAGS, _IFA_NODAD = 1, 2, 8, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
_RT_TABLE_MAIN, _RTN_UNICAST, _RTNH_ONLINK = 254, 1, 4
_NDA_DST, NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_TCA_KIND, TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, TCA_BPF_ID = 6, 7, 8, 11
_CLSACT_HANDLE, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_BUFFER_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class Message(NamedTuple):
    """A request to the kernel. `tolerate` names the errors that are as good as success; `what` is for the others."""

    kind: int
    flags: int
    body: bytes
    what: str
    tolerate: tuple[int, ...] = ()


class NetlinkError(OSError):
    """The kernel refused a message; the text says which, and what the kernel said."""


class Netlink:
    """A socket in the network namespace in which it was opened, whatever its thread enters later."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def call(self, *messages: Message) -> list[bytes]:
        """Sends messages at once and returns the bodies of what the kernel answered, in order.

        The kernel goes on after a message that fails; the first failure is raised when all are answered.

        Raises:
            NetlinkError: a message failed with an errno that it does not tolerate.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        self._socket.send(b"".join(_encode(message, first + index) for index, message in enumerate(messages)))
        answers: list[bytes] = []
        failure: NetlinkError | None = None
        pending = len(messages)
        while pending:
            for kind, flags, sequence, body in _decode(self._socket.recv(_BUFFER_BYTES)):
                if sequence < first:
                    continue
                if kind not in (_ERROR, _DONE):
                    answers.append(body)
                    continue
                pending -= 1
                message = messages[sequence - first]
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in message.tolerate and failure is None:
                    failure = _failure(message, code, flags, body)
        if failure:
            raise failure
        return answers


class Collector:
    """Takes the `tc` calls of bpf.attach, which speaks pyroute2's dialect, and keeps them as messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def tc(self, command: str, kind: str, index: int, **options: Any) -> None:
        encoders: dict[tuple[str, str], Callable[..., Message]] = {
            ("add", "clsact"): _clsact,
            ("replace-filter", "bpf"): _bpf_filter,
        }
        self.messages.append(encoders[command, kind](index, **options))


@contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """Moves the calling thread into a network namespace, and back.

    Raises:
        OSError: EINVAL where the descriptor is not of a network namespace. Of any other errno the thread is perhaps
            not back, and must not be used again.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns_fd)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


def is_netns(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:  # ENOTTY: of no namespace
        return False


def _enter(netns_fd: int) -> None:
    """Moves the calling thread into a network namespace."""
    if _libc.setns(netns_fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"entering a network namespace: {os.strerror(code)}")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message's tail, by kind without the nesting flag."""
    found, offset = {}, 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def add_veth(name: str, mac: bytes, peer: tuple[str, bytes, int], mtu: int) -> Message:
    """A veth pair, both ends down; its far end is (name, MAC, descriptor of its network namespace)."""
    peer_name, peer_mac, netns_fd = peer
    far = _ifinfo(0) + _name(peer_name) + attribute(IFLA_ADDRESS, peer_mac) + _u32(IFLA_MTU, mtu)
    far += _u32(IFLA_NET_NS_FD, netns_fd)
    info = attribute(_INFO_KIND, b"veth\0") + attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, far))
    body = _ifinfo(0) + _name(name) + attribute(IFLA_ADDRESS, mac) + _u32(IFLA_MTU, mtu)
    body += attribute(IFLA_LINKINFO, info)
    return Message(NEWLINK, _CREATE | _EXCL, body, f"creating the link {name} to {peer_name}")


def get_link(name: str) -> Message:
    return Message(GETLINK, 0, _ifinfo(0) + _name(name), f"finding the link {name}", (errno.ENODEV,))


def get_device(index: int) -> Message:
    return Message(GETLINK, 0, _ifinfo(index), f"finding the device {index}", (errno.ENODEV,))


def delete_link(name: str) -> Message:
    return Message(DELLINK, 0, _ifinfo(0) + _name(name), f"deleting the link {name}", (errno.ENODEV,))


def set_up(index: int) -> Message:
    return Message(SETLINK, 0, _ifinfo(index, IFF_UP), "bringing a link up")


def no_link_local(index: int) -> Message:
    """No IPv6 link-local address, hence no duplicate address detection, router solicitation or the like."""
    family = attribute(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
    body = _ifinfo(index) + attribute(IFLA_AF_SPEC, family)
    # Of a kernel booted without IPv6.
    return Message(SETLINK, 0, body, "setting a link's IPv6 address mode", (errno.EAFNOSUPPORT, errno.EINVAL))


def add_address(index: int, address: bytes) -> Message:
    """An address of its own (/32, /128), usable at once."""
    body = struct.pack("=BBBBI", _family(address), len(address) * 8, _IFA_NODAD, 0, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address) + _u32(_IFA_FLAGS, _IFA_NODAD)
    return Message(NEWADDR, _CREATE | _EXCL, body, f"adding the address {_text(address)}")


def get_addresses() -> Message:
    return Message(GETADDR, _DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 0), "listing addresses")


def set_route(index: int, prefix: tuple[bytes, int], gateway: bytes | None, protocol: int) -> Message:
    """The route to a prefix through a device, whatever it was before: on the link, or by a gateway that is on it."""
    address, bits = prefix
    scope = RT_SCOPE_UNIVERSE if gateway or len(address) == 16 else RT_SCOPE_LINK
    flags = _RTNH_ONLINK if gateway else 0
    body = _route(address, bits, protocol, scope, flags)
    body += attribute(RTA_DST, address) if bits else b""
    body += _u32(RTA_OIF, index) + (attribute(RTA_GATEWAY, gateway) if gateway else b"")
    return Message(NEWROUTE, _CREATE | _REPLACE, body, f"setting the route to {_text(address)}/{bits}")


def get_route(address: bytes) -> Message:
    """The route that a packet to an address takes."""
    body = _route(address, len(address) * 8, 0, 0, 0) + attribute(RTA_DST, address)
    nowhere = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT)
    return Message(GETROUTE, 0, body, f"finding the route to {_text(address)}", nowhere)


def set_neighbour(index: int, address: bytes, mac: bytes) -> Message:
    body = struct.pack("=BxxxiHBB", _family(address), index, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address) + attribute(NDA_LLADDR, mac)
    return Message(NEWNEIGH, _CREATE | _REPLACE, body, f"setting the neighbour {_text(address)}")


def get_neighbour(index: int, address: bytes) -> Message:
    body = struct.pack("=BxxxiHBB", _family(address), index, 0, 0, 0) + attribute(_NDA_DST, address)
    return Message(GETNEIGH, 0, body, f"finding the neighbour {_text(address)}", (errno.ENOENT, errno.ENODEV))


def get_filter(index: int, parent: int, priority: int, protocol: int, handle: int) -> Message:
    body = _tc(index, handle, parent, _filter_info(priority, protocol)) + attribute(_TCA_KIND, b"bpf\0")
    return Message(GETTFILTER, 0, body, "finding a filter", (errno.ENOENT, errno.EINVAL, errno.ENODEV))


def device_of(link: bytes) -> int:
    """The index of the device that a link's message describes."""
    return int(struct.unpack_from("=i", link, 4)[0])


def number(value: bytes) -> int:
    """An attribute's value as a number of 32 bits."""
    return int(struct.unpack("=I", value)[0])


def links(answers: Sequence[bytes]) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """(device index, flags, attributes) of each link among the answers."""
    for body in answers:
        index, flags = struct.unpack_from("=iI", body, 4)
        yield index, flags, attributes(body[16:])


def addresses_of(answers: Sequence[bytes], index: int) -> Iterator[bytes]:
    """The addresses of a device among the answers."""
    for body in answers:
        found = attributes(body[8:])
        if struct.unpack_from("=I", body, 4)[0] == index:
            yield found.get(IFA_LOCAL) or found[IFA_ADDRESS]


def _clsact(index: int) -> Message:
    body = _tc(index, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_TCA_KIND, b"clsact\0")
    return Message(NEWQDISC, _CREATE | _EXCL, body, "adding clsact", (errno.EEXIST,))


def _bpf_filter(
    index: int, *, handle: int, fd: int, name: str, parent: int, prio: int, protocol: int, direct_action: bool
) -> Message:
    options = _u32(_TCA_BPF_FD, fd) + attribute(_TCA_BPF_NAME, name.encode() + b"\0")
    options += _u32(_TCA_BPF_FLAGS, int(direct_action))
    body = _tc(index, handle, parent, _filter_info(prio, protocol))
    body += attribute(_TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, options)
    return Message(NEWTFILTER, _CREATE | _REPLACE, body, f"attaching {name}")


def _filter_info(priority: int, protocol: int) -> int:
    return priority << 16 | socket.htons(protocol)


def _ifinfo(index: int, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _route(address: bytes, bits: int, protocol: int, scope: int, flags: int) -> bytes:
    return struct.pack("=BBBBBBBBI", _family(address), bits, 0, 0, _RT_TABLE_MAIN, protocol, scope, _RTN_UNICAST, flags)


def _tc(index: int, handle: int, parent: int, info: int) -> bytes:
    return struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, handle, parent, info)


def _name(name: str) -> bytes:
    return attribute(IFLA_IFNAME, name.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _text(address: bytes) -> str:
    return socket.inet_ntop(_family(address), address)


def _encode(message: Message, sequence: int) -> bytes:
    flags = message.flags | _REQUEST | (0 if message.flags & _DUMP == _DUMP else _ACK)
    return struct.pack("=IHHII", len(message.body) + 16, message.kind, flags, sequence, 0) + message.body


def _decode(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence number, body) of each message received."""
    offset = 0
    while offset < len(data):
        size, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        yield kind, flags, sequence, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def _failure(message: Message, code: int, flags: int, body: bytes) -> NetlinkError:
    said = ""
    if flags & _ACK_TLVS:
        # The request's header stands between the code and the attributes.
        said = attributes(body[20:]).get(1, b"").rstrip(b"\0").decode(errors="replace")
    return NetlinkError(code, f"{message.what}: {os.strerror(code)}" + (f" ({said})" if said else ""))
