# SPDX-License-Identifier: Apache-2.0
"""The overlay device as netlink makes, shows and removes it, in a network namespace of the test's own."""

import errno
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from pyroute2 import Ethtool
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from bpf import attach
from bpf.address import is_v4, packed, text
from bpf.pins import Pins
from controller import routes
from controller.errors import NetworkError
from controller.nodes import Network, Route
from controller.routes import Netlink
from controller.tests.space import Space

pytestmark = pytest.mark.root


class Routed(Space):
    """A namespace, with a netlink socket there."""

    def __init__(self) -> None:
        super().__init__()
        self.netlink = self.run(Netlink)

    def close(self) -> None:
        self.run(self.netlink.close)
        super().close()


@pytest.fixture
def space() -> Iterator[Routed]:
    made = Routed()
    yield made
    made.close()


def test_overlay_is_known_by_its_name_and_kind(space: Routed) -> None:
    """With its port; a VXLAN device of another name is somebody else's, and so is another device of that name."""
    space.ip("link add vxlan.other type vxlan id 7 dstport 4790")
    space.ip("link add calico-vxlan type bridge")
    assert space.run(space.netlink.snapshot).overlay() is None
    space.ip("link del calico-vxlan")
    space.run(lambda: space.netlink.create_overlay(8472, 1350))
    found = space.run(space.netlink.snapshot).overlay()
    assert found
    assert (found.name, found.mtu, found.up, found.overlay_port) == ("calico-vxlan", 1350, False, 8472)
    assert found.mac.hex(":") == "02:ce:00:00:00:01"


def test_overlay_is_made_anew_under_its_index(space: Routed) -> None:
    """Where its port cannot be changed."""
    space.run(lambda: space.netlink.create_overlay(4789, 1450))
    before = space.run(space.netlink.snapshot).overlay()
    assert before
    space.ip("link add between type bridge")
    space.run(lambda: space.netlink.remove_overlay(before.ifindex))
    assert space.run(space.netlink.snapshot).overlay() is None
    space.run(lambda: space.netlink.create_overlay(8472, 1450, before.ifindex))
    assert space.run(space.netlink.snapshot).overlay() == before._replace(overlay_port=8472)


def test_route_of_ipv6_to_the_place_of_ipv4_is_none_to_it(space: Routed) -> None:
    """As a translator of addresses may have it: no node of IPv4 is looked for there."""
    space.ip("link add up0 type veth peer name far0")
    space.ip("link set up0 up")
    space.ip("-6 route add ::ffff:0:0/96 dev up0")
    space.ip("-6 route add 2001:db8:7::/48 dev up0")
    hops = space.run(space.netlink.snapshot).hops
    assert (packed("2001:db8:7::"), 48) in {(hop.prefix, hop.length) for hop in hops}
    assert Network(hops).way(packed("192.0.2.1")) is None


def test_overlay_that_is_gone_is_removed_without_error(space: Routed) -> None:
    """Somebody was faster; any other refusal is an error that says what was being done."""
    space.run(lambda: space.netlink.remove_overlay(77))
    with pytest.raises(NetworkError, match="making calico-vxlan"):
        space.run(lambda: space.netlink.create_overlay(4789, 1))


def test_ipv4_route_by_way_of_ipv6_has_a_gateway(space: Routed) -> None:
    """One hop or several; and so have ours, as they were written."""
    for command in (
        "link add up0 type veth peer name far0",
        "link set up0 up",
        "link set far0 up",
        "route add 192.0.2.0/24 via inet6 fe80::1 dev up0",
        "route add 198.51.100.0/24 nexthop via inet6 fe80::2 dev up0 nexthop via inet6 fe80::300 dev up0",
    ):
        space.ip(command)
    found = space.run(space.netlink.snapshot)
    gateways = {(text(hop.prefix), text(hop.gateway)) for hop in found.hops if is_v4(hop.prefix)}
    assert gateways == {("192.0.2.0", "fe80::1"), ("198.51.100.0", "fe80::2"), ("198.51.100.0", "fe80::300")}
    (ifindex,) = {hop.ifindex for hop in found.hops if is_v4(hop.prefix)}
    route = Route("10.244.1.0/24", ifindex, packed("fe80::1"), b"")
    space.run(lambda: space.netlink.set_route(route))
    assert space.run(space.netlink.snapshot).routes == {"10.244.1.0/24": route}
    space.run(lambda: space.netlink.remove_route(route))
    assert space.run(space.netlink.snapshot).routes == {}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.EOPNOTSUPP, "its driver has no XDP, or has offloads on that it cannot switch off"),
        (errno.ENOMEM, "there is no memory for its queues, or, before kernel 5.13, there are too few of them"),
        (errno.EPERM, "said so"),
    ],
)
def test_driver_that_takes_no_xdp_says_why(
    space: Routed, bpffs: Path, monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    """As far as its error tells: some stand for more than one reason."""

    def refuse(*_: object) -> None:
        raise NetlinkError(code, "said so")

    monkeypatch.setattr(attach, "attach_xdp", refuse)
    monkeypatch.setattr(Pins, "opened_program", lambda *_: nullcontext(7))
    with pytest.raises(NetworkError, match=f"^no XDP: {why} \\({code}\\); TC does its work$"):
        space.netlink.attach_xdp(1, Pins(bpffs), 0)


@pytest.mark.parametrize(
    ("kind", "more", "lower"), [("vlan", (), 7), ("vlan", (("IFLA_LINK_NETNSID", 0),), 0), ("veth", (), 0)]
)
def test_vlan_stands_on_a_device_of_its_own_namespace(kind: str, more: tuple[tuple[str, int], ...], lower: int) -> None:
    """As the kernel tells it: of one elsewhere the index is that namespace's, and a veth device's is its peer."""
    message = ifinfmsg()
    attributes = [("IFLA_IFNAME", "any"), ("IFLA_MTU", 1500), ("IFLA_LINK", 7), *more]
    message.setvalue({"attrs": [*attributes, ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]})
    message.encode()
    read = ifinfmsg(message.data)
    read.decode()
    found = routes._device(read)
    assert (found.kind, found.lower) == (kind, lower)


def test_tags_are_taken_while_the_device_says_so(space: Routed) -> None:
    """Its feature rx-vlan-hw-parse; of a device that does not tell it is taken for granted."""
    space.ip("link add u0 type veth peer name u1")
    assert space.run(lambda: space.netlink.takes_tags("u0"))

    def leave_tags() -> None:
        with Ethtool() as ethtool:
            found = ethtool.get_features("u0")
            found.features["rx-vlan-hw-parse"].enable = False
            ethtool.set_features("u0", found)

    space.run(leave_tags)
    assert not space.run(lambda: space.netlink.takes_tags("u0"))
    assert space.run(lambda: space.netlink.takes_tags("u1"))
    assert space.run(lambda: space.netlink.takes_tags("gone"))
