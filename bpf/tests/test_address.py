# SPDX-License-Identifier: Apache-2.0
"""Addresses between their text and the 16 bytes of the maps."""

import pytest

from bpf import address

PAIRS = [
    ("192.0.2.1", "00000000000000000000ffffc0000201"),
    ("0.0.0.0", "00000000000000000000ffff00000000"),
    ("2001:db8::1", "20010db8000000000000000000000001"),
    ("::", "00000000000000000000000000000000"),
]


@pytest.mark.parametrize(("text", "packed"), PAIRS)
def test_packed_and_text_are_inverse(text: str, packed: str) -> None:
    """An IPv4 address is v4-mapped, an IPv6 address is itself."""
    assert address.packed(text).hex() == packed
    assert address.text(bytes.fromhex(packed)) == text


def test_packed_of_a_mapped_address_is_ipv4() -> None:
    """Both ways to write an IPv4 address are the same key."""
    assert address.packed("::ffff:192.0.2.1") == address.packed("192.0.2.1")


@pytest.mark.parametrize("text", ["", "192.0.2", "192.0.2.256", "2001:db8:::1", "example.org", "192.0.2.1/24"])
def test_packed_of_nonsense_is_a_value_error(text: str) -> None:
    """What is no address is refused, with what it was."""
    with pytest.raises(ValueError, match="not an IP address"):
        address.packed(text)


def test_prefix_bits_of_ipv4_start_at_96() -> None:
    """Longest-prefix keys count an IPv4 prefix behind the mapping's 96 bits."""
    assert address.prefix_bits(address.packed("10.244.0.0"), 24) == 120
    assert address.prefix_bits(address.packed("fd00:10:244::"), 56) == 56
