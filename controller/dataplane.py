# SPDX-License-Identifier: Apache-2.0
"""Keeps the maps as they should be: the desired entries, a mirror of what the kernel holds, and what is still pending.

Only differences are written. After a failure nothing is assumed: the maps are read again, and everything is compared.
One thread calls it; `read_back` alone may run in another.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bpf.errors import BpfError
from controller.desired import Desired, Pool, PoolKey
from controller.maps import Maps, Op
from controller.mirror import NETWORK_MAPS, Mirror
from controller.model import Key
from controller.plan import SERVICE_MAPS, Numbers, Plan, wrong

MAPS = (*SERVICE_MAPS, *NETWORK_MAPS)


class Synced(NamedTuple):
    """What a sync did.

    Attributes:
        ops: operations written.
        full: whether everything was compared.
        freed: room was made where there had been too little: another sync fits more.
    backends_gone: there may be clients of backends that are none any more.
    """

    ops: int
    full: bool
    freed: bool
    backends_gone: bool


class Dataplane:
    """Attributes:
    short: pools for which a map has no room, with that map's name.
    network_short: maps of the network that are too small.
    refused: maps of the network of which the kernel did not take all, each with why. What they hold is not known.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._desired = Desired()
        self._network: dict[str, Mapping[bytes, bytes]] = {}
        self._mirror: Mirror | None = None
        self._numbers: Numbers | None = None
        self._capacity: dict[str, int] = {}
        self._pools: set[PoolKey] = set()
        self._frontends: set[bytes] = set()
        self._network_changed: set[str] = set()
        self._compare_all = True
        self._unknown: set[Key] = set()
        self._pruned = False
        self._recorded: list[Op] | None = None
        self.short: dict[PoolKey, str] = {}
        self.network_short: set[str] = set()
        self.refused: dict[str, BpfError] = {}

    def set_service(self, service: Key, pools: Mapping[PoolKey, Pool]) -> None:
        """Makes `pools` all that there should be of a Service."""
        touched = self._desired.replace(service, pools)
        self._pools |= touched.pools
        self._frontends |= touched.frontends
        if service in self._unknown:
            self._unknown.remove(service)
            self._compare_all |= not self._unknown

    def keep_service(self, service: Key) -> bool:
        """Leaves a Service as it is: what there should be of it cannot be told.

        Returns:
            Whether it was never set, while the maps may hold entries of it: until it is set, what nobody has stays.
        """
        if not self._pruned and not self._desired.has(service):
            self._unknown.add(service)
        return service in self._unknown

    def set_network(self, entries: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Makes `entries`, packed keys and values by map, all that there should be of each map of the network; until
        then those maps are left as they are."""
        for name in NETWORK_MAPS:
            if entries[name] != self._network.get(name):
                self._network[name] = dict(entries[name])
                self._network_changed.add(name)

    @property
    def pending(self) -> int:
        """Changes that are not in the kernel: pools and frontends waiting, those that do not fit, and maps of the
        network."""
        return self._services_pending + len(self._network_changed | self.refused.keys())

    @property
    def _services_pending(self) -> int:
        return len(self._pools) + len(self._frontends) + len(self.short)

    @property
    def dirty(self) -> bool:
        """Whether a sync would have anything to do."""
        return bool(self._pools or self._frontends or self._network_changed or self._compare_all)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Entries and capacity of each map, as far as they are known."""
        mirror = self._mirror
        return {name: (mirror.size(name), self._capacity[name]) for name in MAPS} if mirror else {}

    def contested(self) -> dict[bytes, list[PoolKey]]:
        """Frontends that several pools claim, the one that has it first."""
        return self._desired.contested()

    def sync(self) -> Synced:
        """Writes the difference, that of the network first, map by map. What the kernel refuses of these is noted in
        `refused`, and keeps neither the others nor Services from being written.

        Raises:
            BpfError: Services were not written, or not whole; the next sync reads the maps again and compares
                everything.
        """
        recorded, self._recorded = self._recorded, None
        try:
            mirror = self._mirror or self._read()
            numbers = self._numbers = self._numbers or Numbers(mirror)
            plan = Plan(self._desired, mirror, numbers, self._capacity)
            full = self._compare_all
            ops: list[Op] = []
            if self._write_network(mirror, ops):
                recorded = None  # how far the kernel got is not known: an audit that has begun can tell nothing
            self._maps.write(_noted(self._plan_services(plan), ops))
            removals = plan.removals()
            if removals:
                self._maps.await_readers()
            self._maps.write(_noted(removals, ops))
        except BaseException:
            self._mirror, self._compare_all = None, True
            raise
        mirror.apply(ops)
        if recorded is not None:
            self._recorded = [*recorded, *ops]
        self._done(plan)
        removed = {op.map for op in ops if op.value is None}
        return Synced(len(ops), full, bool(self.short and removed), full or "backends" in removed)

    def retry_short(self) -> None:
        """Has the next sync try again what did not fit."""
        self._pools |= self.short.keys()
        self._network_changed |= self.network_short

    def retry_refused(self) -> None:
        """Has the next sync try again what the kernel has refused of the network."""
        self._network_changed |= self.refused.keys()

    def record(self) -> None:
        """Begins an audit: from here on what is written is remembered, until `audit` or a failure."""
        self._recorded = []

    def read_back(self) -> Mirror:
        """What the kernel holds; may be called in another thread. Raises BpfError."""
        return Mirror.read(self._maps)

    def audit(self, found: Mirror) -> int | None:
        """Compares what `read_back` found with what should be there; the next sync repairs it.

        Returns:
            How many entries had drifted; None: a sync failed meanwhile, if only of the network, and the audit says
                nothing.
        """
        recorded, self._recorded = self._recorded, None
        if recorded is None or self._mirror is None:
            return None
        # Reading may have come before or after each of these; having them run again makes it certain.
        found.apply(recorded)
        for name in self.refused:
            self._mirror.network[name] = found.network[name]
        drifted = self._mirror.differences(found)
        if not drifted and not self._services_pending and self._numbers and not self._unknown:
            # The mirror may be as wrong as the kernel: what should be there decides.
            drifted = wrong(self._desired, found, self._numbers)
        if drifted:
            self._mirror, self._compare_all = found, True
        else:
            self._mirror.host_ports = found.host_ports
        return drifted

    def _read(self) -> Mirror:
        self._capacity = {name: self._maps.capacity(name) for name in MAPS}
        self._mirror = Mirror.read(self._maps)
        return self._mirror

    def _plan_services(self, plan: Plan) -> Iterator[Op]:
        if self._compare_all:
            yield from plan.everything(keeping=bool(self._unknown))
        else:
            yield from plan.pools(self._pools)
            plan.frontends(self._frontends)

    def _write_network(self, mirror: Mirror, ops: list[Op]) -> bool:
        """Notes in `ops` what was done; returns whether something of it was refused."""
        refused = False
        for name in NETWORK_MAPS:
            if name in (self._network if self._compare_all else self._network_changed):
                refused |= not self._write_map(name, mirror, ops)
        return refused

    def _write_map(self, name: str, mirror: Mirror, ops: list[Op]) -> bool:
        written: list[Op] = []
        try:
            if name in self.refused:
                mirror.network[name] = self._maps.read(name)
            self._maps.write(_noted(self._plan_map(name, mirror.network[name]), written))
        except BpfError as error:
            self.refused[name] = error
            return False
        self.refused.pop(name, None)
        ops += written
        return True

    def _plan_map(self, name: str, held: Mapping[bytes, bytes]) -> list[Op]:
        wanted = self._network[name]
        room = self._capacity[name] - len(held)
        new = [key for key in wanted if key not in held]
        left_out = set(new[max(room, 0) :])
        (self.network_short.add if left_out else self.network_short.discard)(name)
        writes = [
            Op(name, key, value) for key, value in wanted.items() if held.get(key) != value and key not in left_out
        ]
        return writes + [Op(name, key, None) for key in held if key not in wanted]

    def _done(self, plan: Plan) -> None:
        looked_at = self._desired.pools.keys() if self._compare_all else self._pools
        self.short = {key: name for key, name in self.short.items() if key not in looked_at} | plan.short
        self._pruned |= self._compare_all and not self._unknown
        self._pools, self._frontends, self._network_changed = set(), set(), set()
        self._compare_all = False


def _noted(ops: Iterable[Op], notes: list[Op]) -> Iterator[Op]:
    """`ops`, each noted when it is taken."""
    for op in ops:
        notes.append(op)
        yield op
