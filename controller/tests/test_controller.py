# SPDX-License-Identifier: Apache-2.0
"""The loop: when it syncs, when it waits, and what it says of itself; time is the test's own."""

import gc
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bpf.abi import MAPS, Frontend, FrontendFlag, FrontendKey
from bpf.address import packed
from bpf.pins import Pins
from bpf.settings import Settings
from controller.controller import Audited, Controller, Signal
from controller.dataplane import Dataplane
from controller.metrics import Metrics
from controller.mirror import NETWORK_MAPS
from controller.model import REQUIRED, EndpointSlice, Key, Kind, Node, Service
from controller.network import NodeNetwork
from controller.services import Compiled, HealthPort, Rules, compile_service
from controller.source import Event, Post, Problem, Problems, Synced
from controller.tests.fakes import FakeMaps
from controller.tests.objects import (
    changed,
    decoded_node,
    decoded_service,
    decoded_service_cidr,
    decoded_slice,
    endpoint,
    endpoint_slice,
    gone,
    node,
    served,
    service,
    service_cidr,
)

LISTED: list[Event] = [Synced(kind) for kind in REQUIRED]


class FakeNetwork:
    """A network in which everything succeeds at once; counts its syncs."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[bytes, bytes]] | None = None
        self.problems: list[Problem] = []
        self.failed = False
        self.eligible = True
        self.nodes: dict[str, Node | None] = {}
        self.syncs: list[bool] = []
        self.forgotten: list[bool] = []
        self.ranges: tuple[list[str], bool] | None = None

    def set_node(self, name: str, found: Node | None) -> bool:
        self.nodes[name] = found
        remotes = {bytes(20): bytes(48)} if found else {}
        self.entries = {**{name: {} for name in NETWORK_MAPS}, "remotes": remotes}
        self.eligible = found is not None
        return True

    def set_service_ranges(self, ranges: Iterable[str], all_known: bool) -> bool:
        before, self.ranges = self.ranges, (list(ranges), all_known)
        return self.ranges != before

    @property
    def node_count(self) -> int:
        return len(self.nodes)

    def forget(self, everything: bool = False) -> None:
        self.forgotten.append(everything)

    def sync(self, listed: bool) -> bool:
        self.syncs.append(listed)
        return self.failed


class QuietSource:
    """Posts nothing: the tests do."""

    def start(self, post: Post) -> None: ...

    def stop(self) -> None: ...


class Rig:
    """A controller over fakes, and the clock; `tell` posts events and lets it do what is due."""

    def __init__(self, run_dir: Path, maps: FakeMaps | None = None, **settings: Any) -> None:
        run_dir.mkdir(exist_ok=True)
        self.now = 100.0
        self.maps = maps or FakeMaps()
        self.network = FakeNetwork()
        self.metrics = Metrics(Pins(run_dir))
        self.run_dir = run_dir
        self.dataplane = Dataplane(self.maps)
        self.controller = Controller(
            Settings(run_dir=run_dir, sync_interval_ms=1000, **settings),
            QuietSource(),
            self.dataplane,
            cast(NodeNetwork, self.network),
            self.metrics,
            clock=lambda: self.now,
        )

    def tell(self, *events: Event) -> None:
        self.controller.handle(events)
        self.controller.step()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.controller.step()

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "controller.json").read_bytes())
        return found

    def served(self) -> dict[str, list[str]]:
        return served(self.maps.maps)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


WEB = changed(decoded_service(service()))
WEB_SLICE = changed(decoded_slice(endpoint_slice("s1", [endpoint("203.0.113.1")])))
OTHER_SLICE = changed(decoded_slice(endpoint_slice("s1", [endpoint("203.0.113.2")])))


@pytest.mark.parametrize("missing", REQUIRED)
def test_nothing_is_written_until_every_kind_is_listed(rig: Rig, missing: Kind) -> None:
    """One list that is late must not make another one's objects look gone."""
    rig.maps.maps["frontends"][bytes(20)] = bytes(MAPS["frontends"].value_size)
    rig.tell(WEB, *(Synced(kind) for kind in REQUIRED if kind != missing))
    rig.wait(100)
    assert rig.maps.written == 0
    assert rig.report()["waiting_for"] == [missing]
    rig.tell(Synced(missing))
    assert list(rig.served()) == ["198.51.100.1:80/6"]


def test_change_after_a_quiet_time_is_written_at_once(rig: Rig) -> None:
    """No timer stands between an event and the kernel."""
    rig.tell(WEB, WEB_SLICE, *LISTED)
    rig.now += 10
    rig.tell(OTHER_SLICE)
    assert rig.served() == {"198.51.100.1:80/6": ["203.0.113.2:8080"]}


def test_changes_in_quick_succession_are_written_together(rig: Rig) -> None:
    """The first at once, the others when the interval is over."""
    rig.tell(WEB, WEB_SLICE, *LISTED)
    rig.now += 10
    rig.tell(gone(decoded_slice(endpoint_slice("s1", []))))
    written = rig.maps.written
    for _ in range(5):
        rig.now += 0.1
        rig.tell(OTHER_SLICE)
        rig.tell(WEB_SLICE)
    assert rig.maps.written == written
    rig.wait(0.6)
    assert rig.served() == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}


def test_failed_sync_is_retried_later_and_later(rig: Rig) -> None:
    """Pending stays pending, the report names the error, and success clears it."""
    rig.maps.fail_reads = True
    rig.tell(WEB, WEB_SLICE, *LISTED)
    rig.wait(1)
    assert "bpftool is not installed" in rig.report()["errors"][0]
    assert not rig.report()["synced"]
    failures = rig.metrics.sync_failures._value.get()
    rig.wait(0.05)
    assert rig.metrics.sync_failures._value.get() == failures, "retried too early"
    rig.maps.fail_reads = False
    rig.wait(40)
    assert rig.served() == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    rig.wait(2)
    assert rig.report()["errors"] == []


def test_health_fails_when_a_change_waits_too_long(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason; it is well again when everything is in the kernel."""
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    rig.maps.fail_reads = True
    rig.tell(WEB, *LISTED)
    assert [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez", "/else")] == [503, 503, 404]
    rig.maps.fail_reads = False
    rig.wait(60)
    assert [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez")] == [200, 200]


def test_health_fails_when_the_loop_stands_still(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that nobody takes waits, too; one that asks for no write does not, once it was taken."""
    rig.tell(WEB, *LISTED)
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    for events in ([OTHER_SLICE], [Problems("a.yaml", ())]):
        rig.controller.post(events)
        assert rig.controller.health.answer("/livez")[0] == 503
        assert rig.controller._take()
        rig.wait(60)
        assert rig.controller.health.answer("/livez")[0] == 200


def test_healthz_fails_until_everything_was_written_once(rig: Rig) -> None:
    """With the API server away since the start, nothing is served here; a restart would not help."""

    def answers() -> list[int]:
        return [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez")]

    rig.tell(WEB)
    assert answers() == [503, 200]
    rig.tell(*LISTED)
    rig.wait(1)
    assert answers() == [200, 200]


def test_healthz_fails_until_the_network_was_in_order_once(rig: Rig) -> None:
    """A controller that may not attach programs serves nobody; one that fails later goes on with what there is."""
    rig.network.failed = True
    rig.tell(WEB, *LISTED)
    assert [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez")] == [503, 200]
    rig.network.failed = False
    rig.wait(60)
    assert rig.controller.health.answer("/healthz")[0] == 200
    rig.network.failed = True
    rig.controller.network_changed()
    rig.wait(60)
    assert rig.controller.health.answer("/healthz")[0] == 200


def test_garbage_is_collected_though_nothing_is_ever_listed(rig: Rig) -> None:
    """The API server is away for days: what its errors leave must not gather."""
    try:
        rig.controller.start()
        rig.wait(1)
        assert not gc.isenabled()
        rig.wait(60)
        assert gc.isenabled()
    finally:
        gc.enable()


def test_full_map_is_no_reason_to_restart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: what fits is in the kernel."""
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    rig.maps.capacities["frontends"] = 0
    rig.tell(WEB, *LISTED)
    rig.wait(100)
    assert rig.dataplane.pending
    assert rig.controller.health.answer("/livez")[0] == 200


def test_healthz_alone_fails_when_the_node_is_gone(rig: Rig) -> None:
    """Load balancers should leave; kubelet has no reason to restart the controller."""
    own = decoded_node(node("own", [], []))
    rig.tell(changed(own), *LISTED)
    rig.tell(gone(own))
    assert [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez")] == [503, 200]


def test_backends_that_go_are_told_of(rig: Rig) -> None:
    """Once everything is written first, and then each time that one is taken out of the maps, but not otherwise."""
    told = rig.controller.backends_gone
    rig.tell(WEB, WEB_SLICE, *LISTED)
    assert told.is_set()
    one, two = endpoint("203.0.113.1"), endpoint("203.0.113.2")
    for endpoints, expected in (([one, two], False), ([two], True)):
        told.clear()
        rig.now += 10
        rig.tell(changed(decoded_slice(endpoint_slice("s1", endpoints))))
        assert told.is_set() == expected


def test_zone_of_this_node_decides_by_hints(tmp_path: Path) -> None:
    """Its label may change, and a Node that is gone takes nothing along."""
    rig = Rig(tmp_path, node_name="own")
    hinted = [
        {**endpoint(address), "hints": {"forZones": [{"name": zone}]}}
        for address, zone in (("203.0.113.1", "east"), ("203.0.113.2", "west"))
    ]
    rig.tell(WEB, changed(decoded_slice(endpoint_slice("s1", hinted))), *LISTED)
    both = ["203.0.113.1:8080", "203.0.113.2:8080"]
    assert rig.served() == {"198.51.100.1:80/6": both}
    other, own = node("other", [], []), node("own", [], [])
    for labelled, zone, expected in ((other, "east", both), (own, "east", both[:1]), (own, "west", both[1:])):
        labelled["metadata"]["labels"] = {"topology.kubernetes.io/zone": zone}
        rig.now += 10
        rig.tell(changed(decoded_node(labelled)))
        assert rig.served() == {"198.51.100.1:80/6": expected}
    rig.now += 10
    rig.tell(gone(decoded_node(own)))
    assert rig.served() == {"198.51.100.1:80/6": both[1:]}


def test_health_port_is_there_when_the_service_is_written(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: a load balancer that hears of endpoints sends traffic at once."""
    asked: list[dict[Key, HealthPort | None]] = []
    monkeypatch.setattr("controller.healthports._Server", lambda *_: SimpleNamespace(change=asked.append))
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}
    rig.maps.fail_reads = True
    rig.tell(changed(decoded_service(service(**fields))), WEB_SLICE, *LISTED)
    assert not asked
    rig.maps.fail_reads = False
    rig.wait(60)
    assert asked == [{("shop", "web"): HealthPort(30999, {4: 0})}]
    rig.now += 10
    rig.tell(WEB)
    assert asked[1:] == [{("shop", "web"): None}]
    rig.now += 10
    rig.tell(OTHER_SLICE)
    assert len(asked) == 2, "what has no health port was told of"


def test_drift_found_by_the_audit_is_repaired_and_counted(rig: Rig) -> None:
    """By the next sync, without any event."""
    rig.tell(WEB, WEB_SLICE, *LISTED)
    rig.maps.maps["frontends"].clear()
    rig.now += 10
    rig.dataplane.record()
    rig.controller.handle(Audited(rig.dataplane.read_back()))
    rig.controller.step()
    assert rig.served() == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    assert rig.metrics.drift._value.get() == 2


def test_audit_looks_at_the_network_and_at_what_it_has_refused(rig: Rig) -> None:
    """The latter not with each word from the kernel."""
    rig.tell(*LISTED)
    rig.controller.handle(Signal.NETWORK)
    assert rig.network.forgotten == [False]
    rig.wait(300)
    assert rig.network.forgotten == [False, True]


def test_full_map_is_named_and_served_when_there_is_room(tmp_path: Path) -> None:
    """The Service that does not fit waits; the others are served."""
    rig = Rig(tmp_path)
    rig.maps.capacities["frontends"] = 2
    ports = [{"name": "smtp", "port": 25}, {"name": "imap", "port": 143}]
    mail = decoded_service(service("mail", ["198.51.100.2"], ports))
    rig.tell(changed(mail), WEB, *LISTED)
    assert list(rig.served()) == ["198.51.100.2:25/6", "198.51.100.2:143/6"]
    rig.wait(2)
    assert any("frontends_max" in line for line in rig.report()["errors"])
    rig.tell(gone(mail))
    rig.wait(1)
    rig.wait(1)
    assert list(rig.served()) == ["198.51.100.1:80/6"]
    rig.wait(2)
    assert rig.report()["errors"] == []
    assert rig.report()["synced"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("remotes", "raise remotes_max"),
        ("nodes", "too many nodes"),
        ("peers", "too many nodes"),
        ("devices", "too many devices lead to networks: those beside the underlay come last"),
    ],
)
def test_full_map_of_the_network_is_named_with_what_fills_it(tmp_path: Path, name: str, advice: str) -> None:
    """Not all of them by nodes."""
    rig = Rig(tmp_path)
    rig.maps.capacities[name] = 1
    key, value = bytes(MAPS[name].key_size - 1), bytes(MAPS[name].value_size)
    rig.network.entries = {one: {} for one in NETWORK_MAPS} | {name: {key + b"1": value, key + b"2": value}}
    rig.tell(*LISTED)
    rig.wait(2)
    assert rig.report()["errors"] == [f"map {name}: full: {advice}"]


def test_own_node_tells_whether_a_load_balancer_address_is_for_it(tmp_path: Path) -> None:
    """Whatever comes first, and also when its addresses change."""
    rig = Rig(tmp_path, node_name="own")
    made = service(type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"])
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
    rig.tell(changed(decoded_service(made)), *LISTED)
    for address, expected in (("192.0.2.1", True), ("203.0.113.1", False)):
        rig.tell(changed(decoded_node(node("other", ["203.0.113.7"], []))))
        rig.tell(changed(decoded_node(node("own", [address], []))))
        rig.wait(2)
        value = rig.maps.maps["frontends"][FrontendKey(packed("192.0.2.80"), 80, 6).pack()]
        assert bool(Frontend.unpack(value).flags & FrontendFlag.HOST_ALLOWED) == expected


def test_service_that_cannot_be_compiled_keeps_no_other_waiting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake of ours: it is named and logged, what was in force of that Service stays, and it is tried again when it
    changes."""
    rig.tell(WEB, WEB_SLICE, *LISTED)

    def fails(found: Service, slices: Iterable[EndpointSlice], rules: Rules) -> Compiled:
        if found.metadata.name == "web":
            raise ValueError("negative shift count")
        return compile_service(found, slices, rules)

    monkeypatch.setattr("controller.services.compile_service", fails)
    rig.now += 10
    rig.tell(OTHER_SLICE, changed(decoded_service(service("mail", ["198.51.100.2"]))))
    assert rig.served() == {"198.51.100.1:80/6": ["203.0.113.1:8080"], "198.51.100.2:80/6": []}
    assert rig.report()["errors"] == [
        "Service shop/web: stays as it was, its change could not be made sense of: ValueError: negative shift count"
    ]
    assert "in fails" in capsys.readouterr().out, "no traceback"
    monkeypatch.undo()
    rig.now += 10
    rig.tell(OTHER_SLICE)
    assert rig.served()["198.51.100.1:80/6"] == ["203.0.113.2:8080"]
    assert rig.report()["errors"] == []


@pytest.mark.parametrize("ends_well", [True, False], ids=["mended", "deleted"])
def test_service_that_cannot_be_compiled_at_start_stays_as_it_was(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_well: bool
) -> None:
    """What the maps hold of it, nobody knows to be its: so nothing goes that no other Service has, until it compiles
    or is gone. All else is written, and taken away, as ever."""
    old, mail, news = (
        changed(decoded_service(service(*one)))
        for one in (("old", ["198.51.100.2"]), ("mail", ["198.51.100.3"]), ("news", ["198.51.100.4"]))
    )
    rig.tell(WEB, WEB_SLICE, old, mail, *LISTED)
    web, left = {"198.51.100.1:80/6": ["203.0.113.1:8080"]}, {"198.51.100.2:80/6": list[str]()}
    mail_served, news_served = {"198.51.100.3:80/6": list[str]()}, {"198.51.100.4:80/6": list[str]()}

    def fails(found: Service, slices: Iterable[EndpointSlice], rules: Rules) -> Compiled:
        if found.metadata.name == "web":
            raise ValueError("negative shift count")
        return compile_service(found, slices, rules)

    monkeypatch.setattr("controller.services.compile_service", fails)
    again = Rig(tmp_path / "again", maps=rig.maps)
    again.tell(WEB, OTHER_SLICE, mail, news, *LISTED)
    assert again.served() == web | left | mail_served | news_served
    again.wait(2)
    assert again.report()["errors"] == [
        "Service shop/web: stays as it was, its change could not be made sense of: ValueError: negative shift count; "
        "until that can be, what no other Service has stays in the maps, too"
    ]
    again.maps.fail_after = 0
    again.tell(gone(decoded_service(service("news"))))
    for _ in range(2):
        again.wait(60)
    assert again.served() == web | left | mail_served | news_served, "a failed sync compares everything"
    again.tell(gone(decoded_service(service("mail"))))
    again.wait(2)
    assert again.served() == web | left | news_served
    again.dataplane.record()
    again.controller.handle(Audited(again.dataplane.read_back()))
    again.wait(2)
    assert again.served() == web | left | news_served
    assert again.metrics.drift._value.get() == 0
    monkeypatch.undo()
    again.tell(OTHER_SLICE if ends_well else gone(decoded_service(service())))
    again.wait(2)
    assert again.served() == ({"198.51.100.1:80/6": ["203.0.113.2:8080"]} if ends_well else {})
    assert again.report()["errors"] == []
    assert len(again.maps.maps["backends"]) == ends_well


def test_service_for_clients_of_ipv4_in_the_form_of_ipv6_is_named_and_shut(tmp_path: Path) -> None:
    """A key of the maps it cannot be."""
    rig = Rig(tmp_path, node_name="own")
    made = service(type="LoadBalancer", loadBalancerSourceRanges=["::ffff:10.0.0.0/104"])
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}, {"ip": "2001:db8::80"}]}}
    made["spec"]["clusterIPs"] = ["198.51.100.1", "2001:db8:5::1"]
    rig.tell(
        changed(decoded_node(node("own", ["192.0.2.1", "2001:db8::1"], []))), changed(decoded_service(made)), *LISTED
    )
    for address in ("192.0.2.80", "2001:db8::80"):
        value = rig.maps.maps["frontends"][FrontendKey(packed(address), 80, 6).pack()]
        assert Frontend.unpack(value).flags & FrontendFlag.SOURCES
    assert not rig.maps.maps["sources"]
    rig.wait(2)
    assert rig.report()["errors"] == [
        "Service shop/web: loadBalancerSourceRanges: ::ffff:10.0.0.0/104 is IPv4 in the form of IPv6: write 10.0.0.0/8"
    ]


def test_services_with_the_same_address_are_named(rig: Rig) -> None:
    """Two that contradict each other: the first by name is served."""
    other = changed(decoded_service(service("aaa")))
    rig.tell(WEB, other, *LISTED)
    rig.wait(2)
    assert rig.report()["errors"] == [
        "Service shop/web: 198.51.100.1 port 80/TCP: of Service shop/aaa as well, which is used"
    ]


@pytest.mark.parametrize("first", ["aaa", "web"])
def test_cluster_ip_is_nobody_elses_external_ip(rig: Rig, first: str) -> None:
    """Who may write Services cannot take another's traffic, whatever the names, and whoever comes first."""
    theirs = changed(decoded_service(service("aaa", ["198.51.100.7"], externalIPs=["198.51.100.1"])))
    rig.tell(*((theirs, WEB) if first == "aaa" else (WEB, theirs)), *LISTED)
    rig.wait(2)
    assert rig.report()["errors"] == [
        "Service shop/aaa: 198.51.100.1 port 80/TCP: of Service shop/web as well, which is used"
    ]
    value = rig.maps.maps["frontends"][FrontendKey(packed("198.51.100.1"), 80, 6).pack()]
    assert Frontend.unpack(value).flags & FrontendFlag.CLUSTER_IP


def test_problems_are_reported_with_file_and_line_until_solved(rig: Rig) -> None:
    """As `calico-ebpf status` shows them."""
    rig.tell(Problems("a.yaml", (Problem("Service shop/a", "no kind", "a.yaml", 7),)), *LISTED)
    assert rig.report()["errors"] == ["a.yaml:7: Service shop/a: no kind"]
    rig.now += 2
    rig.tell(Problems("a.yaml", ()))
    assert rig.report()["errors"] == []


def test_ranges_of_services_are_reported_with_who_is_in_their_way(rig: Rig) -> None:
    """Also by those that come later; nothing waits for them to be listed."""
    rig.tell(changed(decoded_node(node("far", ["192.0.2.2"], ["203.0.113.0/24"]))), *LISTED)
    rig.wait(2)
    assert (rig.report()["service_ranges"], rig.report()["errors"]) == ([], [])
    rig.tell(changed(decoded_service_cidr(service_cidr("kubernetes", "203.0.112.0/20", "2001:db8:5::/64"))))
    rig.wait(2)
    assert rig.report()["service_ranges"] == ["203.0.112.0/20", "2001:db8:5::/64"]
    assert len(rig.report()["errors"]) == 1
    rig.tell(gone(decoded_service_cidr(service_cidr("kubernetes"))))
    rig.wait(2)
    assert (rig.report()["service_ranges"], rig.report()["errors"]) == ([], [])


def test_ranges_of_services_are_enforced_once_services_are_written(rig: Rig) -> None:
    """Those of ServiceCIDRs are all only when these have been listed."""
    kubernetes = decoded_service_cidr(service_cidr("kubernetes", "203.0.112.0/20"))
    rig.tell(changed(kubernetes), *LISTED[1:])
    rig.wait(2)
    assert rig.network.ranges is None
    rig.tell(WEB, LISTED[0])
    assert (rig.served(), rig.network.ranges) == ({"198.51.100.1:80/6": []}, (["203.0.112.0/20"], False))
    rig.tell(Synced(Kind.SERVICE_CIDR))
    assert rig.network.ranges == (["203.0.112.0/20"], True)
    rig.tell(gone(kubernetes))
    assert rig.network.ranges == ([], True)


def test_ranges_of_the_settings_are_enforced_besides(tmp_path: Path) -> None:
    """For an API server that has no ServiceCIDRs, and beside those of one that has."""
    rig = Rig(tmp_path, service_cidrs=("198.51.100.0/24",))
    rig.tell(*LISTED, Synced(Kind.SERVICE_CIDR))
    assert rig.network.ranges == (["198.51.100.0/24"], True)
    rig.tell(changed(decoded_service_cidr(service_cidr("kubernetes", "203.0.112.0/20"))))
    assert rig.network.ranges == (["198.51.100.0/24", "203.0.112.0/20"], True)


def test_network_entry_that_the_kernel_refuses_keeps_services_and_health_going(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: a restart takes nothing from it. It is named, tried again later and later, and gone when taken."""
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    key, value = bytes(MAPS["nodes"].key_size), bytes(MAPS["nodes"].value_size)
    rig.maps.refused.add(key)
    rig.network.entries = {name: {} for name in NETWORK_MAPS} | {"nodes": {key: value}}
    rig.tell(WEB, WEB_SLICE, *LISTED)
    assert rig.controller.backends_gone.is_set()
    failures = rig.metrics.sync_failures._value
    tries = []
    for second in range(240):
        before = failures.get()
        rig.wait(1)
        tries += [second] if failures.get() > before else []
    assert 6 < len(tries) < 14
    assert tries[1] - tries[0] < 4
    assert 25 < tries[-1] - tries[-2] < 40
    for moved in (OTHER_SLICE, WEB_SLICE):
        before = failures.get()
        while failures.get() == before:  # the worst moment: one try is over, and has failed
            rig.wait(0.5)
        rig.tell(moved)
        rig.wait(1)
        rig.wait(1)
        assert rig.served() == {"198.51.100.1:80/6": [f"203.0.113.{2 if moved is OTHER_SLICE else 1}:8080"]}
    assert [rig.controller.health.answer(path)[0] for path in ("/healthz", "/livez")] == [200, 200]
    report = rig.report()
    assert (report["last_sync"] is None, report["synced"]) == (False, False)
    (error,) = report["errors"]
    assert error.startswith("map nodes: not all of it could be written: Invalid argument")
    rig.wait(60)
    assert rig.network.forgotten == [True], "no audit"
    rig.maps.refused.clear()
    rig.wait(60)
    assert rig.maps.maps["nodes"] == {key: value}
    rig.wait(2)
    assert (rig.report()["errors"], rig.report()["synced"]) == ([], True)


def test_report_is_written_once_a_second_at_most(rig: Rig) -> None:
    """And not at all while nothing changes."""
    rig.tell(*LISTED)
    first = rig.report()["written"]
    rig.now += 0.5
    rig.tell(WEB)
    assert rig.report()["written"] == first
    rig.wait(1)
    assert rig.report()["objects"]["Service"] == 1
    second = rig.report()["written"]
    rig.wait(10)
    assert rig.report()["written"] == second


def test_network_is_synced_when_nodes_or_devices_change(rig: Rig) -> None:
    """Before Nodes are listed nothing is taken away."""
    rig.controller.step()
    assert rig.network.syncs == [False]
    rig.now += 1
    rig.tell(changed(decoded_node(node("n", [], []))), *LISTED)
    assert rig.network.syncs == [False, True]
    assert rig.maps.maps["remotes"]
    rig.now += 1
    rig.controller.handle(Signal.NETWORK)
    rig.controller.step()
    assert rig.network.syncs == [False, True, True]


def test_remotes_stay_while_the_network_cannot_be_read(rig: Rig) -> None:
    """A restart whose first look at devices fails must not cut this node off from the others."""
    rig.maps.maps["remotes"][bytes(20)] = bytes(48)
    rig.network.failed = True
    rig.tell(WEB, *LISTED)
    assert list(rig.served()) == ["198.51.100.1:80/6"]
    assert rig.maps.maps["remotes"]
    rig.network.failed = False
    rig.network.entries = {name: {} for name in NETWORK_MAPS}
    rig.wait(60)
    assert not rig.maps.maps["remotes"]
