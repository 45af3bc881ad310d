# SPDX-License-Identifier: Apache-2.0
"""Addresses as the maps hold them: 16 bytes, IPv4 as v4-mapped (::ffff:a.b.c.d). Pure; imports `socket` alone."""

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

V4_PREFIX = bytes(10) + b"\xff\xff"


def packed(text: str) -> bytes:
    """The 16 bytes of an address in text form.

    Raises:
        ValueError: it is not an IPv4 or IPv6 address.
    """
    try:
        if ":" in text:
            return inet_pton(AF_INET6, text)
        return V4_PREFIX + inet_pton(AF_INET, text)
    except OSError:
        raise ValueError(f"not an IP address: {text!r}") from None


def text(address: bytes) -> str:
    """The text form of an address of 16 bytes."""
    if is_v4(address):
        return inet_ntop(AF_INET, address[12:])
    return inet_ntop(AF_INET6, address)


def is_v4(address: bytes) -> bool:
    return address.startswith(V4_PREFIX)


def prefix_bits(address: bytes, length: int) -> int:
    """The length of a prefix as longest-prefix keys count it: IPv4 prefixes start at bit 96."""
    return 96 + length if is_v4(address) else length
