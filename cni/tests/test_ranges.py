# SPDX-License-Identifier: Apache-2.0
"""Ranges are understood as host-local understands them."""

from ipaddress import ip_address
from itertools import islice
from typing import Any

import pytest

from cni import ranges
from cni.errors import ConfigError


def given(ipam: dict[str, Any], last: str = "", count: int = 20) -> list[str]:
    """The addresses of the first range set, in the order in which they are given out."""
    (range_set, *_) = ranges.range_sets(ipam)
    return list(map(str, islice(ranges.candidates(range_set, ip_address(last) if last else None), count)))


def one(**fields: str) -> dict[str, Any]:
    return {"ranges": [[fields]]}


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        (one(subnet="192.0.2.0/29"), ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"]),
        (one(subnet="192.0.2.0/30"), ["192.0.2.2"]),
        (one(subnet="192.0.2.0/30", gateway="192.0.2.2"), ["192.0.2.1"]),
        (one(subnet="192.0.2.0/24", rangeStart="192.0.2.8", rangeEnd="192.0.2.9"), ["192.0.2.8", "192.0.2.9"]),
        (one(subnet="192.0.2.0/24", rangeStart="192.0.2.254", rangeEnd="192.0.2.255"), ["192.0.2.254"]),
        (one(subnet="192.0.2.0/24", rangeStart="192.0.2.0", rangeEnd="192.0.2.2"), ["192.0.2.2"]),
        (one(subnet="2001:db8::/126"), ["2001:db8::2", "2001:db8::3"]),
        ({"subnet": "192.0.2.0/30"}, ["192.0.2.2"]),
    ],
)
def test_candidates_of_range_leave_out_what_is_not_given(ipam: dict[str, Any], expected: list[str]) -> None:
    """Neither the network's nor the broadcast address nor the gateway is given out, nor what is outside the bounds."""
    assert given(ipam) == expected


def test_candidates_after_last_take_turns_over_the_whole_set() -> None:
    """After the address given out last come those behind it, then the other ranges, then the rest up to itself."""
    ipam = {"ranges": [[{"subnet": "192.0.2.0/29"}, {"subnet": "198.51.100.0/29"}]]}
    assert given(ipam, last="198.51.100.5") == [
        "198.51.100.6",
        "192.0.2.2",
        "192.0.2.3",
        "192.0.2.4",
        "192.0.2.5",
        "192.0.2.6",
        "198.51.100.2",
        "198.51.100.3",
        "198.51.100.4",
        "198.51.100.5",
    ]


def test_candidates_after_foreign_last_start_anew() -> None:
    """A last address that is in no range, after a change of ranges, counts for nothing."""
    assert given({"subnet": "192.0.2.0/30"}, last="203.0.113.9") == ["192.0.2.2"]


def test_candidates_of_wide_range_are_not_listed_ahead() -> None:
    """A /64 has more addresses than memory."""
    assert given({"subnet": "2001:db8::/64"}, count=1) == ["2001:db8::2"]


@pytest.mark.parametrize(
    ("ipam", "named"),
    [
        ({"ranges": {}}, "ipam.ranges"),
        ({"ranges": [{}]}, "ipam.ranges"),
        ({"ranges": [[]]}, "empty"),
        ({"ranges": [["192.0.2.0/24"]]}, "subnet"),
        ({"ranges": [[{}]]}, "subnet"),
        (one(subnet="192.0.2.0/33"), "192.0.2.0/33"),
        (one(subnet="192.0.2.1/24"), "host bits"),
        (one(subnet="192.0.2.0/31"), "too small"),
        (one(subnet="192.0.2.0/24", rangeStart="198.51.100.1"), "rangeStart"),
        (one(subnet="192.0.2.0/24", rangeEnd="192.0.2.x"), "rangeEnd"),
        (one(subnet="192.0.2.0/24", rangeStart="192.0.2.9", rangeEnd="192.0.2.8"), "no address"),
        (one(subnet="192.0.2.0/24", gatway="192.0.2.1"), "gatway"),
        ({"rangeStart": "192.0.2.1"}, "without ipam.subnet"),
        ({"ranges": [[{"subnet": "192.0.2.0/24"}, {"subnet": "2001:db8::/64"}]]}, "both families"),
        ({"ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "192.0.2.128/25"}]]}, "overlap"),
    ],
)
def test_range_sets_that_are_wrong_name_what_is(ipam: dict[str, Any], named: str) -> None:
    """Each mistake is a configuration error that names the place."""
    with pytest.raises(ConfigError, match=named):
        ranges.range_sets(ipam)


def test_of_subnets_makes_a_set_of_each() -> None:
    """A dual-stack node's pod ranges give every pod an address of each family."""
    sets = ranges.of_subnets(["10.244.0.0/24", "fd00:10:244::/64"])
    assert [range_set[0].subnet.version for range_set in sets] == [4, 6]
