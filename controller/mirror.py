# SPDX-License-Identifier: Apache-2.0
"""What the kernel's Service maps hold, in memory: read once, then kept in step with every operation. Pure but for read.

frontends   struct frontend_key -> struct frontend
slots       service id -> its backend ids by slot; 0 where a slot is missing
backends    backend id -> struct backend
sources     struct frontend_key -> the struct source_key of each range of its clients
maglev      service id -> the struct maglev_row of each row of its table

The maps of the network are kept as they are.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from sys import byteorder
from typing import Any

from bpf.abi import Frontend, FrontendFlag, HostPort, MaglevKey, Slot, SlotKey, StateIndex
from controller.maps import Maps, Op

# What the network comes to: each is written whole, entry by entry, in no order.
NETWORK_MAPS = ("nodes", "peers", "devices", "remotes", "unmasqueraded")

# Where the frontend stands in a struct source_key.
SOURCE_FRONTEND = slice(4, 24)

# A slot further than this behind the others of its Service is damage, not a backend.
GAP_MAX = 65536


class Mirror:
    """Attributes, besides the maps:
    state: the ids reserved so far, by index into the state map.
    references: backend id -> how many slots name it.
    strays: slots that no list of slots can hold.
    host_ports: how many entries of each map were host ports' when it was read.
    """

    def __init__(self) -> None:
        self.frontends: dict[bytes, bytes] = {}
        self.slots: dict[int, array[int]] = {}
        self.backends: dict[int, bytes] = {}
        self.sources: dict[bytes, set[bytes]] = {}
        self.maglev: dict[int, dict[int, bytes]] = {}
        self.state: dict[int, int] = {}
        self.network: dict[str, dict[bytes, bytes]] = {name: {} for name in NETWORK_MAPS}
        self.references: dict[int, int] = {}
        self.strays: set[SlotKey] = set()
        self.slot_count = 0
        self.source_count = 0
        self.host_ports: Counter[str] = Counter()

    @classmethod
    def read(cls, maps: Maps) -> "Mirror":
        """Raises BpfError."""
        mirror = cls()
        for name in ("state", "frontends", "backends", "sources", "maglev", *NETWORK_MAPS):
            mirror.apply(Op(name, key, value) for key, value in mirror._read(maps, name).items())
        slots = ((SlotKey.unpack(key), value) for key, value in mirror._read(maps, "slots").items())
        for key, value in sorted(slots):
            mirror._set_slot(*key, Slot.unpack(value).backend_id)
        return mirror

    def size(self, name: str) -> int:
        """How many entries a map has, host ports' included."""
        if name == "maglev":
            return sum(map(len, self.maglev.values()))
        if name in ("slots", "sources"):
            return (self.slot_count if name == "slots" else self.source_count) + self.host_ports[name]
        return len(self.backends if name == "backends" else self._held(name)) + self.host_ports[name]

    def apply(self, ops: Iterable[Op]) -> None:
        """What the maps hold once `ops` have run."""
        for name, key, value in ops:
            if name == "slots":
                self._set_slot(*SlotKey.unpack(key), Slot.unpack(value).backend_id if value else 0)
            elif name == "backends":
                backend_id = int.from_bytes(key, byteorder)
                if value is None:
                    self.backends.pop(backend_id, None)
                else:
                    self.backends[backend_id] = value
            elif name == "sources":
                self._set_source(key, value is not None)
            elif name == "maglev":
                self._set_row(*MaglevKey.unpack(key), value)
            elif name == "state":
                self.state[int.from_bytes(key, byteorder)] = int.from_bytes(value or b"", byteorder)
            else:
                held = self._held(name)
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value

    def differences(self, other: "Mirror") -> int:
        """How many entries differ between two mirrors."""
        count = _differences(self.frontends, other.frontends) + _differences(self.backends, other.backends)
        count += sum(_differences(self.network[name], other.network[name]) for name in NETWORK_MAPS)
        for frontend in self.sources.keys() | other.sources.keys():
            count += len(self.sources.get(frontend, set()) ^ other.sources.get(frontend, set()))
        for service_id in self.maglev.keys() | other.maglev.keys():
            count += _differences(self.maglev.get(service_id, {}), other.maglev.get(service_id, {}))
        for service_id in self.slots.keys() | other.slots.keys():
            one, two = self.slots.get(service_id, _NONE), other.slots.get(service_id, _NONE)
            if one != two:
                count += sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))
        return count + len(self.strays ^ other.strays)

    def _read(self, maps: Maps, name: str) -> dict[bytes, bytes]:
        """A map without the entries of host ports, which are counted."""
        entries = maps.read(name)
        if name in _OF_HOST_PORT:
            found = [key for key, value in entries.items() if _OF_HOST_PORT[name](key, value)]
            self.host_ports[name] = len(found)
            for key in found:
                del entries[key]
        return entries

    def _held(self, name: str) -> dict[bytes, bytes]:
        return self.frontends if name == "frontends" else self.network[name]

    def _set_slot(self, service_id: int, slot: int, backend_id: int) -> None:
        slots = self.slots.get(service_id)
        if slots is None:
            slots = self.slots[service_id] = array("I")
        if slot > len(slots) + GAP_MAX:
            (self.strays.add if backend_id else self.strays.discard)(SlotKey(service_id, slot))
        else:
            if slot >= len(slots):
                slots.extend([0] * (slot + 1 - len(slots)))
            before, slots[slot] = slots[slot], backend_id
            self._refer(before, backend_id)
        while slots and not slots[-1]:
            slots.pop()
        if not slots:
            del self.slots[service_id]

    def _set_source(self, key: bytes, there: bool) -> None:
        frontend = key[SOURCE_FRONTEND]
        sources = self.sources.setdefault(frontend, set())
        self.source_count += there - (key in sources)
        (sources.add if there else sources.discard)(key)
        if not sources:
            del self.sources[frontend]

    def _set_row(self, service_id: int, row: int, value: bytes | None) -> None:
        rows = self.maglev.setdefault(service_id, {})
        if value is None:
            rows.pop(row, None)
        else:
            rows[row] = value
        if not rows:
            del self.maglev[service_id]

    def _refer(self, before: int, now: int) -> None:
        """A slot named `before`, and names `now`; 0: nothing."""
        if now:
            self.slot_count += 1
            self.references[now] = self.references.get(now, 0) + 1
        if before:
            self.slot_count -= 1
            self.references[before] -= 1
            if not self.references[before]:
                del self.references[before]


_NONE: "array[int]" = array("I")


def _differences(mine: dict[Any, bytes], theirs: dict[Any, bytes]) -> int:
    return sum(mine.get(key) != theirs.get(key) for key in mine.keys() | theirs.keys())


def _id_of_host_port(key: bytes, _value: bytes) -> bool:
    """By the id, which is the key of a backend, and stands first in that of a slot."""
    return int.from_bytes(key[:4], byteorder) >= HostPort.IDS


# How an entry of each map is told to be a host port's, by key and value.
_OF_HOST_PORT: dict[str, Callable[[bytes, bytes], bool]] = {
    "frontends": lambda _, value: bool(Frontend.unpack(value).flags & FrontendFlag.HOST_PORT),
    "slots": _id_of_host_port,
    "backends": _id_of_host_port,
}


def reserved(state: StateIndex, until: int) -> Op:
    """The operation that notes that ids below `until` are taken."""
    return Op("state", int(state).to_bytes(4, byteorder), until.to_bytes(8, byteorder))
