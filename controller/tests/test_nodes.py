# SPDX-License-Identifier: Apache-2.0
"""Nodes to remotes and routes: who is reached how, with and without the overlay."""

import pytest

from bpf.abi import Device, DeviceFlag, DeviceKey, Node, NodeFlag, Peer, PeerKey, Remote, RemoteFlag, RemoteKey
from bpf.address import packed, text
from controller.nodes import (
    POD_LINKS,
    Hop,
    Network,
    NodeFacts,
    Steering,
    Ways,
    device_entries,
    facts,
    link_entry,
    merged,
    node_entries,
    peer_entries,
    pod_mtu,
    service_entries,
    unmasqueraded_entries,
    ways,
)
from controller.source import Problem
from controller.tests.objects import decoded_node, node

ETH, OVERLAY = 4, 9
MAC = bytes.fromhex("020000000001")
OWN = NodeFacts("own", (packed("192.0.2.1"), packed("2001:db8::1")), ("10.244.0.0/24",), True)


def _hop(prefix: str, gateway: str = "", ifindex: int = ETH, metric: int = 0) -> Hop:
    address, _, length = prefix.partition("/")
    return Hop(packed(address), int(length), ifindex, packed(gateway) if gateway else b"", metric)


NETWORK = Network(
    (
        _hop("192.0.2.0/24"),
        _hop("2001:db8::/64"),
        _hop("0.0.0.0/0", "192.0.2.254"),
        _hop("::/0", "2001:db8::fffe"),
    ),
    OVERLAY,
)


def _facts(addresses: list[str], cidrs: list[str], name: str = "n") -> NodeFacts:
    found, problems = facts(decoded_node(node(name, addresses, cidrs)))
    assert not problems
    return found


def _shown(found: Ways) -> dict[str, str]:
    """Prefix -> how: plain ADDRESS or overlay ADDRESS."""
    shown = {}
    for key, value in found.remotes.items():
        prefix, remote = RemoteKey.unpack(key), Remote.unpack(value)
        tunnelled = bool(remote.flags & RemoteFlag.OVERLAY)
        assert remote.ifindex == ETH
        assert remote.overlay_ifindex in (0, OVERLAY)
        length = prefix.prefix_bits - (96 if prefix.address.startswith(bytes(10) + b"\xff\xff") else 0)
        shown[f"{text(prefix.address)}/{length}"] = (
            f"overlay {text(remote.node)}" if tunnelled else f"plain {text(remote.next_hop)}"
        )
    return shown


@pytest.mark.parametrize(
    ("encapsulation", "address", "host", "pods"),
    [
        pytest.param("auto", "192.0.2.2", "plain 192.0.2.2", "plain 192.0.2.2", id="on-link in auto"),
        pytest.param("auto", "198.51.100.2", "overlay 198.51.100.2", "overlay 198.51.100.2", id="routed in auto"),
        pytest.param("always", "192.0.2.2", "plain 192.0.2.2", "overlay 192.0.2.2", id="on-link in always"),
        pytest.param("never", "192.0.2.2", "plain 192.0.2.2", "plain 192.0.2.2", id="on-link in never"),
        pytest.param("never", "198.51.100.2", "plain 192.0.2.254", "plain 192.0.2.254", id="routed in never"),
    ],
)
@pytest.mark.parametrize("handover", ["l2", "vxlan", "auto"])
def test_way_to_a_node_and_its_pods(encapsulation: str, address: str, host: str, pods: str, handover: str) -> None:
    """A node on-link is never behind the overlay; one that is routed is, unless that is never allowed.

    However outside clients' packets are handed over.
    """
    found = ways(_facts([address], ["10.244.1.0/24"]), OWN, NETWORK, Steering(encapsulation, handover))
    assert _shown(found) == {f"{address}/32": host, "10.244.1.0/24": pods}
    (route,) = found.routes
    assert route.ifindex == (OVERLAY if pods.startswith("overlay") else ETH)
    assert text(route.source) == "192.0.2.1"


@pytest.mark.parametrize(("encapsulation", "pods"), [("auto", "overlay 192.0.2.2"), ("never", "plain fe80::7")])
def test_ipv4_behind_a_next_hop_of_ipv6_is_of_another_subnet(encapsulation: str, pods: str) -> None:
    """As on links without IPv4 addresses: the node is behind that router, and pods' routes lead to it, too."""
    found = ways(
        _facts(["192.0.2.2"], ["10.244.1.0/24"]),
        OWN,
        Network((_hop("0.0.0.0/0", "fe80::7"),), OVERLAY),
        Steering(encapsulation),
    )
    node_way = "plain fe80::7" if encapsulation == "never" else "overlay 192.0.2.2"
    assert _shown(found) == {"192.0.2.2/32": node_way, "10.244.1.0/24": pods}
    assert found.on_link == {}
    assert [text(route.gateway) for route in found.routes if route.gateway] == ["fe80::7"] * (encapsulation == "never")


def test_both_families_each_have_their_way() -> None:
    """By the node's address of that family."""
    found = ways(
        _facts(["192.0.2.2", "2001:db8::2"], ["10.244.1.0/24", "fd00:10:244:1::/64"]), OWN, NETWORK, Steering("auto")
    )
    assert _shown(found) == {
        "192.0.2.2/32": "plain 192.0.2.2",
        "2001:db8::2/128": "plain 2001:db8::2",
        "10.244.1.0/24": "plain 192.0.2.2",
        "fd00:10:244:1::/64": "plain 2001:db8::2",
    }


def test_pods_of_a_family_that_the_node_lacks_go_through_the_overlay() -> None:
    """An IPv6 route has no IPv4 next hop; a tunnel does not care."""
    node_facts = _facts(["192.0.2.2"], ["fd00:10:244:1::/64"])
    assert _shown(ways(node_facts, OWN, NETWORK, Steering("auto")))["fd00:10:244:1::/64"] == "overlay 192.0.2.2"
    found = ways(node_facts, OWN, NETWORK, Steering("never"))
    assert [problem.subject for problem in found.problems] == ["Node n"]


def test_node_without_a_route_is_named() -> None:
    """Nothing is guessed."""
    found = ways(_facts(["203.0.113.9"], ["10.244.1.0/24"]), OWN, Network(()), Steering("auto"))
    assert not found.remotes
    assert len(found.problems) == 1


def test_overlay_that_is_needed_and_missing_leaves_the_pods_out_until_it_is_there() -> None:
    """The caller makes it, and asks again."""
    found = ways(
        _facts(["198.51.100.2"], ["10.244.1.0/24"]), OWN, NETWORK._replace(overlay_ifindex=0), Steering("auto")
    )
    assert found.overlay
    assert list(_shown(found)) == ["198.51.100.2/32"]


def test_node_with_only_addresses_of_this_machine_is_not_remote() -> None:
    """Whether or not this node's own Node is known."""
    network = NETWORK._replace(addresses=frozenset([packed("192.0.2.1"), packed("2001:db8::1")]))
    found = ways(_facts(["192.0.2.1", "2001:db8::1"], ["10.244.0.0/24"]), None, network, Steering("auto"))
    assert not found.remotes
    assert not found.routes
    assert list(found.problems) == [Problem("Node n", "this node has its address, too: 192.0.2.1, 2001:db8::1")]


def test_node_that_shares_an_address_with_this_one_is_reached_by_its_others() -> None:
    """A virtual one that moves between nodes, and is listed by both for a while, or by all of them."""
    network = NETWORK._replace(addresses=frozenset([packed("192.0.2.1"), packed("192.0.2.100")]))
    node_facts = _facts(["192.0.2.100", "192.0.2.2"], ["10.244.1.0/24"])
    found = ways(node_facts, OWN, network, Steering("auto"))
    assert _shown(found) == {"192.0.2.2/32": "plain 192.0.2.2", "10.244.1.0/24": "plain 192.0.2.2"}
    assert list(found.problems) == [Problem("Node n", "this node has its address, too: 192.0.2.100")]


def test_own_address_on_another_node_is_no_remote() -> None:
    """A Node with a stale copy of our address must not draw our traffic away."""
    found = ways(_facts(["192.0.2.1"], []), OWN, NETWORK, Steering("auto"))
    assert not found.remotes


def test_longest_prefix_then_smallest_metric_wins() -> None:
    """As the kernel chooses."""
    network = Network(
        (_hop("0.0.0.0/0", "192.0.2.254"), _hop("192.0.2.0/24", "", 7, 200), _hop("192.0.2.0/24", "", 8, 100))
    )
    hop = network.way(packed("192.0.2.9"))
    assert hop
    assert hop.ifindex == 8


def test_two_nodes_with_the_same_pods_first_by_name_has_them() -> None:
    """Whichever was seen first; the other one is named."""
    both = {
        name: ways(_facts([address], ["10.244.1.0/24"], name), OWN, NETWORK, Steering("auto"))
        for name, address in (("b", "192.0.2.3"), ("a", "192.0.2.2"))
    }
    remotes, routes, problems = merged(both, ())
    assert text(routes["10.244.1.0/24"].gateway) == "192.0.2.2"
    assert len(remotes) == 3
    assert [problem.subject for problem in problems] == ["Node b"]


@pytest.mark.parametrize("encapsulation", ["auto", "always", "never"])
@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("192.0.2.0/24", "192.0.2.0/24 is on-link"),
        ("192.0.0.0/16", "192.0.2.0/24 is on-link"),
        ("2001:db8::/64", "2001:db8::/64 is on-link"),
        ("203.0.113.0/24", "it has the gateway of the default route, 203.0.113.254"),
        ("198.18.0.0/15", "198.18.0.0/16 is on-link"),
        ("192.0.2.64/26", ""),
        ("198.18.7.0/24", ""),
        ("198.51.100.0/24", ""),
        ("10.244.0.0/16", ""),
        ("10.8.0.0/24", ""),
    ],
    ids=[
        "the subnet itself",
        "a range around the subnet",
        "the subnet itself, IPv6",
        "with the default route's gateway",
        "around a bridge's",
        "a part of the subnet",
        "a part of a bridge's",
        "routed by a router",
        "around a single host's",
        "as of a VPN",
    ],
)
def test_range_that_would_take_routes_of_the_node_is_refused(encapsulation: str, cidr: str, why: str) -> None:
    """An on-link subnet, or the way to the default route's gateway. What is longer replaces no route; hosts' routes and
    those of a VPN are somebody's pods', and so are routes by way of a router."""
    more = (
        _hop("0.0.0.0/0", "203.0.113.254", metric=7),
        _hop("198.18.0.0/16", "", 5),
        _hop("198.51.100.0/24", "198.51.100.0", 6),
        _hop("10.244.1.7/32", "", 7),
        _hop("10.8.0.0/24", "", 8),
    )
    network = Network((*NETWORK.hops, *more), OVERLAY, layer_3=frozenset((8,)))
    node_facts = _facts(["192.0.2.2", "2001:db8::2"], [cidr, "10.250.1.0/24"])
    found = ways(node_facts, OWN, network, Steering(encapsulation))
    assert [route.cidr for route in found.routes] == [*([] if why else [cidr]), "10.250.1.0/24"]
    assert (cidr in _shown(found)) == (not why)
    assert list(found.problems) == ([Problem("Node n", f"no way to its pods {cidr}: {why}")] if why else [])


def test_default_route_without_gateway_is_in_nobodys_way() -> None:
    """It is on-link, as every range would be."""
    network = Network((_hop("0.0.0.0/0"), _hop("::/0")))
    found = ways(_facts(["192.0.2.2"], ["10.244.1.0/24"]), OWN, network, Steering("auto"))
    assert [route.cidr for route in found.routes] == ["10.244.1.0/24"]


@pytest.mark.parametrize("cidr", ["203.0.113.0/24", "203.0.113.9/32", "2001:db8:9::/64"])
def test_range_with_an_address_of_this_node_is_refused(cidr: str) -> None:
    """What is for this node would be looked for where those pods are."""
    address = "2001:db8:9::7" if ":" in cidr else "203.0.113.9"
    found = ways(_facts(["192.0.2.2"], [cidr, "10.244.1.0/24"]), OWN, NETWORK, Steering("auto"))
    taken = [(packed(one), "own") for one in ("203.0.112.255", "192.0.2.1", address)]
    remotes, routes, problems = merged({"n": found}, [*taken, (packed("192.0.2.2"), "n")])
    assert list(routes) == ["10.244.1.0/24"]
    assert len(remotes) == 2
    message = f"no way to its pods {cidr}: it has {address}, a node's own address"
    assert problems == [Problem("Node n", message)]


def _merged(*all_facts: NodeFacts) -> tuple[dict[str, str], list[str], list[Problem]]:
    """The ways to nodes, put together: remotes by prefix, ranges with a route, and what is wrong."""
    found = {one.name: ways(one, OWN, NETWORK, Steering("auto")) for one in all_facts}
    addresses = [(address, one.name) for one in (OWN, *all_facts) for address in one.addresses]
    remotes, routes, problems = merged(found, addresses)
    return _shown(Ways(remotes, (), False, ())), list(routes), problems


def test_range_with_an_on_link_address_of_another_node_is_refused() -> None:
    """That it is that node's is seen from here."""
    near, wide = _facts(["192.0.2.2"], ["10.244.1.0/24"], "near"), _facts(["192.0.2.9"], ["192.0.2.2/31"], "wide")
    remotes, routes, problems = _merged(near, wide)
    assert routes == ["10.244.1.0/24"]
    assert sorted(remotes) == ["10.244.1.0/24", "192.0.2.2/32", "192.0.2.9/32"]
    message = "no way to its pods 192.0.2.2/31: it has 192.0.2.2, a node's own address"
    assert problems == [Problem("Node wide", message)]
    wide = _facts(["192.0.2.9"], ["192.0.2.8/31"], "wide")
    remotes, routes, problems = _merged(near, wide)
    assert (routes, len(remotes), len(problems)) == (["10.244.1.0/24"], 3, 1), "of its own, neither"


def test_address_among_another_nodes_pods_is_left_out_with_what_leads_by_it() -> None:
    """A kubelet that claims it draws nothing to its node, and takes nobody's pods away."""
    victim = _facts(["192.0.2.2"], ["10.244.1.0/24"], "victim")
    liar = _facts(["192.0.2.3", "10.244.1.7"], ["10.244.2.0/24"], "liar")
    remotes, routes, problems = _merged(liar, victim)
    assert sorted(routes) == ["10.244.1.0/24", "10.244.2.0/24"]
    assert sorted(remotes) == ["10.244.1.0/24", "10.244.2.0/24", "192.0.2.2/32", "192.0.2.3/32"]
    told = "its address 10.244.1.7 is left out: another node's pods are 10.244.1.0/24"
    assert problems == [Problem("Node liar", told)]
    alone = _facts(["10.244.1.7"], ["10.244.2.0/24"], "liar")
    remotes, routes, problems = _merged(alone, victim)
    assert routes == ["10.244.1.0/24"]
    assert sorted(remotes) == ["10.244.1.0/24", "192.0.2.2/32"]
    lost = "no way to its pods 10.244.2.0/24: no usable InternalIP, or no route"
    assert problems == [Problem("Node liar", told), Problem("Node liar", lost)]


@pytest.mark.parametrize("order", [("192.0.2.2", "10.244.1.1"), ("10.244.1.1", "192.0.2.2")])
def test_address_of_a_node_at_its_pods_bridge_takes_nothing_from_it(order: tuple[str, ...]) -> None:
    """It is reached as its pods are, by an address outside of them, whichever the Node names first."""
    remotes, routes, problems = _merged(_facts(list(order), ["10.244.1.0/24"]))
    assert (routes, problems) == (["10.244.1.0/24"], [])
    assert sorted(remotes) == ["10.244.1.0/24", "192.0.2.2/32"]
    assert remotes["10.244.1.0/24"] == "plain 192.0.2.2"


def test_node_with_no_address_but_among_its_pods_has_no_way_to_them() -> None:
    """It would be looked for behind itself."""
    remotes, routes, problems = _merged(_facts(["10.244.1.1"], ["10.244.1.0/24"]))
    assert (routes, sorted(remotes)) == ([], ["10.244.1.1/32"])
    assert problems[0].message == "no way to its pods 10.244.1.0/24: it has 10.244.1.1, a node's own address"


def test_range_of_all_addresses_is_no_nodes() -> None:
    """It would take the default route, and be in the way of every other range."""
    found, problems = facts(decoded_node(node("n", ["192.0.2.2"], ["0.0.0.0/0", "::/0", "10.244.1.0/24"])))
    assert found.pod_cidrs == ("10.244.1.0/24",)
    assert [problem.message for problem in problems] == [
        "podCIDRs: 0.0.0.0/0 is every address",
        "podCIDRs: ::/0 is every address",
    ]


@pytest.mark.parametrize(
    ("encapsulation", "handover", "address", "answered", "expected", "why"),
    [
        ("auto", "auto", "192.0.2.2", True, "l2", "has answered the probe"),
        ("auto", "auto", "192.0.2.2", False, "vxlan", "has not answered the probe"),
        ("always", "auto", "192.0.2.2", True, "l2", "has answered the probe"),
        ("never", "auto", "192.0.2.2", False, "vxlan", "has not answered the probe"),
        ("auto", "l2", "192.0.2.2", False, "l2", "handover is l2"),
        ("auto", "vxlan", "192.0.2.2", True, "vxlan", "handover is vxlan"),
        ("auto", "l2", "198.51.100.2", False, "vxlan", "of another subnet"),
        ("auto", "auto", "198.51.100.2", True, "vxlan", "of another subnet"),
        ("always", "l2", "198.51.100.2", False, "vxlan", "of another subnet"),
        ("never", "auto", "198.51.100.2", False, "vxlan", "of another subnet"),
        ("never", "vxlan", "198.51.100.2", False, "vxlan", "of another subnet"),
        ("never", "l2", "192.0.2.2", False, "l2", "handover is l2"),
        ("never", "l2", "198.51.100.2", False, "none", "of another subnet, handover is l2 and encapsulation never"),
    ],
)
def test_handover_by_setting_probe_and_subnet(
    encapsulation: str, handover: str, address: str, answered: bool, expected: str, why: str
) -> None:
    """Layer 2 where it is known to work or asked for; the tunnel ends at the node's own address.

    In auto the other node may need the tunnel's end here.
    """
    steering = Steering(encapsulation, handover, frozenset({packed(address)} if answered else ()))
    found = ways(_facts([address], ["10.244.1.0/24"]), OWN, NETWORK, steering)
    assert [(one.way, one.why) for one in found.handovers] == [(expected, why)]
    for value in found.remotes.values():
        remote = Remote.unpack(value)
        assert bool(remote.flags & RemoteFlag.TUNNEL_HANDOVER) == (expected == "vxlan")
        assert bool(remote.flags & RemoteFlag.NO_HANDOVER) == (expected == "none")
        assert (remote.node, remote.overlay_ifindex) == (packed(address), OVERLAY)
    assert found.overlay == (expected == "vxlan" or handover == "auto" or encapsulation == "always")
    assert [why in problem.message for problem in found.problems] == [True] * (expected == "none")
    assert found.on_link == ({packed(address): ETH} if address == "192.0.2.2" else {})


@pytest.mark.parametrize("encapsulation", ["auto", "never"])
def test_node_behind_a_device_without_link_layer_is_of_another_subnet(encapsulation: str) -> None:
    """It has no MAC to be known by, and a VPN may let nothing but the nodes' own addresses through."""
    found = ways(
        _facts(["192.0.2.2"], ["10.244.1.0/24"]),
        OWN,
        NETWORK._replace(layer_3=frozenset((ETH,))),
        Steering(encapsulation, "auto", frozenset((packed("192.0.2.2"),))),
    )
    how = "overlay" if encapsulation == "auto" else "plain"
    assert _shown(found) == dict.fromkeys(("192.0.2.2/32", "10.244.1.0/24"), f"{how} 192.0.2.2")
    assert [(one.way, one.why) for one in found.handovers] == [("vxlan", "of another subnet")]
    assert found.on_link == {}


def test_tunnel_that_is_needed_and_missing_is_not_led_into() -> None:
    """Until the caller has made the device; what is lost meanwhile is counted."""
    network = NETWORK._replace(overlay_ifindex=0)
    found = ways(_facts(["192.0.2.2"], ["10.244.1.0/24"]), OWN, network, Steering("auto", "vxlan"))
    assert found.overlay
    assert {Remote.unpack(value).flags for value in found.remotes.values()} == {RemoteFlag.NO_HANDOVER}


def test_nodes_map_has_every_nodes_addresses_and_tells_our_own() -> None:
    """InternalIPs and ExternalIPs, loopback, and what else this node has in the underlay, but for link-local ones. An
    ExternalIP that none of its devices has is a router's translation to it."""
    other = NodeFacts("other", (packed("192.0.2.2"),), (), True, (packed("198.51.100.2"),))
    own = OWN._replace(outside=(packed("203.0.113.8"), packed("203.0.113.9")))
    mine = [packed(one) for one in ("192.0.2.1", "203.0.113.7", "203.0.113.8", "fe80::1", "169.254.9.9")]
    found = {text(key): Node.unpack(value).flags for key, value in node_entries([other], own, mine).items()}
    assert found == {
        "192.0.2.2": 0,
        "198.51.100.2": NodeFlag.NO_NODE_PORTS,
        **dict.fromkeys(("127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"), NodeFlag.OWN),
        **dict.fromkeys(("203.0.113.7", "203.0.113.8"), NodeFlag.OWN | NodeFlag.NO_NODE_PORTS),
        "203.0.113.9": NodeFlag.MAPPED | NodeFlag.NO_NODE_PORTS,
    }


@pytest.mark.parametrize(
    ("ranges", "met"),
    [
        ((), {"192.0.2.1", "2001:db8::1"}),
        (("0.0.0.0/0", "::/0"), {"192.0.2.1", "192.0.2.9", "2001:db8::1", "203.0.113.7", "198.51.100.1"}),
        (("192.0.2.9/32", "203.0.113.0/24"), {"192.0.2.9", "203.0.113.7", "2001:db8::1"}),
        (("2001:db8::/32",), {"192.0.2.1", "192.0.2.9", "2001:db8::1", "203.0.113.7", "198.51.100.1"}),
        (("192.0.2.1/32",), {"192.0.2.1", "2001:db8::1"}),
        (("primary",), {"192.0.2.1", "2001:db8::1"}),
    ],
    ids=["the first of each family", "all", "some", "of IPv6 alone", "of IPv4 alone", "as kube-proxy calls it"],
)
def test_node_ports_are_met_at_the_addresses_asked_for(ranges: tuple[str, ...], met: set[str]) -> None:
    """Of this node's and of others' alike; at loopback addresses, which are for host processes alone, always."""
    addresses = tuple(packed(one) for one in ("192.0.2.1", "192.0.2.9", "2001:db8::1"))
    node = NodeFacts("one", addresses, (), True, (packed("198.51.100.1"),))
    for others, own, held in (([node], None, []), ([], node, [packed("203.0.113.7")])):
        entries = node_entries(others, own, held, ranges)
        found = {text(key) for key, value in entries.items() if not Node.unpack(value).flags & NodeFlag.NO_NODE_PORTS}
        assert found == ((met if own else met - {"203.0.113.7"}) | {"127.0.0.1", "::1"})


def test_without_its_node_this_one_keeps_its_node_ports() -> None:
    """Which of its addresses is the first, the Node would say; ranges count all the same."""
    for ranges, flags in (((), 0), (("192.0.2.0/24",), 0), (("198.51.100.0/24",), NodeFlag.NO_NODE_PORTS)):
        entries = node_entries([], None, [packed("192.0.2.1")], ranges)
        assert Node.unpack(entries[packed("192.0.2.1")]).flags == NodeFlag.OWN | flags


@pytest.mark.parametrize(
    ("masquerade", "flags"),
    [
        ("all", DeviceFlag.MASQUERADE_V4 | DeviceFlag.MASQUERADE_V6),
        ("ipv4", DeviceFlag.MASQUERADE_V4),
        ("off", DeviceFlag(0)),
    ],
)
def test_underlay_address_is_the_internal_one_of_each_family(masquerade: str, flags: DeviceFlag) -> None:
    """Another device, on which the node has no InternalIP, takes the first that is there; without any, the node speaks
    under its InternalIP there, too. What is no MAC of 6 bytes (InfiniBand's) is none."""
    addresses = {
        packed(one): ifindex
        for one, ifindex in (
            ("192.0.2.77", ETH),
            ("192.0.2.1", ETH),
            ("fe80::1", ETH),
            ("2001:db8::1", ETH),
            ("203.0.113.7", 5),
        )
    }
    found = device_entries({ETH: (1500, MAC), 5: (9000, bytes(20))}, addresses, OWN, masquerade)
    entries = {DeviceKey.unpack(key).ifindex: Device.unpack(value) for key, value in found.items()}
    assert entries == {
        ETH: Device(packed("192.0.2.1"), packed("2001:db8::1"), 1500, flags, MAC),
        5: Device(packed("203.0.113.7"), packed("2001:db8::1"), 9000, flags, bytes(6)),
    }


@pytest.mark.parametrize(
    ("own", "v4", "v6"),
    [
        (OWN, "192.0.2.1", "2001:db8::1"),
        (OWN._replace(addresses=OWN.addresses[1:]), "", "2001:db8::1"),
        (None, "", ""),
    ],
    ids=["both", "one family", "its Node is not known"],
)
def test_uplink_without_an_address_masquerades_under_the_nodes_own(own: NodeFacts | None, v4: str, v6: str) -> None:
    """Of either family, as where addresses are at lo and routers are known by link-local ones."""
    addresses = {packed("192.0.2.1"): 1, packed("2001:db8::1"): 1, packed("fe80::1"): ETH}
    (value,) = device_entries({ETH: (1500, MAC)}, addresses, own, "all").values()
    flags = (DeviceFlag.MASQUERADE_V4 if v4 else 0) | (DeviceFlag.MASQUERADE_V6 if v6 else 0)
    spoken = (packed(one) if one else bytes(16) for one in (v4, v6))
    assert Device.unpack(value) == Device(*spoken, 1500, flags, MAC)


def test_device_beside_the_underlay_is_marked() -> None:
    """The programs are told so."""
    addresses = {packed("203.0.113.7"): 5}
    (value,) = device_entries({5: (9000, MAC)}, addresses, OWN, "off", DeviceFlag.OTHER).values()
    assert Device.unpack(value) == Device(packed("203.0.113.7"), packed("2001:db8::1"), 9000, DeviceFlag.OTHER, MAC)


def test_node_speaks_under_its_internal_addresses_on_links_without_any() -> None:
    """Those of either family, or none, before its Node is known."""
    for own, v4, v6 in ((OWN, packed("192.0.2.1"), packed("2001:db8::1")), (None, bytes(16), bytes(16))):
        assert link_entry(POD_LINKS, 1450, own) == {DeviceKey(0).pack(): Device(v4, v6, 1450, 0, bytes(6)).pack()}


def test_peers_are_known_by_mac_under_their_first_address() -> None:
    """Both families of a node have one MAC; nodes of other subnets have none."""
    macs = {packed("192.0.2.2"): b"\2\0\0\0\0\2", packed("2001:db8::2"): b"\2\0\0\0\0\2"}
    all_facts = [_facts(["2001:db8::2", "192.0.2.2"], []), _facts(["198.51.100.2"], [], "m")]
    found = peer_entries(all_facts, macs, "auto")
    assert {PeerKey.unpack(key).mac: text(Peer.unpack(value).address) for key, value in found.items()} == {
        b"\2\0\0\0\0\2": "2001:db8::2"
    }
    assert peer_entries(all_facts, macs, "vxlan") == {}


def test_mac_of_several_nodes_is_no_peers() -> None:
    """It does not tell which of them has sent."""
    macs = {packed(f"192.0.2.{n}"): bytes([2, 0, 0, 0, 0, n == 4]) for n in (2, 3, 4)}
    found = peer_entries([_facts([f"192.0.2.{n}"], [], f"n{n}") for n in (2, 3, 4)], macs, "l2")
    assert [PeerKey.unpack(key).mac[5] for key in found] == [1]


@pytest.mark.parametrize(
    ("addresses", "encapsulation", "handover", "mtu"),
    [
        (["192.0.2.1"], "never", "l2", 1400),
        (["192.0.2.1"], "never", "auto", 1350),
        (["192.0.2.1"], "never", "vxlan", 1350),
        (["192.0.2.1"], "auto", "l2", 1350),
        (["192.0.2.1"], "always", "l2", 1350),
        (["192.0.2.1", "2001:db8::1"], "auto", "auto", 1330),
        (["2001:db8::1"], "auto", "auto", 1330),
        (["192.0.2.1", "2001:db8::1"], "never", "l2", 1400),
    ],
)
def test_pod_mtu_leaves_room_for_the_overlay_that_may_be_used(
    addresses: list[str], encapsulation: str, handover: str, mtu: int
) -> None:
    """By pods' packets or by clients'. The smallest device decides; a tunnel's IPv6 header is 20 bytes longer."""
    assert pod_mtu([1500, 1400], _facts(addresses, []), Steering(encapsulation, handover)) == mtu


def test_tunnel_is_of_a_family_that_both_ends_have() -> None:
    """Pods' links have room for no other."""
    own = OWN._replace(addresses=OWN.addresses[:1])
    found = ways(_facts(["198.51.100.2", "2001:db8:1::2"], ["fd00:10:244:1::/64"]), own, NETWORK, Steering("auto"))
    assert _shown(found)["fd00:10:244:1::/64"] == "overlay 198.51.100.2"


def test_nonsense_in_a_node_is_named_and_the_rest_used() -> None:
    """A malformed address or prefix spoils nothing else."""
    cidrs = ["10.244.1.0/24", "10.244.1.1/24", "::ffff:10.244.2.0/120"]
    found, problems = facts(decoded_node(node("n", ["nonsense", "192.0.2.2"], cidrs)))
    assert (found.addresses, found.pod_cidrs) == ((packed("192.0.2.2"),), ("10.244.1.0/24",))
    assert len(problems) == 3


def test_range_of_all_of_ipv6_has_nothing_of_ipv4() -> None:
    """Neither where pods keep their addresses, nor where Services are looked for."""
    for entries in (unmasqueraded_entries(["::/0"]), service_entries(["::/0"])):
        keys = {(key.address, key.prefix_bits) for key in map(RemoteKey.unpack, entries)}
        held = {
            one
            for one in ("192.0.2.1", "2001:db8::1", "::1", "::fffe:192.0.2.1", "::1:0:0:0")
            if any(_prefix(packed(one), bits) == _prefix(address, bits) for address, bits in keys if bits < 128)
        }
        assert held == {"2001:db8::1", "::1", "::fffe:192.0.2.1", "::1:0:0:0"}


def _prefix(address: bytes, bits: int) -> int:
    return int.from_bytes(address, "big") >> 128 - bits


def test_node_going_away_is_not_eligible() -> None:
    """Being deleted, or tainted by the autoscaler."""
    leaving = node("n", [], [])
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    tainted = node("n", [], [])
    tainted["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    assert [facts(decoded_node(one))[0].eligible for one in (node("n", [], []), leaving, tainted)] == [
        True,
        False,
        False,
    ]
