# SPDX-License-Identifier: Apache-2.0
"""What a packet must be for a receiver to make anything of it, told from its bytes alone and without the programs'
code: the measure of what they may forward. It knows no more of checksums than whether they hold.
"""

from typing import NamedTuple

from scapy.layers.sctp import crc32c
from scapy.utils import checksum as internet_sum

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION)
EXTENSIONS_MAX = 6
SMALLEST = {TCP: 20, UDP: 8, SCTP: 13}  # SCTP's with the type of a chunk
TOO_LARGE = 1 << 16
MAPPED = bytes(10) + b"\xff\xff"
# Where the ports, or an echo's identifier, and the checksum stand.
TRANSLATED = {TCP: ((0, 4), (16, 18)), UDP: ((0, 4), (6, 8)), SCTP: ((0, 4), (8, 12))}
ECHO = ((2, 4), (4, 6))
ECHOES = {ICMP: (0, 8), ICMPV6: (128, 129)}
QUOTES = {ICMP: (3, 11, 12), ICMPV6: (1, 2, 3, 4)}


class Headers(NamedTuple):
    """A packet that can be read.

    Attributes:
        addresses: source and destination.
        offset, more: of a fragment.
        transport: from the transport header on, or, of a later fragment, what is behind the IP headers.
    """

    addresses: bytes
    protocol: int
    offset: int
    more: bool
    transport: bytes
    header_holds: bool

    @property
    def is_error(self) -> bool:
        return not self.offset and self.protocol in QUOTES and self.transport[0] in QUOTES[self.protocol]

    @property
    def untranslated(self) -> bytes:
        """Of the transport header and the payload what no translation changes."""
        kept = bytearray(self.transport)
        if not self.offset:
            echo = self.protocol in ECHOES and kept[0] in ECHOES[self.protocol]
            for start, end in ECHO if echo else TRANSLATED.get(self.protocol, ()):
                kept[start:end] = bytes(end - start)
        return bytes(kept)

    @property
    def holds(self) -> bool | None:
        """Whether the checksums do; None of the transport's where it has none, or not all of it is here."""
        if self.offset or self.more or self.protocol not in (*SMALLEST, ICMP, ICMPV6):
            return None
        segment = self.transport
        if self.protocol == SCTP:
            return int(crc32c(segment[:8] + bytes(4) + segment[12:])) == int.from_bytes(segment[8:12])
        if self.protocol == UDP:
            segment = segment[: int.from_bytes(segment[4:6])]
            if segment[6:8] == bytes(2):
                return None
        pseudo = b"" if self.protocol == ICMP else self.addresses + len(segment).to_bytes(4) + bytes([0, self.protocol])
        return internet_sum(pseudo + segment) == 0


def read(frame: bytes) -> Headers | None:
    """The packet in a frame; None: it is none of IP's, or cannot be read."""
    packet = frame[14:]
    headers = {b"\x08\x00": _v4, b"\x86\xdd": _v6}[frame[12:14]](packet)
    if headers is None:
        return None
    if headers.offset:
        covers = headers.protocol in (TCP, SCTP) and headers.offset < 20
        return None if covers or headers.offset + len(headers.transport) >= TOO_LARGE else headers
    return headers if _transport(headers) else None


def _v4(packet: bytes) -> Headers | None:
    size, length, field = packet[0] % 16 * 4, int.from_bytes(packet[2:4]), int.from_bytes(packet[6:8])
    if packet[0] >> 4 != 4 or not 20 <= size <= length <= len(packet):
        return None
    offset, more = field % 0x2000 * 8, bool(field & 0x2000)
    return Headers(packet[12:20], packet[9], offset, more, packet[size:length], internet_sum(packet[:size]) == 0)


def _v6(packet: bytes) -> Headers | None:
    end = 40 + int.from_bytes(packet[4:6])
    addresses, protocol, at, offset, more = packet[8:40], packet[6], 40, 0, False
    if packet[0] >> 4 != 6 or end > len(packet) or MAPPED in (addresses[:12], addresses[16:28]):
        return None
    for _ in range(EXTENSIONS_MAX):
        if protocol not in EXTENSIONS or offset:
            break
        extension = packet[at : at + 8]
        if len(extension) < 8:
            return None
        if protocol == FRAGMENT:
            if more:
                return None
            offset, more = int.from_bytes(extension[2:4]) & 0xFFF8, bool(extension[3] & 1)
            at += 8
        else:
            at += 8 * (extension[1] + 1)
        protocol = extension[0]
    if at > end or (protocol in EXTENSIONS and not offset):
        return None
    return Headers(addresses, protocol, offset, more, packet[at:end], True)


def _transport(headers: Headers) -> bool:
    protocol, segment = headers.protocol, headers.transport
    icmp = ICMP if len(headers.addresses) == 8 else ICMPV6
    if len(segment) < (8 if protocol == icmp else SMALLEST.get(protocol, 0)):
        return False
    whole = not headers.more
    if protocol == TCP:
        size = (segment[12] >> 4) * 4
        return size >= 20 and (size <= len(segment) or not whole)
    if protocol == UDP:
        length = int.from_bytes(segment[4:6])
        return length >= 8 and (length <= len(segment) or not whole)
    return True
