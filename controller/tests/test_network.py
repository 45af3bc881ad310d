# SPDX-License-Identifier: Apache-2.0
"""The node's own network, in a network namespace of the test's own, with the real programs."""

import dataclasses
import errno
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from bpf import attach, bpftool, node, syscall
from bpf.abi import Device, DeviceFlag, DeviceKey, NodeFlag, Peer, PeerKey, Remote, RemoteFlag, RemoteKey
from bpf.abi import Node as NodeEntry
from bpf.address import packed, text
from bpf.settings import Settings
from bpf.tests import kernel
from controller import monitor
from controller.commands import links
from controller.devices import Device as Link
from controller.errors import NetworkError
from controller.network import NodeNetwork
from controller.nodes import POD_LINKS
from controller.peers import State, Target
from controller.routes import Netlink, Snapshot
from controller.sysctl import Sysctls
from controller.tests.objects import decoded_node
from controller.tests.objects import node as manifest
from controller.tests.space import Space

pytestmark = pytest.mark.root

DEVICE = (
    "link set lo up",
    "link add up0 type veth peer name far0",
    "link set far0 up",
    "link set up0 up mtu 1400",
    "addr add 192.0.2.1/24 dev up0",
    "addr add 2001:db8::1/64 dev up0 nodad",
    "route add default via 192.0.2.254",
)


class FakePeers:
    """What is known of the other nodes at layer 2, as a test says."""

    def __init__(self) -> None:
        self.watched: dict[bytes, Target] = {}
        self.known = State({}, frozenset())

    def watch(self, targets: Mapping[bytes, Target]) -> None:
        self.watched = dict(targets)

    def state(self) -> State:
        return self.known


class Rig(Space):
    """A node with one underlay device `up0`, in a network namespace to itself."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.peers = FakePeers()

    def make_device(self) -> None:
        for command in DEVICE:
            self.ip(command)

    def begin(self) -> None:
        """A controller's start: the programs loaded, nothing known of any Node."""

        def work() -> None:
            node.load_datapath(self.settings)
            self.network = NodeNetwork(self.settings, node.pins(self.settings), Netlink(), self.peers)

        self.run(work)

    def nodes(self, *manifests: dict[str, Any]) -> None:
        for one in manifests:
            self.network.set_node(one["metadata"]["name"], decoded_node(one))

    def sync(self, listed: bool = True, looking: bool = True) -> None:
        """As after a word from the kernel; not `looking`: from the API alone."""
        if looking:
            self.network.forget()
        while self.run(lambda: self.network.sync(listed)):
            assert not self.network.failed, self.network.problems

    def entries(self) -> dict[str, dict[bytes, bytes]]:
        assert self.network.entries is not None
        return self.network.entries

    def hooks(self) -> dict[str, set[str]]:
        """Device -> our hooks."""
        found: dict[str, set[str]] = {}
        for item in self.run(bpftool.filters):
            found.setdefault(item["devname"], set()).add(item["name"].removeprefix("calico-ebpf/"))
        return found

    def routes(self) -> set[str]:
        """Those that lead somewhere."""
        return {line for line in self._routes() if not line.startswith("unreachable")}

    def unreachable(self) -> set[str]:
        return {line.split()[1] for line in self._routes() if line.startswith("unreachable")}

    def _routes(self) -> set[str]:
        lines = [*self.ip("route show proto 206"), *self.ip("-6 route show proto 206")]
        return {" ".join(line.split()) for line in lines}


@pytest.fixture
def rig(tmp_path: Path, bpffs: Path) -> Iterator[Rig]:
    settings = Settings(
        node_name="own",
        run_dir=tmp_path / "run",
        state_dir=tmp_path / "state",
        bpffs=bpffs,
        connect_time="off",
        handover="l2",
    )
    made = Rig(settings)
    try:
        made.make_device()
        made.begin()
        yield made
    finally:
        made.close()


OWN = manifest("own", ["192.0.2.1", "2001:db8::1"], ["10.244.0.0/24", "fd00:10:244::/64"])
NEAR = manifest("near", ["192.0.2.2", "2001:db8::2"], ["10.244.1.0/24", "fd00:10:244:1::/64"])
FAR = manifest("far", ["198.51.100.2"], ["10.244.2.0/24", "fd00:10:244:2::/64"])
OWN_RANGES = {"10.244.0.0/24", "fd00:10:244::/64"}
NETDEV = {"from_netdev", "to_netdev"}
OTHER = {"from_other", "to_netdev"}
LAYER_3 = {"from_l3", "to_l3"}
OVERLAY = {"from_overlay", "to_overlay"}
NEAR_ROUTES = {
    "10.244.1.0/24 via 192.0.2.2 dev up0 src 192.0.2.1 onlink",
    "fd00:10:244:1::/64 via 2001:db8::2 dev up0 src 2001:db8::1 metric 1024 onlink pref medium",
}


def test_sync_attaches_routes_and_tells_the_plugin(rig: Rig) -> None:
    """A node of the same subnet: plain routes, no overlay."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV}
    assert rig.routes() == NEAR_ROUTES
    assert len(rig.entries()["remotes"]) == 4
    assert not rig.network.problems
    told = json.loads((rig.settings.run_dir / "node.json").read_bytes())
    assert told == {
        "name": "own",
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "pod_cidrs": ["10.244.0.0/24", "fd00:10:244::/64"],
        "mtu": 1330,
    }


def test_node_of_another_subnet_makes_the_overlay(rig: Rig) -> None:
    """Both families of its pods go through it; it has the project's MAC, and an address for rp_filter's sake."""
    rig.nodes(OWN, FAR)
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "calico-vxlan": OVERLAY}
    assert {route.partition(" src")[0].partition(" metric")[0] for route in rig.routes()} == {
        "10.244.2.0/24 dev calico-vxlan scope link",
        "fd00:10:244:2::/64 dev calico-vxlan",
    }
    shown = "\n".join(rig.ip("-d addr show calico-vxlan"))
    assert "02:ce:00:00:00:01" in shown
    assert "mtu 1330" in shown
    assert re.findall(r"inet6? (\S+ scope \w+)", shown) == ["169.254.206.1/32 scope link"]
    assert "dstport 4789" in shown


def test_node_that_moves_to_another_subnet_and_back_is_followed(rig: Rig) -> None:
    """By the tunnel, whose device follows the underlay's MTU meanwhile, and by plain routes again."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.routes() == NEAR_ROUTES
    rig.nodes(manifest("near", ["198.51.100.2"], ["10.244.1.0/24", "fd00:10:244:1::/64"]))
    for mtu in (1400, 9000, 1500):
        rig.ip(f"link set up0 mtu {mtu}")
        rig.sync()
        assert {" ".join(route.split()[:3]) for route in rig.routes()} == {
            "10.244.1.0/24 dev calico-vxlan",
            "fd00:10:244:1::/64 dev calico-vxlan",
        }
        assert f"mtu {mtu - 70} " in "".join(rig.ip("link show calico-vxlan"))
        assert json.loads((rig.settings.run_dir / "node.json").read_bytes())["mtu"] == mtu - 70
    rig.nodes(NEAR)
    rig.sync()
    assert rig.routes() == NEAR_ROUTES
    assert rig.hooks() == {"up0": NETDEV}


def test_node_that_changes_is_followed_without_another_look(rig: Rig) -> None:
    """Work is proportional to what changed: thousands of routes are not read again for one Node."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    rig.ip("route del 10.244.1.0/24")
    rig.nodes(manifest("next", ["192.0.2.3"], ["10.244.3.0/24"]))
    assert not rig.run(lambda: rig.network.sync(True))
    assert "10.244.3.0/24 via 192.0.2.3 dev up0 src 192.0.2.1 onlink" in rig.routes()
    assert not any(route.startswith("10.244.1.0") for route in rig.routes()), "it did look"


def test_route_that_the_kernel_refuses_is_named_and_the_others_are_made(rig: Rig) -> None:
    """A Node that claims the subnet's broadcast address, say."""
    rig.nodes(OWN, manifest("bad", ["192.0.2.255"], ["10.244.9.0/24"]), NEAR)
    assert rig.run(lambda: rig.network.sync(True)), "it is not tried again"
    assert rig.network.failed
    assert ["10.244.9.0/24" in problem.message for problem in rig.network.problems] == [True]
    assert rig.routes() >= NEAR_ROUTES


def test_second_sync_changes_nothing(rig: Rig) -> None:
    """Also that of a controller that was started again: what is right stays."""
    rig.nodes(OWN, NEAR, FAR)
    rig.sync()
    before = (rig.run(bpftool.filters), rig.routes())
    rig.begin()
    rig.sync(listed=False)
    assert (rig.run(bpftool.filters), rig.routes()) == before
    rig.nodes(OWN, NEAR, FAR)
    rig.sync()
    assert (rig.run(bpftool.filters), rig.routes()) == before


def test_node_gone_takes_its_routes_and_ours_deleted_keeps_working(rig: Rig) -> None:
    """Our own Node's end must not cut this node off."""
    rig.nodes(OWN, NEAR, FAR)
    rig.sync()
    rig.network.set_node("far", None)
    rig.network.set_node("own", None)
    rig.sync()
    assert rig.routes() == NEAR_ROUTES
    assert not rig.network.eligible
    assert json.loads((rig.settings.run_dir / "node.json").read_bytes())["pod_cidrs"]


def test_restart_without_our_node_keeps_what_the_plugin_knows(rig: Rig) -> None:
    """The Node was deleted while the controller was away: pods can still be made, and it is said."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    path = rig.settings.run_dir / "node.json"
    before = path.read_bytes()
    rig.begin()
    rig.nodes(NEAR)
    rig.sync()
    assert path.read_bytes() == before
    assert not rig.network.eligible
    assert ["no Node named own" in problem.message for problem in rig.network.problems] == [True]


def test_node_by_another_name_is_not_taken_for_remote(rig: Rig) -> None:
    """The cloud's name for the machine, not the host's: no route leads its pods away."""
    rig.nodes(OWN | {"metadata": {"name": "own.example"}}, NEAR)
    rig.sync()
    assert not any(route.startswith(("10.244.0.", "fd00:10:244::")) for route in rig.routes())
    assert len(rig.entries()["remotes"]) == 4
    assert sorted(problem.subject for problem in rig.network.problems) == ["Node own.example", "this node"]


def test_pods_that_are_not_there_are_unreachable(rig: Rig) -> None:
    """In this node's own ranges, both families; put back when somebody removes it."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.unreachable() == OWN_RANGES
    rig.ip("route del unreachable 10.244.0.0/24")
    rig.ip("-6 route del unreachable fd00:10:244::/64 dev lo")
    assert not rig.unreachable()
    rig.sync()
    assert rig.unreachable() == OWN_RANGES
    assert rig.routes() == NEAR_ROUTES


def test_unreachable_range_that_is_no_longer_ours_is_let_go(rig: Rig) -> None:
    """Also when it is another node's by now, and its pods are reached at once."""
    rig.nodes(OWN)
    rig.sync()
    rig.begin()
    rig.nodes(manifest("own", ["192.0.2.1"], ["10.244.8.0/24"]), manifest("near", ["192.0.2.2"], ["10.244.0.0/24"]))
    rig.sync()
    assert rig.unreachable() == {"10.244.8.0/24"}
    assert rig.routes() == {"10.244.0.0/24 via 192.0.2.2 dev up0 src 192.0.2.1 onlink"}


def test_unreachable_ranges_stay_while_our_node_is_not_known(rig: Rig) -> None:
    """Deleted while the controller was away: the pods that are gone stay so."""
    rig.nodes(OWN)
    rig.sync()
    rig.begin()
    rig.nodes(NEAR)
    rig.sync()
    assert rig.unreachable() == OWN_RANGES


def test_our_node_registered_anew_keeps_its_ranges_until_it_has_others(rig: Rig) -> None:
    """Between the new object and its ranges, pods can still be made."""
    rig.nodes(OWN)
    rig.sync()
    rig.nodes()
    rig.nodes(manifest("own", ["192.0.2.1"], []))
    rig.sync()
    assert rig.unreachable() == OWN_RANGES
    rig.nodes(manifest("own", ["192.0.2.1"], ["10.244.8.0/24"]))
    rig.sync()
    assert rig.unreachable() == {"10.244.8.0/24"}


def test_unreachable_range_comes_behind_a_route_of_somebody_else(rig: Rig) -> None:
    """Another plugin's bridge has the same range: its pods are reached as before."""
    rig.ip("link add cni0 type bridge")
    rig.ip("link set cni0 up")
    rig.ip("addr add 10.244.0.1/24 dev cni0")
    rig.nodes(OWN)
    rig.sync()
    assert rig.unreachable() == OWN_RANGES
    assert "dev cni0" in rig.ip("route get 10.244.0.9")[0]


def test_route_of_somebody_else_and_pod_routes_are_left_alone(rig: Rig) -> None:
    """The CNI plugin's carry the same protocol number, but lead to pod links."""
    rig.ip("link add ce0123456789a type veth peer name pod0")
    rig.ip("link set pod0 up")
    rig.ip("link set ce0123456789a up")
    rig.ip("route add 10.244.0.5/32 dev ce0123456789a proto 206")
    rig.ip("route add 203.0.113.0/24 via 192.0.2.9")
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.routes() == NEAR_ROUTES | {"10.244.0.5 dev ce0123456789a scope link"}
    assert any("203.0.113.0/24" in line for line in rig.ip("route"))
    assert rig.hooks() == {"up0": NETDEV}


def test_ranges_never_replace_the_nodes_own_routes(rig: Rig) -> None:
    """Where pods' network and the nodes' overlap, some Node's range is the subnet. One that has the address of a node
    of another subnet is believed, and that address is not: any Node may say that it has it."""
    before = rig.ip("route"), rig.ip("-6 route")
    ranges = ["192.0.2.0/24", "2001:db8::/64", "0.0.0.0/0", "198.51.100.0/24", "10.244.1.0/24"]
    rig.nodes(OWN, manifest("near", ["192.0.2.2", "2001:db8::2"], ranges), FAR)
    rig.sync()
    assert "10.244.1.0/24 via 192.0.2.2 dev up0 src 192.0.2.1 onlink" in rig.routes()
    assert all(set(lines) <= set(rig.ip(show)) for show, lines in zip(("route", "-6 route"), before, strict=True))
    assert [(problem.subject, problem.message.partition(": ")[0]) for problem in rig.network.problems] == [
        ("Node near", "podCIDRs"),
        ("Node far", "its address 198.51.100.2 is left out"),
        ("Node far", "no way to its pods 10.244.2.0/24 and 1 more"),
        ("Node near", "no way to its pods 192.0.2.0/24"),
        ("Node near", "no way to its pods 2001:db8::/64"),
    ]
    assert any(route.startswith("198.51.100.0/24") for route in rig.routes())
    assert not any(route.startswith("10.244.2.0/24") for route in rig.routes())
    rig.network.set_node("far", None)
    rig.sync()
    assert {problem.subject for problem in rig.network.problems} == {"Node near"}


def test_route_to_a_single_pod_neither_hides_nor_replaces_that_of_a_pod_here(rig: Rig) -> None:
    """The address was another node's a moment ago, and the API says so still."""
    links = ("10.250.0.5/32", "fd00:10:250::5/128")
    rig.ip("link add ce0123456789a type veth peer name pod0")
    rig.ip("link set pod0 up")
    rig.ip("link set ce0123456789a up")
    for link in links:
        rig.ip(f"{'-6 ' if ':' in link else ''}route add {link} dev ce0123456789a proto 206")
    rig.nodes(OWN, manifest("near", ["192.0.2.2", "2001:db8::2"], [*links, "10.250.0.6/32"]))
    rig.sync()
    assert "10.250.0.6 via 192.0.2.2 dev up0 src 192.0.2.1 metric 32768 onlink" in rig.routes()
    assert len(rig.routes()) == 5
    for link in links:
        assert "dev ce0123456789a" in rig.ip(f"route get {link.partition('/')[0]}")[0]
    rig.nodes(manifest("near", ["192.0.2.2", "2001:db8::2"], []))
    rig.sync()
    assert rig.routes() == {
        "10.250.0.5 dev ce0123456789a scope link",
        "fd00:10:250::5 dev ce0123456789a metric 1024 pref medium",
    }


def test_device_that_comes_back_is_attached_again_when_the_kernel_says_so(rig: Rig) -> None:
    """The monitor tells."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    told: list[int] = []
    rig.run(lambda: monitor.watch(lambda: told.append(1)))
    rig.ip("link del up0")
    rig.sync()
    assert rig.hooks() == {}
    rig.make_device()
    assert told
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV}
    assert rig.routes() == NEAR_ROUTES


def test_filter_and_route_removed_by_somebody_are_restored(rig: Rig) -> None:
    """What the audit does: the same sync."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    rig.run(lambda: subprocess.run(["tc", "qdisc", "del", "dev", "up0", "clsact"], check=True))
    rig.ip("route del 10.244.1.0/24")
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV}
    assert rig.routes() == NEAR_ROUTES


def test_device_that_is_no_longer_underlay_is_let_go(rig: Rig) -> None:
    """Our programs leave it; they follow the address to the other one."""
    rig.nodes(OWN)
    rig.sync()
    rig.ip("link add up1 type veth peer name far1")
    rig.ip("link set up1 up")
    rig.ip("link set far1 up")
    rig.ip("addr flush dev up0")
    rig.ip("addr add 192.0.2.1/24 dev up1")
    rig.sync()
    assert rig.hooks() == {"up1": NETDEV}


def test_program_that_could_not_be_taken_off_a_device_is_taken_off_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there tells, not what was tried."""

    def refuse(*_: object) -> None:
        raise NetworkError("not now")

    rig.nodes(OWN)
    rig.sync()
    for command in SECOND:
        rig.ip(command)
    rig.sync()
    rig.ip("addr flush dev up1")
    rig.network.forget()
    with monkeypatch.context() as patched:
        patched.setattr(Netlink, "detach", refuse)
        assert rig.run(lambda: rig.network.sync(True)), "it is not tried again"
    assert rig.hooks() == {"up0": NETDEV, "up1": OTHER}
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV}


SECOND = (
    "link add up1 type veth peer name far1",
    "link set far1 up",
    "link set up1 up",
    "addr add 198.51.100.1/24 dev up1",
)


@pytest.fixture
def second(rig: Rig) -> None:
    """Another network of the node's, by up1."""
    for command in SECOND:
        rig.ip(command)


def test_devices_besides_are_met_as_their_addresses_come_and_go(rig: Rig) -> None:
    """A second network card and a bridge, whose parts are left alone. The kernel says when."""
    told = threading.Event()

    def changed(*commands: str) -> dict[str, set[str]]:
        told.clear()
        for command in commands:
            rig.ip(command)
        assert told.wait(10)
        rig.sync()
        return rig.hooks()

    rig.nodes(OWN, NEAR)
    rig.sync()
    rig.run(lambda: monitor.watch(told.set))
    bridge = ("link add br0 type bridge", "link set br0 up", "addr add 2001:db8:7::1/64 dev br0 nodad")
    assert changed(*SECOND, *bridge) == {"up0": NETDEV, "up1": OTHER, "br0": OTHER}
    assert changed("link set up1 master br0") == {"up0": NETDEV, "br0": OTHER}
    assert changed("link set up1 nomaster") == {"up0": NETDEV, "up1": OTHER, "br0": OTHER}
    assert changed("addr flush dev up1") == {"up0": NETDEV, "br0": OTHER}
    assert changed("link del br0") == {"up0": NETDEV}
    assert changed("link del up1", *SECOND) == {"up0": NETDEV, "up1": OTHER}
    assert not rig.network.problems


@pytest.mark.usefixtures("second")
def test_device_besides_is_told_apart_and_its_addresses_are_this_nodes(rig: Rig) -> None:
    """Nothing is masqueraded there, and pods' MTU is the underlay's, even where it takes less."""
    rig.ip("link set up1 mtu 1300")
    rig.nodes(OWN)
    rig.sync()
    (link,) = json.loads("".join(rig.ip("-j link show up1")))
    entry = Device.unpack(rig.entries()["devices"][DeviceKey(link["ifindex"]).pack()])
    mac = bytes.fromhex(link["address"].replace(":", ""))
    assert entry == Device(packed("198.51.100.1"), packed("2001:db8::1"), 1300, DeviceFlag.OTHER, mac)
    flags = NodeEntry.unpack(rig.entries()["nodes"][packed("198.51.100.1")]).flags
    assert flags == NodeFlag.OWN | NodeFlag.NO_NODE_PORTS
    assert json.loads((rig.settings.run_dir / "node.json").read_bytes())["mtu"] == 1330


@pytest.mark.parametrize("route", [(), ("route replace default dev tun0",)], ids=["beside", "underlay"])
def test_device_without_link_layer_has_programs_of_its_own(rig: Rig, route: tuple[str, ...]) -> None:
    """A VPN's, whether or not the node's way out is through it."""
    for command in ("tuntap add tun0 mode tun", "link set tun0 up mtu 1300", "addr add 10.8.0.1/24 dev tun0", *route):
        rig.ip(command)
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "tun0": LAYER_3}
    ifindex = json.loads("".join(rig.ip("-j link show tun0")))[0]["ifindex"]
    entry = Device.unpack(rig.entries()["devices"][DeviceKey(ifindex).pack()])
    flags = DeviceFlag.MASQUERADE_V4 | DeviceFlag.MASQUERADE_V6 if route else DeviceFlag.OTHER
    assert entry == Device(packed("10.8.0.1"), packed("2001:db8::1"), 1300, flags, bytes(6))
    told = json.loads((rig.settings.run_dir / "node.json").read_bytes())
    assert told["mtu"] == (1230 if route else 1330), "pods' packets fit where they may leave"


@pytest.mark.usefixtures("second")
def test_default_route_that_moves_takes_the_underlay_along(rig: Rig) -> None:
    """What pods send out is masqueraded where it leaves now; the device of the node's own address stays underlay."""
    rig.nodes(OWN)
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "up1": OTHER}
    rig.ip("route replace default via 198.51.100.254 dev up1")
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "up1": NETDEV}
    flags = {Device.unpack(value).flags for value in rig.entries()["devices"].values()} - {0}
    assert flags == {DeviceFlag.MASQUERADE_V4 | DeviceFlag.MASQUERADE_V6}
    rig.ip("route replace default via 192.0.2.254 dev up0")
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "up1": OTHER}


@pytest.mark.usefixtures("second")
def test_restart_changes_no_devices_programs_before_the_node_is_known(rig: Rig) -> None:
    """Without its Node the device that holds its address would be taken for another than the underlay's."""
    rig.ip("route del default")
    rig.nodes(OWN)
    rig.sync()
    before = rig.run(bpftool.filters)
    assert rig.hooks() == {"up0": NETDEV, "up1": OTHER}
    rig.begin()
    rig.sync(listed=False)
    assert rig.run(bpftool.filters) == before
    for nodes in ((NEAR,), (OWN, NEAR)):
        rig.nodes(*nodes)
        rig.sync()
        assert rig.run(bpftool.filters) == before


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    ("named", "hooks", "problems"),
    [
        (("none",), {"up0": NETDEV}, []),
        (("up1",), {"up0": NETDEV, "up1": OTHER}, []),
        (("up0", "br7"), {"up0": NETDEV}, ["device br7"]),
    ],
    ids=["none", "one", "the underlay's, and one that is not there"],
)
def test_devices_besides_can_be_named(
    rig: Rig, named: tuple[str, ...], hooks: dict[str, set[str]], problems: list[str]
) -> None:
    """Then no other is met; one of the underlay's stays that."""
    rig.settings = dataclasses.replace(rig.settings, client_devices=named)
    rig.begin()
    rig.nodes(OWN)
    rig.sync()
    assert rig.hooks() == hooks
    assert [problem.subject for problem in rig.network.problems] == problems


def test_forwarding_is_set_and_the_old_values_remembered(rig: Rig) -> None:
    """For uninstall; a second start does not overwrite them. Advertisements go on being heard on the underlay."""

    def read(name: str) -> str:
        return str(rig.run(lambda: (Path("/proc/sys") / name).read_text().strip()))

    heard = ("net/ipv6/conf/up0/accept_ra", "net/ipv6/conf/far0/accept_ra")
    names = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", *heard)
    before = {name: read(name) for name in names}
    rig.nodes(OWN)
    rig.sync()
    assert [read(name) for name in names] == ["1", "1", "2", "1"]
    rig.begin()
    rig.sync(listed=False)
    kept = json.loads((rig.settings.state_dir / "sysctl.json").read_bytes())
    assert kept == {name: value for name, value in before.items() if value != read(name)}


@pytest.mark.usefixtures("second")
def test_other_devices_go_on_hearing_routers(rig: Rig) -> None:
    """Those by which the node is in a network, whether or not a router has told them their addresses yet; not parts of
    others, nor what containers may be behind, there already or made later: one that tells of a router would be it."""

    def heard() -> dict[str, str]:
        found = rig.run(lambda: {one: (conf / one / "accept_ra").read_text() for one in os.listdir(conf)})
        return {one: value.strip() for one, value in found.items() if value.strip() != "1"}

    conf = Path("/proc/sys/net/ipv6/conf")
    for command in ("link up1 name nic2 type macvlan", "br0 type bridge"):
        rig.ip(f"link add {command}")
    rig.ip("link set far1 master br0")
    rig.ip("tuntap add tun0 mode tap")
    rig.nodes(OWN, FAR)
    rig.sync()
    assert heard() == dict.fromkeys(("up0", "nic2"), "2")
    rig.ip("link add br1 type bridge")
    rig.sync()
    assert "br1" not in heard()
    kept = json.loads((rig.settings.state_dir / "sysctl.json").read_bytes())
    assert kept["net/ipv6/conf/nic2/accept_ra"] == "1"


def test_no_underlay_is_named_and_no_error(rig: Rig) -> None:
    """A node without any way out still serves its own pods."""
    rig.nodes(OWN)
    rig.ip("link del up0")
    rig.sync()
    assert ["no underlay device" in problem.message for problem in rig.network.problems] == [True]
    assert not rig.network.failed


def test_programs_loaded_anew_replace_those_attached(rig: Rig) -> None:
    """After an upgrade, before any Node is known."""
    rig.nodes(OWN)
    rig.sync()
    before = {item["id"] for item in rig.run(bpftool.filters)}
    rig.settings = Settings(
        **{
            name: getattr(rig.settings, name)
            for name in ("node_name", "run_dir", "state_dir", "bpffs", "connect_time", "handover")
        },
        tcp_new_s=61,
    )
    rig.begin()
    rig.sync(listed=False)
    after = {item["id"] for item in rig.run(bpftool.filters)}
    assert len(after) == 2
    assert not before & after


def _again(rig: Rig, **changes: Any) -> None:
    """A controller that starts with other settings, and has read its Node."""
    kept = ("node_name", "run_dir", "state_dir", "bpffs", "connect_time", "handover")
    rig.settings = Settings(**({name: getattr(rig.settings, name) for name in kept} | changes))
    rig.begin()
    rig.nodes(OWN)
    rig.sync()


def _xdp(rig: Rig) -> dict[str, tuple[str, str, int]]:
    """Device -> mode, name and id of its XDP program."""
    return {item["devname"]: (item["mode"], item["name"], item["id"]) for item in rig.run(bpftool.xdp_programs)}


def test_xdp_stands_in_the_driver_while_it_is_set(rig: Rig) -> None:
    """Never in generic mode; newer programs replace it, nothing else touches it, and without the setting it goes."""
    _again(rig)
    assert _xdp(rig) == {}
    _again(rig, xdp="on")
    first = _xdp(rig)["up0"]
    assert first[:2] == ("driver", "calico_ebpf_xdp")
    rig.sync()
    assert _xdp(rig) == {"up0": first}
    _again(rig, xdp="on", tcp_new_s=61)
    second = _xdp(rig)["up0"]
    assert second[:2] == first[:2]
    assert second != first
    assert rig.network.problems == []
    _again(rig, tcp_new_s=61)
    assert _xdp(rig) == {}
    assert rig.hooks()["up0"] == NETDEV


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("link set up0 xdpdrv pinned {}", "no XDP: another's program is there (16); TC does its work"),
        ("link set up0 xdpgeneric pinned {}", "no XDP: another's program is there (17); TC does its work"),
    ],
    ids=["another's", "another's in generic mode"],
)
def test_device_that_takes_no_xdp_is_told_of_and_works_without(rig: Rig, spoil: str, why: str) -> None:
    """It is no failure that would be tried again and again, and what stands there stays."""
    _again(rig)
    other = rig.settings.bpffs / "other"
    rig.run(lambda: _pin_trivial(other))
    rig.ip(spoil.format(other))
    before = _xdp(rig)
    _again(rig, xdp="on")
    for _ in range(2):
        assert not rig.network.failed
        assert [(problem.subject, problem.message) for problem in rig.network.problems] == [("device up0", why)]
        assert _xdp(rig) == before
        assert rig.hooks()["up0"] == NETDEV
        rig.sync(looking=False)
    _again(rig)
    assert rig.network.problems == []
    assert _xdp(rig) == before
    other.unlink()


def test_driver_that_has_refused_xdp_is_not_asked_at_every_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may set its queues up anew each time: the next audit does, or an MTU that has changed."""
    asked: list[int] = []

    def refuse(_: object, ifindex: int, *__: object) -> None:
        asked.append(ifindex)
        raise NetlinkError(errno.EINVAL, "refused")

    with monkeypatch.context() as patched:
        patched.setattr(attach, "attach_xdp", refuse)
        _again(rig, xdp="on")
        for before, times in (("", 1), ("link set up0 mtu 1300", 2), ("", 2)):
            if before:
                rig.ip(before)
            rig.sync()
            assert [problem.subject for problem in rig.network.problems] == ["device up0"]
            assert len(asked) == times
        rig.network.forget(everything=True)
        rig.sync()
        assert len(asked) == 3
    rig.ip("link set up0 mtu 1400")
    rig.sync()
    assert rig.network.problems == []
    assert "up0" in _xdp(rig)


@pytest.mark.parametrize("another", [False, True], ids=["none there", "another's there"])
def test_xdp_that_is_gone_takes_nothing_else_with_it(rig: Rig, another: bool) -> None:
    """Somebody was faster: no error, for `uninstall` as for the controller, and no descriptor is left open."""
    _again(rig)
    other = rig.settings.bpffs / "other"
    rig.run(lambda: _pin_trivial(other))
    if another:
        rig.ip(f"link set up0 xdpdrv pinned {other}")
    before, open_before = (rig.hooks(), _xdp(rig)), len(os.listdir("/proc/self/fd"))
    with node.pins(rig.settings).opened_program(attach.XDP_PROGRAM) as program:
        there = syscall.program_id(program)

    def detach() -> None:
        netlink, index = Netlink(), socket.if_nametoindex("up0")
        for gone in (there, 2**31 - 5):
            with links.Links() as removing:
                removing.detach(links.Attached("up0", index, links.XDP, gone))
            netlink.detach_xdp(index, gone)
        netlink.close()

    rig.run(detach)
    assert (rig.hooks(), _xdp(rig)) == before
    assert len(os.listdir("/proc/self/fd")) == open_before
    other.unlink()


def test_xdp_that_the_kernel_has_refused_is_told_of_where_it_is_set(rig: Rig) -> None:
    """All else is as ever; one that an earlier build has left goes, also before the Node is known."""
    _again(rig, xdp="on")
    assert "up0" in _xdp(rig)
    rig.begin()
    node.pins(rig.settings).program(attach.XDP_PROGRAM).unlink()
    rig.sync(listed=False)
    assert _xdp(rig) == {}
    rig.nodes(OWN)
    rig.sync()
    why = "no XDP: the kernel has refused its program, the log says why; TC does its work"
    assert [(problem.subject, problem.message) for problem in rig.network.problems] == [("device up0", why)]
    assert rig.hooks()["up0"] == NETDEV


BOND = "no XDP: a bond's parts are not followed; TC does its work"
TAGS = "no XDP: it takes the tags of its VLANs out of frames: `ethtool -K up0 rxvlan off`; TC does its work"


@pytest.mark.parametrize(
    ("kind", "lower", "tags", "why"),
    [("bond", 0, False, [BOND]), ("", "up0", True, [TAGS]), ("", "up0", False, []), ("", "far0", True, [])],
    ids=["bond", "VLAN", "VLAN whose tags stay", "another's VLAN"],
)
def test_xdp_leaves_devices_that_it_would_mistake(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str, lower: str | int, tags: bool, why: list[str]
) -> None:
    """Also those that come to be so later: the next sync takes it off, or puts it back."""
    real = Netlink.snapshot

    def changed(netlink: Netlink) -> Snapshot:
        found = real(netlink)
        devices = {index: one._replace(kind=kind) if one.name == "up0" else one for index, one in found.devices.items()}
        below = next((index for index, one in devices.items() if one.name == lower), 0)
        return found._replace(devices=devices | {999: Link(999, "any.7", 1500, True, kind="vlan", lower=below)})

    _again(rig, xdp="on")
    assert "up0" in _xdp(rig)
    with monkeypatch.context() as patched:
        patched.setattr(Netlink, "snapshot", changed)
        patched.setattr(Netlink, "takes_tags", lambda *_: tags)
        rig.sync()
        assert [problem.message for problem in rig.network.problems] == why
        assert ("up0" in _xdp(rig)) == (not why)
    rig.sync()
    assert rig.network.problems == []
    assert "up0" in _xdp(rig)


def test_xdp_of_earlier_is_replaced_before_our_node_is_known(rig: Rig) -> None:
    """It drops, too. Whether it is wanted is seen later: then it goes."""
    _again(rig, xdp="on")
    before = _xdp(rig)["up0"]
    rig.settings = dataclasses.replace(rig.settings, tcp_new_s=61, xdp="off")
    rig.begin()
    rig.sync(listed=False)
    after = _xdp(rig)["up0"]
    assert after[:2] == before[:2]
    assert after != before
    rig.nodes(OWN)
    rig.sync()
    assert _xdp(rig) == {}


def test_takeover_by_another_layout_takes_xdp_off_until_it_is_attached_again(rig: Rig) -> None:
    """It would drop by the maps of before, which nobody writes any more. Another's program stays."""
    _again(rig, xdp="on")
    first = _xdp(rig)["up0"]
    other = rig.settings.bpffs / "other"
    rig.run(lambda: _pin_trivial(other))
    rig.ip(f"link set far0 xdpdrv pinned {other}")
    rig.settings = dataclasses.replace(rig.settings, pods_max=2 * rig.settings.pods_max)
    rig.begin()
    assert _xdp(rig).keys() == {"far0"}
    rig.sync(listed=False)
    rig.nodes(OWN)
    rig.sync()
    assert _xdp(rig)["up0"][:2] == first[:2]
    assert _xdp(rig)["up0"] != first
    assert rig.network.problems == []
    other.unlink()


def _pin_trivial(path: Path) -> None:
    """Pins an XDP program that passes everything."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["bpftool", "prog", "load", kernel.compiled(kernel.XDP_PASS, Path(directory)), path], check=True)


def test_remote_leads_to_the_underlay_device(rig: Rig) -> None:
    """By its number in this namespace."""
    rig.nodes(OWN, NEAR)
    rig.sync()
    (line,) = rig.ip("-o link show up0")
    assert {Remote.unpack(value).ifindex for value in rig.entries()["remotes"].values()} == {int(line.split(":")[0])}


def test_maps_of_the_network_hold_nodes_and_peers(rig: Rig) -> None:
    """Addresses of all nodes, and MACs of those on-link."""
    rig.peers.known = State({packed("192.0.2.2"): b"\2\0\0\0\0\2"}, frozenset())
    rig.nodes(OWN, NEAR)
    rig.sync()
    (line,) = rig.ip("-o link show up0")
    ifindex = int(line.split(":")[0])
    entries = rig.entries()
    own = {text(key) for key, value in entries["nodes"].items() if value == NodeEntry(NodeFlag.OWN).pack()}
    assert own == {"127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"}
    assert {text(key) for key in entries["nodes"]} - own == {"192.0.2.2", "2001:db8::2"}
    assert entries["peers"] == {PeerKey(b"\2\0\0\0\0\2").pack(): Peer(packed("192.0.2.2")).pack()}
    assert {text(address): text(target.source) for address, target in rig.peers.watched.items()} == {
        "192.0.2.2": "192.0.2.1",
        "2001:db8::2": "2001:db8::1",
    }
    assert {(target.ifindex, target.device) for target in rig.peers.watched.values()} == {(ifindex, "up0")}


def test_map_of_devices_holds_what_they_take_and_under_which_address(rig: Rig) -> None:
    """The underlay's, and, less what a tunnel adds, the overlay's and that of all pod links; an MTU that changes is
    written anew."""
    for mtu in (1400, 9000):
        rig.ip(f"link set up0 mtu {mtu}")
        rig.nodes(OWN, FAR)
        rig.sync()
        (line,) = rig.ip("-o link show up0")
        found = _overlay(rig)
        assert found
        addresses = packed("192.0.2.1"), packed("2001:db8::1")
        masqueraded = DeviceFlag.MASQUERADE_V4 | DeviceFlag.MASQUERADE_V6
        mac = bytes.fromhex(line.split("link/ether ")[1].split()[0].replace(":", ""))
        entries = rig.entries()["devices"]
        assert {DeviceKey.unpack(key).ifindex: Device.unpack(value) for key, value in entries.items()} == {
            int(line.split(":")[0]): Device(*addresses, mtu, masqueraded, mac),
            found[0]: Device(*addresses, mtu - 70, 0, bytes(6)),
            POD_LINKS: Device(*addresses, mtu - 70, 0, bytes(6)),
        }


def test_map_of_devices_has_those_that_others_do_without_last(rig: Rig) -> None:
    """Where there are more than it takes, the last ones are left out: of clients' devices, not the underlay."""
    for command in (*SECOND, "link add br0 type bridge", "link set br0 up", "addr add 203.0.113.1/24 dev br0"):
        rig.ip(command)
    rig.settings = dataclasses.replace(rig.settings, handover="vxlan")
    rig.begin()
    rig.nodes(OWN, NEAR)
    rig.sync()
    there = {item["ifindex"]: item["ifname"] for item in json.loads("".join(rig.ip("-j link"))) if item}
    found = [there.get(DeviceKey.unpack(key).ifindex, "pods") for key in rig.entries()["devices"]]
    assert found[:3] == ["up0", "pods", "calico-vxlan"]
    assert sorted(found[3:]) == ["br0", "up1"]


def test_ranges_that_see_pods_addresses_are_those_of_the_settings(rig: Rig, tmp_path: Path) -> None:
    """In both families, and those of ip-masq-agent's file, as they change."""
    file = tmp_path / "ip-masq-agent"
    rig.settings = dataclasses.replace(
        rig.settings, non_masquerade_cidrs=("10.0.0.0/8", "2001:db8:7::/48"), ip_masq_agent_file=file
    )
    rig.begin()
    rig.nodes(OWN)
    named = {RemoteKey(104, packed("10.0.0.0")), RemoteKey(48, packed("2001:db8:7::"))}
    filed = {RemoteKey(112, packed(one)) for one in ("172.16.0.0", "169.254.0.0")}
    for content, wanted, problems in (
        ("nonMasqueradeCIDRs: []\nmasqLinkLocal: true", named, []),
        ("nonMasqueradeCIDRs: [172.16.0.0/16, 10.0.0.0/8]", named | filed, []),
        ("nonMasqueradeCIDRs: [172.16.0.1/16]", named | filed, ["ip-masq-agent"]),
        ("{nonMasqueradeCIDRs: null, masqLinkLocal: true}", named, []),
        ("nonMasqueradeCIDRs: ['::ffff:172.16.0.0/112']", named, ["ip-masq-agent"]),
    ):
        file.write_text(content)
        rig.sync()
        assert {RemoteKey.unpack(key) for key in rig.entries()["unmasqueraded"]} == wanted
        assert [problem.subject for problem in rig.network.problems] == problems


def test_ranges_of_services_stay_over_a_restart_until_all_are_known(rig: Rig) -> None:
    """A node's own prefix comes before one of Services."""
    rig.nodes(OWN, NEAR)
    assert rig.network.set_service_ranges(["198.51.100.0/24", "10.244.1.0/24"], all_known=True)
    rig.sync()
    remotes = rig.entries()["remotes"]
    assert _service_ranges(remotes) == {("198.51.100.0", 120)}
    rig.begin()
    rig.network.remember(remotes)
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.entries()["remotes"] == remotes
    rig.network.set_service_ranges(["2001:db8:5::/64"], all_known=False)
    rig.sync()
    assert _service_ranges(rig.entries()["remotes"]) == {("198.51.100.0", 120), ("2001:db8:5::", 64)}
    assert rig.network.set_service_ranges(["2001:db8:5::/64"], all_known=True)
    rig.sync()
    assert _service_ranges(rig.entries()["remotes"]) == {("2001:db8:5::", 64)}
    assert not rig.network.set_service_ranges(["2001:db8:5::/64"], all_known=True)


def _service_ranges(remotes: Mapping[bytes, bytes]) -> set[tuple[str, int]]:
    """(address, bits that count) of the entries that are of Services."""
    found = {RemoteKey.unpack(key): Remote.unpack(value) for key, value in remotes.items()}
    return {(text(key.address), key.prefix_bits) for key, one in found.items() if one.flags == RemoteFlag.SERVICES}


def test_nobody_is_probed_where_all_is_handed_over_in_a_tunnel(rig: Rig) -> None:
    """Nor is a probe answered: its sender is not recognised."""
    rig.settings = dataclasses.replace(rig.settings, handover="vxlan")
    rig.begin()
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.peers.watched == {}


def test_handover_in_auto_is_a_tunnel_until_the_probe_is_answered(rig: Rig) -> None:
    """Each address by itself; what is in force is told, with the reason."""

    def told() -> dict[str, tuple[str, str]]:
        found = json.loads((rig.settings.run_dir / "handover.json").read_bytes())
        assert (found["handover"], found["return_path"]) == ("auto", "entry")
        return {one["address"]: (one["way"], one["why"]) for one in found["nodes"]}

    def tunnelled() -> set[str]:
        return {
            text(RemoteKey.unpack(key).address)
            for key, value in rig.entries()["remotes"].items()
            if Remote.unpack(value).flags & RemoteFlag.TUNNEL_HANDOVER
        }

    rig.settings = dataclasses.replace(rig.settings, handover="auto")
    rig.begin()
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert rig.hooks() == {"up0": NETDEV, "calico-vxlan": OVERLAY}
    assert set(told().values()) == {("vxlan", "has not answered the probe")}
    assert tunnelled() == {"192.0.2.2", "2001:db8::2", "10.244.1.0", "fd00:10:244:1::"}
    rig.peers.known = State({}, frozenset({packed("192.0.2.2")}))
    rig.sync()
    assert told()["192.0.2.2"] == ("l2", "has answered the probe")
    assert tunnelled() == {"2001:db8::2", "fd00:10:244:1::"}
    assert rig.routes() == NEAR_ROUTES, "pods' own packets need no tunnel"
    rig.peers.known = State({}, frozenset({packed("192.0.2.2"), packed("2001:db8::2")}))
    rig.sync()
    assert not tunnelled()
    assert rig.hooks()["calico-vxlan"] == OVERLAY, "the other node may not have its probe answered"


def _overlay(rig: Rig) -> tuple[int, int] | None:
    """The overlay device's index and port."""
    shown = json.loads("\n".join(rig.ip("-d -j link show type vxlan")) or "[]")
    return next(((item["ifindex"], item["linkinfo"]["info_data"]["port"]) for item in shown if item), None)


def test_overlay_goes_with_the_last_node_that_needs_it(rig: Rig) -> None:
    """When it is known that there is none: a restart takes nothing away before."""
    rig.nodes(OWN, NEAR, FAR)
    rig.sync()
    before = _overlay(rig)
    assert before
    rig.begin()
    rig.sync(listed=False)
    assert _overlay(rig) == before
    rig.nodes(OWN, NEAR)
    rig.sync()
    assert _overlay(rig) is None
    assert rig.hooks() == {"up0": NETDEV}
    assert rig.routes() == NEAR_ROUTES


def test_overlay_stays_while_a_node_is_out_of_reach(rig: Rig) -> None:
    """A route that goes for a moment: flows in the tunnel know the device by its index."""
    rig.nodes(OWN, NEAR, FAR)
    rig.sync()
    before = _overlay(rig)
    rig.ip("route del default")
    rig.sync()
    assert _overlay(rig) == before
    rig.ip("route add default via 192.0.2.254")
    rig.sync()
    assert _overlay(rig) == before
    assert rig.hooks() == {"up0": NETDEV, "calico-vxlan": OVERLAY}


def test_overlay_takes_sources_that_are_routed_elsewhere(rig: Rig) -> None:
    """Clients' packets for the host's own processes; also of a device that an earlier controller has left."""
    read = Path("/proc/sys/net/ipv4/conf/calico-vxlan/rp_filter").read_text
    rig.nodes(OWN, FAR)
    rig.sync()
    assert rig.run(read).strip() == "2"
    rig.run(lambda: Path("/proc/sys/net/ipv4/conf/calico-vxlan/rp_filter").write_text("1"))
    rig.ip("addr flush dev calico-vxlan")
    rig.begin()
    rig.nodes(OWN, FAR)
    rig.sync()
    assert rig.run(read).strip() == "2"
    assert any("169.254.206.1/32" in line for line in rig.ip("addr show calico-vxlan"))


@pytest.mark.parametrize(
    ("where", "what"),
    [(Netlink, "set_mtu"), (Netlink, "set_overlay_address"), (Netlink, "set_up"), (Sysctls, "loosen")],
)
def test_overlay_that_cannot_be_put_right_keeps_nothing_else_from_being_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: type, what: str
) -> None:
    """It is said, and tried again."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "not to be had")

    rig.nodes(OWN, FAR)
    rig.sync()
    rig.ip("link set calico-vxlan down mtu 1300")
    rig.ip("addr flush dev calico-vxlan")
    for command in ("link add br0 type bridge", "link set br0 up", "addr add 203.0.113.1/24 dev br0"):
        rig.ip(command)
    rig.nodes(NEAR)
    rig.network.forget()
    with monkeypatch.context() as patched:
        patched.setattr(where, what, refuse)
        assert rig.run(lambda: rig.network.sync(True)), "it is not tried again"
    assert "[Errno 13] not to be had" in [problem.message for problem in rig.network.problems]
    assert rig.hooks() == {"up0": NETDEV, "br0": OTHER, "calico-vxlan": OVERLAY}
    assert rig.routes() >= NEAR_ROUTES
    rig.sync()
    shown = "\n".join(rig.ip("addr show calico-vxlan up"))
    assert "mtu 1330" in shown
    assert "169.254.206.1/32" in shown


def test_file_that_cannot_be_written_keeps_nothing_else_from_being_done(rig: Rig) -> None:
    """The plugin's, on a file system that is full, say."""
    rig.settings.run_dir.mkdir(exist_ok=True)
    (rig.settings.run_dir / "node.json").mkdir()
    rig.nodes(OWN, NEAR)
    assert rig.run(lambda: rig.network.sync(True)), "it is not tried again"
    assert ["node.json" in problem.message for problem in rig.network.problems] == [True]
    assert rig.routes() == NEAR_ROUTES
    (rig.settings.run_dir / "node.json").rmdir()
    rig.sync()
    assert (rig.settings.run_dir / "node.json").read_bytes()


def test_overlay_of_another_port_is_made_anew(rig: Rig) -> None:
    """Under its index, which flows in the tunnel have noted; with its programs and its routes."""
    rig.nodes(OWN, FAR)
    rig.sync()
    before, routes = _overlay(rig), rig.routes()
    assert before
    rig.settings = dataclasses.replace(rig.settings, overlay_port=8472)
    rig.begin()
    rig.nodes(OWN, FAR)
    rig.sync()
    assert _overlay(rig) == (before[0], 8472)
    assert rig.hooks() == {"up0": NETDEV, "calico-vxlan": OVERLAY}
    assert rig.routes() == routes
    assert "mtu 1330" in "\n".join(rig.ip("link show calico-vxlan up"))


def test_overlay_whose_mac_was_changed_gets_it_back(rig: Rig) -> None:
    """By a daemon that gives devices MACs of its own: all nodes send to the one that all have."""
    rig.nodes(OWN, FAR)
    rig.sync()
    before, routes = _overlay(rig), rig.routes()
    rig.ip("link set calico-vxlan address 02:00:00:00:00:99")
    rig.sync()
    assert "02:ce:00:00:00:01" in "".join(rig.ip("link show calico-vxlan up"))
    assert (_overlay(rig), rig.routes()) == (before, routes)


def test_plain_tunnel_by_the_overlays_name_is_replaced(rig: Rig) -> None:
    """It would send everything to one far end; under its index, as one of another port."""
    rig.ip("link add calico-vxlan type vxlan id 206 dstport 4789")
    rig.ip("link set calico-vxlan up")
    before = _overlay(rig)
    rig.nodes(OWN, FAR)
    rig.sync()
    assert _overlay(rig) == before
    assert "external" in "".join(rig.ip("-d link show calico-vxlan up"))
    assert rig.hooks() == {"up0": NETDEV, "calico-vxlan": OVERLAY}


def test_device_of_somebody_else_by_the_overlays_name_is_left_alone(rig: Rig) -> None:
    """It is named, and what needs no overlay is done; what would go through it is not led elsewhere."""
    rig.ip("link add calico-vxlan type bridge")
    rig.nodes(OWN, NEAR, FAR)
    assert rig.run(lambda: rig.network.sync(True)), "it is not tried again"
    assert rig.network.failed
    assert ["making calico-vxlan" in problem.message for problem in rig.network.problems] == [True]
    assert rig.hooks() == {"up0": NETDEV}
    assert rig.routes() == NEAR_ROUTES
    far = RemoteKey(128, packed("198.51.100.2")).pack()
    assert Remote.unpack(rig.entries()["remotes"][far]).flags == RemoteFlag.NO_HANDOVER
    rig.network.set_node("far", None)
    rig.sync()
    assert rig.ip("link show calico-vxlan")


@pytest.mark.parametrize(("handover", "way"), [("auto", "vxlan"), ("vxlan", "vxlan"), ("l2", "none")])
def test_encapsulation_never_is_not_about_handover(rig: Rig, handover: str, way: str) -> None:
    """Pods' packets to a node of another subnet take plain routes; clients' take the tunnel, where there may be one."""
    rig.settings = dataclasses.replace(rig.settings, encapsulation="never", handover=handover)
    rig.begin()
    rig.nodes(OWN, manifest("far", ["198.51.100.2"], ["10.244.2.0/24"]))
    rig.sync()
    assert rig.routes() == {"10.244.2.0/24 via 192.0.2.254 dev up0 src 192.0.2.1 onlink"}
    remotes = [Remote.unpack(value) for value in rig.entries()["remotes"].values()]
    assert {text(remote.next_hop) for remote in remotes} == {"192.0.2.254"}
    told = json.loads((rig.settings.run_dir / "handover.json").read_bytes())
    assert [(one["address"], one["way"]) for one in told["nodes"]] == [("198.51.100.2", way)]
    assert json.loads((rig.settings.run_dir / "node.json").read_bytes())["mtu"] == (1400 if way == "none" else 1330)
    assert ("calico-vxlan" in rig.hooks()) == (way == "vxlan")
    assert [problem.subject for problem in rig.network.problems] == ["Node far"] * (way == "none")


def test_node_without_an_address_for_node_ports_is_reported(rig: Rig) -> None:
    """No client would be refused by anything that says why."""
    rig.settings = dataclasses.replace(rig.settings, node_port_addresses=("198.51.100.0/24", "2001:db8:9::/64"))
    rig.begin()
    rig.nodes(OWN)
    rig.sync()
    assert [problem.subject for problem in rig.network.problems] == ["node_port_addresses"]


def test_ports_of_masquerade_and_node_ports_are_reserved(rig: Rig) -> None:
    """In the node's own network namespace."""
    rig.nodes(OWN)
    rig.sync()
    path = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    assert rig.run(path.read_text).strip() == "10000-32767"
    assert json.loads((rig.settings.state_dir / "reserved-ports.json").read_bytes())["before"] == ""
