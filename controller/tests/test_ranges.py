# SPDX-License-Identifier: Apache-2.0
"""The ranges of Services, and the Nodes in their way, step by step: what is said to be wrong."""

import pytest

from controller.model import Node, ServiceCIDR
from controller.ranges import ServiceRanges
from controller.source import Problems
from controller.tests.objects import decoded_node, decoded_service_cidr, node, service_cidr

V4, V6 = "198.51.100.0/24", "2001:db8:5::/64"


@pytest.fixture
def found() -> ServiceRanges:
    """The two ranges of a cluster of both families."""
    made = ServiceRanges()
    made.set_range("kubernetes", ranges(V6, V4))
    return made


def ranges(*cidrs: str) -> ServiceCIDR:
    return decoded_service_cidr(service_cidr("any", *cidrs))


def far(addresses: list[str], *cidrs: str) -> Node:
    return decoded_node(node("far", addresses, list(cidrs)))


def told(problems: list[Problems]) -> list[str]:
    return [f"{one.subject}: {one.message}" for told in problems for one in told.problems]


def test_ranges_are_those_of_all_objects(found: ServiceRanges) -> None:
    """Each once, in order; those of an object that is gone are gone, unless another has them."""
    found.set_range("more", ranges("198.51.101.0/24", V4))
    assert found.ranges == [V4, "198.51.101.0/24", V6]
    found.set_range("kubernetes", None)
    assert found.ranges == [V4, "198.51.101.0/24"]
    found.set_range("more", decoded_service_cidr({"metadata": {"name": "more"}}))
    assert found.ranges == []


def test_ranges_of_the_settings_are_there_besides() -> None:
    """Whatever ServiceCIDRs say; Nodes in their way are named as well."""
    found = ServiceRanges([V4])
    found.set_range("kubernetes", ranges(V4, V6))
    assert found.ranges == [V4, V6]
    found.set_range("kubernetes", None)
    assert found.ranges == [V4]
    assert told(found.set_node("far", far(["198.51.100.7"])))


def test_range_that_makes_no_sense_is_named(found: ServiceRanges) -> None:
    """The others of the object count; it is solved when the object is."""
    assert told(found.set_range("more", ranges("nonsense", "::ffff:0:0/96", "198.51.101.0/24"))) == [
        "ServiceCIDR more: 'nonsense' does not appear to be an IPv4 or IPv6 network",
        "ServiceCIDR more: ::ffff:0:0/96 is IPv4 in the form of IPv6: write 0.0.0.0/0",
    ]
    assert found.ranges == [V4, "198.51.101.0/24", V6]
    assert found.set_range("more", None) == [Problems("ServiceCIDR more", ())]


@pytest.mark.parametrize(
    ("addresses", "cidrs", "problems"),
    [
        (["192.0.2.2", "2001:db8::2"], ["203.0.113.0/24", "2001:db8:b::/64"], []),
        (["198.51.100.7"], [], [f"address 198.51.100.7 in the range {V4}"]),
        (["2001:db8:5::7"], [], [f"address 2001:db8:5::7 in the range {V6}"]),
        ([], ["198.51.100.128/25"], [f"pods 198.51.100.128/25 in the range {V4}"]),
        ([], ["198.51.0.0/16"], [f"pods 198.51.0.0/16 in the range {V4}"]),
        ([], ["198.51.100.1/32", "198.51.100.2/32"], [f"pods 198.51.100.1/32 and 1 more in the range {V4}"]),
        ([], ["128.0.0.0/1", "::/1"], [f"pods 128.0.0.0/1 in the range {V4}", f"pods ::/1 in the range {V6}"]),
        (["nonsense"], ["nonsense"], []),
    ],
    ids=["apart", "address", "IPv6 address", "pods", "range within pods'", "several", "all", "nonsense"],
)
def test_node_in_a_range_of_services_is_named(
    found: ServiceRanges, addresses: list[str], cidrs: list[str], problems: list[str]
) -> None:
    """By what of it there is; once for each range. What makes no sense is named elsewhere."""
    expected = [f"Node far: its {problem} of Services: traffic goes astray" for problem in problems]
    assert told(found.set_node("far", far(addresses, *cidrs))) == expected
    assert found.set_node("far", far(addresses, *cidrs)) == []
    assert told(found.set_node("far", None)) == []


def test_range_that_comes_to_nodes_is_looked_at(found: ServiceRanges) -> None:
    """And when it goes, everything that was said of them is taken back."""
    found.set_node("far", far(["192.0.2.2"], "203.0.113.0/24"))
    found.set_node("near", decoded_node(node("near", ["192.0.2.3"], [])))
    assert told(found.set_range("more", ranges("203.0.112.0/20"))) == [
        "Node far: its pods 203.0.113.0/24 in the range 203.0.112.0/20 of Services: traffic goes astray"
    ]
    gone = found.set_range("more", None)
    assert told(gone) == []
    assert {one.origin for one in gone} >= {"service ranges, Node far", "service ranges, Node near"}


def test_node_that_leaves_the_range_is_no_problem_any_longer(found: ServiceRanges) -> None:
    """What was said of it is replaced; likewise when it is gone."""
    found.set_node("far", far(["198.51.100.7"]))
    assert found.set_node("far", far(["192.0.2.2"])) == [Problems("service ranges, Node far", ())]
    found.set_node("far", far(["198.51.100.7"]))
    assert found.set_node("far", None) == [Problems("service ranges, Node far", ())]
    assert found.set_node("far", None) == []
