# SPDX-License-Identifier: Apache-2.0
"""The probe of layer 2: whether the network between two nodes lets frames through whose IP addresses are foreign there.

A request is a UDP datagram with the peer's MAC and an address for documentation as its destination; the answer comes
with that address as its source. So go packets that are handed over, and their answers. Both have a TTL of 1: a host
that does not know them drops them. Pure: frames out, frames in, and the filter that keeps all others off the socket.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from bpf import abi
from bpf.address import is_v4, packed

PORT = abi.Probe.PORT
FOREIGN = {4: packed("192.0.2.206"), 6: packed("2001:db8::ce")}

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
REQUEST, ANSWER = 1, 2

_MAGIC = b"cebpf-l2"
_PAYLOAD = struct.Struct("!8sB7x8s16s")
_UDP = struct.Struct("!HHHH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ETHERNET_BYTES = 14
_UDP_PROTOCOL, _TTL, _DONT_FRAGMENT = 17, 1, 0x4000


class Probe(NamedTuple):
    """A request or an answer.

    Attributes:
        source_mac: of the frame.
        source, destination: of the packet, 16 bytes each.
        nonce: 8 bytes of the asker's.
        asked: the address of the node that was asked.
    """

    kind: int
    source_mac: bytes
    source: bytes
    destination: bytes
    nonce: bytes
    asked: bytes


def family_of(address: bytes) -> int:
    return 4 if is_v4(address) else 6


def request(mac: bytes, source_mac: bytes, source: bytes, nonce: bytes, asked: bytes) -> bytes:
    """The frame that asks the node of `mac`, from this node's address `source`."""
    return _frame(mac, source_mac, source, FOREIGN[family_of(source)], _payload(REQUEST, nonce, asked))


def answer(asked: Probe, mac: bytes) -> bytes:
    """The frame that answers a request, from a device whose MAC is `mac`."""
    return _frame(asked.source_mac, mac, asked.destination, asked.source, _payload(ANSWER, asked.nonce, asked.asked))


def parse(frame: bytes) -> Probe | None:
    """None: it is no probe of ours. A request to an address that is not foreign may have come by a router, whose MAC
    would then count as its sender's."""
    try:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == ETH_P_IP:
            offset = _ETHERNET_BYTES + (frame[_ETHERNET_BYTES] & 0xF) * 4
            source, destination = (packed(str(IPv4Address(frame[start : start + 4]))) for start in (26, 30))
        else:
            offset = _ETHERNET_BYTES + _IPV6.size
            source, destination = (packed(str(IPv6Address(frame[start : start + 16]))) for start in (22, 38))
        magic, what, nonce, asked = _PAYLOAD.unpack_from(frame, offset + _UDP.size)
    except (struct.error, IndexError, ValueError):
        return None
    if magic != _MAGIC or what not in (REQUEST, ANSWER):
        return None
    if what == REQUEST and destination != FOREIGN[family_of(destination)]:
        return None
    return Probe(what, frame[6:12], source, destination, nonce, asked)


def socket_filter(ethertype: int) -> bytes:
    """A classic BPF program, struct sock_filter each, that lets UDP to PORT through and nothing else. IPv4 fragments
    and IPv6 with extension headers are none of ours."""
    if ethertype == ETH_P_IP:
        program = [
            (0x30, 0, 0, 23),  # A = protocol
            (0x15, 0, 6, _UDP_PROTOCOL),
            (0x28, 0, 0, 20),  # A = fragment offset
            (0x45, 4, 0, 0x1FFF),
            (0xB1, 0, 0, _ETHERNET_BYTES),  # X = bytes of the IPv4 header
            (0x48, 0, 0, 16),  # A = destination port, at X + Ethernet's 14 + 2
            (0x15, 0, 1, PORT),
            (0x06, 0, 0, 0xFFFF),
            (0x06, 0, 0, 0),
        ]
    else:
        program = [
            (0x30, 0, 0, 20),  # A = next header
            (0x15, 0, 3, _UDP_PROTOCOL),
            (0x28, 0, 0, 56),  # A = destination port
            (0x15, 0, 1, PORT),
            (0x06, 0, 0, 0xFFFF),
            (0x06, 0, 0, 0),
        ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _payload(kind: int, nonce: bytes, asked: bytes) -> bytes:
    return _PAYLOAD.pack(_MAGIC, kind, nonce, asked)


def _frame(mac: bytes, source_mac: bytes, source: bytes, destination: bytes, payload: bytes) -> bytes:
    """Both UDP ports are PORT."""
    length = _UDP.size + len(payload)
    if is_v4(source):
        source, destination = source[12:], destination[12:]
    pseudo = source + destination + struct.pack("!II", length, _UDP_PROTOCOL)
    checksum = _checksum(pseudo + _UDP.pack(PORT, PORT, length, 0) + payload)
    datagram = _UDP.pack(PORT, PORT, length, checksum or 0xFFFF) + payload
    if len(source) == 4:
        ethertype, header = ETH_P_IP, _ipv4(source, destination, length)
    else:
        ethertype, header = ETH_P_IPV6, _IPV6.pack(6 << 28, length, _UDP_PROTOCOL, _TTL, source, destination)
    return mac + source_mac + struct.pack("!H", ethertype) + header + datagram


def _ipv4(source: bytes, destination: bytes, length: int) -> bytes:
    fields = (0x45, 0, _IPV4.size + length, 0, _DONT_FRAGMENT, _TTL, _UDP_PROTOCOL)
    checksum = _checksum(_IPV4.pack(*fields, 0, source, destination))
    return _IPV4.pack(*fields, checksum, source, destination)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
