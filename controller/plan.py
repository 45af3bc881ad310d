# SPDX-License-Identifier: Apache-2.0
"""The operations that lead from what the Service maps hold to what they should hold. Pure.

They stand in an order in which every frontend always leads to filled slots, and every slot to a backend:

    for some pools after others: ids reserved -> backends added -> sources added -> frontends narrowed
                                 -> slots and Maglev tables written -> frontends switched
    and then, for all:           frontends removed -> surplus sources, tables and slots removed
                                 -> surplus backends removed

The first of them can be written while the next are still planned. A pool that gives a frontend to another one comes
after it: its slots may change only when nobody is led there any more who asks for that frontend.

The first slots of a Service are this node's backends, and of these first the ones that are not in the Cluster set.
Where there come to be fewer of this node's, its frontends are narrowed to those that stay before other nodes' backends
move in, so that who wants a local backend never meets another.

While the ranges of clients change for which a frontend is, it is for those in either, and for nobody who is in neither.

What does not fit into a map is left out: its Service gets the backends that fit, or no Maglev table, and is named as
short of room.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain

from bpf.abi import FIELDS, BackendKey, Frontend, FrontendFlag, MaglevKey, Slot, SlotKey, Source, StateIndex
from controller import maglev
from controller.desired import Desired, Pool, PoolKey
from controller.ids import Ids
from controller.maps import Op
from controller.mirror import Mirror, reserved

SERVICE_MAPS = ("frontends", "slots", "backends", "sources", "maglev")

# Additions planned before they are given out.
PIECE_OPS = 4096

_NO_SLOTS: "array[int]" = array("I")
_NO_SOURCES: frozenset[bytes] = frozenset()
_NO_ROWS: Mapping[int, bytes] = {}
_SOURCE = Source(0).pack()
_FLAGS, _ = FIELDS["Backend"]["flags"]
_NO_FRONTEND = bytes(len(Frontend(0, 0, 0, 0, 0, 0).pack()))


class Numbers:
    """The ids in use: which pool has which service id, and those to come."""

    def __init__(self, mirror: Mirror) -> None:
        self.service_ids = Ids(mirror.state.get(StateIndex.NEXT_SERVICE_ID, 0))
        self.backend_ids = Ids(mirror.state.get(StateIndex.NEXT_BACKEND_ID, 0))
        self.of_pool: dict[PoolKey, int] = {}
        self.holders: dict[int, PoolKey] = {}


class Plan:
    """Gives additions, pool by pool, as they are planned; `removals` are complete when those have ended.

    Attributes:
        short: pools that lack room, each with the map that is full.
    """

    def __init__(self, desired: Desired, mirror: Mirror, numbers: Numbers, capacity: Mapping[str, int]) -> None:
        self._desired = desired
        self._mirror = mirror
        self._numbers = numbers
        self._room = {name: capacity[name] - mirror.size(name) for name in SERVICE_MAPS}
        self._references: dict[int, int] = {}
        self._service_ids_used = _Either(numbers.holders, mirror.slots)
        self._backend_ids_used = _Either(mirror.backends, mirror.references)
        self._reserved: Mapping[int, int] = mirror.state
        self.short: dict[PoolKey, str] = {}
        self._adds: list[Op] = []
        self._sources: list[Op] = []
        self._narrowed: list[Op] = []
        self._slots: list[Op] = []
        self._rows: list[Op] = []
        self._frontends: list[Op] = []
        self._gone_frontends: list[Op] = []
        self._gone_sources: list[Op] = []
        self._gone_slots: list[Op] = []
        self._gone_rows: list[Op] = []

    def everything(self, keeping: bool = False) -> Iterator[Op]:
        """Additions for all that there should be, and removals of all that there should not.

        Args:
            keeping: what no pool has stays: it may be of a Service whose pools cannot be told.
        """
        for key in self._numbers.of_pool.keys() - self._desired.pools.keys():
            del self._numbers.holders[self._numbers.of_pool.pop(key)]
        yield from self.pools(self._desired.pools)
        if not keeping:
            self.frontends(self._mirror.frontends.keys() | self._mirror.sources.keys())
            self._strays()

    def pools(self, keys: Iterable[PoolKey]) -> Iterator[Op]:
        """Additions and removals for pools that changed, are new, or are gone.

        Those that are gone come last: until then they hold their service ids, which nobody else must take over along
        with a frontend, as the slots go away.
        """
        ordered = sorted(keys)
        present = [key for key in ordered if key in self._desired.pools]
        # A cluster IP refuses what it has no port for: its ports come before.
        ports, addresses = [key for key in present if key.port], [key for key in present if not key.port]
        for group in chain(self._takers_first(ports), self._takers_first(addresses)):
            for key in group:
                self._pool(key)
                if sum(map(len, (self._adds, self._sources, self._slots, self._rows, self._frontends))) >= PIECE_OPS:
                    yield from self._additions()
            yield from self._additions()
        for key in ordered:
            if key not in self._desired.pools:
                self._gone(key)

    def frontends(self, keys: Iterable[bytes]) -> None:
        """Removals of frontends that may be nobody's now."""
        for key in keys:
            if self._desired.owner(key) is None:
                if key in self._mirror.frontends:
                    self._gone_frontends.append(Op("frontends", key, None))
                self._drop_sources(self._mirror.sources.get(key, _NO_SOURCES))

    def removals(self) -> list[Op]:
        """To be written once every program that ran when the additions were has ended: one that has just read a
        frontend or a slot still looks up what these take away."""
        return [
            *self._gone_frontends,
            *self._gone_sources,
            *self._gone_rows,
            *self._gone_slots,
            *self._gone_backends(),
        ]

    def _takers_first(self, keys: Sequence[PoolKey]) -> Iterator[list[PoolKey]]:
        """Pools in groups: those that take frontends from others before these. Of pools that exchange some, one gets
        another service id, under which nobody is led to it yet."""
        takers: dict[PoolKey, set[PoolKey]] = {}
        for key, giver in self._taken(keys):
            takers.setdefault(giver, set()).add(key)
        waiting = list(keys)
        while waiting:
            group = [key for key in waiting if not takers.get(key)]
            if not group:
                group = waiting[:1]
                self._gone(group[0])
                self._hold(group[0], self._numbers.service_ids.allocate(self._service_ids_used))
            yield group
            written = set(group)
            waiting = [key for key in waiting if key not in written]
            for taking in takers.values():
                taking -= written

    def _taken(self, keys: Sequence[PoolKey]) -> Iterator[tuple[PoolKey, PoolKey]]:
        """Each pool that takes a frontend from another one, with that one. Before, all have their ids."""
        for key in keys:
            self._service_id(key)
        for key in keys:
            for frontend, _ in self._desired.frontends(key):
                held = self._mirror.frontends.get(frontend)
                holder = self._numbers.holders.get(Frontend.unpack(held).service_id) if held else None
                if holder and holder != key:
                    yield key, holder

    def _additions(self) -> list[Op]:
        """Those planned since the last call."""
        planned = [
            *self._reservations(),
            *self._adds,
            *self._sources,
            *self._narrowed,
            *self._slots,
            *self._rows,
            *self._frontends,
        ]
        self._adds, self._sources, self._narrowed = [], [], []
        self._slots, self._rows, self._frontends = [], [], []
        return planned

    def _strays(self) -> None:
        """What no pool has: slots of nobody, backends that no slot names."""
        for service_id, slots in self._mirror.slots.items():
            if service_id not in self._numbers.holders:
                self._drop_slots(service_id, slots, 0)
        for service_id in self._mirror.maglev.keys() - self._numbers.holders.keys():
            self._write_table(service_id, ())
        self._gone_slots += [Op("slots", key.pack(), None) for key in self._mirror.strays]
        for backend_id in self._mirror.backends:
            self._references.setdefault(backend_id, 0)

    def _pool(self, key: PoolKey) -> None:
        pool = self._desired.pools[key]
        service_id = self._service_id(key)
        current = self._mirror.slots.get(service_id, _NO_SLOTS)
        apart, local, others = self._fitting(key, pool, current)
        slots = arrange(current, apart, local, others)
        self._room["slots"] -= max(len(slots) - len(current), 0)
        self._write_slots(service_id, current, slots)
        sets = (len(slots), len(apart) + len(local), len(apart))
        rows = self._table(key, pool, service_id, [*local, *others])
        self._write_table(service_id, rows)
        for frontend, flags in self._desired.frontends(key):
            flags = _met(flags, len(rows))
            self._write_sources(key, frontend, pool.source_keys(frontend, flags))
            self._frontend(key, frontend, Frontend(service_id, *sets, flags, pool.affinity_s))

    def _fitting(self, key: PoolKey, pool: Pool, current: Sequence[int]) -> Iterator[list[int]]:
        """The ids of a pool's backends, part by part, as far as there is room beside `current`."""
        held = self._held(current)
        backends: Sequence[bytes] = pool.backends
        most = len(current) + max(self._room["slots"], 0)
        if len(backends) > most:
            self.short[key] = "slots"
            backends = sorted(backends, key=lambda backend: _whose(backend) not in held)[:most]
        ids = {backend: self._backend_id(backend, held, key) for backend in backends}
        return ([ids[one] for one in part if ids.get(one)] for part in (pool.apart, pool.local, pool.others))

    def _gone(self, key: PoolKey) -> None:
        service_id = self._numbers.of_pool.pop(key, 0)
        if service_id:
            del self._numbers.holders[service_id]
            self._drop_slots(service_id, self._mirror.slots.get(service_id, _NO_SLOTS), 0)
            self._write_table(service_id, ())

    def _service_id(self, key: PoolKey) -> int:
        """The pool's id: the one it has, else that which its frontends have in the kernel, else a new one."""
        numbers = self._numbers
        service_id = numbers.of_pool.get(key, 0)
        if service_id:
            return service_id
        for frontend, _ in self._desired.frontends(key):
            held = self._mirror.frontends.get(frontend)
            found = Frontend.unpack(held).service_id if held else 0
            if found and found not in numbers.holders:
                service_id = found
                break
        return self._hold(key, service_id or numbers.service_ids.allocate(self._service_ids_used))

    def _hold(self, key: PoolKey, service_id: int) -> int:
        self._numbers.of_pool[key], self._numbers.holders[service_id] = service_id, key
        return service_id

    def _held(self, slots: Iterable[int]) -> dict[bytes, int]:
        """The backends that slots of one Service lead to, without their flags, with their ids. No Service shares an id
        with another one: a flow asks whether its backend still serves *its* Service by looking for the id."""
        mirror, held = self._mirror, {}
        own = Counter(slots)
        for backend_id, count in own.items():
            backend = mirror.backends.get(backend_id)
            if backend is not None and mirror.references[backend_id] == count:
                held[_whose(backend)] = backend_id
        return held

    def _backend_id(self, backend: bytes, held: Mapping[bytes, int], key: PoolKey) -> int:
        """The id of a pool's backend, which it keeps whatever its flags; 0: it does not fit."""
        found = held.get(_whose(backend), 0)
        if not found:
            return self._new_backend(backend, key)
        if self._mirror.backends[found] != backend:
            self._adds.append(Op("backends", BackendKey(found).pack(), backend))
        return found

    def _new_backend(self, backend: bytes, key: PoolKey) -> int:
        """The id of a backend that is added to the map. 0: it does not fit."""
        if self._room["backends"] <= 0:
            self.short[key] = "backends"
            return 0
        self._room["backends"] -= 1
        chosen = self._numbers.backend_ids.allocate(self._backend_ids_used)
        self._adds.append(Op("backends", BackendKey(chosen).pack(), backend))
        return chosen

    def _write_slots(self, service_id: int, current: Sequence[int], slots: Sequence[int]) -> None:
        references, known = self._references, len(current)
        for index, backend_id in enumerate(slots):
            before = current[index] if index < known else 0
            if before != backend_id:
                self._slots.append(Op("slots", SlotKey(service_id, index).pack(), Slot(backend_id).pack()))
                references[backend_id] = references.get(backend_id, 0) + 1
                references[before] = references.get(before, 0) - 1
        self._drop_slots(service_id, current, len(slots))

    def _drop_slots(self, service_id: int, slots: Sequence[int], start: int) -> None:
        for index in range(start, len(slots)):
            if slots[index]:
                self._gone_slots.append(Op("slots", SlotKey(service_id, index).pack(), None))
                self._references[slots[index]] = self._references.get(slots[index], 0) - 1

    def _table(self, key: PoolKey, pool: Pool, service_id: int, backend_ids: Sequence[int]) -> Sequence[bytes]:
        """The rows of a pool's Maglev table; none where it is to have none, or not all of it fits."""
        backends = [_whose(backend) for backend in (*pool.local, *pool.others)]
        if not pool.maglev_size or not backends or len(backend_ids) < len(backends):
            return ()
        more = maglev.row_count(pool.maglev_size) - len(self._mirror.maglev.get(service_id, _NO_ROWS))
        if more > self._room["maglev"]:
            self.short[key] = "maglev"
            return ()
        self._room["maglev"] -= max(more, 0)
        return maglev.rows(backends, backend_ids, pool.maglev_size)

    def _write_table(self, service_id: int, rows: Sequence[bytes]) -> None:
        held = self._mirror.maglev.get(service_id, _NO_ROWS)
        written = ((MaglevKey(service_id, row).pack(), row, value) for row, value in enumerate(rows))
        self._rows += [Op("maglev", key, value) for key, row, value in written if held.get(row) != value]
        gone = (MaglevKey(service_id, row) for row in held if row >= len(rows))
        self._gone_rows += [Op("maglev", key.pack(), None) for key in gone]

    def _write_sources(self, pool: PoolKey, frontend: bytes, wanted: Set[bytes]) -> None:
        held = self._mirror.sources.get(frontend, _NO_SOURCES)
        new = sorted(wanted - held)
        fitting = new[: max(self._room["sources"], 0)]
        if len(fitting) < len(new):
            self.short[pool] = "sources"
        self._room["sources"] -= len(fitting)
        self._sources += [Op("sources", key, _SOURCE) for key in fitting]
        self._drop_sources(held - wanted)

    def _drop_sources(self, keys: Iterable[bytes]) -> None:
        self._gone_sources += [Op("sources", key, None) for key in sorted(keys)]

    def _frontend(self, pool: PoolKey, key: bytes, wanted: Frontend) -> None:
        held, value = self._mirror.frontends.get(key), wanted.pack()
        if held is None:
            if self._room["frontends"] <= 0:
                self.short[pool] = "frontends"
                return
            self._room["frontends"] -= 1
        else:
            before = Frontend.unpack(held)
            if before.service_id == wanted.service_id and before.local_count > wanted.local_count:
                narrowed = before._replace(local_count=wanted.local_count).pack()
                self._narrowed.append(Op("frontends", key, narrowed))
        if held != value:
            self._frontends.append(Op("frontends", key, value))

    def _gone_backends(self) -> list[Op]:
        mirror = self._mirror
        return [
            Op("backends", BackendKey(backend_id).pack(), None)
            for backend_id, change in self._references.items()
            if backend_id in mirror.backends and mirror.references.get(backend_id, 0) + change == 0
        ]

    def _reservations(self) -> list[Op]:
        limits = {
            StateIndex.NEXT_BACKEND_ID: self._numbers.backend_ids.limit,
            StateIndex.NEXT_SERVICE_ID: self._numbers.service_ids.limit,
        }
        new = [reserved(index, limit) for index, limit in limits.items() if self._reserved.get(index, 0) != limit]
        self._reserved = {int(index): limit for index, limit in limits.items()}
        return new


def _met(flags: int, row_count: int) -> int:
    """The flags of a frontend whose pool has a table of so many rows, or none."""
    return flags if row_count else flags & ~FrontendFlag.MAGLEV


def _whose(backend: bytes) -> bytes:
    """A backend but for its flags."""
    return backend[:_FLAGS]


class _Either:
    """Contains what either of two containers contains."""

    def __init__(self, one: Mapping[int, object], other: Mapping[int, object]) -> None:
        self._one, self._other = one, other

    def __contains__(self, item: object) -> bool:
        return item in self._one or item in self._other


def arrange(current: Sequence[int], *parts: Sequence[int]) -> list[int]:
    """One part after the other, each in the order that needs the fewest writes over `current`."""
    slots: list[int] = []
    for part in parts[:-1]:
        slots += _fill(current[len(slots) : len(slots) + len(part)], part)
    return slots + _fill(current[len(slots) :], parts[-1])


def _fill(current: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """What stays keeps its slot, new ones fill gaps, and the last ones move into gaps that remain."""
    size, keep = len(wanted), set(wanted)
    placed: list[int] = [0] * size
    movers: list[int] = []
    for index, backend_id in enumerate(current):
        if backend_id in keep:
            keep.discard(backend_id)
            if index < size:
                placed[index] = backend_id
            else:
                movers.append(backend_id)
    waiting = iter([*(one for one in wanted if one in keep), *movers])
    return [one or next(waiting) for one in placed]


def wrong(desired: Desired, mirror: Mirror, numbers: Numbers) -> int:
    """How many pools the maps do not hold as they should, and how many slots, backends and frontends are nobody's.

    Where everything that is desired has been written, that is 0. Much cheaper than to plan everything.
    """
    count = slots = rows = 0
    for key, pool in desired.pools.items():
        ids = mirror.slots.get(numbers.of_pool.get(key, 0), _NO_SLOTS)
        slots += len(ids)
        found = {mirror.backends.get(backend_id) for backend_id in ids}
        start, border = len(pool.apart), len(pool.apart) + len(pool.local)
        apart = {mirror.backends.get(backend_id) for backend_id in ids[:start]}
        local = {mirror.backends.get(backend_id) for backend_id in ids[start:border]}
        value = (numbers.of_pool.get(key, 0), len(ids), border, start)
        row_count = maglev.row_count(pool.maglev_size) if pool.local or pool.others else 0
        rows += row_count
        led = all(
            Frontend.unpack(mirror.frontends.get(frontend, _NO_FRONTEND))[:5] == (*value, _met(flags, row_count))
            and mirror.sources.get(frontend, _NO_SOURCES) == pool.source_keys(frontend, flags)
            for frontend, flags in desired.frontends(key)
        )
        led = led and len(mirror.maglev.get(numbers.of_pool.get(key, 0), _NO_ROWS)) == row_count
        parted = apart == set(pool.apart) and local == set(pool.local)
        filled = len(ids) == len(pool.backends) and found == set(pool.backends) and parted
        count += not (filled and led)
    surplus = abs(mirror.slot_count - slots) + abs(len(mirror.backends) - mirror.slot_count)
    surplus += abs(mirror.size("maglev") - rows)
    return count + surplus + sum(desired.owner(key) is None for key in mirror.frontends.keys() | mirror.sources.keys())
