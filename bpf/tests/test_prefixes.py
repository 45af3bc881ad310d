# SPDX-License-Identifier: Apache-2.0
"""Ranges and the prefixes of the maps: which there are, and what they hold."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.address import packed, text
from bpf.prefixes import parse_range, prefixes


@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("10.0.0.1/8", "has host bits set"),
        ("example.com", "does not appear to be"),
        ("fe80::%eth0/64", "'fe80::%eth0/64' is of one device"),
        ("::ffff:10.0.0.0/104", r"IPv4 in the form of IPv6: write 10\.0\.0\.0/8$"),
        ("::ffff:0:0/96", r"write 0\.0\.0\.0/0$"),
        ("::ffff:192.0.2.1", r"write 192\.0\.2\.1/32$"),
    ],
)
def test_what_is_no_range_of_one_family_is_refused(cidr: str, why: str) -> None:
    """With what it was, and what may have been meant."""
    with pytest.raises(ValueError, match=why):
        parse_range(cidr)


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "2000::/3", "::1/128"])
def test_range_is_one_prefix(cidr: str) -> None:
    """An IPv4 one behind the 96 bits that all of them have."""
    ((bits, address),) = prefixes([cidr])
    assert f"{text(address)}/{bits - (0 if ':' in cidr else 96)}" == cidr


@pytest.mark.parametrize("length", [0, 1, 64, 95])
def test_range_beside_ipv4_is_as_many_as_its_length_leaves(length: int) -> None:
    """One on each level, down to that of IPv4's own."""
    assert len(prefixes([f"::/{length}"])) == 96 - length


@given(
    st.one_of(
        st.builds(lambda length: ip_network(("::ffff:0:0", length), strict=False), st.integers(0, 95)),
        st.ip_addresses(v=6).map(lambda one: ip_network((one, 20), strict=False)),
        st.builds(lambda one, bits: ip_network((one, bits), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    ),
    st.one_of(st.ip_addresses(), st.ip_addresses(v=6, network="::/80")).filter(
        lambda one: one.version == 4 or one.ipv4_mapped is None
    ),
)
def test_prefixes_hold_what_the_range_holds(cidr: object, address: object) -> None:
    """As Python's own module says, of either family."""
    number = int.from_bytes(packed(str(address)), "big")
    found = prefixes([str(cidr)])
    held = any(number >> 128 - bits == int.from_bytes(first, "big") >> 128 - bits for bits, first in found)
    assert held == (ip_address(str(address)) in ip_network(str(cidr)))
