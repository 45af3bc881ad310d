# SPDX-License-Identifier: Apache-2.0
"""All of a controller between the events that a source posts and the maps; the node's devices are made up."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from bpf.address import packed
from bpf.pins import Pins
from bpf.settings import Settings
from controller.controller import Controller
from controller.dataplane import Dataplane
from controller.metrics import Metrics
from controller.network import NodeNetwork
from controller.nodes import OVERLAY_NAME, Hop, Route
from controller.peers import State
from controller.routes import Device, Netlink, Snapshot
from controller.source import Event, Post
from controller.tests.fakes import FakeMaps
from controller.tests.strategies import NODE_IPS, OWN

LO, UNDERLAY, OVERLAY = 1, 1, 9
MAGLEV_SIZE = 251
MACS = {packed(address): b"\2\0\0\0\0\5" for address in NODE_IPS["near"]}


class FakeNetlink:
    """A node with one device in the underlay, whose routes and overlay stay when its controller is started anew."""

    def __init__(self) -> None:
        self._devices = {UNDERLAY: Device(UNDERLAY, "up0", 1500, True, b"\2\0\0\0\0\1")}
        self._routes: dict[str, Route] = {}
        self._unreachable: set[str] = set()

    def snapshot(self) -> Snapshot:
        addresses = {packed(address): UNDERLAY for address in NODE_IPS[OWN]}
        hops = (
            Hop(packed("192.0.2.0"), 24, UNDERLAY, b"", 0),
            Hop(packed("2001:db8::"), 64, UNDERLAY, b"", 0),
            Hop(packed("0.0.0.0"), 0, UNDERLAY, packed("192.0.2.254"), 0),
            Hop(packed("::"), 0, UNDERLAY, packed("2001:db8::fffe"), 0),
        )
        return Snapshot(dict(self._devices), addresses, hops, dict(self._routes), set(self._unreachable))

    def create_overlay(self, port: int, mtu: int, _: int = 0) -> None:
        self._devices[OVERLAY] = Device(OVERLAY, OVERLAY_NAME, mtu, True, bytes(6), port)

    def remove_overlay(self, ifindex: int) -> None:
        del self._devices[ifindex]

    def set_route(self, route: Route) -> None:
        self._routes[route.cidr] = route

    def remove_route(self, route: Route) -> None:
        del self._routes[route.cidr]

    def set_unreachable(self, cidr: str) -> None:
        self._unreachable.add(cidr)

    def remove_unreachable(self, cidr: str) -> None:
        self._unreachable.remove(cidr)


class FakePeers:
    """The node of this subnet has answered, by either address."""

    def watch(self, targets: object) -> None: ...

    def state(self) -> State:
        return State(MACS, frozenset(MACS))


class UnattachedNetwork(NodeNetwork):
    """Attaches no program to the devices, which are none, and sets no sysctl."""

    def _attach(self, *_: object) -> None: ...

    def _set_sysctls(self, *_: object) -> None: ...

    def _keep_overlay(self, *_: object) -> None: ...


class QuietSource:
    """Posts nothing: the tests do."""

    def start(self, post: Post) -> None: ...

    def stop(self) -> None: ...


class Pipeline:
    """A controller over maps; `restart` begins anew, as after a kill, and time is the test's own."""

    def __init__(self, maps: FakeMaps, run_dir: Path, **settings: Any) -> None:
        self.maps = maps
        self.netlink = FakeNetlink()
        self._settings = Settings(
            node_name=OWN, run_dir=run_dir, sync_interval_ms=1000, maglev_table_size=MAGLEV_SIZE, **settings
        )
        self._metrics = Metrics(Pins(run_dir))
        self._now = 0.0
        self.restart()

    def restart(self) -> None:
        self.dataplane = Dataplane(self.maps)
        netlink = cast(Netlink, self.netlink)
        self.controller = Controller(
            self._settings,
            QuietSource(),
            self.dataplane,
            UnattachedNetwork(self._settings, Pins(self._settings.run_dir), netlink, FakePeers()),
            self._metrics,
            clock=lambda: self._now,
        )

    def tell(self, events: Iterable[Event]) -> None:
        """Posts events, in one batch; what is due is done by `wait`."""
        self.controller.handle(list(events))

    def wait(self, seconds: float) -> None:
        self._now += seconds
        self.controller.step()

    def settle(self, tries: int = 3) -> None:
        """Waits until everything is written. A failure is tried again within a minute."""
        for _ in range(tries):
            self.wait(100)
        assert not self.dataplane.dirty
