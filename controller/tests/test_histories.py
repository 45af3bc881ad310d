# SPDX-License-Identifier: Apache-2.0
"""Whatever a controller was told, in whatever order, with re-lists, failures and restarts: the maps end as if only the
final objects had ever been, and on the way there every single write leaves clients served."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bpf.abi import Backend, BackendFlag, BackendKey, DeviceKey, Frontend, FrontendFlag, FrontendKey, Slot, SlotKey
from bpf.address import packed
from controller.dataplane import Dataplane
from controller.departures import Departures
from controller.desired import Desired, Pool, PoolKey
from controller.maps import Op
from controller.model import REQUIRED, Conditions, EndpointSlice, Key, Kind, Node, Object, Service, key_of
from controller.services import Rules, ServiceTracker
from controller.source import Changed, Event, Synced
from controller.tests import strategies
from controller.tests.fakes import FakeMaps
from controller.tests.objects import all_compiled, changed, gone, places, shown_backend, shown_frontend
from controller.tests.pipeline import OVERLAY, Pipeline
from controller.tests.strategies import NODE_IPS, OWN, some

ANY = st.one_of(strategies.services(), strategies.slices(), strategies.slices(), strategies.nodes())

ENDPOINTS = EndpointSlice.__struct_fields__.index("endpoints") + 1

Objects = dict[tuple[Kind, Key], Object]


class Reach(NamedTuple):
    """The backends behind a frontend, by the sets that its clients draw from."""

    local: frozenset[bytes]
    cluster: frozenset[bytes]


def reached(maps: dict[str, dict[bytes, bytes]], frontend: Frontend) -> Reach:
    """As the programs find them."""
    ids = [maps["slots"][SlotKey(frontend.service_id, slot).pack()] for slot in range(frontend.slot_count)]
    backends = [maps["backends"][BackendKey(Slot.unpack(one).backend_id).pack()] for one in ids]
    return Reach(frozenset(backends[: frontend.local_count]), frozenset(backends[frontend.cluster_start :]))


def wanted(objects: Iterable[Object]) -> dict[bytes, Reach]:
    """What each frontend should lead to."""
    held = [*objects]
    zones = [obj.metadata.labels["topology.kubernetes.io/zone"] for obj in held if key_of(obj) == ("", OWN)]
    addresses = tuple(map(packed, NODE_IPS[OWN]))
    tracker, desired = ServiceTracker(Rules(OWN, zone=next(iter(zones), ""), addresses=addresses)), Desired()
    for obj in held:
        tracker.apply(changed(obj))
    for key, compiled in all_compiled(tracker):
        desired.replace(key, compiled.pools)
    return leading(desired)


def leading(desired: Desired) -> dict[bytes, Reach]:
    """What each frontend leads to."""
    return {
        frontend: Reach(frozenset(pool.apart + pool.local), frozenset(pool.local + pool.others))
        for key, pool in desired.pools.items()
        for frontend, _ in desired.frontends(key)
    }


class JudgedMaps(FakeMaps):
    """Also judges, after each single write, that nobody is refused whom every state from the last one that was written
    whole to the one that is being written would serve, and that nobody is led elsewhere: from the Cluster set at most
    to a terminating backend of this node that is in the Local set alone.

    Attributes:
        wanted: says what is being written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wanted: Callable[[], dict[bytes, Reach]] = dict
        self._states: list[dict[bytes, Reach]] = [{}]

    def write(self, ops: Iterable[Op]) -> None:
        state = self.wanted()
        if state != self._states[-1]:
            self._states.append(state)
        super().write(ops)

    def settled(self) -> None:
        """What is wanted has been written."""
        del self._states[:-1]

    def _run(self, op: Op) -> None:
        super()._run(op)
        for key in reduce(lambda one, other: one & other.keys(), self._states, set(self._states[-1])):
            states = [state[key] for state in self._states]
            assert key in self.maps["frontends"], shown_frontend(key)
            now = reached(self.maps, Frontend.unpack(self.maps["frontends"][key]))
            for part in Reach._fields:
                found = {shown_backend(one) for one in getattr(now, part)}
                allowed = [{shown_backend(one) for one in getattr(state, part)} for state in states]
                everywhere = [{shown_backend(one) for one in state.local} for state in states]
                assert found <= set().union(*allowed, *everywhere), (shown_frontend(key), part, allowed)
                assert found or not all(allowed), (shown_frontend(key), part, allowed)


def meaning(maps: FakeMaps) -> dict[str, Any]:
    """All that the maps say, but for the ids: these tell only which frontends share a list of backends."""
    held = maps.maps
    frontends = {key: Frontend.unpack(value) for key, value in held["frontends"].items()}
    lists: dict[int, list[str]] = {}
    for key, value in held["slots"].items():
        backend = held["backends"][BackendKey(Slot.unpack(value).backend_id).pack()]
        lists.setdefault(SlotKey.unpack(key).service_id, []).append(shown_backend(backend))
    others = held.keys() - {"frontends", "slots", "backends", "maglev", "state", "devices"}
    agreed = {key: one for key, one in frontends.items() if one.flags & FrontendFlag.MAGLEV}
    # The overlay device stays while a node is out of reach that may have flows in the tunnel.
    devices = {key: value for key, value in held["devices"].items() if key != DeviceKey(OVERLAY).pack()}
    return {
        "frontends": {shown_frontend(key): one._replace(service_id=0) for key, one in frontends.items()},
        "reached": {shown_frontend(key): reached(held, one) for key, one in frontends.items()},
        "shared": {
            frozenset(shown_frontend(key) for key, one in frontends.items() if one.service_id == service_id)
            for service_id in {one.service_id for one in frontends.values()}
        },
        "lists": Counter(tuple(sorted(backends)) for backends in lists.values()),
        "backends": len(held["backends"]),
        "tables": {shown_frontend(key): places(held, one) for key, one in agreed.items()},
        "rows": len(held["maglev"]),
        "devices": devices,
        **{name: held[name] for name in others},
    }


class Histories(RuleBasedStateMachine):
    """An API server whose objects change, the watches of it, and the controller behind them."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.objects: Objects = {}
        self.maps = JudgedMaps()
        self.maps.wanted = lambda: wanted(self.told.values())
        self.pipeline = Pipeline(self.maps, Path(self._directory.name))
        self.passed: dict[str, Node] = {}

    @initialize(
        services=st.lists(strategies.services(), min_size=2, max_size=4),
        slices=st.lists(strategies.slices(), min_size=4, max_size=6),
        order=st.permutations(REQUIRED),
        shuffle=st.randoms(),
    )
    def start(self, services: list[Service], slices: list[EndpointSlice], order: list[Kind], shuffle: Random) -> None:
        """There is something already."""
        self.objects = {changed(obj)[:2]: obj for obj in (*services, *slices)}
        self._begin(order, shuffle)

    def _begin(self, order: list[Kind], shuffle: Random) -> None:
        """A controller's start: its watches list each kind, in any order, while others' events come already."""
        self.told: Objects = {}
        self.away = set(REQUIRED)
        self.unlisted = set(REQUIRED)
        self.departures = Departures(OWN, [one for name, one in self.passed.items() if name != OWN])
        for kind in order:
            self.relist(kind, shuffle)

    @rule(obj=ANY, choice=st.integers(0, 10))
    def change(self, obj: Object, choice: int) -> None:
        """An object is made, or one field of it is another, or is said once more to be as it is."""
        event = changed(obj)
        before = self.objects.get((event.kind, event.key))
        event = changed(strategies.altered(before, obj, choice)) if before else event
        assert event.obj
        self.objects[event.kind, event.key] = event.obj
        self._tell(event)

    @rule(name=st.sampled_from(strategies.SLICES), number=st.integers(0, 4), conditions=strategies.conditions())
    def turn(self, name: str, number: int, conditions: Conditions) -> None:
        """An endpoint becomes ready, or not, or begins to end: what happens most."""
        item = self.objects.get((Kind.ENDPOINT_SLICE, ("shop", name)))
        if isinstance(item, EndpointSlice) and item.endpoints:
            endpoints = list(item.endpoints)
            index = number % len(endpoints)
            endpoints[index] = msgspec.structs.replace(endpoints[index], conditions=conditions)
            self.change(msgspec.structs.replace(item, endpoints=endpoints), ENDPOINTS)

    @rule(obj=st.one_of(strategies.services(), strategies.slices(), strategies.nodes(["near", "routed"])))
    def delete(self, obj: Object) -> None:
        """An object is deleted, or another controller's memory of what never was."""
        event = gone(obj)
        self.objects.pop((event.kind, event.key), None)
        self._tell(event)

    @rule(kind=st.sampled_from(REQUIRED))
    def lose(self, kind: Kind) -> None:
        """A watch is cut: what happens from now on is not told."""
        self.away.add(kind)

    @rule(kind=st.sampled_from(REQUIRED), shuffle=st.randoms())
    def relist(self, kind: Kind, shuffle: Random) -> None:
        """All objects of a kind are told once more, and what is missing is gone; see controller/follower.py."""
        self.away.discard(kind)
        listed = [obj for (of, _), obj in self.objects.items() if of == kind]
        shuffle.shuffle(listed)
        for obj in listed:
            self._tell(changed(obj))
        there = {key_of(obj) for obj in listed}
        for _, key in [ref for ref in self.told if ref[0] == kind and ref[1] not in there]:
            self._tell(Changed(kind, key, None))
        if kind in self.unlisted:
            self.unlisted.discard(kind)
            self._post([Synced(kind)])

    @rule(seconds=st.sampled_from([0.1, 2, 2, 100]))
    def wait(self, seconds: float) -> None:
        self.pipeline.wait(seconds)
        if not self.pipeline.dataplane.dirty:
            self.maps.settled()

    @rule(writes=st.integers(0, 20))
    def fail(self, writes: int) -> None:
        """After so many writes one fails, and with it the sync."""
        self.maps.fail_after = writes
        self.wait(100)
        self.maps.fail_after = None

    @rule(order=st.permutations(REQUIRED), shuffle=st.randoms())
    def restart(self, order: list[Kind], shuffle: Random) -> None:
        """The controller is killed, and another one finds what it has left."""
        self.pipeline.restart()
        self._begin(order, shuffle)

    @rule()
    def compare(self) -> None:
        """All that happened is told and written; the pods of nodes that are gone have ended."""
        for kind in sorted(self.away):
            self.relist(kind, Random(0))
        for name in self.departures.kept:
            self._post(self.departures.settle(name, None))
        self.pipeline.settle()
        self.maps.settled()
        with tempfile.TemporaryDirectory() as directory:
            fresh = Pipeline(FakeMaps(), Path(directory))
            fresh.tell([*map(changed, self.objects.values()), *map(Synced, REQUIRED)])
            fresh.settle()
        assert meaning(self.maps) == meaning(fresh.maps)

    def teardown(self) -> None:
        self.compare()
        self._directory.cleanup()

    def _tell(self, event: Changed) -> None:
        if event.kind in self.away:
            return
        if event.obj:
            self.told[event.kind, event.key] = event.obj
        else:
            self.told.pop((event.kind, event.key), None)
        self._post(self.departures.passed([event]))

    def _post(self, events: Iterable[Event]) -> None:
        posted = list(events)
        for event in posted:
            if isinstance(event, Changed) and isinstance(event.obj, Node):
                self.passed[event.key[1]] = event.obj
        self.pipeline.tell(posted)


def _pools() -> st.SearchStrategy[dict[PoolKey, Pool]]:
    """Pools of two Services, which have some of three frontends; each has some of three backends here and elsewhere."""
    frontends = [(FrontendKey(packed("198.51.100.1"), port, 6).pack(), 0) for port in (80, 81, 82)]
    here, elsewhere = (
        [Backend(packed(f"203.0.113.{number}"), 8080, 6, 0).pack() for number in numbers]
        for numbers in (range(1, 4), range(129, 132))
    )
    keys = [PoolKey("shop", name, port, 6, 4) for name in strategies.SERVICES for port in (80, 81)]
    parts = (some(one, most=3).map(tuple) for one in (frontends, here, elsewhere))
    return st.dictionaries(st.sampled_from(keys), st.builds(_pool, *parts, st.integers(0, 3)), max_size=3)


def _pool(
    frontends: tuple[tuple[bytes, int], ...], here: tuple[bytes, ...], elsewhere: tuple[bytes, ...], apart: int
) -> Pool:
    """Of this node's backends so many are in the Local set alone; in the Cluster set there is somebody."""
    apart = apart if elsewhere or apart < len(here) else 0
    alone = (Backend.unpack(one)._replace(flags=BackendFlag.APART).pack() for one in here[:apart])
    return Pool(frontends, tuple(alone), here[apart:], elsewhere)


@given(st.lists(st.tuples(_pools(), st.booleans()), min_size=2, max_size=4))
def test_every_write_between_two_states_serves_whom_both_would(states: list[tuple[dict[PoolKey, Pool], bool]]) -> None:
    """However pools change and exchange frontends, in one controller's life or over a restart."""
    maps = JudgedMaps()
    dataplane = Dataplane(maps)
    for pools, restart in states:
        if restart:
            dataplane = Dataplane(maps)
        desired = Desired()
        for name in strategies.SERVICES:
            own = {key: pool for key, pool in pools.items() if key.name == name}
            desired.replace(("shop", name), own)
            dataplane.set_service(("shop", name), own)
        maps.wanted = lambda desired=desired: leading(desired)
        dataplane.sync()
        maps.settled()


TestHistories = pytest.mark.usefixtures("no_files")(Histories.TestCase)
