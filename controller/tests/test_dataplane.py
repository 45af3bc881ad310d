# SPDX-License-Identifier: Apache-2.0
"""The difference between desired and kernel: property tests over histories, failures, restarts and full maps."""

from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf.abi import (
    MAPS,
    Backend,
    BackendFlag,
    BackendKey,
    Frontend,
    FrontendFlag,
    FrontendKey,
    HostPort,
    MaglevKey,
    Slot,
    SlotKey,
    SourceKey,
    StateIndex,
)
from bpf.address import packed
from bpf.errors import BpftoolError
from controller.dataplane import Dataplane
from controller.maps import Op
from controller.mirror import NETWORK_MAPS
from controller.plan import arrange
from controller.services import Rules, ServiceTracker
from controller.source import Changed
from controller.sourceranges import holds
from controller.tests.fakes import FakeMaps
from controller.tests.objects import (
    all_compiled,
    changed,
    cluster_ips,
    decoded_service,
    decoded_slice,
    endpoint,
    endpoint_slice,
    gone,
    is_port,
    places,
    served,
    service,
    shown_frontend,
)

RULES = Rules("own", echo=False)
MAGLEV = FrontendFlag.MAGLEV
SERVICES = ("mail", "news", "web")
PODS = tuple(f"203.0.113.{number}" for number in range(1, 6))
LOCAL_PODS = {packed(pod) for pod in PODS[:3]}


class Rig:
    """Trackers and data plane over the same maps; `restart` begins anew, as a killed controller does."""

    def __init__(self, maps: FakeMaps) -> None:
        self.maps = maps
        self.objects: dict[tuple[object, object], Changed] = {}
        self._begin()

    def _begin(self) -> None:
        self.tracker = ServiceTracker(RULES)
        self.dataplane = Dataplane(self.maps)
        self.dataplane.set_network({name: {} for name in NETWORK_MAPS})

    def apply(self, event: Changed) -> None:
        self.objects[event.kind, event.key] = event
        self.tracker.apply(event)

    def sync(self) -> None:
        for key, compiled in all_compiled(self.tracker):
            self.dataplane.set_service(key, compiled.pools)
        self.dataplane.sync()

    def restart(self) -> None:
        self._begin()
        for event in self.objects.values():
            self.tracker.apply(event)


class Step(NamedTuple):
    """One thing that happens; `what` is an event's making, or sync, restart, or a failure after so many writes."""

    what: str
    event: Changed | None = None
    number: int = 0


def _services() -> st.SearchStrategy[Changed]:
    ips = st.lists(st.sampled_from(["198.51.100.1", "198.51.100.2"]), min_size=1, max_size=1)
    ports = st.lists(st.sampled_from([80, 443]), min_size=1, max_size=2, unique=True)
    made = st.builds(
        lambda name, addresses, numbers: decoded_service(
            service(name, addresses, [{"name": f"p{number}", "port": number} for number in numbers])
        ),
        st.sampled_from(SERVICES),
        ips,
        ports,
    )
    return st.one_of(made.map(changed), made.map(gone))


def _slices() -> st.SearchStrategy[Changed]:
    endpoints = st.lists(
        st.builds(
            lambda address, ready: {**_on_its_node(address), "conditions": {"ready": ready}},
            st.sampled_from(PODS),
            st.booleans(),
        ),
        max_size=4,
    )
    ports = st.lists(st.sampled_from([80, 443]), max_size=2, unique=True)
    made = st.builds(
        lambda name, items, owner, numbers: decoded_slice(
            endpoint_slice(name, items, owner, [{"name": f"p{number}", "port": 8000 + number} for number in numbers])
        ),
        st.sampled_from(["s1", "s2", "s3", "s4"]),
        endpoints,
        st.sampled_from(SERVICES),
        ports,
    )
    return st.one_of(made.map(changed), made.map(changed), made.map(gone))


def _steps() -> st.SearchStrategy[list[Step]]:
    events = st.one_of(_services(), _slices()).map(lambda event: Step("event", event))
    others = st.one_of(
        st.just(Step("sync")),
        st.just(Step("restart")),
        st.integers(0, 12).map(lambda number: Step("fail", None, number)),
    )
    return st.lists(st.one_of(events, events, others), max_size=40)


def _live(rig: Rig, steps: Iterable[Step]) -> None:
    for step in steps:
        if step.event:
            rig.apply(step.event)
        elif step.what == "restart":
            rig.restart()
        elif step.what == "fail":
            rig.maps.fail_after = step.number
            with suppress(BpftoolError):
                rig.sync()
            rig.maps.fail_after = None
        else:
            rig.sync()
    rig.sync()


def _shown(maps: FakeMaps) -> tuple[dict[str, list[str]], set[str]]:
    """What is served, and whose other ports are refused."""
    return served(maps.maps), cluster_ips(maps.maps)


def _fresh(rig: Rig) -> tuple[dict[str, list[str]], set[str]]:
    """What the final objects alone come to."""
    other = Rig(FakeMaps())
    for event in rig.objects.values():
        other.apply(event)
    other.sync()
    return _shown(other.maps)


def _assert_no_leftovers(maps: FakeMaps) -> None:
    slots = {Slot.unpack(value).backend_id for value in maps.maps["slots"].values()}
    assert {BackendKey.unpack(key).backend_id for key in maps.maps["backends"]} == slots
    assert len(slots) == len(maps.maps["slots"]), "two slots share a backend's id"
    assert 0 not in slots
    assert len(maps.maps["slots"]) == sum(map(len, served(maps.maps).values())), "slots that no frontend leads to"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_steps())
def test_maps_after_any_history_equal_those_of_the_final_objects(steps: list[Step]) -> None:
    """Whatever happened, restarts and failures included, the maps end as if only the final objects had ever been."""
    rig = Rig(FakeMaps())
    _live(rig, steps)
    assert _shown(rig.maps) == _fresh(rig)
    if not rig.dataplane.contested():
        _assert_no_leftovers(rig.maps)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.permutations(["198.51.100.1", "198.51.100.2"]),
            st.lists(st.booleans(), min_size=2, max_size=2),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_services_that_swap_frontend_and_backends_are_served(moves: list[tuple[list[str], list[bool], bool]]) -> None:
    """Two Services with the same endpoints take each other's address, come and go, in one sync or in several."""
    rig = Rig(FakeMaps())
    names = ("a", "b")
    for name in names:
        rig.apply(changed(decoded_slice(endpoint_slice(name, [endpoint(one) for one in PODS[:2]], name))))
    for addresses, present, sync in moves:
        for name, address, there in zip(names, addresses, present, strict=True):
            rig.apply((changed if there else gone)(decoded_service(service(name, [address]))))
        if sync:
            rig.sync()
    rig.sync()
    assert _shown(rig.maps) == _fresh(rig)
    _assert_no_leftovers(rig.maps)
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_steps())
def test_restart_with_unchanged_input_writes_nothing(steps: list[Step]) -> None:
    """Ids are taken over: a controller that finds the maps right writes not one line."""
    rig = Rig(FakeMaps())
    _live(rig, steps)
    written = rig.maps.written
    rig.restart()
    rig.sync()
    if not rig.dataplane.contested():
        assert rig.maps.written == written


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_steps(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_full_map_serves_what_fits_and_the_rest_once_there_is_room(
    steps: list[Step], backends: int, slots: int, frontends: int
) -> None:
    """Too small a map never stops a sync; with room again, everything is served."""
    maps = FakeMaps(backends=backends, slots=slots, frontends=frontends)
    rig = Rig(maps)
    _live(rig, steps)
    wanted = _fresh(rig)
    for frontend, found in served(maps.maps).items():
        assert set(found) <= set(wanted[0][frontend])
    if not rig.dataplane.short:
        assert _shown(maps) == wanted
    maps.capacities |= {"backends": 100, "slots": 100, "frontends": 100}
    rig.restart()
    rig.sync()
    assert _shown(maps) == wanted


@given(
    st.lists(st.integers(1, 9), unique=True),
    st.lists(st.integers(1, 9), unique=True),
    st.lists(st.integers(0, 9), min_size=2, max_size=2).map(sorted),
)
def test_arrange_keeps_what_stays_in_its_slot(current: list[int], wanted: list[int], borders: list[int]) -> None:
    """The result holds exactly what is wanted, part after part, and writes no slot that could have stayed."""
    parts = wanted[: borders[0]], wanted[borders[0] : borders[1]], wanted[borders[1] :]
    slots = arrange(current, *parts)
    start = 0
    for part in parts:
        end = start + len(part)
        assert sorted(slots[start:end]) == sorted(part)
        for before, after in zip(current[start:end], slots[start:end], strict=False):
            assert before == after or before not in part
        start = end


class JudgedMaps(FakeMaps):
    """Also judges, after each single write, that a frontend's local slots lead to backends of this node alone, and that
    it has others for who may have any."""

    def _run(self, op: Op) -> None:
        super()._run(op)
        for frontend in map(Frontend.unpack, self.maps["frontends"].values()):
            assert frontend.local_count <= frontend.slot_count
            assert frontend.cluster_start < frontend.slot_count or not frontend.slot_count
            assert _addresses(self, frontend, 0, frontend.local_count) <= LOCAL_PODS


def _addresses(maps: FakeMaps, frontend: Frontend, start: int, end: int) -> set[bytes]:
    slots = (maps.maps["slots"][SlotKey(frontend.service_id, index).pack()] for index in range(start, end))
    backends = (maps.maps["backends"][BackendKey(Slot.unpack(slot).backend_id).pack()] for slot in slots)
    return {Backend.unpack(backend).address for backend in backends}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(PODS), st.booleans()), min_size=1, max_size=8))
def test_both_sets_are_whole_and_the_local_one_is_local_at_every_step(histories: list[dict[str, bool]]) -> None:
    """However a Service's endpoints come, terminate and go, no slot is unfilled, and no local one another node's."""
    rig = Rig(JudgedMaps())
    rig.apply(changed(decoded_service(service(internalTrafficPolicy="Local"))))
    for ready_of in histories:
        endpoints = [
            {**_on_its_node(pod), "conditions": {"ready": ready, "serving": True, "terminating": not ready}}
            for pod, ready in sorted(ready_of.items())
        ]
        rig.apply(changed(decoded_slice(endpoint_slice("s1", endpoints))))
        rig.sync()
        (frontend,) = (Frontend.unpack(value) for key, value in rig.maps.maps["frontends"].items() if is_port(key))
        here = {pod: ready for pod, ready in ready_of.items() if packed(pod) in LOCAL_PODS}
        assert _addresses(rig.maps, frontend, 0, frontend.local_count) == _usable(here)
        assert _addresses(rig.maps, frontend, frontend.cluster_start, frontend.slot_count) == _usable(ready_of)
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 0


def _usable(ready_of: dict[str, bool]) -> set[bytes]:
    """The ready ones; where there are none, those that terminate."""
    return {packed(pod) for pod, ready in ready_of.items() if ready or not any(ready_of.values())}


class GuardedMaps(FakeMaps):
    """Also notes, after each single write, which of CLIENTS may use the load-balancer address; None: there is none."""

    def __init__(self, **capacities: int) -> None:
        super().__init__(**capacities)
        self.admitted: list[frozenset[str] | None] = []

    def _run(self, op: Op) -> None:
        super()._run(op)
        self.admitted.append(self.admits())

    def admits(self) -> frozenset[str] | None:
        value = self.maps["frontends"].get(BALANCED.pack())
        if value is None:
            return None
        if not Frontend.unpack(value).flags & FrontendFlag.SOURCES:
            return frozenset(CLIENTS)
        keys = [SourceKey.unpack(key) for key in self.maps["sources"]]
        ranges = [(key.prefix_bits - 160, key.address) for key in keys if key.frontend == BALANCED]
        return frozenset(client for client in CLIENTS if holds(ranges, packed(client)))


BALANCED = FrontendKey(packed("192.0.2.80"), 80, 6)
CLIENTS = ("203.0.113.1", "203.0.113.2", "203.0.113.130", "192.0.2.1")
RANGES = ("203.0.113.0/24", "203.0.113.0/25", "203.0.113.1/32", "203.0.113.2/32", "192.0.2.0/24", "0.0.0.0/0")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(RANGES), max_size=3), st.booleans()), max_size=8))
def test_clients_are_judged_by_the_old_ranges_or_the_new_at_every_step(
    history: list[tuple[bool, set[str], bool]],
) -> None:
    """Nobody gets in who is in neither, nor is kept out who is in both; no range is left of a frontend that is gone."""
    maps = GuardedMaps()
    rig = Rig(maps)
    for there, ranges, restart in history:
        made = service(type="LoadBalancer", loadBalancerSourceRanges=sorted(ranges))
        made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
        rig.apply((changed if there else gone)(decoded_service(made)))
        if restart:
            rig.restart()
        before, maps.admitted = maps.admits(), []
        rig.sync()
        now = maps.admits()
        networks = [ip_network(one) for one in ranges or {"0.0.0.0/0"}]
        wanted = frozenset(one for one in CLIENTS if any(ip_address(one) in network for network in networks))
        assert now == (wanted if there else None)
        if before is not None and now is not None:
            assert all(between is not None and before & now <= between <= before | now for between in maps.admitted)
        else:
            assert all(between in (before, now) for between in maps.admitted)
        rig.dataplane.record()
        assert rig.dataplane.audit(rig.dataplane.read_back()) == 0
        assert there or not maps.maps["sources"]


def test_sources_full_keep_the_address_from_the_others() -> None:
    """Not all ranges fit: those that do are served, and the map is named; it never opens the address."""
    maps = GuardedMaps(sources=1)
    rig = Rig(maps)
    made = service(type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.1/32", "203.0.113.2/32"])
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
    rig.apply(changed(decoded_service(made)))
    rig.sync()
    assert maps.admits() == {"203.0.113.1"}
    assert set(rig.dataplane.short.values()) == {"sources"}
    made["spec"]["loadBalancerSourceRanges"] = ["203.0.113.2/32"]
    rig.apply(changed(decoded_service(made)))
    rig.sync()
    rig.dataplane.retry_short()
    rig.sync()
    assert maps.admits() == {"203.0.113.2"}
    assert not rig.dataplane.short


def test_drift_of_sources_is_repaired() -> None:
    """A range that somebody else has written lets nobody in for long."""
    maps = GuardedMaps()
    rig = Rig(maps)
    made = service(type="LoadBalancer", loadBalancerSourceRanges=["203.0.113.1/32"])
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
    rig.apply(changed(decoded_service(made)))
    rig.sync()
    stray = SourceKey(160 + 96, BALANCED, packed("0.0.0.0"))
    elsewhere = stray._replace(frontend=BALANCED._replace(port=81))
    for key in (stray, elsewhere):
        maps.maps["sources"][key.pack()] = bytes(4)
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 2
    rig.dataplane.sync()
    assert maps.admits() == {"203.0.113.1"}
    assert len(maps.maps["sources"]) == 1


def test_last_local_backend_is_kept_for_those_who_ask_for_one() -> None:
    """It ends, while another node has a ready one: it goes on in the Local set, and never does the other node's backend
    move into the slot of those who ask for a local one."""
    rig = Rig(JudgedMaps())
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    rig.apply(changed(decoded_service(service(type="NodePort", externalTrafficPolicy="Local", ports=ports))))
    for conditions in ({}, {"ready": False, "serving": True, "terminating": True}):
        here, elsewhere = _on_its_node(PODS[0]), _on_its_node(PODS[4])
        rig.apply(changed(decoded_slice(endpoint_slice("s1", [{**here, "conditions": conditions}, elsewhere]))))
        rig.sync()
    both = ["203.0.113.1:8080", "203.0.113.5:8080"]
    assert served(rig.maps.maps) == {"198.51.100.1:80/6": both, "0.0.0.0:30080/6": both}
    found = Frontend.unpack(rig.maps.maps["frontends"][FrontendKey(packed("0.0.0.0"), 30080, 6).pack()])
    assert (found.local_count, found.cluster_start) == (1, 1)


def test_backend_that_only_its_node_uses_any_more_keeps_its_id() -> None:
    """By which its flows and sockets know that it still serves; a flag tells that it is apart."""
    rig = Rig(JudgedMaps())
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    rig.apply(changed(decoded_service(service(type="NodePort", externalTrafficPolicy="Local", ports=ports))))
    seen = []
    for conditions in ({}, {"ready": False, "serving": True, "terminating": True}, {}):
        here, elsewhere = _on_its_node(PODS[0]), _on_its_node(PODS[4])
        rig.apply(changed(decoded_slice(endpoint_slice("s1", [{**here, "conditions": conditions}, elsewhere]))))
        rig.sync()
        found = {key: Backend.unpack(value) for key, value in rig.maps.maps["backends"].items()}
        seen.append({backend.address: (key, backend.flags) for key, backend in found.items()})
    apart = {packed(PODS[0]): (seen[0][packed(PODS[0])][0], BackendFlag.APART)}
    assert seen == [seen[0], seen[0] | apart, seen[0]]


def _on_its_node(pod: str) -> dict[str, object]:
    return {**endpoint(pod), "nodeName": "own" if packed(pod) in LOCAL_PODS else "other"}


def _rig_with(addresses: Iterable[str]) -> Rig:
    rig = Rig(FakeMaps())
    rig.apply(changed(decoded_service(service())))
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(address) for address in addresses]))))
    rig.sync()
    return rig


def test_endpoint_replaced_writes_backend_slot_and_removal_only() -> None:
    """One endpoint of many costs three lines, however many there are."""
    rig = _rig_with([f"203.0.113.{number}" for number in range(1, 101)])
    written = rig.maps.written
    others = [endpoint(f"203.0.113.{number}") for number in range(2, 101)]
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [*others, endpoint("203.0.113.200")]))))
    rig.sync()
    assert rig.maps.written - written == 3


def test_session_affinity_is_switched_by_the_frontend_alone() -> None:
    """Ids stay, which clients' affinities name: neither a switch nor a restart gives them other backends."""
    rig = _rig_with(PODS)
    before = {name: dict(entries) for name, entries in rig.maps.maps.items()}
    for fields, affinity_s in (({"sessionAffinity": "ClientIP"}, 10800), ({}, 0)):
        written = rig.maps.written
        rig.apply(changed(decoded_service(service(**fields))))
        rig.sync()
        assert rig.maps.written - written == 1
        value = rig.maps.maps["frontends"][FrontendKey(packed("198.51.100.1"), 80, 6).pack()]
        assert Frontend.unpack(value).affinity_s == affinity_s
        rig.restart()
        rig.sync()
        assert rig.maps.written - written == 1
    assert rig.maps.maps == before


def test_service_without_endpoints_keeps_a_frontend_with_no_slots() -> None:
    """So that its clients are refused instead of left to wait."""
    rig = _rig_with([])
    assert served(rig.maps.maps) == {"198.51.100.1:80/6": []}


def test_drift_in_every_map_is_counted_and_repaired() -> None:
    """What somebody else changed in the maps is found by the audit and put right by the next sync."""
    rig = _rig_with(PODS)
    maps = rig.maps.maps
    before = {name: dict(entries) for name, entries in maps.items()}
    rig.maps.damaged = True
    slot = SlotKey.unpack(next(iter(maps["slots"])))
    del maps["slots"][slot.pack()]
    maps["slots"][SlotKey(slot.service_id, 9_000_000).pack()] = Slot(1).pack()
    maps["slots"][SlotKey(4711, 0).pack()] = Slot(4711).pack()
    maps["backends"][BackendKey(4711).pack()] = bytes(20)
    maps["frontends"][bytes(20)] = bytes(MAPS["frontends"].value_size)
    maps["remotes"][bytes(20)] = bytes(48)
    maps["peers"][bytes(8)] = bytes(16)
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 7
    rig.sync()
    assert served(maps) == served(before)
    assert maps["remotes"] == before["remotes"]
    _assert_no_leftovers(rig.maps)


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("b", "a")])
def test_service_that_takes_over_an_address_has_its_slots(old: str, new: str) -> None:
    """Renamed with a fixed clusterIP: one is gone and the other there in the same sync, in either order of names."""
    rig = Rig(FakeMaps())
    for name in (old, new):
        rig.apply(changed(decoded_slice(endpoint_slice(name, [endpoint(PODS[0])], name))))
    rig.apply(changed(decoded_service(service(old))))
    rig.sync()
    rig.apply(gone(decoded_service(service(old))))
    rig.apply(changed(decoded_service(service(new))))
    rig.sync()
    assert served(rig.maps.maps) == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    _assert_no_leftovers(rig.maps)


def test_backend_of_two_services_has_an_id_for_each() -> None:
    """One Service drops it, the other keeps it: the id that the first one's flows know is gone."""
    rig = _rig_with(PODS[:1])
    (first,) = rig.maps.maps["backends"]
    rig.apply(changed(decoded_service(service("mail", ["198.51.100.2"]))))
    rig.apply(changed(decoded_slice(endpoint_slice("s2", [endpoint(PODS[0])], "mail"))))
    rig.sync()
    assert len(rig.maps.maps["backends"]) == 2
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(PODS[1])]))))
    rig.sync()
    assert first not in rig.maps.maps["backends"]
    assert served(rig.maps.maps)["198.51.100.2:80/6"] == ["203.0.113.1:8080"]


def test_ids_that_services_share_are_parted() -> None:
    """As an earlier version left them: a restart gives each Service its own, while both are served throughout."""
    rig = _rig_with(PODS[:1])
    rig.apply(changed(decoded_service(service("mail", ["198.51.100.2"]))))
    rig.apply(changed(decoded_slice(endpoint_slice("s2", [endpoint(PODS[0])], "mail"))))
    rig.sync()
    slots, backends = rig.maps.maps["slots"], rig.maps.maps["backends"]
    one, other = slots
    del backends[slots[other]]
    slots[other] = slots[one]
    rig.restart()
    rig.sync()
    assert len(backends) == 2
    _assert_no_leftovers(rig.maps)


def test_audit_repairs_what_the_mirror_takes_for_right() -> None:
    """Kernel and mirror agree, and are wrong: what is desired decides."""
    rig = _rig_with(PODS)
    before = served(rig.maps.maps)
    rig.maps.damaged = True
    slots = rig.maps.maps["slots"]
    for key in list(slots):
        del slots[key]
        assert rig.dataplane._mirror
        rig.dataplane._mirror.apply([Op("slots", key, None)])
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back())
    rig.sync()
    assert served(rig.maps.maps) == before


def test_audit_beside_a_change_finds_no_drift() -> None:
    """What the controller writes while the maps are read is no drift, read before or after."""
    rig = _rig_with(PODS)
    rig.dataplane.record()
    early = rig.dataplane.read_back()
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(PODS[0])]))))
    rig.sync()
    assert rig.dataplane.audit(early) == 0


def test_audit_after_a_failed_sync_says_nothing() -> None:
    """A failed sync reads everything again by itself."""
    rig = _rig_with(PODS)
    rig.dataplane.record()
    found = rig.dataplane.read_back()
    rig.maps.fail_after = 0
    rig.apply(changed(decoded_slice(endpoint_slice("s1", []))))
    with pytest.raises(BpftoolError):
        rig.sync()
    assert rig.dataplane.audit(found) is None


HOST_PORT_ID = HostPort.IDS + 7


def _host_port(address: str, port: int) -> dict[str, tuple[bytes, bytes]]:
    """A host port's entries, as the CNI plugin writes them."""
    flags = FrontendFlag.EXTERNAL | FrontendFlag.HOST_PORT
    return {
        "backends": (BackendKey(HOST_PORT_ID).pack(), Backend(packed("203.0.113.77"), 53, 6, 0).pack()),
        "slots": (SlotKey(HOST_PORT_ID, 0).pack(), Slot(HOST_PORT_ID).pack()),
        "frontends": (FrontendKey(packed(address), port, 6).pack(), Frontend(HOST_PORT_ID, 1, 1, 0, flags, 0).pack()),
    }


def _enter(rig: Rig, entries: dict[str, tuple[bytes, bytes]]) -> None:
    for name, (key, value) in entries.items():
        rig.maps.maps[name][key] = value


def _holds(rig: Rig, entries: dict[str, tuple[bytes, bytes]]) -> bool:
    return all(rig.maps.maps[name].get(key) == value for name, (key, value) in entries.items())


def test_host_ports_are_passed_over_by_syncs_restarts_and_audits() -> None:
    """They are the CNI plugin's: neither drift nor leftovers, whenever they came."""
    rig, entries = _rig_with(PODS), _host_port("0.0.0.0", 8053)
    _enter(rig, entries)
    for _ in range(2):
        rig.dataplane.record()
        assert rig.dataplane.audit(rig.dataplane.read_back()) == 0
        rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(PODS[0])]))))
        rig.sync()
        assert _holds(rig, entries)
        rig.restart()
        rig.sync()
        assert _holds(rig, entries)
    rig.apply(gone(decoded_service(service())))
    rig.sync()
    assert _holds(rig, entries)


def test_host_ports_take_room() -> None:
    """They are counted with the rest, as soon as an audit has seen them."""
    rig = _rig_with(PODS[:1])
    _enter(rig, _host_port("0.0.0.0", 8053))
    rig.dataplane.record()
    rig.dataplane.audit(rig.dataplane.read_back())
    sizes = rig.dataplane.sizes()
    assert [sizes[name][0] for name in ("frontends", "slots", "backends")] == [3, 2, 2]
    rig.maps.capacities |= {"backends": 3}
    rig.restart()
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(pod) for pod in PODS]))))
    rig.sync()
    assert list(rig.dataplane.short.values()) == ["backends"]
    assert len(rig.maps.maps["backends"]) == 3


def test_service_takes_an_address_from_a_host_port_and_gives_it_back() -> None:
    """It comes first, as with kube-proxy; a host port that has overwritten it is found by the audit."""
    entries = _host_port("198.51.100.1", 80)
    key, value = entries["frontends"]
    rig = Rig(FakeMaps())
    _enter(rig, entries)
    rig.apply(changed(decoded_service(service())))
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(PODS[0])]))))
    rig.sync()
    assert served(rig.maps.maps) == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    rig.maps.maps["frontends"][key] = value
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 1
    rig.sync()
    assert served(rig.maps.maps) == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    rig.apply(gone(decoded_service(service())))
    rig.sync()
    assert key not in rig.maps.maps["frontends"]
    assert _holds(rig, {name: entries[name] for name in ("slots", "backends")})


def test_ids_of_host_ports_are_never_given_to_services() -> None:
    """Those of the controller begin anew below them, also where an earlier version has gone further."""
    for reserved in (HostPort.IDS - 2, HostPort.IDS - 1, HostPort.IDS + 4096):
        rig = Rig(FakeMaps())
        for index in (StateIndex.NEXT_BACKEND_ID, StateIndex.NEXT_SERVICE_ID):
            rig.maps.maps["state"][int(index).to_bytes(4, "little")] = reserved.to_bytes(8, "little")
        rig.apply(changed(decoded_service(service())))
        rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(pod) for pod in PODS]))))
        rig.sync()
        assert all(0 < int.from_bytes(key, "little") < HostPort.IDS for key in rig.maps.maps["backends"])
        assert all(0 < SlotKey.unpack(key).service_id < HostPort.IDS for key in rig.maps.maps["slots"])


def test_ids_after_a_restart_are_new() -> None:
    """A backend that comes back after a restart gets another id: flows of the old one may still be there."""
    rig = _rig_with(PODS[:1])
    first = set(rig.maps.maps["backends"])
    rig.apply(changed(decoded_slice(endpoint_slice("s1", []))))
    rig.sync()
    rig.restart()
    rig.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(PODS[1])]))))
    rig.sync()
    assert not first & set(rig.maps.maps["backends"])


def test_remotes_full_keep_what_fits() -> None:
    """A remotes map that is too small holds what it can, and says so."""
    dataplane = Dataplane(FakeMaps(remotes=2))
    entries: dict[str, dict[bytes, bytes]] = {name: {} for name in NETWORK_MAPS}
    entries["remotes"] = {bytes([number]) * 20: bytes(48) for number in range(3)}
    dataplane.set_network(entries)
    dataplane.sync()
    assert dataplane.network_short == {"remotes"}
    assert dataplane.sizes()["remotes"] == (2, 2)


def test_entry_of_the_network_that_the_kernel_refuses_keeps_nothing_else_waiting() -> None:
    """Neither Services nor other maps; it is told of and pending, and tried again when it is asked for, or changes."""
    maps = FakeMaps()
    rig = Rig(maps)
    nodes, devices = ({bytes(MAPS[name].key_size): bytes(MAPS[name].value_size)} for name in ("nodes", "devices"))
    refused = bytes([1] * MAPS["nodes"].key_size)
    entries = {name: {} for name in NETWORK_MAPS} | {"devices": devices}
    maps.refused.add(refused)
    rig.dataplane.set_network({**entries, "nodes": {**nodes, refused: bytes(MAPS["nodes"].value_size)}})
    for address in ("198.51.100.1", "198.51.100.2"):
        rig.apply(changed(decoded_service(service(ips=[address]))))
        rig.sync()
        assert served(maps.maps) == {f"{address}:80/6": []}
        assert list(rig.dataplane.refused) == ["nodes"]
        assert (rig.dataplane.dirty, rig.dataplane.pending) == (False, 1)
    assert maps.maps["devices"] == devices
    maps.maps["nodes"].clear()
    rig.dataplane.retry_refused()
    assert rig.dataplane.dirty
    rig.sync()
    assert (maps.maps["nodes"], list(rig.dataplane.refused)) == (nodes, ["nodes"])
    maps.refused.clear()
    rig.dataplane.retry_refused()
    rig.sync()
    assert maps.maps["nodes"].keys() == {*nodes, refused}
    assert (rig.dataplane.dirty, rig.dataplane.pending, rig.dataplane.refused) == (False, 0, {})


def test_audit_takes_what_was_refused_for_no_drift() -> None:
    """How far the kernel got is not known until it is read; one that was refused while an audit read tells nothing."""
    maps = FakeMaps()
    rig = Rig(maps)
    key, refused = (bytes([one] * MAPS["nodes"].key_size) for one in range(2))
    value = bytes(MAPS["nodes"].value_size)
    maps.refused.add(refused)
    rig.dataplane.set_network({**{name: {} for name in NETWORK_MAPS}, "nodes": {key: value, refused: value}})
    rig.sync()
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 0
    rig.dataplane.record()
    found = rig.dataplane.read_back()
    rig.dataplane.retry_refused()
    rig.sync()
    assert rig.dataplane.audit(found) is None


def _balanced(balancing: str, *pods: str, number: int = 1) -> list[Changed]:
    """A Service with an external IP, and its endpoints."""
    name = f"web-{number}"
    made = service(name, [f"198.51.100.{number}"], externalIPs=[f"192.0.2.9{number}"])
    made["metadata"]["annotations"] = {"calico-ebpf.io/balancing": balancing}
    slices = decoded_slice(endpoint_slice(name, [endpoint(one) for one in pods], name))
    return [changed(decoded_service(made)), changed(slices)]


def _synced(rig: Rig, events: Iterable[Changed]) -> None:
    for event in events:
        rig.apply(event)
    rig.sync()
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 0


def _agreeing(maps: FakeMaps) -> dict[str, list[str]]:
    """The places of each frontend that has a Maglev table."""
    frontends = {key: Frontend.unpack(value) for key, value in maps.maps["frontends"].items()}
    return {shown_frontend(key): places(maps.maps, one) for key, one in frontends.items() if one.flags & MAGLEV}


def test_table_leads_to_the_backends_there_are_at_every_step() -> None:
    """Backends come and go, the Service is balanced otherwise and again, a controller dies: each single write is judged
    by the fake maps, and what is written is what the final objects come to."""
    rig = Rig(FakeMaps())
    for balancing, pods in [("maglev", PODS[:2]), ("maglev", PODS), ("random", PODS), ("maglev", PODS[3:])]:
        _synced(rig, _balanced(balancing, *pods))
        tables = _agreeing(rig.maps)
        assert set(tables) == ({"192.0.2.91:80/6"} if balancing == "maglev" else set())
        assert all(set(table) - {""} == {f"{pod}:8080" for pod in pods} for table in tables.values())
        assert len(rig.maps.maps["maglev"]) == (128 if tables else 0)
        written = rig.maps.written
        rig.restart()
        rig.sync()
        assert rig.maps.written == written
    rig.apply(gone(decoded_service(service("web-1"))))
    rig.sync()
    assert not rig.maps.maps["maglev"]


def test_table_is_the_same_on_a_node_that_has_numbered_backends_otherwise() -> None:
    """One node has seen others come and go, another one has not."""
    old, new = Rig(FakeMaps()), Rig(FakeMaps())
    for pods in (PODS[2:], PODS[1:4], PODS):
        _synced(old, _balanced("maglev", *pods))
    _synced(new, _balanced("maglev", *reversed(PODS)))
    assert _agreeing(old.maps) == _agreeing(new.maps) != {}
    assert old.maps.maps["maglev"] != new.maps.maps["maglev"]


def test_table_without_room_leaves_its_service_at_random_until_there_is() -> None:
    """The map is named, backends are served, and half a table is never written."""
    maps = FakeMaps(maglev=200)
    rig = Rig(maps)
    _synced(rig, [*_balanced("maglev", *PODS), *_balanced("maglev", *PODS, number=2)])
    assert list(_agreeing(maps)) == ["192.0.2.91:80/6"]
    assert list(rig.dataplane.short.values()) == ["maglev"]
    assert len(maps.maps["maglev"]) == 128
    assert set(served(maps.maps)) >= {"192.0.2.91:80/6", "192.0.2.92:80/6"}
    _synced(rig, _balanced("random", *PODS))
    rig.dataplane.retry_short()
    rig.sync()
    assert list(_agreeing(maps)) == ["192.0.2.92:80/6"]
    assert not rig.dataplane.short


def test_drift_of_a_table_is_repaired() -> None:
    """A row that somebody else has changed, one that is gone, and one of nobody."""
    maps = FakeMaps()
    rig = Rig(maps)
    _synced(rig, _balanced("maglev", *PODS))
    right = dict(maps.maps["maglev"])
    first, second, *_ = maps.maps["maglev"]
    maps.damaged = True
    maps.maps["maglev"][first] = bytes(128)
    del maps.maps["maglev"][second]
    maps.maps["maglev"][MaglevKey(999, 0).pack()] = bytes(128)
    rig.dataplane.record()
    assert rig.dataplane.audit(rig.dataplane.read_back()) == 3
    rig.dataplane.sync()
    assert maps.maps["maglev"] == right
