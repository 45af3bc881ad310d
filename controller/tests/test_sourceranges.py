# SPDX-License-Identifier: Apache-2.0
"""loadBalancerSourceRanges, read and asked."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.address import packed, text
from controller.sourceranges import allowed, holds


@pytest.mark.parametrize(
    ("texts", "found", "problems"),
    [
        ([], {}, 0),
        (["192.0.2.0/24"], {4: {"192.0.2.0/120"}}, 0),
        ([" 192.0.2.7/24 ", "192.0.2.0/24"], {4: {"192.0.2.0/120"}}, 0),
        (["192.0.2.0/24", "2001:db8::/64"], {4: {"192.0.2.0/120"}, 6: {"2001:db8::/64"}}, 0),
        (["192.0.2.0/24", "0.0.0.0/0"], {}, 0),
        (["0.0.0.0/0", "2001:db8::/64"], {6: {"2001:db8::/64"}}, 0),
        (["192.0.2.0/24", "198.51.100.0/33"], {4: {"192.0.2.0/120"}}, 1),
        (["192.0.2.0"], {4: set()}, 1),
        (["2001:db8::/129"], {6: set()}, 1),
        (["::ffff:10.0.0.0/104"], {4: set(), 6: set()}, 1),
        (["nonsense"], {4: set(), 6: set()}, 1),
        (["nonsense", "::/0"], {4: set()}, 1),
        ([""], {}, 0),
    ],
    ids=[
        "none",
        "one family: the other is for everybody",
        "whitespace, and bits of a host",
        "both families",
        "everything",
        "everything of one family",
        "one that makes no sense beside one that does",
        "an address, which is no range",
        "one alone that makes no sense",
        "IPv4 in IPv6's form",
        "of either family",
        "beside everything of the other family",
        "empty",
    ],
)
def test_clients_by_family(texts: list[str], found: dict[int, set[str]], problems: int) -> None:
    """What makes no sense is named, and never opens an address."""
    named: list[str] = []
    clients = allowed(texts, named)
    assert {key: {f"{text(one)}/{bits}" for bits, one in ranges} for key, ranges in clients.items()} == found
    assert len(named) == problems


NETWORKS = st.builds(
    lambda address, cut: ip_network((int(address), max(0, 32 - cut)), strict=False),
    st.ip_addresses(v=4, network="203.0.113.0/26"),
    st.integers(0, 12),
)


@given(st.lists(NETWORKS, max_size=4), st.ip_addresses(v=4, network="203.0.112.0/22"))
def test_holds_what_the_ranges_hold(networks: list[object], address: object) -> None:
    """As Python's own module says."""
    clients = allowed(map(str, networks), []).get(4, ())
    assert holds(clients, packed(str(address))) == any(ip_address(str(address)) in ip_network(str(n)) for n in networks)
